"""The faults of the web server of :mod:`streamloader.testing.faults.http`."""

# ruff: noqa: ARG001 - all faults have the same signature

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

__all__ = ["KINDS", "Exchange", "FaultyServer", "HttpFault", "HttpRequest"]

_PIECE_BYTES: Final = 64 << 10
_BOMB_BYTES: Final = 64 << 20  # decompressed; 64 KiB compressed


@dataclass(frozen=True, slots=True)
class HttpFault:
    """A fault to switch on.

    Args:
        kind: One of :data:`KINDS`.
        at: Offset of the byte in the object at which the fault occurs.
        times: Number of requests to affect. None for all.
        methods: HTTP methods of the requests to affect.
        other: Replacement of the object, for the kinds that change it.
        retry_after: Value of Retry-After, for "status".
        location: Target of "redirect".
        status: HTTP status of "status", and of "redirect" if it is a 3xx status.
        everywhere: Whether requests for any range are affected, not only those that include `at`.
        size: Size in bytes for "size-misstated".
    """

    kind: str
    at: int = 0
    times: int | None = None
    methods: tuple[str, ...] = ("GET",)
    other: bytes = b""
    retry_after: str | None = None
    location: str = ""
    status: int = 503
    everywhere: bool = False
    size: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault {self.kind!r}; choose one of {', '.join(KINDS)}")

    def matches(self, exchange: Exchange, before: int) -> bool:
        """Return whether the fault affects a request, after `before` affected ones."""
        hit = self.everywhere or exchange.start <= self.at < exchange.end or not exchange.data
        return hit and exchange.request.method in self.methods and (self.times is None or before < self.times)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request of a client.

    Attributes:
        method: HTTP method: GET, HEAD, ...
        target: Path and query, as received, without the server in front.
        headers: Headers by lower-case name.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class FaultyServer(Protocol):
    """The server as the faults use it.

    Attributes:
        fault: Fault that is switched on, or None.
        fault_count: Number of requests that a fault has affected.
    """

    fault: HttpFault | None
    fault_count: int

    def put(self, path: str, data: bytes) -> None:
        """Replace an object. Its ETag and its date change."""

    async def answer_current(self, exchange: Exchange, *, blind: bool = False) -> bool:
        """Answer a request with the object's current version; a blind server ignores If-Match."""


@dataclass(slots=True)
class Exchange:
    """One request and its response.

    Attributes:
        request: Request of the client.
        server: Server that received it.
        writer: Connection to the client.
        path: Path of the requested object.
        data: Bytes of the whole object.
        start: Offset of the first requested byte.
        end: End offset of the requested range, within the object.
        partial: Whether the request has a range.
        headers: Headers that describe the object.
    """

    request: HttpRequest
    server: FaultyServer
    writer: asyncio.StreamWriter
    path: str
    data: bytes
    start: int = 0
    end: int = 0
    partial: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self) -> bool:
        """Send the correct response."""
        if self.partial and self.start >= self.end:
            return await self.reply(416, {"Content-Range": f"bytes */{len(self.data)}"})
        await self.begin()
        return await self.send(self.start, self.end)

    async def begin(self, *, without: tuple[str, ...] = (), **changed: str) -> None:
        """Send the head of a correct response, with some headers changed (a_b stands for A-B) or omitted."""
        fields = {**self.headers, "Content-Length": str(self.end - self.start), "Accept-Ranges": "bytes"}
        if self.partial:
            fields["Content-Range"] = f"bytes {self.start}-{self.end - 1}/{len(self.data)}"
        fields.update({name.replace("_", "-").title(): value for name, value in changed.items()})
        for name in without:
            fields.pop(name, None)
        await self.head(206 if self.partial else 200, fields)

    async def head(self, status: int, fields: dict[str, str]) -> None:
        """Send a status and headers."""
        lines = [f"HTTP/1.1 {status} Reason", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1"))
        await self.writer.drain()

    async def send(self, start: int, end: int, data: bytes | None = None) -> bool:
        """Send bytes of the object, or of other data."""
        data = self.data if data is None else data
        if self.request.method != "HEAD":
            for at in range(start, end, _PIECE_BYTES):
                self.writer.write(data[at : min(at + _PIECE_BYTES, end)])
                await self.writer.drain()
        return True

    async def reply(self, status: int, fields: dict[str, str] | None = None, body: bytes = b"no\n") -> bool:
        """Send a short response without the object."""
        await self.head(status, {"Content-Length": str(len(body)), "Content-Type": "text/plain", **(fields or {})})
        return await self.send(0, len(body), body)

    async def send_until(self, fault: HttpFault) -> None:
        """Send a correct response up to the byte of the fault."""
        await self.begin()
        await self.send(self.start, fault.at)

    def reset(self) -> bool:
        """Close the connection with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        return False


# --- in the body -----------------------------------------------------------------------------------------------------


async def _truncated(exchange: Exchange, fault: HttpFault) -> bool:
    """Announce the whole length, and close the connection at the fault."""
    await exchange.send_until(fault)
    return False


async def _short(exchange: Exchange, fault: HttpFault) -> bool:
    """Announce no length, and close the connection at the fault, as if the object ended there."""
    await exchange.begin(without=("Content-Length",), connection="close")
    await exchange.send(exchange.start, fault.at)
    return False


async def _unmeasured(exchange: Exchange, fault: HttpFault) -> bool:
    """Announce no length, send everything and close the connection. This is correct, but looks like a fault."""
    await exchange.begin(without=("Content-Length",), connection="close")
    await exchange.send(exchange.start, exchange.end)
    return False


async def _half_closed(exchange: Exchange, fault: HttpFault) -> bool:
    """Send everything, close the sending side at once, and keep the receiving side open."""
    await exchange.begin()
    await exchange.send(exchange.start, exchange.end)
    exchange.writer.write_eof()
    await asyncio.Event().wait()
    return False


async def _reset(exchange: Exchange, fault: HttpFault) -> bool:
    """Reset the connection at the fault."""
    await exchange.send_until(fault)
    return exchange.reset()


async def _stalls(exchange: Exchange, fault: HttpFault) -> bool:
    """Stop sending at the fault."""
    await exchange.send_until(fault)
    await asyncio.Event().wait()
    return False


async def _drips(exchange: Exchange, fault: HttpFault) -> bool:
    """Send one byte a second from the fault on."""
    await exchange.send_until(fault)
    for at in range(fault.at, exchange.end):
        await asyncio.sleep(1)
        await exchange.send(at, at + 1)
    return True


async def _chunks_broken(exchange: Exchange, fault: HttpFault) -> bool:
    """Use chunked encoding, and send a malformed chunk at the fault."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    if fault.at > exchange.start:
        exchange.writer.write(b"%x\r\n" % (fault.at - exchange.start))
        await exchange.send(exchange.start, fault.at)
        exchange.writer.write(b"\r\n")
    exchange.writer.write(b"what?\r\n")
    await exchange.writer.drain()
    return False


async def _chunks_end(exchange: Exchange, fault: HttpFault) -> bool:
    """Use chunked encoding, and end it correctly, but at the fault."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    if fault.at > exchange.start:
        exchange.writer.write(b"%x\r\n" % (fault.at - exchange.start))
        await exchange.send(exchange.start, fault.at)
        exchange.writer.write(b"\r\n")
    exchange.writer.write(b"0\r\n\r\n")
    await exchange.writer.drain()
    return True


async def _too_much(exchange: Exchange, fault: HttpFault) -> bool:
    """Send ten bytes more than the object or the range has."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    exchange.writer.write(b"%x\r\n" % (exchange.end - exchange.start + 10))
    await exchange.send(exchange.start, exchange.end)
    exchange.writer.write(b"0123456789\r\n0\r\n\r\n")
    await exchange.writer.drain()
    return True


# --- ranges ----------------------------------------------------------------------------------------------------------


async def _range_ignored(exchange: Exchange, fault: HttpFault) -> bool:
    """Ignore the range: send the whole object with 200."""
    exchange.start, exchange.end, exchange.partial = 0, len(exchange.data), False
    await exchange.begin()
    return await exchange.send(0, len(exchange.data))


async def _range_moved(exchange: Exchange, fault: HttpFault) -> bool:
    """Send another range of the same length, with its Content-Range."""
    length = exchange.end - exchange.start
    start = 0 if exchange.start else min(1, len(exchange.data) - length)
    await exchange.begin(content_range=f"bytes {start}-{start + length - 1}/{len(exchange.data)}")
    return await exchange.send(start, start + length)


async def _range_short(exchange: Exchange, fault: HttpFault) -> bool:
    """Send a shorter range, with its Content-Range."""
    end = max(exchange.start + 1, exchange.end - 7)
    length = end - exchange.start
    await exchange.begin(
        content_range=f"bytes {exchange.start}-{end - 1}/{len(exchange.data)}", content_length=str(length)
    )
    return await exchange.send(exchange.start, end)


async def _range_length(exchange: Exchange, fault: HttpFault) -> bool:
    """Send the right Content-Range, but fewer bytes, with their Content-Length."""
    await exchange.begin(content_length=str(exchange.end - exchange.start - 1))
    return await exchange.send(exchange.start, exchange.end - 1)


async def _range_nameless(exchange: Exchange, fault: HttpFault) -> bool:
    """Send 206 without Content-Range."""
    await exchange.begin(without=("Content-Range",))
    return await exchange.send(exchange.start, exchange.end)


async def _range_several(exchange: Exchange, fault: HttpFault) -> bool:
    """Send multipart/byteranges."""
    part = exchange.data[exchange.start : exchange.end]
    label = f"Content-Range: bytes {exchange.start}-{exchange.end - 1}/{len(exchange.data)}"
    body = f"--X\r\n{label}\r\n\r\n".encode() + part + b"\r\n--X--\r\n"
    await exchange.begin(
        without=("Content-Range",), content_type="multipart/byteranges; boundary=X", content_length=str(len(body))
    )
    return await exchange.send(0, len(body), body)


async def _size_misstated(exchange: Exchange, fault: HttpFault) -> bool:
    """State the size `fault.size` for the object, and send the right bytes."""
    if exchange.request.method == "HEAD" or not exchange.partial:
        await exchange.begin(content_length=str(fault.size))
    else:
        await exchange.begin(content_range=f"bytes {exchange.start}-{exchange.end - 1}/{fault.size}")
    return await exchange.send(exchange.start, exchange.end)


async def _range_capitalized(exchange: Exchange, fault: HttpFault) -> bool:
    """Write the unit of Content-Range in capitals, which is correct."""
    await exchange.begin(content_range=f"Bytes {exchange.start}-{exchange.end - 1}/{len(exchange.data)}")
    return await exchange.send(exchange.start, exchange.end)


async def _range_refused(exchange: Exchange, fault: HttpFault) -> bool:
    """Answer 416 to a valid range."""
    return await exchange.reply(416, {"Content-Range": f"bytes */{len(exchange.data)}"})


# --- before the body -------------------------------------------------------------------------------------------------


async def _silent(exchange: Exchange, fault: HttpFault) -> bool:
    """Never answer."""
    await asyncio.Event().wait()
    return False


async def _slow_head(exchange: Exchange, fault: HttpFault) -> bool:
    """Send the headers at one byte a second."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello":
        exchange.writer.write(bytes([byte]))
        await exchange.writer.drain()
        await asyncio.sleep(1)
    return False


async def _endless_head(exchange: Exchange, fault: HttpFault) -> bool:
    """Send endless headers."""
    exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.writer.write(b"X-More: " + b"x" * 4_000 + b"\r\n")
        await exchange.writer.drain()


async def _hangs_up(exchange: Exchange, fault: HttpFault) -> bool:
    """Close the connection instead of answering."""
    return False


async def _resets(exchange: Exchange, fault: HttpFault) -> bool:
    """Reset the connection instead of answering."""
    return exchange.reset()


async def _no_http(exchange: Exchange, fault: HttpFault) -> bool:
    """Answer in another protocol."""
    exchange.writer.write(b"\x15\x03\x01\x00\x02\x02\x46 220 ready\r\n\r\n")
    await exchange.writer.drain()
    return False


async def _status(exchange: Exchange, fault: HttpFault) -> bool:
    """Answer with an error status."""
    fields = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    return await exchange.reply(fault.status, fields)


async def _login_page(exchange: Exchange, fault: HttpFault) -> bool:
    """Answer 200 with a page of HTML, as the login page of a hotel's network does."""
    return await exchange.reply(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>" * 20)


async def _zipped(exchange: Exchange, fault: HttpFault) -> bool:
    """Answer with a gzip body that decompresses to a thousand times its size."""
    bomb = gzip.compress(bytes(_BOMB_BYTES), 1)
    await exchange.begin(content_encoding="gzip", content_length=str(len(bomb)))
    return await exchange.send(0, len(bomb), bomb)


async def _zipped_transfer(exchange: Exchange, fault: HttpFault) -> bool:
    """Compress the transfer without a request to do so."""
    body = gzip.compress(exchange.data[exchange.start : exchange.end])
    await exchange.begin(without=("Content-Length",), transfer_encoding="gzip, chunked")
    exchange.writer.write(b"%x\r\n" % len(body))
    await exchange.send(0, len(body), body)
    exchange.writer.write(b"\r\n0\r\n\r\n")
    await exchange.writer.drain()
    return True


async def _cookie(exchange: Exchange, fault: HttpFault) -> bool:
    """Send a correct response with a cookie."""
    exchange.headers["Set-Cookie"] = "seen=1; Path=/"
    return await exchange.answer()


async def _redirect(exchange: Exchange, fault: HttpFault) -> bool:
    """Redirect. "{n}" in the location becomes the number of affected requests."""
    location = fault.location.replace("{n}", str(exchange.server.fault_count))
    return await exchange.reply(fault.status if 300 <= fault.status < 400 else 302, {"Location": location})


# --- other objects ---------------------------------------------------------------------------------------------------


async def _changed(exchange: Exchange, fault: HttpFault) -> bool:
    """Replace the object before answering, and respect If-Match."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    return await exchange.server.answer_current(exchange)


async def _changed_blindly(exchange: Exchange, fault: HttpFault) -> bool:
    """Replace the object before answering, and ignore If-Match."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    return await exchange.server.answer_current(exchange, blind=True)


async def _changed_within(exchange: Exchange, fault: HttpFault) -> bool:
    """Close the connection at the fault, and serve another object from then on."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    await exchange.send_until(fault)
    return False


KINDS: Final[dict[str, Callable[[Exchange, HttpFault], Awaitable[bool]]]] = {
    "truncated": _truncated,
    "short": _short,
    "unmeasured": _unmeasured,
    "half-closed": _half_closed,
    "reset": _reset,
    "stalls": _stalls,
    "drips": _drips,
    "chunks-broken": _chunks_broken,
    "chunks-end": _chunks_end,
    "too-much": _too_much,
    "range-ignored": _range_ignored,
    "range-moved": _range_moved,
    "range-short": _range_short,
    "range-length": _range_length,
    "range-nameless": _range_nameless,
    "range-several": _range_several,
    "range-refused": _range_refused,
    "range-capitalized": _range_capitalized,
    "size-misstated": _size_misstated,
    "silent": _silent,
    "slow-head": _slow_head,
    "endless-head": _endless_head,
    "hangs-up": _hangs_up,
    "reset-at-once": _resets,
    "no-http": _no_http,
    "status": _status,
    "login-page": _login_page,
    "zipped": _zipped,
    "zipped-transfer": _zipped_transfer,
    "cookie": _cookie,
    "redirect": _redirect,
    "changed": _changed,
    "changed-blindly": _changed_blindly,
    "changed-within": _changed_within,
}
"""Kind of fault -> the function that implements and describes it."""
