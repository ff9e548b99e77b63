"""A blocking file over an object in a store, which fetches ahead what its reader is about to need.

The reader (a decoder in the thread of its lane) takes bytes from segments of the object; requests that run in the I/O
thread of the process fill them. Only the reader's thread decides what is fetched, kept and dropped; the I/O thread
writes into segments and says that bytes have come, so that neither holds up the other where nobody waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamloader.errors import ClosedError, Interrupted, NotSupported, ProtocolFault
from streamloader.stores.base import Store
from streamloader.stores.io_thread import shared_store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["FILE_BYTES", "PROCESS_BYTES", "UNIT", "ReadStats", "RemoteFile"]

UNIT: Final = 128 << 10  # bytes; segments begin at multiples of it
FILE_BYTES: Final = 16 << 20  # that one file holds at most
PROCESS_BYTES: Final = 256 << 20  # that all open files share; each has a few units in any case
_LARGEST: Final = 16 * UNIT  # of one request
_FIRST: Final = 2 * UNIT  # ahead of a reader of which nothing is known yet
_LEAST: Final = 3 * UNIT  # of a file, however many are open
_IN_FLIGHT: Final = 4  # requests that a full window is made of
_LATE: Final = 0.001  # seconds; a shorter wait says nothing about the window
_LOOK: Final = 5.0  # seconds after which a waiting reader makes sure that the I/O thread is there
_AT_ONCE: Final = 16  # requests of read_spans

_open_files: Final[set[int]] = set()  # ids; adding and discarding are atomic, also in a finaliser


@dataclass(slots=True)
class ReadStats:
    """What reading a file took so far.

    Attributes:
        requests: that were made.
        fetched: bytes that came.
        read: bytes that the reader took.
        dropped: bytes that were asked for, and given up before the reader took any of their segment.
        waits: how often the reader had to wait.
        waited: seconds it did.
    """

    requests: int = 0
    fetched: int = 0
    read: int = 0
    dropped: int = 0
    waits: int = 0
    waited: float = 0.0


class _News:
    """How the I/O thread tells the reader that something came."""

    __slots__ = ("changed", "fetched", "waiting")

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.waiting = False
        self.fetched = 0  # bytes; counted by the I/O thread alone

    def tell(self) -> None:
        if self.waiting:  # set before the reader looks a last time
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
    def is_coming(self) -> bool:
        """Whether bytes of it are still to come."""
        return not self.done and self.filled < len(self.data)


class RemoteFile(io.RawIOBase):
    """A read-only, seekable file over an object, for one thread at a time.

    ``read(n)`` and ``readinto`` block until at least one byte is there and may return fewer than asked (wrap it in
    ``io.BufferedReader`` for readers that do not expect that). How far ahead is fetched grows whenever the reader had
    to wait, and shrinks when what was fetched was not read; requests grow along with it, from 128 KiB to 2 MiB, about
    four of them at a time. Seeking costs nothing until something is read there; what was read lately is kept.

    Every wait ends by the deadlines of the store. An error of the store is raised, as it is, where the reader needs
    the bytes that did not come; a later read tries again. What failed and is never needed raises nothing.

    Args:
        address: of the object, as for :func:`streamloader.stores.open_store`.
        info: what its store said of it. Its size must be known; where it has a version, only bytes of this version are
            read.
        options: of the store.
        most: bytes held at most; less while so many files are open that all would hold more than PROCESS_BYTES.
        opening: spans [start, end) that will be read first, in bytes: all of them are asked for at once.

    Attributes:
        size: of the object, in bytes.
        stats: see :class:`ReadStats`.

    Raises:
        NotSupported: the size of the object is not known.
        ConfigError: see :func:`streamloader.stores.io_thread.shared_store`.
        StoreError: from reading; ObjectChanged where the object is not the one of `info` any more.
        ClosedError: from reading after the shared stores of the process were closed, or in a child of it.
    """

    def __init__(
        self,
        address: str,
        info: ObjectInfo,
        options: Mapping[str, Any] | None = None,
        *,
        most: int = FILE_BYTES,
        opening: Iterable[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self._segments: OrderedDict[int, _Segment] = OrderedDict()  # by start, those used lately at the end
        self._units: dict[int, _Segment] = {}
        self._pid = os.getpid()
        self._store, self._path = shared_store(address, options)
        self._address = self._store.store.address(self._path)
        if info.size is None:
            self._store.close()
            raise NotSupported(
                f"{self._address}: its server does not tell its size, which reading at any place needs: keep a copy of "
                "it elsewhere",
                address=self._address,
            )
        self.size: int = info.size
        self._version = info.version
        self._news = _News()
        self._stats = ReadStats()
        self._most = most
        self._held = 0  # bytes of all segments
        self._window = _FIRST  # bytes to have ahead
        self._at = 0  # next byte to read
        self._expected = 0  # where the last read ended
        self._run = 0  # bytes read in a row
        self._current: _Segment | None = None
        _open_files.add(id(self))
        for start, end in opening:
            self._fetch_units(start // UNIT * UNIT, min(end, self.size), self._share())

    @property
    def stats(self) -> ReadStats:
        """What reading took so far."""
        self._stats.fetched = self._news.fetched
        return self._stats

    @property
    def idle(self) -> bool:
        """Whether all that was asked for has come, or failed."""
        return all(segment.done for segment in self._segments.values())

    @property
    def sound(self) -> bool:
        """Whether nothing that was asked for has failed so far."""
        return all(segment.error is None for segment in self._segments.values())

    # --- the file ----------------------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position and return it; it may be behind the end. Nothing is fetched before it is read from."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} (whence {whence}) in a file of {self.size} bytes")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, at least one before the end; all that are left without a size."""
        if size is None or size < 0:
            return self.readall()
        view = self._take(size)
        return bytes(view)

    def readinto(self, buffer: Any, /) -> int:
        """Fill the beginning of `buffer`, with at least one byte before the end; return how many bytes."""
        with memoryview(buffer).cast("B") as out:
            view = self._take(len(out))
            out[: len(view)] = view
            return len(view)

    def readall(self) -> bytes:
        """Return all bytes from the position to the end."""
        parts = []
        while part := self.read(_LARGEST):
            parts.append(part)
        return b"".join(parts)

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes, or those up to the end, without going there or fetching more than these."""
        self._check_open()
        end = min(start + count, self.size)
        if start >= end:
            return b""
        segment = self._units.get(start // UNIT)
        if segment is not None and segment.end >= end:
            if segment.start + segment.filled < end:
                self._wait(segment, end - 1)
            return bytes(memoryview(segment.data)[start - segment.start : end - segment.start])
        return self.read_spans([(start, end)])[0]

    def read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of many short spans [start, end), fetched side by side and not kept."""
        self._check_open()
        found = self._store.call(_read_spans(self._store.store, self._path, spans, self._version))
        self._stats.requests += len(spans)
        self._stats.read += sum(map(len, found))
        self._news.fetched += sum(map(len, found))
        return found

    def close(self) -> None:
        """Cancel what is under way and free everything. Safe to call twice."""
        if not self.closed:
            super().close()
            _open_files.discard(id(self))
            if "_store" in self.__dict__:
                if self._pid == os.getpid():  # in a child these are the parent's
                    for segment in self._segments.values():
                        _cancel(segment)
                self._store.close()
            self._segments.clear()
            self._units.clear()
            self._current = None

    def __repr__(self) -> str:
        return f"<RemoteFile {self._address} {self.size} bytes>"

    # --- the reader's thread -----------------------------------------------------------------------------------------

    def _take(self, size: int) -> memoryview:
        """Return a view of bytes at the position, and go behind them."""
        self._check_open()
        at = self._at
        if at >= self.size or size <= 0:
            return memoryview(b"")
        if at != self._expected and not -UNIT <= at - self._expected <= self._window:
            self._jump(at)
        segment = self._units.get(at // UNIT)
        if segment is None:
            self._fetch_ahead(at)
            segment = self._units[at // UNIT]
        if segment.start + segment.filled <= at:
            self._wait(segment, at)
        if segment is not self._current:
            self._current, segment.used = segment, True
            self._segments.move_to_end(segment.start)
        view = memoryview(segment.data)[at - segment.start : min(segment.filled, at - segment.start + size)]
        count = len(view)
        self._stats.read += count
        self._run += count
        self._at = self._expected = at + count
        if self._at < self.size:
            self._fetch_ahead(self._at)  # while the reader works on what it got
        return view

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self!r} is closed")
        if self._pid != os.getpid():
            raise ClosedError(
                f"{self!r} belongs to the parent of this process: open it again here", address=self._address
            )

    def _share(self) -> int:
        return max(_LEAST, min(self._most, PROCESS_BYTES // max(1, len(_open_files))))

    def _jump(self, at: int) -> None:
        """Give up what is under way and not needed at the new place, unless it is little."""
        self._run = 0
        window = self._window
        unneeded = [s for s in self._segments.values() if s.is_coming and not s.start - window < at < s.end]
        if sum(s.end - s.start for s in unneeded) <= _FIRST:
            return
        for segment in unneeded:
            self._drop(segment)
        self._window = max(_FIRST, window // 2)

    def _fetch_ahead(self, at: int) -> None:
        """Ask for what the reader needs next, as far as the window goes."""
        share = self._share()
        keep = max(UNIT, share // 4)
        window = min(self._window, share - keep, max(_FIRST, 2 * self._run))
        request = max(UNIT, min(_LARGEST, window // _IN_FLIGHT) // UNIT * UNIT)
        edge = at // UNIT * UNIT
        while True:
            while edge < self.size and (segment := self._units.get(edge // UNIT)) is not None:
                edge = segment.end
                if segment.done and segment.error is not None:
                    return  # its error is raised when it is reached: what lies behind it has time until then
            if edge >= self.size or edge > at + window - request:
                return
            edge = self._fetch_units(edge, min(edge + request, self.size), window + keep)

    def _fetch_units(self, start: int, end: int, room: int) -> int:
        """Begin one request for [start, end), or for its part before what is there already; return where it ends."""
        stop = start
        while stop < end and stop // UNIT not in self._units:
            stop = min(stop + UNIT, self.size)
        if stop > start:
            self._make_room(start, stop - start, room)
            segment = _Segment(start, stop)
            work = _fill(self._store.store, self._path, segment, self._version, self._news)
            future = segment.future = self._store.submit(work)
            self._held += stop - start
            self._segments[start] = segment
            for unit in range(start // UNIT, -(-stop // UNIT)):
                self._units[unit] = segment
            self._stats.requests += 1
            news = self._news
            future.add_done_callback(lambda done: _finish(done, segment, news))
        return stop

    def _make_room(self, edge: int, more: int, room: int) -> None:
        """Forget what was used longest ago, but nothing between the reader and `edge`."""
        for segment in list(self._segments.values()):
            if self._held + more <= room:
                return
            if not (segment.end > self._at and segment.start <= edge):
                self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        _cancel(segment)
        self._held -= segment.end - segment.start
        if not segment.used:
            self._stats.dropped += segment.end - segment.start
        if segment is self._current:
            self._current = None
        del self._segments[segment.start]
        for unit in range(segment.start // UNIT, -(-segment.end // UNIT)):
            del self._units[unit]

    def _wait(self, segment: _Segment, at: int) -> None:
        """Wait until the byte at `at` is there, or raise why it does not come."""
        news, wanted = self._news, at - segment.start
        began = time.monotonic()
        with news.changed:
            news.waiting = True
            try:
                while segment.filled <= wanted and not segment.done:
                    if not news.changed.wait(_LOOK):
                        self._store.submit(_nothing())  # raises if nobody is there to fetch anything
            finally:
                news.waiting = False
        waited = time.monotonic() - began
        self._stats.waits += 1
        self._stats.waited += waited
        if segment.filled <= wanted:
            error = segment.error
            self._drop(segment)  # so that another read tries again
            raise error or Interrupted(f"{self._address} broke off", address=self._address, offset=at)
        if waited > _LATE and self._run:
            self._window = min(2 * self._window, self._most)


def _cancel(segment: _Segment) -> None:
    if segment.future is not None and not segment.done:
        segment.future.cancel()


def _finish(done: concurrent.futures.Future[None], segment: _Segment, news: _News) -> None:
    if done.cancelled():
        segment.error = ClosedError("the shared stores of this process were closed while a file of them was read")
    else:
        segment.error = done.exception()
    segment.future = None
    segment.done = True
    news.tell()


async def _fill(store: Store, path: str, segment: _Segment, version: str | None, news: _News) -> None:
    size, at = segment.end - segment.start, 0
    view = memoryview(segment.data)
    span = ByteRange(segment.start, segment.end)
    async with contextlib.aclosing(store.stream(path, span, version=version)) as chunks:
        async for chunk in chunks:
            end = at + len(chunk)
            if end > size:
                address = store.address(path)
                raise ProtocolFault(f"{address}: more bytes came than asked for", address=address, offset=segment.end)
            view[at:end] = chunk
            news.fetched += end - at
            segment.filled = at = end
            news.tell()
    if at < size:
        address, offset = store.address(path), segment.start + at
        raise Interrupted(f"{address} broke off at byte {offset}", address=address, offset=offset)


async def _read_spans(store: Store, path: str, spans: Sequence[tuple[int, int]], version: str | None) -> list[bytes]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def read(start: int, end: int) -> bytes:
        async with turns:
            return await store.read(path, ByteRange(start, end), version=version)

    tasks = [asyncio.ensure_future(read(start, end)) for start, end in spans]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing() -> None:
    """Show that the I/O thread is there."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_files.clear)
