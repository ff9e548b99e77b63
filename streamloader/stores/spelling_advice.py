"""Explain why a path or a scheme leads to nothing: what it may have been meant to be, and how that is written here."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote

from streamloader.arguments import find_unset_variable
from streamloader.stores.spellings import CID, KNOWN_SCHEMES

__all__ = ["explain_file_host", "explain_missing_object", "explain_missing_path", "explain_unknown_scheme"]

_QUOTES: Final = "\"'`<>\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e"
_FULL_WIDTH: Final = re.compile("[\uff0f\uff1a]")  # the slash and the colon of East Asian keyboards
_KNOWN: Final = "|".join(sorted(KNOWN_SCHEMES | {"scp", "dweb"}, key=len, reverse=True))
# An address after other text, such as "url:https://host/a" or "curl https://host/a".
_INNER_ADDRESS: Final = re.compile(rf"(?<![A-Za-z0-9+._-])(?:{_KNOWN})://\S+", re.IGNORECASE)
# The name of a scheme with wrong punctuation after it: "s3:b/k", "s3//b/k", "s3;//b/k", "https:\\host\k".
_BROKEN_SCHEME: Final = re.compile(rf"({_KNOWN})\s*(?:[:;]\s*[\\/\s]*|[\\/]{{2,}})(\S.*)", re.IGNORECASE | re.DOTALL)
_DRIVE: Final = re.compile(r"/?([A-Za-z]):([\\/].*)?", re.DOTALL)
_DRIVE_RELATIVE: Final = re.compile(r"([A-Za-z]):(\w.*)", re.DOTALL)
_WINDOWS_VARIABLE: Final = re.compile(r"%([A-Za-z_][A-Za-z0-9_]*)%")
_REMOTE_SHELL: Final = re.compile(
    r"((?:[\w.+-]+@)[\w.-]+|[\w.-]{2,}|(?:[\w.+-]+@)?\[[0-9A-Fa-f:]+\]):(?![:/]/|:)(.*)", re.DOTALL
)
_PORT: Final = re.compile(r"(\d{1,5}):(.*)", re.DOTALL)
_NO_HOSTS: Final = ("about", "blob", "data", "magnet", "mailto", "torrent", "urn", "youtube")
_ARN: Final = re.compile(r"arn:aws[a-z-]*:s3:::(.+)", re.DOTALL)
_IPFS_NAME: Final = re.compile(r"(?:k51|k2|12D3KooW)[0-9A-Za-z]{40,}(?=/|\Z)")
_LOWERCASED_CID: Final = re.compile(r"qm[1-9a-z]{44}(?=/|\Z)")
_WEB_HOST: Final = re.compile(r"www\.[\w-]+\.[\w.-]+(?::\d+)?(?:/.*)?", re.DOTALL)
_SHARE: Final = re.compile(r"//[^/]+/.+", re.DOTALL)
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_UNKNOWN_SCHEME: Final = re.compile(r"([\w+.-]{2,}):/")

_MIN_SIMILARITY: Final = 0.8  # of schemes, from 0 to 1
_OVER_SSH: Final = "write ssh://host/path, or ssh://host/~/path for a path in the home directory"
_OVER_S3: Final = "write s3://bucket/key, and pass the server of its S3 protocol as endpoint_url= in storage_options"
_LIVE: Final = "it is the address of a live stream, which has no size and no past: record it to a file first"
# How other schemes are written that neither this package nor fsspec has.
_COUNTERPARTS: Final = {
    **dict.fromkeys(("rsync", "scp", "sshfs", "git+ssh", "ssh+git"), _OVER_SSH),
    **dict.fromkeys(
        ("b2", "bos", "ceph", "cos", "cosn", "ks3", "minio", "obs", "r2", "spaces", "swift", "tos", "wasabi"), _OVER_S3
    ),
    **dict.fromkeys(("mms", "rtmp", "rtp", "rtsp", "srt", "udp"), _LIVE),
    **dict.fromkeys(
        ("dav", "davs", "webdavs"),
        "write https://host/path for named files, or webdav://host/path with base_url='https://host' in "
        "storage_options for listings",
    ),
    **dict.fromkeys(("mongodb", "mongodb+srv", "sqlite"), "it names a catalog: open the archive with open_archive"),
    "ftps": "write ftp://host/path, and pass tls=True in storage_options",
    "huggingface": "write hf://datasets/owner/name/path",
    "viewfs": "write hdfs://host/path",
}  # fmt: skip


def explain_missing_path(path: str) -> str:
    """Return the end of a message about a local path that does not exist: what it may have been meant to be, or ""."""
    for explain in _EXPLANATIONS:
        if (advice := explain(path)) is not None:
            return f"; {advice}"
    return explain_missing_object(path)


def explain_missing_object(path: str) -> str:
    """Return the end of a message about a path, in a store or local, that does not exist: how it is read, or ""."""
    advice = _explain_surroundings(path)
    if advice is None and _ESCAPE.search(path) is not None:
        decoded = unquote(path)
        if decoded != path and "\N{REPLACEMENT CHARACTER}" not in decoded:
            advice = f"names are taken literally, so write {decoded!r} if %XX stands for a character"
    if advice is None and "+" in path.rpartition("/")[2].strip("+"):
        advice = f"names are taken literally, so write {path.replace('+', ' ')!r} if + stands for a space"
    return f"; {advice}" if advice else ""


def explain_unknown_scheme(scheme: str, others: Iterable[str]) -> str:
    """Return a sentence about a scheme that no store serves, or "".

    Args:
        scheme: Scheme in lower case.
        others: Schemes that are served.
    """
    if scheme in _COUNTERPARTS:
        return _COUNTERPARTS[scheme]
    similar = difflib.get_close_matches(scheme, sorted({*KNOWN_SCHEMES, *others}), 1, _MIN_SIMILARITY)
    return f"write {similar[0]}:// if that is meant" if similar else ""


def explain_file_host(host: str, rest: str) -> str:
    """Return how the path is written that ``file://host/...`` may have been meant to be.

    Args:
        host: Text between ``file://`` and the next "/".
        rest: Text after it.
    """
    path = f"{host}{rest}"
    if host.startswith("~") or host in (".", ".."):
        return f"write {unquote(path)} without file://"
    if (advice := _explain_drive(path)) is not None:
        return advice
    if not rest:
        return f"write {unquote(path)} without file://, or file:///path with three slashes"
    return "write file:///path for a local file, or ssh://host/path for one on that machine"


def _explain_surroundings(path: str) -> str | None:
    shown = unicodedata.normalize("NFKC", path) if _FULL_WIDTH.search(path) else path
    shown = "".join(char for char in shown if unicodedata.category(char) != "Cf")
    shown = shown.strip().strip(_QUOTES).strip()
    return None if shown == path or not shown else f"write {shown!r}, without what is around or hidden in it"


def _explain_drive(path: str) -> str | None:
    if (drive := _DRIVE.fullmatch(path)) is not None:
        folder = (drive[2] or "/").replace("\\", "/")
        return f"it is a path of Windows, which WSL has as /mnt/{drive[1].lower()}{folder}"
    if (drive := _DRIVE_RELATIVE.fullmatch(path)) is not None:
        return f"it is a path of Windows, relative to the current folder of drive {drive[1]}: write the whole path"
    if path.startswith("\\\\"):
        return f"it is a share of Windows: write smb:{path.replace(chr(92), '/')}, or mount it"
    if (variable := _WINDOWS_VARIABLE.search(path)) is not None:
        name = variable[1]
        return f"it has a variable as Windows writes it: write {_WINDOWS_VARIABLE.sub('$' + name, path, count=1)}"
    return None


def _explain_file_address(path: str) -> str | None:
    if path[:5].lower() != "file:":
        return None
    rest = path[5:]
    if rest.startswith("~"):
        return f"write {rest} alone"
    return _explain_drive(rest) or f"write file://{os.path.abspath(rest)} or the path alone"


def _explain_inner_address(path: str) -> str | None:
    inner = _INNER_ADDRESS.search(path)
    return None if inner is None or inner.start() == 0 else f"write {inner[0].rstrip(_QUOTES + '),;]')} alone"


def _explain_broken_scheme(path: str) -> str | None:
    broken = _BROKEN_SCHEME.fullmatch(path)
    if broken is None:
        return None
    scheme, rest = broken[1].lower(), broken[2].replace("\\", "/").lstrip("/")
    if scheme in ("scp", "sftp", "ssh"):
        host, colon, folder = rest.partition(":")
        rest = f"{host}/{folder.lstrip('/')}" if colon and not _PORT.match(folder) else rest
        scheme = "ssh"
    return f"write {'ipfs' if scheme == 'dweb' else scheme}://{rest.removeprefix('ipfs/')}"


def _explain_cid(path: str) -> str | None:
    relative = path.removeprefix("ipfs/").removeprefix("ipns/")
    if _IPFS_NAME.match(relative) is not None:
        return f"it begins with a name of IPNS: write ipns://{relative}"
    if CID.match(relative) is not None:
        return f"it begins with a CID: write ipfs://{relative}"
    if _LOWERCASED_CID.match(relative) is not None:
        return "it looks like a CID whose letters were made lowercase: write ipfs:// and the CID as it was published"
    return None


def _explain_name(path: str) -> str | None:
    if (arn := _ARN.fullmatch(path)) is not None:
        return f"write s3://{arn[1]}"
    if _WEB_HOST.fullmatch(path) is not None:
        return f"if it is on the web, write https://{path}"
    if _SHARE.fullmatch(path) is not None:
        return f"if it is on the web, write https:{path}, and for a share of Windows smb:{path}"
    if path.startswith("~") and os.path.expanduser(path) == path:
        return f"there is no user {path[1:].partition('/')[0]!r} on this machine"
    return None


def _explain_remote_shell(path: str) -> str | None:
    remote = _REMOTE_SHELL.fullmatch(path)
    if remote is None or remote[1] in _NO_HOSTS:
        return None
    user, _, host = remote[1].rpartition("@")  # messages show no user in front of a host
    folder = remote[2]
    if (port := _PORT.fullmatch(folder)) is not None:
        host, folder = f"{host}:{port[1]}", port[2]
    folder = folder if folder.startswith("/") else f"/~/{folder.removeprefix('~/')}"
    login = f", with {user} and an @ before the host" if user else ""
    return f"to read it over SSH, write ssh://{host}{folder}{login}"


def _explain_scheme(path: str) -> str | None:
    scheme = _UNKNOWN_SCHEME.match(path) if "://" in path else None
    return None if scheme is None else f"no store serves {scheme[1]}://"


_EXPLANATIONS: Final[tuple[Callable[[str], str | None], ...]] = (
    _explain_file_address,
    _explain_drive,
    find_unset_variable,
    _explain_inner_address,
    _explain_surroundings,
    _explain_broken_scheme,
    _explain_cid,
    _explain_name,
    _explain_remote_shell,
    _explain_scheme,
)
