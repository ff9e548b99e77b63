"""An S3 server that misbehaves: a proxy in front of one that does not.

Requests reach the server behind it as they came, so that signatures hold. Its answers come back as they are, but for
one fault, which is switched on for answers with the bytes of objects, for listings, or for everything. ::

    async with FaultyS3("http://127.0.0.1:8333") as proxy:
        proxy.fault = Fault("truncate", at=1000)
        store = open_store("s3://bucket", endpoint_url=proxy.url, retry=None, ...)
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

__all__ = ["FAULTS", "Fault", "FaultyS3"]

FAULTS: Final = {
    "truncate": "the body ends at a byte, cleanly, before its announced length",
    "reset": "the connection is reset at a byte of the body",
    "stall": "no byte comes after a byte of the body",
    "stall-head": "no answer comes at all",
    "drip": "one byte a second from a byte of the body on",
    "flip": "one byte is another one: no fault that a store could see, for those that verify",
    "slow-down": "503 SlowDown with Retry-After",
    "too-many": "429 with Retry-After",
    "internal-error": "500 InternalError",
    "ignored-range": "200 with the whole object, where a part was asked for",
    "wrong-range": "206 with the bytes of another range, and its Content-Range",
    "forged-range": "206 with the asked Content-Range, and fewer bytes than that",
    "changed-etag": "the ETag of another version, on what comes from a byte of the object on",
    "html": "200 with a page of HTML instead of XML",
    "hang-up": "the connection is closed before an answer",
}
_CHUNK: Final = 1 << 14
_HEAD_LIMIT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: one of FAULTS.
        at: the byte at which it strikes, counted in the object: answers without that byte are as they should be.
        times: how often; None for ever.
        on: "objects" (GET of an object), "listings", "uploads", or "everything".
        retry_after: seconds that busy answers ask to wait.
    """

    kind: str
    at: int = 0
    times: int | None = None
    on: str = "objects"
    retry_after: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no fault."""
        if self.kind not in FAULTS:
            raise ValueError(f"{self.kind!r} is no fault of {sorted(FAULTS)}")


@dataclass(slots=True)
class _Request:
    line: bytes
    head: bytes

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode("ascii", "replace")

    @property
    def kind(self) -> str:
        target = self.line.split(b" ")[1]
        if b"list-type=" in target:
            return "listings"
        if self.method in ("PUT", "POST"):
            return "uploads"
        return "objects" if self.method == "GET" else "others"

    def value(self, name: bytes) -> bytes | None:
        return _value(self.head, name)


class FaultyS3:
    """The proxy: an asynchronous context manager.

    Args:
        target: address of the S3 server, ``http://host:port``.

    Attributes:
        fault: what goes wrong now; None for nothing.
        struck: how often it did.
        requests: the first lines of all requests so far.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname or "127.0.0.1", parts.port or 80
        self.fault: Fault | None = None
        self.struck = 0
        self.requests: list[str] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None, "it has not been entered"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_LIMIT)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # one of both has gone, or the proxy is closed
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection; each goes over a connection of its own."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            request = _Request(line, rest)
            self.requests.append(line.decode("ascii", "replace"))
            fault = self._strikes(request)
            back_reader, back_writer = await asyncio.open_connection(*self._target)
            try:
                back_writer.write(line + b"\r\n" + _asked(rest, fault))
                uploading = asyncio.ensure_future(
                    _copy(reader, back_writer, int(request.value(b"content-length") or 0))
                )
                try:
                    again = await self._answer(request, fault, back_reader, writer, uploading)
                finally:
                    if not uploading.done():
                        uploading.cancel()
            finally:
                back_writer.close()
                with contextlib.suppress(OSError):
                    await back_writer.wait_closed()
            if not again:
                return

    def _strikes(self, request: _Request) -> Fault | None:
        fault = self.fault
        if fault is None or fault.on not in ("everything", request.kind):
            return None
        if fault.times is not None and self.struck >= fault.times:
            return None
        if request.kind == "objects" and not _holds(_asked_span(request), fault):
            return None
        self.struck += 1
        return fault

    async def _answer(
        self,
        request: _Request,
        fault: Fault | None,
        back: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        uploading: asyncio.Future[None],
    ) -> bool:
        """Pass on one answer; False if the connection is at its end."""
        kind = fault.kind if fault else ""
        await uploading
        if kind == "hang-up":
            return False
        if kind == "stall-head":
            await asyncio.Event().wait()
        if fault and kind in _MADE:
            writer.write(_made(kind, fault.retry_after))
            await writer.drain()
            return True
        head = await back.readuntil(b"\r\n\r\n")
        length = 0 if request.method == "HEAD" else int(_value(head, b"content-length") or 0)
        chunked = b"chunked" in (_value(head, b"transfer-encoding") or b"").lower() and request.method != "HEAD"
        if fault is not None and kind == "changed-etag":
            head = re.sub(rb'(?i)(\netag: *)"?[^\r\n"]*"?', rb'\1"of-another-version"', head)
        if fault is not None and kind == "wrong-range":
            head = _shifted(head)
        if fault is not None and kind == "forged-range":
            length = max(0, length - 1)
            head = re.sub(rb"(?i)(\ncontent-length: *)\d+", rb"\g<1>%d" % length, head)
        writer.write(head)
        if chunked:
            await _copy_chunked(back, writer)
            return True
        start = _answered_start(head)
        if fault is None or kind not in ("truncate", "reset", "stall", "drip", "flip"):
            await _copy(back, writer, length)
            return True
        first = min(length, max(0, fault.at - start))
        await _copy(back, writer, first)
        return await _strike(kind, back, writer, length - first)


async def _strike(kind: str, back: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> bool:
    """Let the fault happen, with `left` bytes to go."""
    if kind == "flip":
        byte = await back.readexactly(min(1, left))
        writer.write(bytes(value ^ 0x01 for value in byte))
        await _copy(back, writer, left - len(byte))
        return True
    if kind == "stall":
        await asyncio.Event().wait()
    if kind == "drip":
        for _ in range(left):
            writer.write(await back.readexactly(1))
            await writer.drain()
            await asyncio.sleep(1)  # that is the fault
        return True
    if kind == "reset":
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return False


_MADE: Final = {
    "slow-down": (b"503 Service Unavailable", b"SlowDown", b"application/xml"),
    "too-many": (b"429 Too Many Requests", b"TooManyRequests", b"application/xml"),
    "internal-error": (b"500 Internal Server Error", b"InternalError", b"application/xml"),
    "html": (b"200 OK", b"", b"text/html"),
}


def _made(kind: str, retry_after: int) -> bytes:
    """Return an answer that is not the server's."""
    status, code, content = _MADE[kind]
    body = b"<Error><Code>%s</Code><Message>made by the proxy</Message></Error>" % code
    if kind == "html":
        body = b"<!DOCTYPE html><html><body><h1>Welcome to our network</h1><p>Please log in.<br></body></html>"
    wait = b"Retry-After: %d\r\n" % retry_after if kind in ("slow-down", "too-many") else b""
    date = b"Last-Modified: Sat, 01 Jan 2022 00:00:00 GMT\r\n" if kind == "html" else b""
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n%s" % (
        status, content, len(body), wait, date, body,
    )  # fmt: skip


def _asked(head: bytes, fault: Fault | None) -> bytes:
    """Return the headers that the server behind shall see. Range and If-Match are not signed by S3 clients."""
    if fault is not None and fault.kind == "ignored-range":
        return re.sub(rb"(?i)(^|\n)range: [^\r\n]*\r\n", rb"\1", head)
    if fault is not None and fault.kind == "changed-etag":
        return re.sub(rb"(?i)(^|\n)if-match: [^\r\n]*\r\n", rb"\1", head)
    return head


def _asked_span(request: _Request) -> tuple[int | None, int | None]:
    found = re.match(rb"bytes=(\d*)-(\d*)", request.value(b"range") or b"")
    if found is None:
        return None, None
    return (int(found[1]) if found[1] else None, int(found[2]) if found[2] else None)


def _holds(span: tuple[int | None, int | None], fault: Fault) -> bool:
    """Whether a fault lies within what is asked for; another version stays one for all that comes after."""
    start, last = span
    if last is not None and last < fault.at:
        return False
    return fault.kind == "changed-etag" or start is None or start <= fault.at


def _answered_start(head: bytes) -> int:
    found = re.match(rb"bytes (\d+)-", _value(head, b"content-range") or b"")
    return int(found[1]) if found else 0


def _shifted(head: bytes) -> bytes:
    """Return headers whose range lies one byte further on."""

    def shift(found: re.Match[bytes]) -> bytes:
        return b"%s%d-%d/%d" % (found[1], int(found[2]) + 1, int(found[3]) + 1, int(found[4]) + 1)

    return re.sub(rb"(?i)(\ncontent-range: *bytes )(\d+)-(\d+)/(\d+)", shift, head)


def _value(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?im)^" + re.escape(name) + rb": *([^\r\n]*)", head)
    return found[1] if found else None


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, length: int) -> None:
    while length:
        piece = await source.read(min(_CHUNK, length))
        if not piece:
            raise asyncio.IncompleteReadError(piece, length)
        target.write(piece)
        await target.drain()
        length -= len(piece)
    await target.drain()


async def _copy_chunked(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Pass on a chunked body (RFC 9112, 7.1) up to its end."""
    while True:
        line = await source.readuntil(b"\r\n")
        target.write(line)
        size = int(line.split(b";")[0], 16)
        await _copy(source, target, size + 2 if size else 0)
        if not size:
            while line != b"\r\n":
                line = await source.readuntil(b"\r\n")
                target.write(line)
            await target.drain()
            return
