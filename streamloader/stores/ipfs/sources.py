"""Where blocks come from: the RPC API of a node, and trustless gateways.

Formats: https://docs.ipfs.tech/reference/kubo/rpc, https://specs.ipfs.tech/http-gateways/trustless-gateway and
https://github.com/multiformats/multiaddr. What sources give is not checked here.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

import aiohttp

from streamloader.config import Timeouts
from streamloader.errors import (
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolFault,
    ServerBusy,
    StoreError,
    StoreTimeout,
)
from streamloader.stores.ipfs.car import CarReader
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.transport import Http

__all__ = ["Gateway", "RpcNode", "Source", "default_gateways", "default_rpc", "http_url"]

_NAME_RECORD: Final = 10 << 10  # bytes of an IPNS record at most, by its specification
_ANSWER: Final = 64 << 10  # bytes of an answer in JSON at most
_NOT_THERE: Final = ("not found", "could not find", "not find", "no link named")


def http_url(address: str) -> str:
    """Return the http(s) URL of a URL or multiaddr, such as ``/ip4/127.0.0.1/tcp/5001`` or ``/dns4/host/https``.

    Raises:
        ConfigError: it is neither.
    """
    if not address.startswith("/"):
        parts = urlsplit(address)
        try:
            whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            whole = False
        if not whole or parts.query or parts.fragment:
            raise ConfigError(f"{address!r} is no http(s) URL or multiaddr of a node or gateway")
        return address.rstrip("/")
    host, port, scheme = "", "", ""
    words = iter(address.strip("/").split("/"))
    for word in words:
        if word in ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr") and not host:
            host = next(words, "")
            host = f"[{host}]" if word == "ip6" else host
        elif word == "tcp" and host and not port:
            port = next(words, "")
        elif word in ("http", "https") and host:
            scheme = scheme or word  # "tls" may stand before "http"
        elif word == "tls" and host:
            scheme = "https"
        elif word == "p2p":
            next(words, "")
        else:
            raise ConfigError(f"{address!r} is a multiaddr, but not of an HTTP server: what is {word!r}?")
    if not host or not (port.isdigit() if port else scheme):
        raise ConfigError(f"{address!r} is no multiaddr of an HTTP server, such as /ip4/127.0.0.1/tcp/5001")
    return f"{scheme or 'http'}://{host}{f':{port}' if port else ''}"


def default_rpc() -> str | None:
    """Return the address of the node that this machine's user has: $IPFS_API, or the file that it writes."""
    named = os.environ.get("IPFS_API", "").strip()
    if named:
        return named
    folder = Path(os.environ.get("IPFS_PATH") or "~/.ipfs").expanduser()
    try:
        return (folder / "api").read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def default_gateways() -> list[str]:
    """Return the gateways that $IPFS_GATEWAY names, separated by commas or spaces."""
    return os.environ.get("IPFS_GATEWAY", "").replace(",", " ").split()


class Source(abc.ABC):
    """Gives blocks by their CIDs.

    Attributes:
        where: it is, for messages.
    """

    def __init__(self, http: Http, address: str, token: str | None = None) -> None:
        parts = urlsplit(http_url(address))
        user, at, host = parts.netloc.rpartition("@")
        self.where = f"{parts.scheme}://{host}"
        self._root = urlunsplit((parts.scheme, host, parts.path, "", ""))
        self._http = http
        self._secrets: dict[str, str] = {}
        if at:
            known = base64.b64encode(unquote(user).encode()).decode()
            self._secrets["Authorization"] = f"Basic {known}"
        elif token:
            self._secrets["Authorization"] = f"Bearer {token}"

    @abc.abstractmethod
    async def block(self, cid: Cid, most: int, timeouts: Timeouts) -> bytes:
        """Return what is said to be a block of at most `most` bytes.

        Raises:
            StoreError: there is none.
        """

    @abc.abstractmethod
    async def name(self, name: str, timeouts: Timeouts) -> str | bytes:
        """Return what is said to be behind an IPNS name: a path (a node's own word), or a signed record."""


class RpcNode(Source):
    """The RPC API of a node. What it says of names is believed: it is the user's own."""

    async def block(self, cid: Cid, most: int, timeouts: Timeouts) -> bytes:
        """See :meth:`Source.block`. A node looks for blocks that it does not have for as long as it may."""
        return await self._call("block/get", {"arg": str(cid)}, most, f"block {cid}", timeouts)

    async def name(self, name: str, timeouts: Timeouts) -> str:
        """See :meth:`Source.name`."""
        answer = await self._call("name/resolve", {"arg": name}, _ANSWER, f"name {name}", timeouts)
        return str(self._parsed(answer, "Path"))

    async def add(self, data: bytes, timeouts: Timeouts) -> str:
        """Add a file to the node, and return its CID as the node writes it."""
        with aiohttp.MultipartWriter("form-data") as body:
            body.append(data, {"Content-Disposition": 'form-data; name="file"; filename="file"'})
        query = {"cid-version": "1", "raw-leaves": "true", "pin": "true"}
        answer = await self._call("add", query, _ANSWER, "what was added", timeouts, body)
        return str(self._parsed(answer, "Hash"))

    def _parsed(self, answer: bytes, key: str) -> object:
        try:
            return json.loads(answer)[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ProtocolFault(
                f"{self.where} answers something that is no RPC API of IPFS", address=self.where
            ) from None

    async def _call(
        self,
        method: str,
        query: Mapping[str, str],
        most: int,
        what: str,
        timeouts: Timeouts,
        body: aiohttp.MultipartWriter | None = None,
    ) -> bytes:
        patience = f"{max(1, int(min(timeouts.response, 1e6) * 900))}ms"  # that it gives up before we do, and says so
        url = f"{self._root}/api/v0/{method}?{urlencode({**query, 'timeout': patience})}"
        try:
            async with self._http.request("POST", url, timeouts, secrets=self._secrets, body=body) as answer:
                return await answer.whole(most, what)
        except ServerBusy as error:
            if error.details.get("status") != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise self._said(error, what, timeouts) from error

    def _said(self, error: ServerBusy, what: str, timeouts: Timeouts) -> StoreError:
        """Return what a status of 500 means: nodes answer so whenever something is not as it should be."""
        try:
            text = str(json.loads(error.details.get("text", ""))["Message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return error
        said = f"{self.where}: {text} ({what})"
        if "timed out" in text or "deadline exceeded" in text:
            return StoreTimeout(said, address=self.where, waited=timeouts.response, stage="looking for a block")
        if any(words in text.lower() for words in _NOT_THERE):
            return NotFound(said, address=self.where)
        return StoreError(said, address=self.where)


class Gateway(Source):
    """A gateway that gives blocks and CARs."""

    async def block(self, cid: Cid, most: int, timeouts: Timeouts) -> bytes:
        """See :meth:`Source.block`."""
        url = f"{self._root}/ipfs/{cid}?format=raw"
        kind = {"Accept": "application/vnd.ipld.raw"}
        async with self._http.request("GET", url, timeouts, kind, self._secrets) as answer:
            return await answer.whole(most, f"block {cid}")

    @contextlib.asynccontextmanager
    async def car(self, cid: Cid, start: int, end: int, most: int, timeouts: Timeouts) -> AsyncIterator[CarReader]:
        """Begin a CAR with the blocks of a file that bytes [start, end) take.

        Raises:
            StoreError: there is none.
        """
        query = urlencode({"format": "car", "dag-scope": "entity", "entity-bytes": f"{start}:{end - 1}"})
        url = f"{self._root}/ipfs/{cid}?{query}"
        kind = {"Accept": "application/vnd.ipld.car; version=1; order=dfs; dups=y"}
        async with self._http.request("GET", url, timeouts, kind, self._secrets) as answer:
            chunks = answer.chunks()
            async with contextlib.aclosing(chunks):
                yield CarReader(chunks, most, self.where)

    async def name(self, name: str, timeouts: Timeouts) -> bytes:
        """See :meth:`Source.name`."""
        url = f"{self._root}/ipns/{quote(name, safe='')}?format=ipns-record"
        kind = {"Accept": "application/vnd.ipfs.ipns-record"}
        try:
            async with self._http.request("GET", url, timeouts, kind, self._secrets) as answer:
                return await answer.whole(_NAME_RECORD, f"the record of {name}")
        except ProtocolFault as error:
            raise NotSupported(f"{error.message}; it gives no records of names", address=self.where) from error
