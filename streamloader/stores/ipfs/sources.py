"""Sources of blocks: the RPC API of an IPFS node, and trustless gateways.

Formats: https://docs.ipfs.tech/reference/kubo/rpc, https://specs.ipfs.tech/http-gateways/trustless-gateway and
https://github.com/multiformats/multiaddr. The blocks that sources send are not verified here.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

import aiohttp
from typing_extensions import override

from streamloader.common.guarded_files import GuardedFolder, UnsafePath
from streamloader.common.printable import make_printable
from streamloader.config import Timeouts
from streamloader.errors import (
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
)
from streamloader.redaction import has_hidden_host, redact_address
from streamloader.stores.addresses import check_host_name, check_user_name, split_url
from streamloader.stores.ipfs.car import CarReader
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.transport import IpfsHttpClient

__all__ = ["BlockSource", "Gateway", "RpcNode", "get_default_gateways", "get_default_rpc", "parse_http_url"]

_MAX_NAME_RECORD_BYTES: Final = 10 << 10  # by the specification of IPNS
_MAX_JSON_BYTES: Final = 64 << 10
_MAX_API_FILE_BYTES: Final = 4 << 10
_NOT_FOUND_PHRASES: Final = ("not found", "could not find", "not find", "no link named")
_log: Final = logging.getLogger("streamloader")


def parse_http_url(address: str) -> str:
    """Return the URL of a server given as URL or as multiaddr, such as ``/ip4/127.0.0.1/tcp/5001``.

    Raises:
        ConfigError: If the address is neither an http(s) URL nor a multiaddr of an HTTP server, or if its host or user
            name has characters that such names must not have.
    """
    if not address.startswith("/"):
        parts = split_url(address)
        try:
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            valid = False
        if not valid or parts.query or parts.fragment or has_hidden_host(address):
            raise ConfigError(f"{_show_invalid(address)} is not an http(s) URL or multiaddr of a node or gateway")
        check_host_name(parts.hostname or "")
        if parts.username:
            check_user_name(unquote(parts.username))
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
            scheme = scheme or word  # keep "https" if "tls" came before "http"
        elif word == "tls" and host:
            scheme = "https"
        elif word == "p2p":
            next(words, "")
        else:
            raise ConfigError(f"{_show_invalid(address)} is a multiaddr, but not one of an HTTP server")
    if not host or not (port.isdigit() if port else scheme):
        raise ConfigError(
            f"{_show_invalid(address)} is not a multiaddr of an HTTP server, such as /ip4/127.0.0.1/tcp/5001"
        )
    check_host_name(host.strip("[]"))
    return f"{scheme or 'http'}://{host}{f':{port}' if port else ''}"


def _show_invalid(address: str) -> str:
    """Return an invalid address for a message, or less than that if it may contain a password."""
    return "the given address" if "@" in address else repr(redact_address(address))


def get_default_rpc() -> str | None:
    """Return the address of the user's own node: $IPFS_API, or the content of the file that the node writes.

    That file is ignored, with a warning, if another user could have written it.
    """
    address = os.environ.get("IPFS_API", "").strip()
    if address:
        return address
    path = os.path.realpath(os.path.expanduser(os.environ.get("IPFS_PATH") or "~/.ipfs"))
    try:
        with GuardedFolder(path) as folder, os.fdopen(folder.open_file("api"), "rb") as file:
            return file.read(_MAX_API_FILE_BYTES).decode().strip() or None
    except UnsafePath as error:
        _log.warning("the IPFS node of %s is not used: %s. Or give its address in IPFS_API", path, error.message)
    except (OSError, UnicodeDecodeError):
        pass
    return None


def get_default_gateways() -> list[str]:
    """Return the gateways in $IPFS_GATEWAY, which are separated by commas or spaces."""
    return os.environ.get("IPFS_GATEWAY", "").replace(",", " ").split()


class BlockSource(abc.ABC):
    """A server that sends blocks by CID, and resolves names.

    Args:
        client: HTTP client of the store.
        address: URL or multiaddr of the server. It may contain user and password.
        token: Bearer token. Defaults to none.

    Attributes:
        origin: Scheme, host and port of the server, for messages.
    """

    def __init__(self, client: IpfsHttpClient, address: str, token: str | None = None) -> None:
        parts = urlsplit(parse_http_url(address))
        user, has_user, host = parts.netloc.rpartition("@")
        self.origin = f"{parts.scheme}://{host}"
        self._root = urlunsplit((parts.scheme, host, parts.path, "", ""))
        self._client = client
        self._secrets: dict[str, str] = {}
        if has_user:
            encoded = base64.b64encode(unquote(user).encode()).decode()
            self._secrets["Authorization"] = f"Basic {encoded}"
        elif token:
            self._secrets["Authorization"] = f"Bearer {token}"

    @abc.abstractmethod
    async def get_block(self, cid: Cid, max_bytes: int, timeouts: Timeouts) -> bytes:
        """Return the bytes that the server sends for a block. They are not verified.

        Args:
            cid: CID of the block.
            max_bytes: Maximum size of the block.
            timeouts: Time limits of the request.

        Raises:
            StoreError: If the server does not send the block.
        """

    @abc.abstractmethod
    async def resolve_name(self, name: str, timeouts: Timeouts) -> str | bytes:
        """Return the path that a name stands for as a node states it, or the signed IPNS record from a gateway.

        Args:
            name: IPNS or DNS name.
            timeouts: Time limits of the request.

        Raises:
            StoreError: If the server does not resolve the name.
        """


class RpcNode(BlockSource):
    """RPC API of an IPFS node. It belongs to the user, so the paths that it states for names are trusted."""

    @override
    async def get_block(self, cid: Cid, max_bytes: int, timeouts: Timeouts) -> bytes:
        return await self._call("block/get", {"arg": str(cid)}, max_bytes, f"block {cid}", timeouts)

    @override
    async def resolve_name(self, name: str, timeouts: Timeouts) -> str:
        response = await self._call("name/resolve", {"arg": name}, _MAX_JSON_BYTES, f"name {name}", timeouts)
        return str(self._parse_response(response, "Path"))

    async def add(self, data: bytes, timeouts: Timeouts) -> str:
        """Add a file to the node, and return its CID in the node's text form."""
        with aiohttp.MultipartWriter("form-data") as body:
            body.append(data, {"Content-Disposition": 'form-data; name="file"; filename="file"'})
        query = {"cid-version": "1", "raw-leaves": "true", "pin": "true"}
        response = await self._call("add", query, _MAX_JSON_BYTES, "the added file", timeouts, body)
        return str(self._parse_response(response, "Hash"))

    def _parse_response(self, response: bytes, key: str) -> object:
        try:
            return json.loads(response)[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ProtocolError(
                f"{self.origin} does not answer like the RPC API of an IPFS node", address=self.origin
            ) from None

    async def _call(
        self,
        method: str,
        query: Mapping[str, str],
        max_bytes: int,
        what: str,
        timeouts: Timeouts,
        body: aiohttp.MultipartWriter | None = None,
    ) -> bytes:
        # The node searches for a block until its own timeout. 0.9 of the deadline lets it report the failure in time.
        node_timeout = f"{max(1, int(min(timeouts.response, 1e6) * 900))}ms"
        url = f"{self._root}/api/v0/{method}?{urlencode({**query, 'timeout': node_timeout})}"
        try:
            async with self._client.request("POST", url, timeouts, secrets=self._secrets, body=body) as response:
                return await response.read_all(max_bytes, what)
        except ServerBusy as error:
            if error.details.get("status") != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise self._translate_error(error, what, timeouts) from error

    def _translate_error(self, error: ServerBusy, what: str, timeouts: Timeouts) -> StoreError:
        """Return the error for a response with status 500, which nodes send for every kind of failure."""
        try:
            text = str(json.loads(error.details.get("text", ""))["Message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return error
        message = f"{self.origin}: {make_printable(text)} ({what})"
        if "timed out" in text or "deadline exceeded" in text:
            return StoreTimeout(message, address=self.origin, waited=timeouts.response, stage="looking for a block")
        if any(phrase in text.lower() for phrase in _NOT_FOUND_PHRASES):
            return NotFound(message, address=self.origin)
        return StoreError(message, address=self.origin)


class Gateway(BlockSource):
    """Trustless gateway, which sends blocks, CARs and IPNS records."""

    @override
    async def get_block(self, cid: Cid, max_bytes: int, timeouts: Timeouts) -> bytes:
        url = f"{self._root}/ipfs/{cid}?format=raw"
        headers = {"Accept": "application/vnd.ipld.raw"}
        async with self._client.request("GET", url, timeouts, headers, self._secrets) as response:
            return await response.read_all(max_bytes, f"block {cid}")

    @contextlib.asynccontextmanager
    async def open_car(
        self, cid: Cid, start: int, end: int, max_block_bytes: int, timeouts: Timeouts
    ) -> AsyncIterator[CarReader]:
        """Request a CAR with the blocks of bytes [start, end) of a file.

        Args:
            cid: CID of the file.
            start: Offset of the first byte.
            end: Offset after the last byte.
            max_block_bytes: Maximum size of a block.
            timeouts: Time limits of the request.

        Raises:
            StoreError: If the gateway does not send a CAR.
        """
        query = urlencode({"format": "car", "dag-scope": "entity", "entity-bytes": f"{start}:{end - 1}"})
        url = f"{self._root}/ipfs/{cid}?{query}"
        headers = {"Accept": "application/vnd.ipld.car; version=1; order=dfs; dups=y"}
        async with self._client.request("GET", url, timeouts, headers, self._secrets) as response:
            pieces = response.pieces()
            async with contextlib.aclosing(pieces):
                yield CarReader(pieces, max_block_bytes, self.origin)

    @override
    async def resolve_name(self, name: str, timeouts: Timeouts) -> bytes:
        url = f"{self._root}/ipns/{quote(name, safe='')}?format=ipns-record"
        headers = {"Accept": "application/vnd.ipfs.ipns-record"}
        try:
            async with self._client.request("GET", url, timeouts, headers, self._secrets) as response:
                return await response.read_all(_MAX_NAME_RECORD_BYTES, f"the record of {name}")
        except ProtocolError as error:
            raise NotSupported(f"{error.message}; it does not provide IPNS records", address=self.origin) from error
