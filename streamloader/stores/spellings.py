"""Read other spellings of addresses: those of other tools, and what is left of an address that was taken for a path.

A spelling that means one thing is translated; one that does not is refused with the address to write instead. A local
file that has such a name literally always takes precedence.
"""

from __future__ import annotations

import os
import re
from typing import Final
from urllib.parse import unquote

from streamloader.arguments import find_unset_variable
from streamloader.errors import ConfigError
from streamloader.redaction import redact_address
from streamloader.stores.container_addresses import CONTAINER_SUFFIXES, split_container_address

__all__ = ["SCHEME_ALIASES", "expand_authority", "explain_missing_object", "explain_missing_path", "normalize_address"]

# Names that Hadoop, Spark, gsutil, fsspec and others have for the stores of this package.
SCHEME_ALIASES: Final = {
    "abfs": "az", "abfss": "az", "adl": "az", "azure": "az", "wasb": "az", "wasbs": "az", "gcs": "gs", "s3a": "s3",
    "s3n": "s3",
}  # fmt: skip
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# pathlib and os.path.normpath make one slash of two.
_ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.+)", re.DOTALL)
_ONE_SLASH_SCHEMES: Final = frozenset({
    *SCHEME_ALIASES, "az", "file", "ftp", "gs", "hdfs", "hf", "http", "https", "ipfs", "ipns", "s3", "sftp", "smb",
    "ssh", "webdav",
})  # fmt: skip
_AZURE: Final = re.compile(r"([^/@]*)@([A-Za-z0-9-]+)(?:\.[^/]*)?(/.*)?", re.DOTALL)
_AZURE_ACCOUNTS: Final = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_GATEWAY_QUERY: Final = re.compile(r"\?(?:(?:filename|download|format)=[^&/]*&?)+\Z")
_IPFS_PATH: Final = re.compile(r"(?:dweb:)?/(ipfs|ipns)/(.+)", re.DOTALL)
_CID: Final = re.compile(r"(?:Qm[1-9A-HJ-NP-Za-km-z]{44}|b[a-z2-7]{50,})(?=/|\Z)")
# The first "::" outside of an IPv6 address in brackets.
_CHAIN: Final = re.compile(r"([a-z][a-z0-9_+.-]*)(?:://((?:\[[0-9A-Fa-f:.%]*\]|.)*?))?::(.+)", re.DOTALL)
_IPV6_HOST: Final = re.compile(r"[a-z][a-z0-9_+.-]*://[^/?#]*\[[^/?#\]]*\](?=[:/?#]|\Z)")
_CHAINED_CONTAINERS: Final = ("zip", "tar", "libarchive")
_CHAINED_CACHES: Final = ("simplecache", "filecache", "blockcache", "cached")
_CHAINED_OTHERS: Final = ("dir", "reference", "gzip", "file", "local", *_ONE_SLASH_SCHEMES)
_DRIVE: Final = re.compile(r"([A-Za-z]):([\\/].*)", re.DOTALL)
_REMOTE_SHELL: Final = re.compile(r"((?:[\w.+-]+@)?[\w.-]{2,}|[\w.+-]+@\[[0-9A-Fa-f:]+\]):(?!//)(.*)", re.DOTALL)
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def normalize_address(address: str) -> str:
    """Return an address in the spelling of this package. Paths and addresses that have it are returned unchanged.

    ``gcs://``, ``s3a://``, ``abfs://`` and the like become ``gs://``, ``s3://`` and ``az://``; ``s3:/bucket/key`` gets
    its second slash; ``/ipfs/CID`` and ``dweb:/ipfs/CID`` become ``ipfs://CID``, without the file name for browsers;
    ``zip://member::address`` becomes ``address!/member``.

    Raises:
        ConfigError: If the spelling is that of another tool and has no counterpart. The message tells what to write.
    """
    if (
        "::" in _IPV6_HOST.sub("", address)
        and (chain := _CHAIN.fullmatch(address)) is not None
        and (chain[2] or "").count("[") == (chain[2] or "").count("]")  # not of a malformed IPv6 address
        and not os.path.lexists(address)
    ):
        return _translate_chain(address, *chain.groups())
    match = _SCHEME.match(address)
    if match is None:
        return _normalize_path(address)
    scheme, rest = match[1].lower(), match[2]
    if scheme in ("ipfs", "ipns"):
        rest = _GATEWAY_QUERY.sub("", rest.removeprefix(f"{scheme}/"))
        return f"{match[1]}://{rest}"
    if scheme in SCHEME_ALIASES:
        alias = SCHEME_ALIASES[scheme]
        return f"{alias}://{_drop_account(address, rest) if alias == 'az' else rest}"
    return address


def expand_authority(address: str) -> str:
    """Return an address whose bucket, host or user may be that of an environment variable: ``s3://$BUCKET/key``.

    The path of an address in a store is literal.

    Raises:
        ConfigError: If a variable is not set.
    """
    match = _SCHEME.match(address)
    if match is None or "$" not in match[2].partition("/")[0]:
        return address
    authority, slash, path = match[2].partition("/")
    expanded = os.path.expandvars(authority)
    problem = find_unset_variable(expanded)
    if problem is not None and match[1].lower() != "az":  # where $web and $root are containers
        raise ConfigError(f"{redact_address(address)}: {problem}")
    return f"{match[1]}://{expanded}{slash}{path}"


def explain_missing_path(path: str) -> str:
    """Return the end of a message about a local path that does not exist: what it may have been meant to be, or ""."""
    if (drive := _DRIVE.fullmatch(path)) is not None:
        return f"; it is a path of Windows, which WSL has as /mnt/{drive[1].lower()}{drive[2].replace(chr(92), '/')}"
    if path.startswith("\\\\"):
        return f"; it is a share of Windows: write smb:{path.replace(chr(92), '/')}, or mount it"
    if (unset := find_unset_variable(path)) is not None:
        return f"; {unset}"
    advice = None
    if _CID.match(path) is not None:
        advice = f"it begins with a CID: write ipfs://{path}"
    elif path[:5].lower() == "file:":
        advice = f"write file://{os.path.abspath(path[5:])} or the path alone"
    elif (remote := _REMOTE_SHELL.fullmatch(path)) is not None:
        folder = remote[2] if remote[2].startswith("/") else f"/~/{remote[2].removeprefix('~/')}"
        user, _, host = remote[1].rpartition("@")  # messages show no user in front of a host
        advice = f"to read it over SSH, write ssh://{host}{folder}" + f", with {user} and an @ before the host" * bool(
            user
        )
    return f"; {advice}" if advice else explain_missing_object(path)


def explain_missing_object(path: str) -> str:
    """Return the end of a message about a path, in a store or local, that does not exist: how it is read, or ""."""
    if _ESCAPE.search(path) is not None and (decoded := unquote(path)) != path:
        return f"; names are taken literally, so write {decoded!r} if %XX stands for a character"
    return ""


def _normalize_path(path: str) -> str:
    one_slash = _ONE_SLASH.fullmatch(path)
    if one_slash is not None and one_slash[1].lower() in _ONE_SLASH_SCHEMES:
        if os.path.lexists(path):
            return path
        start = "/" if one_slash[1].lower() == "file" else ""
        return normalize_address(f"{one_slash[1]}://{start}{one_slash[2]}")
    ipfs = _IPFS_PATH.fullmatch(path)
    if ipfs is not None and not os.path.lexists(path) and not os.path.isdir(f"/{ipfs[1]}"):
        return normalize_address(f"{ipfs[1]}://{ipfs[2]}")
    return path


def _drop_account(address: str, rest: str) -> str:
    """Return container and path without the account, which is an option here."""
    match = _AZURE.fullmatch(rest)
    if match is None:
        return rest
    container, account, path = match[1], match[2], match[3] or ""
    if account not in map(os.environ.get, _AZURE_ACCOUNTS):
        raise ConfigError(
            f"{redact_address(address)} names the account {account}: write az://{container}{path}, and pass "
            f"account_name={account!r} in storage_options, or set {_AZURE_ACCOUNTS[0]}"
        )
    return f"{container}{path}"


def _translate_chain(address: str, kind: str, member: str | None, outer: str) -> str:
    """Return the address of a chain of fsspec, such as ``zip://*.mp4::s3://bucket/a.zip``."""
    shown = redact_address(address)
    if kind in _CHAINED_CONTAINERS:
        translated = f"{normalize_address(outer)}!/{(member or '').lstrip('/')}"
        if split_container_address(translated) is None:
            raise ConfigError(
                f"{shown}: members are read from files whose names end in {', '.join(CONTAINER_SUFFIXES)}; write the "
                "address of such a file, then !/ and the path of the member"
            )
        return translated
    if kind in _CHAINED_CACHES:
        raise ConfigError(
            f"{shown}: write {redact_address(outer)}, and pass cache_dir= in storage_options to keep what was read"
        )
    if kind in _CHAINED_OTHERS:
        raise ConfigError(
            f"{shown} is a chain of fsspec: only members of containers are read by one address, such as "
            "s3://bucket/set.zip!/a.mp4"
        )
    return address
