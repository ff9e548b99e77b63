"""A misbehaving web server.

It works correctly until a fault is switched on::

    async with HttpServer({"a.bin": data}) as server:
        server.fault = HttpFault("truncated", at=1_000)
        async with open_store(server.url) as store:
            await store.read("a.bin")

It implements HTTP/1.1 over plain sockets, or TLS with a certificate: HEAD and GET, single ranges, strong ETags
with If-Match, Last-Modified and persistent connections. A fault affects requests whose range includes the byte ``at``;
other requests get correct responses. The docstrings of the functions in :data:`KINDS` describe the faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import re
import ssl
from collections.abc import Mapping
from typing import Final, Self
from urllib.parse import unquote

from streamloader.testing.faults.http_faults import KINDS, Exchange, HttpFault, HttpRequest
from streamloader.testing.faults.shutdown import stop_accepting

__all__ = ["KINDS", "HttpFault", "HttpRequest", "HttpServer"]

_ORIGIN: Final = re.compile(r"https?://[^/?]*")  # of targets in the form for proxies, RFC 9112, section 3.2.2
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_FIRST_MODIFIED_S: Final = 1_700_000_000  # Unix time of the first version of each object


class HttpServer:
    """The server; an asynchronous context manager.

    Args:
        objects: Objects to serve, path -> bytes.
        tls: Server context for https; see :mod:`streamloader.testing.faults.certificates`.
        host: Address to listen on, at a free port.
        name: Host name for `url`. Defaults to the address.
        etags: Whether responses have ETags.
        dates: Whether responses have Last-Modified.

    Attributes:
        url: URL of the root, without a trailing "/".
        requests: All requests so far.
        fault_count: Number of requests that a fault affected.
        connections: Number of connections so far.
    """

    def __init__(
        self,
        objects: Mapping[str, bytes],
        *,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        name: str | None = None,
        etags: bool = True,
        dates: bool = True,
    ) -> None:
        self._fault: HttpFault | None = None
        self._affected = 0  # requests affected by the active fault
        self.requests: list[HttpRequest] = []
        self.fault_count = 0
        self.connections = 0
        self.url = ""
        self._objects = {path: (data, 0) for path, data in objects.items()}
        self._tls, self._host, self._name = tls, host, name or host
        self._etags, self._dates = etags, dates
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def fault(self) -> HttpFault | None:
        """The active fault, or None."""
        return self._fault

    @fault.setter
    def fault(self, fault: HttpFault | None) -> None:
        self._fault, self._affected = fault, 0

    def put(self, path: str, data: bytes) -> None:
        """Replace an object. Its ETag and its date change."""
        self._objects[path] = data, self._objects.get(path, (b"", 0))[1] + 1

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls, limit=1 << 18)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://{self._name}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        await stop_accepting(self._server.sockets)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # clients may disconnect at any time
                while first := await reader.read(1):
                    if not first.isalpha():  # TLS, for instance
                        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                        break
                    head = first + await reader.readuntil(b"\r\n\r\n")
                    if not await self._answer(_parse_request(head), writer):
                        break
                await writer.drain()
        finally:
            writer.close()
            try:
                async with asyncio.timeout(1):  # for the closing handshake of TLS
                    await writer.wait_closed()
            except TimeoutError:
                writer.transport.abort()  # in Python 3.11, an AttributeError where TLS is closed already
            except OSError:
                pass  # the client has closed it

    async def _answer(self, request: HttpRequest, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection can be used for another one."""
        self.requests.append(request)
        exchange = self._exchange(request, writer)
        if exchange is None:
            return await Exchange(request, self, writer, "", b"").reply(404)
        if (fault := self.fault) is not None and fault.matches(exchange, self._affected):
            self.fault_count += 1
            self._affected += 1
            return await KINDS[fault.kind](exchange, fault)
        return await self._answer_correctly(exchange)

    async def answer_current(self, exchange: Exchange, *, blind: bool = False) -> bool:
        """Answer a request with the object's current version; a blind server ignores If-Match."""
        now = self._exchange(exchange.request, exchange.writer)
        assert now is not None
        return await (now.answer() if blind else self._answer_correctly(now))

    async def _answer_correctly(self, exchange: Exchange) -> bool:
        if exchange.request.headers.get("if-match") not in (None, exchange.headers.get("ETag")):
            return await exchange.reply(412)
        return await exchange.answer()

    def _exchange(self, request: HttpRequest, writer: asyncio.StreamWriter) -> Exchange | None:
        path = unquote(request.target.partition("?")[0].removeprefix("/"))
        if path not in self._objects:
            return None
        data, number = self._objects[path]
        exchange = Exchange(request, self, writer, path, data, end=len(data))
        if self._etags:
            exchange.headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if self._dates:
            exchange.headers["Last-Modified"] = email.utils.formatdate(_FIRST_MODIFIED_S + number, usegmt=True)
        if found := _RANGE.fullmatch(request.headers.get("range", "")):
            exchange.partial = True
            exchange.start, exchange.end = _resolve_range(found[1], found[2], len(data))
        return exchange


def _parse_request(head: bytes) -> HttpRequest:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    fields = (line.partition(":") for line in lines if line)
    target = _ORIGIN.sub("", target, count=1) if _ORIGIN.match(target) else target
    return HttpRequest(method, target, {name.strip().lower(): value.strip() for name, _, value in fields})


def _resolve_range(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(size, int(last) + 1) if last else size
