"""Read other spellings of addresses: those of other tools, and what is left of an address that was taken for a path.

A spelling that means one thing is translated; one that does not is refused with the address to write instead. A local
file that has such a name literally always takes precedence.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final

from streamloader.arguments import find_unset_variable
from streamloader.errors import ConfigError
from streamloader.redaction import redact_address
from streamloader.stores.container_addresses import CONTAINER_SUFFIXES, split_container_address

__all__ = ["CID", "KNOWN_SCHEMES", "SCHEME_ALIASES", "expand_authority", "normalize_address"]

# Names that Hadoop, Spark, gsutil, fsspec and others have for the stores of this package.
SCHEME_ALIASES: Final = {
    "abfs": "az", "abfss": "az", "adl": "az", "azure": "az", "wasb": "az", "wasbs": "az", "gcs": "gs", "s3a": "s3",
    "s3n": "s3",
}  # fmt: skip
KNOWN_SCHEMES: Final = frozenset({
    *SCHEME_ALIASES, "az", "dbfs", "file", "ftp", "gs", "hdfs", "hf", "http", "https", "ipfs", "ipns", "memory", "oss",
    "s3", "sftp", "smb", "ssh", "webdav",
})  # fmt: skip
"""Schemes of well-known stores: text that begins with one of them is an address, even if its punctuation is wrong."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# pathlib and os.path.normpath make one slash of two.
_ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.+)", re.DOTALL)
_HOSTLESS_SCHEMES: Final = ("dbfs", "file")  # whose usual form has one slash, or three
_AZURE: Final = re.compile(r"([^/@]*)@([A-Za-z0-9-]+)(\.[^/]*)?(/.*)?", re.DOTALL)
_AZURE_SERVER: Final = re.compile(
    r"([a-z0-9-]+)\.(?:blob|dfs)\.(?:core|storage)\.[\w.]+(?::443)?(?:/([^/]*)(/.*)?)?", re.DOTALL | re.IGNORECASE
)
_AZURE_ACCOUNTS: Final = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
# The servers of S3 and of Google: https://bucket.s3.region.amazonaws.com/key and https://s3.amazonaws.com/bucket/key.
_BUCKET_SERVER: Final = re.compile(
    r"(?:(.+)\.)?(?:s3[a-z0-9.-]*\.amazonaws\.com(?:\.cn)?|storage\.googleapis\.com)(?:/(.*))?", re.DOTALL
)
_GATEWAY_QUERY: Final = re.compile(r"\?(?:(?:filename|download|format)=[^&/]*&?)+\Z")
_IPFS_PATH: Final = re.compile(r"(?:(?:web\+)?dweb:)?(?<!\w)/{0,3}(?<=[:/])(ipfs|ipns)/(.+)", re.DOTALL)
CID: Final = re.compile(
    r"(?:Qm[1-9A-HJ-NP-Za-km-z]{44}|b[a-z2-7]{50,}|B[A-Z2-7]{50,}|z[1-9A-HJ-NP-Za-km-z]{46,}|k[0-9a-z]{50,}"
    r"|K[0-9A-Z]{50,}|f01[0-9a-f]{60,}|F01[0-9A-F]{60,})(?=[/?#]|\Z)"
)
"""The text forms that are common for CIDs."""
# The first "::" outside of an IPv6 address in brackets.
_CHAIN: Final = re.compile(r"([a-z][a-z0-9_+.-]*)(?:://((?:\[[0-9A-Fa-f:.%]*\]|.)*?))?::(.+)", re.DOTALL)
_CHAIN_SEPARATOR: Final = re.compile(r"::(?![^\[]*\])")
_MIN_IPV6_COLONS: Final = 2
_IPV6_HOST: Final = re.compile(r"[a-z][a-z0-9_+.-]*://[^/?#]*\[[^/?#\]]*\](?=[:/?#]|\Z)")
_CHAINED_CONTAINERS: Final = ("zip", "tar", "libarchive")
_CHAINED_CACHES: Final = ("simplecache", "filecache", "blockcache", "cached")
_CHAINED_OTHERS: Final = ("dir", "reference", "gzip", "local", *KNOWN_SCHEMES)


def normalize_address(address: str) -> str:
    """Return an address in the spelling of this package. Paths and addresses that have it are returned unchanged.

    ``gcs://``, ``s3a://``, ``abfs://`` and the like become ``gs://``, ``s3://`` and ``az://``; ``s3:/bucket/key`` gets
    its second slash; ``/ipfs/CID`` and ``dweb:/ipfs/CID`` become ``ipfs://CID``, without the file name for browsers;
    ``zip://member::address`` becomes ``address!/member``.

    Raises:
        ConfigError: If the spelling is that of another tool and has no counterpart. The message tells what to write.
    """
    _require_brackets(address)
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
    if scheme in ("dweb", "web+dweb", "web+ipfs", "web+ipns"):
        path = f"{scheme.removeprefix('web+')}/{rest}" if scheme.startswith("web+ip") else rest.lstrip("/")
        return normalize_address(f"/{path}")
    if scheme in ("ipfs", "ipns"):
        return f"{match[1]}://{_clean_ipfs_path(scheme, rest)}"
    alias = SCHEME_ALIASES.get(scheme, scheme)
    if alias in ("gs", "s3"):
        _refuse_server(address, alias, rest)
    if alias == "az":
        rest = _drop_account(address, rest)
    elif alias == scheme:
        return address
    return f"{match[1] if alias == scheme else alias}://{rest}"


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


def _normalize_path(path: str) -> str:
    one_slash = _ONE_SLASH.fullmatch(path)
    if one_slash is not None and (scheme := one_slash[1].lower()) in KNOWN_SCHEMES:
        if os.path.lexists(path):
            return path
        return normalize_address(f"{scheme}://{'/' if scheme in _HOSTLESS_SCHEMES else ''}{one_slash[2]}")
    ipfs = _IPFS_PATH.fullmatch(path)
    if ipfs is not None and not os.path.lexists(path) and not os.path.isdir(f"/{ipfs[1]}"):
        return normalize_address(f"{ipfs[1]}://{ipfs[2]}")
    return path


def _require_brackets(address: str) -> None:
    """Refuse an IPv6 address without its brackets."""
    match = _SCHEME.match(address)
    authority, slash, path = match[2].partition("/") if match else ("", "", "")
    if match is None or authority.count(":") < _MIN_IPV6_COLONS or "[" in authority:
        return
    login, at, host = authority.rpartition("@")
    try:
        ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return
    written = redact_address(f"{match[1]}://{login}{at}[{host}]{slash}{path}")
    raise ConfigError(f"an IPv6 address needs brackets: write {written}")


def _clean_ipfs_path(scheme: str, rest: str) -> str:
    """Return CID and path without what only browsers and gateways read."""
    rest = rest.lstrip("/").removeprefix(f"{scheme}/")
    cid = CID.match(rest)
    if cid is not None and rest[cid.end() : cid.end() + 1] in ("?", "#"):  # no part of a name can begin there
        return cid[0]
    return _GATEWAY_QUERY.sub("", rest)


def _refuse_server(address: str, scheme: str, rest: str) -> None:
    """Refuse the name of a server in the place of a bucket."""
    server = _BUCKET_SERVER.fullmatch(rest)
    if server is not None:
        written = "/".join(part for part in server.groups() if part)
        raise ConfigError(
            f"{redact_address(address)} names a server where the bucket belongs: write {scheme}://{written or 'bucket'}"
        )


def _drop_account(address: str, rest: str) -> str:
    """Return container and path without the account, which is an option here."""
    match = _AZURE.fullmatch(rest)
    server = _AZURE_SERVER.fullmatch(rest)
    if match is not None and (match[3] or not address.lower().startswith("az:")):
        container, account, path = match[1], match[2], match[4] or ""
    elif server is not None:
        account, container, path = server[1], server[2] or "", server[3] or ""
    elif rest.partition("/")[0].lower().endswith(".azuredatalakestore.net"):
        raise ConfigError(
            f"{redact_address(address)} names a store of Data Lake Storage Gen1, which no longer exists: write "
            "az://container/path for its account of Gen2"
        )
    else:
        return rest
    if account not in map(os.environ.get, _AZURE_ACCOUNTS):
        raise ConfigError(
            f"{redact_address(address)} names the account {account}: write az://{container}{path}, and pass "
            f"account_name={account!r} in storage_options, or set {_AZURE_ACCOUNTS[0]}"
        )
    return f"{container}{path}"


def _translate_chain(address: str, kind: str, member: str | None, outer: str) -> str:
    """Return the address of a chain of fsspec, such as ``zip://*.mp4::s3://bucket/a.zip``."""
    shown = redact_address(address)
    links = _CHAIN_SEPARATOR.split(address)
    others = [link for link in links if link.partition("://")[0] not in _CHAINED_CACHES]
    if len(others) < len(links):
        plain = normalize_address("::".join(others)) if others else "the address of the file"
        raise ConfigError(
            f"{shown}: write {redact_address(plain)}, and pass cache_dir= in storage_options to keep what was read"
        )
    if kind in _CHAINED_CONTAINERS:
        translated = f"{normalize_address(outer)}!/{(member or '').lstrip('/')}"
        if split_container_address(translated) is None:
            raise ConfigError(
                f"{shown}: members are read from files whose names end in {', '.join(CONTAINER_SUFFIXES)}; write the "
                "address of such a file, then !/ and the path of the member"
            )
        return translated
    if kind in _CHAINED_OTHERS or "://" in outer:
        raise ConfigError(
            f"{shown} is a chain of fsspec: only members of containers are read by one address, such as "
            "s3://bucket/set.zip!/a.mp4"
        )
    return address
