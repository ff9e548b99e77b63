"""Provide a blocking file over an object in a store, with adaptive read-ahead.

The reader (a decoder in the thread of its lane) takes bytes from segments of the object. Requests that run in the I/O
thread of the process fill the segments. Only the reader's thread decides what is fetched, kept and dropped; the I/O
thread writes into segments and signals new bytes. Neither thread therefore blocks the other unless the reader waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from typing_extensions import override

from streamloader.config import Limits
from streamloader.errors import ClosedError, LimitExceeded, NotSupported, ProtocolError, TransferInterrupted
from streamloader.stores.base import Store
from streamloader.stores.io_thread import open_shared_store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["MAX_FILE_BYTES", "MAX_PROCESS_BYTES", "UNIT_BYTES", "ReadStats", "RemoteFile"]

UNIT_BYTES: Final = 128 << 10  # segments begin at multiples of it
MAX_FILE_BYTES: Final = 16 << 20  # buffered by one file
MAX_PROCESS_BYTES: Final = 256 << 20  # buffered by all open files together, except for the minimum of each
_MAX_REQUEST_BYTES: Final = 16 * UNIT_BYTES
_INITIAL_WINDOW_BYTES: Final = 2 * UNIT_BYTES
_MIN_FILE_BYTES: Final = 3 * UNIT_BYTES  # buffered by one file, however many are open
_REQUESTS_PER_WINDOW: Final = 4
_MIN_RELEVANT_WAIT_S: Final = 0.001  # a shorter wait does not enlarge the window
_THREAD_CHECK_INTERVAL_S: Final = 5.0  # how often a waiting reader checks that the I/O thread is alive
_MAX_CONCURRENT_SPANS: Final = 16  # requests of read_spans

_open_files: Final[set[int]] = set()  # ids; adding and discarding are atomic, even in a finaliser


@dataclass(slots=True)
class ReadStats:
    """Statistics of reading one file.

    Attributes:
        requests: Number of requests.
        fetched: Number of bytes received.
        read: Number of bytes that the reader took.
        dropped: Number of bytes that were requested and dropped before the reader took any byte of their segment.
        waits: Number of times that the reader had to wait.
        waited: Total time that the reader waited, in seconds.
    """

    requests: int = 0
    fetched: int = 0
    read: int = 0
    dropped: int = 0
    waits: int = 0
    waited: float = 0.0


class _FetchProgress:
    """Signals from the I/O thread to the reader that bytes have arrived."""

    __slots__ = ("changed", "fetched", "waiting")

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.waiting = False
        self.fetched = 0  # bytes; only the I/O thread counts

    def notify(self) -> None:
        if self.waiting:  # the reader sets it before its last check
            with self.changed:
                self.changed.notify_all()


class _Segment:
    """A span of the object, filled from its beginning."""

    __slots__ = ("data", "done", "end", "error", "filled", "future", "start", "used")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.data = bytearray(end - start)
        self.filled = 0
        self.done = False
        self.error: BaseException | None = None
        self.used = False  # by the reader
        self.future: concurrent.futures.Future[None] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether more bytes will arrive."""
        return not self.done and self.filled < len(self.data)


class RemoteFile(io.RawIOBase):
    """A read-only, seekable file over an object, for one thread at a time.

    ``read(n)`` and ``readinto`` block until at least one byte is available, and may return fewer bytes than requested
    (wrap the file in ``io.BufferedReader`` for readers that do not expect that). The read-ahead window grows whenever
    the reader had to wait, and shrinks when fetched bytes were not read. Requests grow with it from 128 KiB to 2 MiB;
    about four run at a time. Seeking fetches nothing until bytes are read there; recently read bytes are kept.

    The store's deadlines limit every wait. An error of the store is raised unchanged when the reader needs the bytes
    of the failed request; a later read tries again. Failed requests whose bytes are never needed raise nothing.

    Args:
        address: Address of the object, as for :func:`streamloader.stores.open_store`.
        info: Metadata of the object from its store. The size must be known. If it has a version, only bytes of this
            version are read.
        options: Options of the store.
        max_bytes: Maximum number of buffered bytes. Defaults to MAX_FILE_BYTES. The limit is lower while all open files
            together would otherwise exceed MAX_PROCESS_BYTES.
        initial_spans: Spans [start, end) that will be read first, in bytes. They are requested immediately, up to
            MAX_FILE_BYTES.

    Attributes:
        size: Size of the object in bytes.
        limits: Limits of the store.
        stats: Statistics of reading, see :class:`ReadStats`.

    Raises:
        NotSupported: If the size of the object is unknown.
        LimitExceeded: If the object is larger than ``limits.stream_bytes``, or if more than ``limits.object_bytes`` are
            read at once.
        ConfigError: If an option is invalid, see :func:`streamloader.stores.io_thread.open_shared_store`.
        StoreError: If a read fails; ObjectChanged if the object has another version than `info`.
        ClosedError: If a read follows the closing of the process's shared stores, or happens in a forked child.
    """

    def __init__(
        self,
        address: str,
        info: ObjectInfo,
        options: Mapping[str, Any] | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        initial_spans: Iterable[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self._segments: OrderedDict[int, _Segment] = OrderedDict()  # by start, least recently used first
        self._units: dict[int, _Segment] = {}
        self._pid = os.getpid()
        self._store, self._path = open_shared_store(address, options)
        self._address = self._store.store.address(self._path)
        if info.size is None:
            self._store.close()
            raise NotSupported(
                f"{self._address}: its server does not report its size, which random access needs: keep a copy of it "
                "elsewhere",
                address=self._address,
            )
        self.size: int = info.size
        self.limits: Limits = self._store.store.limits
        if self.size > self.limits.stream_bytes:
            self._store.close()
            raise LimitExceeded(
                f"{self._address} has {self.size} bytes according to its server, more than "
                f"{self.limits.stream_bytes}: raise Limits(stream_bytes=...)",
                address=self._address,
            )
        self._version = info.version
        self._progress = _FetchProgress()
        self._stats = ReadStats()
        self._max_bytes = max_bytes
        self._held = 0  # bytes of all segments
        self._window = _INITIAL_WINDOW_BYTES
        self._position = 0
        self._expected = 0  # position after the last read
        self._sequential_bytes = 0  # read without a jump
        self._current: _Segment | None = None
        _open_files.add(id(self))
        remaining_bytes = MAX_FILE_BYTES
        for start, end in initial_spans:
            start, end = max(0, start) // UNIT_BYTES * UNIT_BYTES, min(end, self.size)  # noqa: PLW2901
            remaining_bytes -= end - start
            if remaining_bytes < 0:
                break
            self._fetch_units(start, end, self._buffer_limit())

    @property
    def stats(self) -> ReadStats:
        """Statistics of reading so far."""
        self._stats.fetched = self._progress.fetched
        return self._stats

    @property
    def address(self) -> str:
        """Address of the object, without secrets."""
        return self._address

    @property
    def is_idle(self) -> bool:
        """Whether every request has finished or failed."""
        return all(segment.done for segment in self._segments.values())

    @property
    def is_healthy(self) -> bool:
        """Whether no request has failed so far."""
        return all(segment.error is None for segment in self._segments.values())

    # --- the file interface ------------------------------------------------------------------------------------------

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return self._position

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position and return it. It may be after the end. Nothing is fetched until bytes are read there."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} (whence {whence}) in a file of {self.size} bytes")
        self._position = base + offset
        return self._position

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, at least one before the end. Without a size, return all remaining bytes."""
        if size is None or size < 0:
            return self.readall()
        view = self._take(size)
        return bytes(view)

    @override
    def readinto(self, buffer: Any, /) -> int:
        """Fill the beginning of `buffer`, with at least one byte before the end, and return the number of bytes."""
        with memoryview(buffer).cast("B") as out:
            view = self._take(len(out))
            out[: len(view)] = view
            return len(view)

    @override
    def readall(self) -> bytes:
        """Return all bytes from the position to the end."""
        if self.size - self._position > self.limits.object_bytes:
            raise LimitExceeded(
                f"{self._address}: {self.size - self._position} bytes would be read into memory, more than "
                f"{self.limits.object_bytes}: read it in parts, or raise Limits(object_bytes=...)",
                address=self._address,
                offset=self._position,
            )
        parts = []
        while part := self.read(_MAX_REQUEST_BYTES):
            parts.append(part)
        return b"".join(parts)

    def has_arrived(self, start: int, count: int) -> bool:
        """Return whether reading `count` bytes from `start` would not wait."""
        position = start
        while position < min(start + count, self.size):
            segment = self._units.get(position // UNIT_BYTES)
            if segment is None or not position < segment.start + segment.filled:
                return False
            position = segment.start + segment.filled
        return True

    def peek(self, start: int, count: int) -> memoryview:
        """Return up to `count` bytes from `start` if they are buffered or on their way, otherwise none.

        The position and the read-ahead stay as they are.
        """
        segment = None if self.closed else self._units.get(start // UNIT_BYTES)
        if segment is None or start >= segment.end or (segment.done and segment.start + segment.filled <= start):
            return memoryview(b"")
        if segment.start + segment.filled <= start:
            self._wait(segment, start)
        self._segments.move_to_end(segment.start)
        offset = start - segment.start
        return memoryview(segment.data)[offset : min(segment.filled, offset + count)]

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start`, or fewer at the end, without moving the position or reading ahead."""
        self._check_open()
        end = min(start + count, self.size)
        if start >= end:
            return b""
        segment = self._units.get(start // UNIT_BYTES)
        if segment is not None and segment.end >= end:
            if segment.start + segment.filled < end:
                self._wait(segment, end - 1)
            return bytes(memoryview(segment.data)[start - segment.start : end - segment.start])
        return self.read_spans([(start, end)])[0]

    def read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many short spans [start, end). They are fetched concurrently and not kept."""
        self._check_open()
        parts = self._store.call(_read_spans(self._store.store, self._path, spans, self._version, self.size))
        self._stats.requests += len(spans)
        self._stats.read += sum(map(len, parts))
        self._progress.fetched += sum(map(len, parts))
        return parts

    @override
    def close(self) -> None:
        """Cancel all requests and free all buffers. Safe to call twice."""
        if not self.closed:
            super().close()
            _open_files.discard(id(self))
            if "_store" in self.__dict__:
                if self._pid == os.getpid():  # in a child they belong to the parent
                    for segment in self._segments.values():
                        _cancel(segment)
                self._store.close()
            self._segments.clear()
            self._units.clear()
            self._current = None

    def __repr__(self) -> str:
        return f"<RemoteFile {self._address} {self.size} bytes>"

    # --- called in the reader's thread -------------------------------------------------------------------------------

    def _take(self, size: int) -> memoryview:
        """Return a view of bytes at the position, and advance the position."""
        self._check_open()
        position = self._position
        if position >= self.size or size <= 0:
            return memoryview(b"")
        if position != self._expected and not -UNIT_BYTES <= position - self._expected <= self._window:
            self._handle_jump(position)
        segment = self._units.get(position // UNIT_BYTES)
        if segment is None:
            self._fetch_ahead(position)
            segment = self._units[position // UNIT_BYTES]
        if segment.start + segment.filled <= position:
            self._wait(segment, position)
        if segment is not self._current:
            self._current, segment.used = segment, True
            self._segments.move_to_end(segment.start)
        offset = position - segment.start
        view = memoryview(segment.data)[offset : min(segment.filled, offset + size)]
        count = len(view)
        self._stats.read += count
        self._sequential_bytes += count
        self._position = self._expected = position + count
        if self._position < self.size:
            self._fetch_ahead(self._position)  # while the reader processes these bytes
        return view

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self!r} is closed")
        if self._pid != os.getpid():
            raise ClosedError(f"{self!r} belongs to the parent process: open it again here", address=self._address)

    def _buffer_limit(self) -> int:
        """Return the number of bytes that this file may buffer now."""
        return max(_MIN_FILE_BYTES, min(self._max_bytes, MAX_PROCESS_BYTES // max(1, len(_open_files))))

    def _handle_jump(self, position: int) -> None:
        """Drop pending requests that are not needed at the new position, unless they are small."""
        self._sequential_bytes = 0
        window = self._window
        unneeded = [s for s in self._segments.values() if s.is_pending and not s.start - window < position < s.end]
        if sum(s.end - s.start for s in unneeded) <= _INITIAL_WINDOW_BYTES:
            return
        for segment in unneeded:
            self._drop(segment)
        self._window = max(_INITIAL_WINDOW_BYTES, window // 2)

    def _fetch_ahead(self, position: int) -> None:
        """Request the bytes that the reader needs next, up to the end of the window."""
        limit = self._buffer_limit()
        kept_bytes = max(UNIT_BYTES, limit // 4)
        window = min(self._window, limit - kept_bytes, max(_INITIAL_WINDOW_BYTES, 2 * self._sequential_bytes))
        request = max(UNIT_BYTES, min(_MAX_REQUEST_BYTES, window // _REQUESTS_PER_WINDOW) // UNIT_BYTES * UNIT_BYTES)
        edge = position // UNIT_BYTES * UNIT_BYTES
        while True:
            while edge < self.size and (segment := self._units.get(edge // UNIT_BYTES)) is not None:
                edge = segment.end
                if segment.done and segment.error is not None:
                    return  # its error is raised when the reader reaches it; bytes after it can wait until then
            if edge >= self.size or edge > position + window - request:
                return
            edge = self._fetch_units(edge, min(edge + request, self.size), window + kept_bytes)

    def _fetch_units(self, start: int, end: int, limit: int) -> int:
        """Start one request for [start, end), shortened to end where bytes are buffered already. Return its end."""
        request_end = start
        while request_end < end and request_end // UNIT_BYTES not in self._units:
            request_end = min(request_end + UNIT_BYTES, self.size)
        if request_end > start:
            self._free_space(start, request_end - start, limit)
            segment = _Segment(start, request_end)
            work = _fill(self._store.store, self._path, segment, self._version, self.size, self._progress)
            future = segment.future = self._store.submit(work)
            self._held += request_end - start
            self._segments[start] = segment
            for unit in range(start // UNIT_BYTES, -(-request_end // UNIT_BYTES)):
                self._units[unit] = segment
            self._stats.requests += 1
            progress = self._progress
            future.add_done_callback(lambda done: _finish(done, segment, progress))
        return request_end

    def _free_space(self, edge: int, needed: int, limit: int) -> None:
        """Drop the least recently used segments, except those between the reader and `edge`."""
        for segment in list(self._segments.values()):
            if self._held + needed <= limit:
                return
            if not (segment.end > self._position and segment.start <= edge):
                self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        _cancel(segment)
        self._held -= segment.end - segment.start
        if not segment.used:
            self._stats.dropped += segment.end - segment.start
        if segment is self._current:
            self._current = None
        del self._segments[segment.start]
        for unit in range(segment.start // UNIT_BYTES, -(-segment.end // UNIT_BYTES)):
            del self._units[unit]

    def _wait(self, segment: _Segment, offset: int) -> None:
        """Wait until the byte at `offset` has arrived. If it never will, raise the error of its request."""
        progress, index = self._progress, offset - segment.start
        started = time.monotonic()
        with progress.changed:
            progress.waiting = True
            try:
                while segment.filled <= index and not segment.done:
                    if not progress.changed.wait(_THREAD_CHECK_INTERVAL_S):
                        self._store.submit(_do_nothing())  # raises if the I/O thread has ended
            finally:
                progress.waiting = False
        waited = time.monotonic() - started
        self._stats.waits += 1
        self._stats.waited += waited
        if segment.filled <= index:
            error = segment.error
            self._drop(segment)  # so that another read tries again
            raise error or TransferInterrupted(
                f"{self._address}: the transfer broke off", address=self._address, offset=offset
            )
        if waited > _MIN_RELEVANT_WAIT_S and self._sequential_bytes:
            self._window = min(2 * self._window, self._max_bytes)


def _cancel(segment: _Segment) -> None:
    if segment.future is not None and not segment.done:
        segment.future.cancel()


def _finish(done: concurrent.futures.Future[None], segment: _Segment, progress: _FetchProgress) -> None:
    if done.cancelled():
        segment.error = ClosedError("the shared stores of this process were closed while one of their files was read")
    else:
        segment.error = done.exception()
    segment.future = None
    segment.done = True
    progress.notify()


async def _fill(
    store: Store, path: str, segment: _Segment, version: str | None, object_size: int, progress: _FetchProgress
) -> None:
    size, position = segment.end - segment.start, 0
    view = memoryview(segment.data)

    def receive(piece: bytes) -> None:
        nonlocal position
        end = position + len(piece)
        if end > size:
            address = store.address(path)
            raise ProtocolError(f"{address}: received more bytes than requested", address=address, offset=segment.end)
        view[position:end] = piece
        progress.fetched += end - position
        segment.filled = position = end
        progress.notify()

    await store.fetch(path, ByteRange(segment.start, segment.end), receive, version=version, size=object_size)
    if position < size:
        address, offset = store.address(path), segment.start + position
        raise TransferInterrupted(f"{address}: the transfer broke off at byte {offset}", address=address, offset=offset)


async def _read_spans(
    store: Store, path: str, spans: Sequence[tuple[int, int]], version: str | None, size: int
) -> list[bytes]:
    request_slots = asyncio.Semaphore(_MAX_CONCURRENT_SPANS)

    async def read(start: int, end: int) -> bytes:
        async with request_slots:
            return await store.read(path, ByteRange(start, end), version=version, size=size)

    tasks = [asyncio.ensure_future(read(start, end)) for start, end in spans]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _do_nothing() -> None:
    """Do nothing; used to check that the I/O thread accepts work."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_files.clear)
