"""The ways in which the web server of :mod:`streamloader.testing.faults.http` misbehaves."""

# ruff: noqa: ARG001 - all kinds take the same

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

__all__ = ["KINDS", "Exchange", "Fault", "FaultyServer", "Request"]

_PIECE: Final = 64 << 10
_BOMB: Final = 64 << 20  # bytes that it unpacks to, of 64 KiB


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    Args:
        kind: one of :data:`KINDS`.
        at: the byte of the object at which it strikes.
        times: so many requests, the others are answered honestly; None for all.
        methods: of the requests that it strikes.
        other: the object that takes the place of the first one, for the kinds that change it.
        retry_after: what "status" says in Retry-After.
        location: where "redirect" leads to.
        status: of the answer of "status", and of "redirect" if it is one for that.
        everywhere: whether it strikes requests for any bytes, not only those for the one at `at`.
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

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are {', '.join(KINDS)}")

    def strikes(self, exchange: Exchange, before: int) -> bool:
        """Whether it strikes this request, after so many that it struck before."""
        hit = self.everywhere or exchange.start <= self.at < exchange.end or not exchange.data
        return hit and exchange.request.method in self.methods and (self.times is None or before < self.times)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
        method: GET, HEAD, ...
        target: path and query, as they came.
        headers: by their names in lower case.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class FaultyServer(Protocol):
    """The server as the faults use it.

    Attributes:
        fault: Fault that is switched on, or None.
        strikes: Number of requests that a fault has affected.
    """

    fault: Fault | None
    strikes: int

    def put(self, path: str, data: bytes) -> None:
        """Replace an object. Its ETag and its date change."""

    async def again(self, exchange: Exchange, *, blind: bool = False) -> bool:
        """Answer a request with the object's current version; a blind server ignores If-Match."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Attributes:
        start: first byte asked for.
        end: behind the last one, within the object.
        partial: whether a range was asked for.
        headers: of the object.
    """

    request: Request
    server: FaultyServer
    writer: asyncio.StreamWriter
    path: str
    data: bytes
    start: int = 0
    end: int = 0
    partial: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    async def honest(self) -> bool:
        """Answer as one should."""
        if self.partial and self.start >= self.end:
            return await self.reply(416, {"Content-Range": f"bytes */{len(self.data)}"})
        await self.begin()
        return await self.send(self.start, self.end)

    async def begin(self, *, without: tuple[str, ...] = (), **changed: str) -> None:
        """Send the head of an honest answer, with some of its headers changed (a_b stands for A-B) or left out."""
        fields = {**self.headers, "Content-Length": str(self.end - self.start), "Accept-Ranges": "bytes"}
        if self.partial:
            fields["Content-Range"] = f"bytes {self.start}-{self.end - 1}/{len(self.data)}"
        fields.update({name.replace("_", "-").title(): value for name, value in changed.items()})
        for name in without:
            fields.pop(name, None)
        await self.head(206 if self.partial else 200, fields)

    async def head(self, status: int, fields: dict[str, str]) -> None:
        """Send a status and headers."""
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode("latin-1"))
        await self.writer.drain()

    async def send(self, start: int, end: int, data: bytes | None = None) -> bool:
        """Send bytes of the object, or of other data."""
        data = self.data if data is None else data
        if self.request.method != "HEAD":
            for at in range(start, end, _PIECE):
                self.writer.write(data[at : min(at + _PIECE, end)])
                await self.writer.drain()
        return True

    async def reply(self, status: int, fields: dict[str, str] | None = None, body: bytes = b"no\n") -> bool:
        """Send a short answer that is not the object."""
        await self.head(status, {"Content-Length": str(len(body)), "Content-Type": "text/plain", **(fields or {})})
        return await self.send(0, len(body), body)

    async def until(self, fault: Fault) -> None:
        """Send the head of an honest answer, and its body up to where the fault strikes."""
        await self.begin()
        await self.send(self.start, fault.at)

    def reset(self) -> bool:
        """End the connection with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        return False


# --- in the body -----------------------------------------------------------------------------------------------------


async def _truncated(exchange: Exchange, fault: Fault) -> bool:
    """Announces all, and hangs up where the fault is."""
    await exchange.until(fault)
    return False


async def _short(exchange: Exchange, fault: Fault) -> bool:
    """Announces no length, and hangs up where the fault is: as if that were the end."""
    await exchange.begin(without=("Content-Length",), connection="close")
    await exchange.send(exchange.start, fault.at)
    return False


async def _unmeasured(exchange: Exchange, fault: Fault) -> bool:
    """Announces no length, sends all, and hangs up: no fault, but looks like one."""
    await exchange.begin(without=("Content-Length",), connection="close")
    await exchange.send(exchange.start, exchange.end)
    return False


async def _half_closed(exchange: Exchange, fault: Fault) -> bool:
    """Sends all, closes its side at once, and keeps the other one open."""
    await exchange.begin()
    await exchange.send(exchange.start, exchange.end)
    exchange.writer.write_eof()
    await asyncio.Event().wait()
    return False


async def _reset(exchange: Exchange, fault: Fault) -> bool:
    """Resets the connection where the fault is."""
    await exchange.until(fault)
    return exchange.reset()


async def _stalls(exchange: Exchange, fault: Fault) -> bool:
    """Sends nothing more from where the fault is."""
    await exchange.until(fault)
    await asyncio.Event().wait()
    return False


async def _drips(exchange: Exchange, fault: Fault) -> bool:
    """Sends one byte a second from where the fault is."""
    await exchange.until(fault)
    for at in range(fault.at, exchange.end):
        await asyncio.sleep(1)
        await exchange.send(at, at + 1)
    return True


async def _chunks_broken(exchange: Exchange, fault: Fault) -> bool:
    """Sends chunks, and what is none where the fault is."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    if fault.at > exchange.start:
        exchange.writer.write(b"%x\r\n" % (fault.at - exchange.start))
        await exchange.send(exchange.start, fault.at)
        exchange.writer.write(b"\r\n")
    exchange.writer.write(b"what?\r\n")
    await exchange.writer.drain()
    return False


async def _chunks_end(exchange: Exchange, fault: Fault) -> bool:
    """Sends chunks and ends them in good order, but where the fault is."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    if fault.at > exchange.start:
        exchange.writer.write(b"%x\r\n" % (fault.at - exchange.start))
        await exchange.send(exchange.start, fault.at)
        exchange.writer.write(b"\r\n")
    exchange.writer.write(b"0\r\n\r\n")
    await exchange.writer.drain()
    return True


async def _too_much(exchange: Exchange, fault: Fault) -> bool:
    """Sends ten bytes more than the object, or the range, has."""
    await exchange.begin(without=("Content-Length",), transfer_encoding="chunked")
    exchange.writer.write(b"%x\r\n" % (exchange.end - exchange.start + 10))
    await exchange.send(exchange.start, exchange.end)
    exchange.writer.write(b"0123456789\r\n0\r\n\r\n")
    await exchange.writer.drain()
    return True


# --- ranges ----------------------------------------------------------------------------------------------------------


async def _range_ignored(exchange: Exchange, fault: Fault) -> bool:
    """Sends the whole object, with 200."""
    exchange.start, exchange.end, exchange.partial = 0, len(exchange.data), False
    await exchange.begin()
    return await exchange.send(0, len(exchange.data))


async def _range_moved(exchange: Exchange, fault: Fault) -> bool:
    """Sends another range of the same length, and says so."""
    length = exchange.end - exchange.start
    start = 0 if exchange.start else min(1, len(exchange.data) - length)
    await exchange.begin(content_range=f"bytes {start}-{start + length - 1}/{len(exchange.data)}")
    return await exchange.send(start, start + length)


async def _range_short(exchange: Exchange, fault: Fault) -> bool:
    """Sends less than the range, and says so."""
    end = max(exchange.start + 1, exchange.end - 7)
    length = end - exchange.start
    await exchange.begin(
        content_range=f"bytes {exchange.start}-{end - 1}/{len(exchange.data)}", content_length=str(length)
    )
    return await exchange.send(exchange.start, end)


async def _range_length(exchange: Exchange, fault: Fault) -> bool:
    """Names the right range, but sends fewer bytes, and announces those."""
    await exchange.begin(content_length=str(exchange.end - exchange.start - 1))
    return await exchange.send(exchange.start, exchange.end - 1)


async def _range_nameless(exchange: Exchange, fault: Fault) -> bool:
    """Sends 206 without a Content-Range."""
    await exchange.begin(without=("Content-Range",))
    return await exchange.send(exchange.start, exchange.end)


async def _range_several(exchange: Exchange, fault: Fault) -> bool:
    """Sends multipart/byteranges."""
    part = exchange.data[exchange.start : exchange.end]
    label = f"Content-Range: bytes {exchange.start}-{exchange.end - 1}/{len(exchange.data)}"
    body = f"--X\r\n{label}\r\n\r\n".encode() + part + b"\r\n--X--\r\n"
    await exchange.begin(
        without=("Content-Range",), content_type="multipart/byteranges; boundary=X", content_length=str(len(body))
    )
    return await exchange.send(0, len(body), body)


async def _range_refused(exchange: Exchange, fault: Fault) -> bool:
    """Answers 416, though the bytes are there."""
    return await exchange.reply(416, {"Content-Range": f"bytes */{len(exchange.data)}"})


# --- before the body -------------------------------------------------------------------------------------------------


async def _silent(exchange: Exchange, fault: Fault) -> bool:
    """Takes the request and says nothing."""
    await asyncio.Event().wait()
    return False


async def _slow_head(exchange: Exchange, fault: Fault) -> bool:
    """Sends its headers one byte a second."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello":
        exchange.writer.write(bytes([byte]))
        await exchange.writer.drain()
        await asyncio.sleep(1)
    return False


async def _endless_head(exchange: Exchange, fault: Fault) -> bool:
    """Sends headers without end."""
    exchange.writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        exchange.writer.write(b"X-More: " + b"x" * 4_000 + b"\r\n")
        await exchange.writer.drain()


async def _hangs_up(exchange: Exchange, fault: Fault) -> bool:
    """Takes the request and hangs up."""
    return False


async def _resets(exchange: Exchange, fault: Fault) -> bool:
    """Takes the request and resets the connection."""
    return exchange.reset()


async def _no_http(exchange: Exchange, fault: Fault) -> bool:
    """Answers with what is no HTTP."""
    exchange.writer.write(b"\x15\x03\x01\x00\x02\x02\x46 220 ready\r\n\r\n")
    await exchange.writer.drain()
    return False


async def _status(exchange: Exchange, fault: Fault) -> bool:
    """Answers with a status."""
    fields = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    return await exchange.reply(fault.status, fields)


async def _login_page(exchange: Exchange, fault: Fault) -> bool:
    """Answers 200 with a page of HTML, as a hotel's network does."""
    return await exchange.reply(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>" * 20)


async def _zipped(exchange: Exchange, fault: Fault) -> bool:
    """Answers with what unpacks to a thousand times its size."""
    bomb = gzip.compress(bytes(_BOMB), 1)
    await exchange.begin(content_encoding="gzip", content_length=str(len(bomb)))
    return await exchange.send(0, len(bomb), bomb)


async def _zipped_transfer(exchange: Exchange, fault: Fault) -> bool:
    """Compresses the transfer, which nobody asked for."""
    body = gzip.compress(exchange.data[exchange.start : exchange.end])
    await exchange.begin(without=("Content-Length",), transfer_encoding="gzip, chunked")
    exchange.writer.write(b"%x\r\n" % len(body))
    await exchange.send(0, len(body), body)
    exchange.writer.write(b"\r\n0\r\n\r\n")
    await exchange.writer.drain()
    return True


async def _cookie(exchange: Exchange, fault: Fault) -> bool:
    """Answers honestly, with a cookie."""
    exchange.headers["Set-Cookie"] = "seen=1; Path=/"
    return await exchange.honest()


async def _redirect(exchange: Exchange, fault: Fault) -> bool:
    """Redirects; "{n}" in the location counts."""
    location = fault.location.replace("{n}", str(exchange.server.strikes))
    return await exchange.reply(fault.status if 300 <= fault.status < 400 else 302, {"Location": location})


# --- other objects ---------------------------------------------------------------------------------------------------


async def _changed(exchange: Exchange, fault: Fault) -> bool:
    """Replaces the object before it answers, and knows of If-Match."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    return await exchange.server.again(exchange)


async def _changed_blindly(exchange: Exchange, fault: Fault) -> bool:
    """Replaces the object before it answers, and knows nothing of If-Match."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    return await exchange.server.again(exchange, blind=True)


async def _changed_within(exchange: Exchange, fault: Fault) -> bool:
    """Hangs up where the fault is, and has another object when it is asked again."""
    exchange.server.put(exchange.path, fault.other)
    exchange.server.fault = None
    await exchange.until(fault)
    return False


KINDS: Final[dict[str, Callable[[Exchange, Fault], Awaitable[bool]]]] = {
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
"""What goes wrong -> who does it; the docstring of each tells how."""
