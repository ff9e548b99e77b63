"""Name objects on IPFS, by the addresses that their users have: ``ipfs://``, and those of gateways."""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from streamloader.errors import ConfigError, ProtocolError
from streamloader.redaction import redact_address

__all__ = [
    "IPFSObject",
    "IpfsLocation",
    "RemoteFileType",
    "as_objects",
    "choose_options",
    "digest_objects",
    "parse_ipfs_url",
]

_GATEWAY_PATH: Final = re.compile(r"(.*?)/(ipfs|ipns)/(.+)", re.DOTALL)
_SUBDOMAIN: Final = re.compile(r"([^.]+)\.(ipfs|ipns)\.(.+)")
_PLAIN_ADDRESS: Final = re.compile(r"(?:(ipfs|ipns)://|/(ipfs|ipns)/)?(.+)", re.IGNORECASE | re.DOTALL)
_IGNORED_PARAMETERS: Final = {"filename", "download", "format"}  # of gateways; they do not change the content
_DOT_SEGMENT: Final = re.compile(r"(?:^|/)\.\.?(?:/|\Z)")


class RemoteFileType(enum.Enum):
    """What an object on IPFS is.

    Attributes:
        PLAIN: One file, and one sample. It is read into memory at once (`Limits.object_bytes`).
        PLAIN_STREAM: One file, and one sample, for large files: it arrives as one stream (`Limits.stream_bytes`).
        FOLDER: Folder. Each file is a sample. Its file ``metadata.txt`` names them, with one relative path a line; a
            folder without that file is listed.
        TAR: Tar file, plain or compressed with gzip or Zstandard. Each member is a sample.
        ZIP: Zip file. Each member is a sample.
    """

    PLAIN = "plain"
    PLAIN_STREAM = "plain_stream"
    FOLDER = "folder"
    TAR = "tar"
    ZIP = "zip"


@dataclass(frozen=True, slots=True)
class IpfsLocation:
    """Location of an object, and the gateway that its address names.

    Attributes:
        scheme: "ipfs", or "ipns" for names.
        path: CID or name, and the path below it, without a "/" at its end.
        gateway: URL of the gateway. None if the address names none.
    """

    scheme: str
    path: str
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class IPFSObject:
    """One object of a data set on IPFS.

    Args:
        url: Address of the object: ``ipfs://CID``, ``ipfs://CID/path``, ``ipns://NAME/path``, a CID alone, or the URL
            that a gateway has for it: ``https://host/ipfs/CID/path``, ``https://CID.ipfs.host/path``.
        file_type: Kind of the object.

    Attributes:
        location: Location of the object.

    Raises:
        ConfigError: If the address or the type is none of these.
    """

    url: str
    file_type: RemoteFileType = RemoteFileType.PLAIN
    location: IpfsLocation = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check type and address."""
        try:
            object.__setattr__(self, "file_type", RemoteFileType(self.file_type))
        except ValueError as error:
            kinds = ", ".join(kind.name for kind in RemoteFileType)
            raise ConfigError(
                f"{self.file_type!r} is not a type of object: use one of RemoteFileType ({kinds})"
            ) from error
        object.__setattr__(self, "location", parse_ipfs_url(self.url))

    def __repr__(self) -> str:
        return f"IPFSObject({self.shown!r}, {self.file_type})"

    @property
    def shown(self) -> str:
        """The address without secrets, for messages."""
        return redact_address(self.url)

    def name_file(self, path: str) -> str:
        """Return the address of a file in this folder."""
        if self.location.gateway is None:
            return f"{self.url.rstrip('/')}/{path}"
        return f"{self.url.partition('#')[0].partition('?')[0].rstrip('/')}/{quote(path)}"


def parse_ipfs_url(url: str) -> IpfsLocation:
    """Return what the address of an object names.

    Raises:
        ConfigError: If the address names nothing on IPFS.
        MissingDependency: If packages for IPFS are not installed.
    """
    if not isinstance(url, str):
        raise ConfigError(f"the address of an object on IPFS must be a str, got {type(url).__name__}")
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    location = _parse_gateway_url(url) if scheme in ("http", "https") else _parse_plain_address(url)
    if location is None or _DOT_SEGMENT.search(location.path) or "\0" in location.path:
        raise ConfigError(
            f"{redact_address(url)} is no address on IPFS: expected ipfs://CID/path, ipns://NAME/path, or the URL of a "
            "gateway, such as https://host/ipfs/CID/path"
        )
    if location.scheme == "ipfs":
        _check_cid(location.path.partition("/")[0], url)
    return location


def as_objects(objects: IPFSObject | Iterable[IPFSObject]) -> tuple[IPFSObject, ...]:
    """Return the objects of a data set as a tuple.

    Raises:
        ConfigError: If there are none, or if one is something else.
    """
    listed = (objects,) if isinstance(objects, IPFSObject) else tuple(objects)
    for each in listed:
        if not isinstance(each, IPFSObject):
            raise ConfigError(
                f"a data set on IPFS takes IPFSObject(url, RemoteFileType....), got {type(each).__name__}"
            )
    if not listed:
        raise ConfigError("a data set on IPFS needs at least one object")
    return listed


def digest_objects(objects: Iterable[IPFSObject]) -> str:
    """Return a text that identifies objects and their order, for saved states. Gateways are no part of it."""
    rows = [[each.location.scheme, each.location.path, each.file_type.value] for each in objects]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]


def choose_options(
    location: IpfsLocation, ipfs_api_address: str | None, storage_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the options of the store that serves an object: a node first, then the gateway of the address."""
    options: dict[str, Any] = {}
    if ipfs_api_address is not None:
        options["rpc"] = ipfs_api_address
    if location.gateway is not None:
        options["gateways"] = [location.gateway]
    return options | dict(storage_options or {})


def _parse_gateway_url(url: str) -> IpfsLocation | None:
    """Parse https://specs.ipfs.tech/http-gateways/path-gateway and .../subdomain-gateway."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    unknown = sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - _IGNORED_PARAMETERS)
    if unknown:
        raise ConfigError(
            f"{redact_address(url)}: a gateway that is read block by block takes no parameters in the address of an "
            "object. Pass the login of a gateway in its URL, https://user:password@host/ipfs/CID"
        )
    user = parts.netloc.rpartition("@")[0]
    login, suffix = f"{user}@" if user else "", "" if port is None else f":{port}"
    if (match := _GATEWAY_PATH.fullmatch(parts.path)) is not None:
        return IpfsLocation(match[2], unquote(match[3]).rstrip("/"), f"{parts.scheme}://{parts.netloc}{match[1]}")
    if (match := _SUBDOMAIN.fullmatch(host)) is not None:
        path = unquote(f"{match[1]}{parts.path}").rstrip("/")
        return IpfsLocation(match[2], path, f"{parts.scheme}://{login}{match[3]}{suffix}")
    return None


def _parse_plain_address(url: str) -> IpfsLocation | None:
    match = _PLAIN_ADDRESS.fullmatch(url)
    path = "" if match is None else match[3].rstrip("/")
    if match is None or not path or path.startswith("/") or "://" in path:
        return None
    return IpfsLocation((match[1] or match[2] or "ipfs").lower(), path)


def _check_cid(text: str, url: str) -> None:
    from streamloader.stores.ipfs.cid import Cid

    try:
        Cid.parse(text)
    except ProtocolError as error:
        raise ConfigError(f"{redact_address(url)} is no address on IPFS: {error.message}") from error
