"""A misbehaving S3 server: a proxy in front of a real one.

The proxy forwards requests unchanged, so that their signatures stay valid. It forwards responses unchanged too, except
for one fault, which can be switched on for reads of objects, for listings, for uploads, or for all requests. ::

    async with FaultyS3("http://127.0.0.1:8333") as proxy:
        proxy.fault = S3Fault("truncate", at=1000)
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

from streamloader.testing.faults.shutdown import stop_accepting

__all__ = ["FAULTS", "FaultyS3", "S3Fault"]

FAULTS: Final = {
    "truncate": "the body ends at a byte, before its announced length",
    "reset": "the connection is reset at a byte of the body",
    "stall": "the body stops at a byte",
    "stall-head": "no response",
    "drip": "one byte a second from a byte of the body on",
    "flip": "one byte differs; only readers that verify digests can notice it",
    "slow-down": "503 SlowDown with Retry-After",
    "too-many": "429 with Retry-After",
    "internal-error": "500 InternalError",
    "expired": "400 ExpiredToken, as for credentials that were replaced before they expired",
    "archived": "403 InvalidObjectState, as for an object that has to be restored first",
    "half-listing": "a page of a listing whose end is missing, in a complete response",
    "lost-token": "a page of a listing that goes on, without the token to go on with",
    "ignored-range": "200 with the whole object instead of the requested range",
    "wrong-range": "206 with the bytes of another range, and its Content-Range",
    "forged-range": "206 with the requested Content-Range, and fewer bytes",
    "changed-etag": "the ETag of another version for responses from a byte of the object on",
    "html": "200 with a page of HTML instead of XML",
    "hang-up": "the connection is closed instead of a response",
    "cut-request": "the connection is reset before the request reaches the server",
    "cut-body": "the connection is reset at a byte of the body of the request",
    "cut-response": "the server completes the request, and the connection is reset before its response arrives",
    "quota": "403 QuotaExceeded, and the request does not reach the server",
    "full": "507 XMinioStorageFull, and the request does not reach the server",
}
_PIECE_BYTES: Final = 1 << 14
MAX_HEADER_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class S3Fault:
    """A fault to switch on.

    Attributes:
        kind: One of FAULTS.
        at: Offset of the byte in the object at which the fault occurs. Responses without this byte are correct.
            For "cut-body", the number of bytes of the body that reach the server, which never are all of them.
        skip: Number of requests of the kind to leave alone first.
        times: Number of requests to affect. None for all.
        on: Kind of requests to affect: "objects" (GET of an object), "listings", "uploads", or "everything".
        retry_after: Retry-After of busy responses, in seconds.
    """

    kind: str
    at: int = 0
    skip: int = 0
    times: int | None = None
    on: str = "objects"
    retry_after: int = 1

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        if self.kind not in FAULTS:
            raise ValueError(f"unknown fault {self.kind!r}; choose one of {sorted(FAULTS)}")


@dataclass(slots=True)
class _S3Request:
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
        target: Address of the real S3 server, ``http://host:port``.

    Attributes:
        fault: Active fault, or None.
        fault_count: Number of requests that a fault affected.
        requests: Request lines of all requests so far.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = parts.hostname or "127.0.0.1", parts.port or 80
        self._fault: S3Fault | None = None
        self._skipped = 0
        self.fault_count = 0
        self.requests: list[str] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        assert self._server is not None, "the proxy has not been started"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def fault(self) -> S3Fault | None:
        """The active fault, or None."""
        return self._fault

    @fault.setter
    def fault(self, fault: S3Fault | None) -> None:
        self._fault, self._skipped = fault, 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_HEADER_BYTES)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        await stop_accepting(self._server.sockets)
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
            pass  # one side disconnected, or the proxy is closed
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward the requests of one connection, each over a new connection to the server."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, rest = head.partition(b"\r\n")
            request = _S3Request(line, rest)
            self.requests.append(line.decode("ascii", "replace"))
            fault = self._match_fault(request)
            if fault is not None and fault.kind in _REFUSALS:
                await _discard(reader, int(request.value(b"content-length") or 0))
                writer.write(_forge_response(fault.kind, fault.retry_after))
                await writer.drain()
                continue
            if fault is not None and fault.kind in ("cut-request", "cut-body"):
                await self._cut_request(request, fault, reader, writer)
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            try:
                upstream_writer.write(line + b"\r\n" + _edit_request_headers(rest, fault))
                uploading = asyncio.ensure_future(
                    _copy(reader, upstream_writer, int(request.value(b"content-length") or 0))
                )
                try:
                    keep_open = await self._answer(request, fault, upstream_reader, writer, uploading)
                finally:
                    if not uploading.done():
                        uploading.cancel()
            finally:
                upstream_writer.close()
                with contextlib.suppress(OSError):
                    await upstream_writer.wait_closed()
            if not keep_open:
                return

    async def _cut_request(
        self, request: _S3Request, fault: S3Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward a part of the request, or nothing, and reset both connections."""
        forwarded = min(fault.at, int(request.value(b"content-length") or 0) - 1)
        if fault.kind == "cut-body" and forwarded >= 0:
            _, upstream_writer = await asyncio.open_connection(*self._target)
            try:
                upstream_writer.write(request.line + b"\r\n" + request.head)
                await _copy(reader, upstream_writer, forwarded)
            finally:
                _reset(upstream_writer)
        _reset(writer)

    def _match_fault(self, request: _S3Request) -> S3Fault | None:
        fault = self.fault
        if fault is None or fault.on not in ("everything", request.kind):
            return None
        if fault.times is not None and self.fault_count >= fault.times:
            return None
        if request.kind == "objects" and not _covers_fault(_parse_requested_span(request), fault):
            return None
        if self._skipped < fault.skip:
            self._skipped += 1
            return None
        self.fault_count += 1
        return fault

    async def _answer(
        self,
        request: _S3Request,
        fault: S3Fault | None,
        upstream: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        uploading: asyncio.Future[None],
    ) -> bool:
        """Forward one response. Return whether the connection can be used for another request."""
        kind = fault.kind if fault else ""
        await uploading
        if kind == "hang-up":
            return False
        if kind == "stall-head":
            await asyncio.Event().wait()
        if fault and kind in _FORGED_RESPONSES:
            writer.write(_forge_response(kind, fault.retry_after))
            await writer.drain()
            return True
        head = await upstream.readuntil(b"\r\n\r\n")
        length = 0 if request.method == "HEAD" else int(_value(head, b"content-length") or 0)
        chunked = b"chunked" in (_value(head, b"transfer-encoding") or b"").lower() and request.method != "HEAD"
        if fault is not None and kind == "changed-etag":
            head = re.sub(rb'(?i)(\netag: *)"?[^\r\n"]*"?', rb'\1"of-another-version"', head)
        if fault is not None and kind == "wrong-range":
            head = _shift_range(head)
        if fault is not None and kind == "forged-range":
            length = max(0, length - 1)
            head = re.sub(rb"(?i)(\ncontent-length: *)\d+", rb"\g<1>%d" % length, head)
        if kind == "cut-response":
            _reset(writer)
            return False
        writer.write(head)
        if chunked:
            await _copy_chunked(upstream, writer)
            return True
        start = _parse_response_start(head)
        if fault is None or kind not in ("truncate", "reset", "stall", "drip", "flip"):
            await _copy(upstream, writer, length)
            return True
        first = min(length, max(0, fault.at - start))
        await _copy(upstream, writer, first)
        return await _misbehave(kind, upstream, writer, length - first)


async def _misbehave(kind: str, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, remaining: int) -> bool:
    """Apply the fault to the last `remaining` bytes of the body."""
    if kind == "flip":
        byte = await upstream.readexactly(min(1, remaining))
        writer.write(bytes(value ^ 0x01 for value in byte))
        await _copy(upstream, writer, remaining - len(byte))
        return True
    if kind == "stall":
        await asyncio.Event().wait()
    if kind == "drip":
        for _ in range(remaining):
            writer.write(await upstream.readexactly(1))
            await writer.drain()
            await asyncio.sleep(1)  # the fault itself
        return True
    if kind == "reset":
        _reset(writer)
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _discard(source: asyncio.StreamReader, length: int) -> None:
    while length:
        piece = await source.read(min(_PIECE_BYTES, length))
        if not piece:
            raise asyncio.IncompleteReadError(piece, length)
        length -= len(piece)


_FORGED_RESPONSES: Final = {
    "slow-down": (b"503 Service Unavailable", b"SlowDown", b"application/xml"),
    "too-many": (b"429 Too Many Requests", b"TooManyRequests", b"application/xml"),
    "internal-error": (b"500 Internal Server Error", b"InternalError", b"application/xml"),
    "expired": (b"400 Bad Request", b"ExpiredToken", b"application/xml"),
    "archived": (b"403 Forbidden", b"InvalidObjectState", b"application/xml"),
    "half-listing": (b"200 OK", b"", b"application/xml"),
    "lost-token": (b"200 OK", b"", b"application/xml"),
    "html": (b"200 OK", b"", b"text/html"),
    "quota": (b"403 Forbidden", b"QuotaExceeded", b"application/xml"),
    "full": (b"507 Insufficient Storage", b"XMinioStorageFull", b"application/xml"),
}
_FORGED_PAGES: Final = {
    "half-listing": b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a.b",
    "lost-token": b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
}
_REFUSALS: Final = ("quota", "full")


def _forge_response(kind: str, retry_after: int) -> bytes:
    """Build a response of the proxy's own."""
    status, code, content = _FORGED_RESPONSES[kind]
    body = b"<Error><Code>%s</Code><Message>made by the proxy</Message></Error>" % code
    if kind in _FORGED_PAGES:
        body = _FORGED_PAGES[kind]
    elif kind == "html":
        body = b"<!DOCTYPE html><html><body><h1>Welcome to our network</h1><p>Please log in.<br></body></html>"
    wait = b"Retry-After: %d\r\n" % retry_after if kind in ("slow-down", "too-many") else b""
    date = b"Last-Modified: Sat, 01 Jan 2022 00:00:00 GMT\r\n" if kind == "html" else b""
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n%s" % (
        status, content, len(body), wait, date, body,
    )  # fmt: skip


def _edit_request_headers(head: bytes, fault: S3Fault | None) -> bytes:
    """Return the headers to forward. S3 clients do not sign Range and If-Match, so they can be removed."""
    if fault is not None and fault.kind == "ignored-range":
        return re.sub(rb"(?i)(^|\n)range: [^\r\n]*\r\n", rb"\1", head)
    if fault is not None and fault.kind == "changed-etag":
        return re.sub(rb"(?i)(^|\n)if-match: [^\r\n]*\r\n", rb"\1", head)
    return head


def _parse_requested_span(request: _S3Request) -> tuple[int | None, int | None]:
    found = re.match(rb"bytes=(\d*)-(\d*)", request.value(b"range") or b"")
    if found is None:
        return None, None
    return (int(found[1]) if found[1] else None, int(found[2]) if found[2] else None)


def _covers_fault(span: tuple[int | None, int | None], fault: S3Fault) -> bool:
    """Return whether the requested range includes the fault. "changed-etag" affects all later bytes too."""
    start, last = span
    if last is not None and last < fault.at:
        return False
    return fault.kind == "changed-etag" or start is None or start <= fault.at


def _parse_response_start(head: bytes) -> int:
    found = re.match(rb"bytes (\d+)-", _value(head, b"content-range") or b"")
    return int(found[1]) if found else 0


def _shift_range(head: bytes) -> bytes:
    """Return the headers with the range moved by one byte."""

    def shift(found: re.Match[bytes]) -> bytes:
        return b"%s%d-%d/%d" % (found[1], int(found[2]) + 1, int(found[3]) + 1, int(found[4]) + 1)

    return re.sub(rb"(?i)(\ncontent-range: *bytes )(\d+)-(\d+)/(\d+)", shift, head)


def _value(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?im)^" + re.escape(name) + rb": *([^\r\n]*)", head)
    return found[1] if found else None


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, length: int) -> None:
    while length:
        piece = await source.read(min(_PIECE_BYTES, length))
        if not piece:
            raise asyncio.IncompleteReadError(piece, length)
        target.write(piece)
        await target.drain()
        length -= len(piece)
    await target.drain()


async def _copy_chunked(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Forward a chunked body (RFC 9112, section 7.1) to its end."""
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
