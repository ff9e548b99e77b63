"""The bytes of chunks: of local files directly, of stores through the I/O thread, side by side and ahead of need."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamloader.errors import (
    AccessDenied,
    CatalogError,
    ClosedError,
    CorruptStream,
    NotFound,
    RangeOutside,
    StoreError,
    StreamloaderError,
)
from streamloader.redaction import redact
from streamloader.stores.io_thread import shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import options_for, scheme_of
from streamloader.values import ByteRange

if TYPE_CHECKING:
    from streamloader.archive.reader.cache import FrameCache
    from streamloader.archive.reader.lookup import Chunk
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.stores.base import Store
    from streamloader.stores.io_thread import SharedStore
    from streamloader.values import ObjectInfo

__all__ = ["Block", "ChunkStores"]


@dataclass(slots=True)
class Block:
    """Bytes [start, end) of a chunk, there or on their way."""

    start: int
    end: int
    data: bytes | None = None
    coming: concurrent.futures.Future[bytes] | None = None


class ChunkStores:
    """The places of an archive, as bytes of chunks.

    All methods can be called from several threads.

    Args:
        places: number of a place -> address of its folder.
        options: of the stores, see :func:`streamloader.stores.registry.options_for`.
        cache: where bytes from stores are kept under ``("bytes", chunk, start, end)``.
        counts: what is counted.
    """

    def __init__(
        self, places: Mapping[int, str], options: Mapping[str, Any] | None, cache: FrameCache, counts: ReadCounts
    ) -> None:
        self._places = dict(places)
        self._options = options
        self._cache = cache
        self._counts = counts
        self._lock = threading.Lock()
        self._closed = False
        self._stores: dict[int, tuple[SharedStore, str]] = {}
        self._blocks: dict[tuple[str, int], list[Block]] = {}  # of each chunk: what the cache has, or what is coming

    def is_local(self, place: int) -> bool:
        """Say whether chunks of a place are files of this machine."""
        return scheme_of(self._address(place)) in ("", "file")

    def address(self, chunk: Chunk) -> str:
        """Return the address of the file of a chunk, without secrets."""
        return redact(self._join(chunk))

    def read_local(self, chunk: Chunk, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return spans of a local file, whose size is compared with the catalog."""
        path = local_path(self._join(chunk))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.check_size(chunk, os.fstat(descriptor).st_size)
                pieces = [_pread(descriptor, start, end) for start, end in spans]
            finally:
                os.close(descriptor)
        except StreamloaderError:
            raise
        except OSError as error:
            raise self._translated(error, chunk, path) from error
        for (start, end), piece in zip(spans, pieces, strict=True):
            if len(piece) != end - start:
                raise self.corrupt(chunk, f"breaks off at byte {start + len(piece)}")
        self._count(requests=len(spans), misses=sum(map(len, pieces)))
        return pieces

    def block(self, chunk: Chunk, start: int, end: int) -> Block | None:
        """Return what holds bytes [start, end) of a chunk of a store, or is going to."""
        with self._lock:
            for block in self._blocks.get(chunk.key, ()):
                if block.start <= start and end <= block.end:
                    return block
        return None

    def blocks(self, chunk: Chunk) -> list[Block]:
        """Return what there is of a chunk of a store, or is on its way."""
        with self._lock:
            return list(self._blocks.get(chunk.key, ()))

    def ask(self, chunk: Chunk, start: int, end: int, *, ahead: bool = False) -> Block:
        """Begin to fetch bytes [start, end) of a chunk of a store, if that was not begun before."""
        block = self.block(chunk, start, end)
        if block is not None:
            return block
        store, folder = self._store(chunk.row.place)
        block = Block(start, end)
        with self._lock:
            self._blocks.setdefault(chunk.key, []).append(block)
        path = f"{folder}/{chunk.row.path}" if folder else chunk.row.path
        block.coming = store.submit(_fetch(store.store, path, start, end, chunk.row.bytes))
        if not self._cache.put(("bytes", chunk.key, start, end), block, end - start):
            self.dropped(("bytes", chunk.key, start, end))
        self._count(requests=1, misses=end - start, prefetched=end - start if ahead else 0)
        return block

    def wait(self, chunk: Chunk, block: Block) -> bytes:
        """Return the bytes of a block, once they are there.

        Raises:
            StoreError: they could not be had. The next one who wants them tries again.
            CorruptStream: the chunk has another size than the catalog says.
        """
        data, coming = block.data, block.coming
        if data is not None:
            return data
        assert coming is not None
        try:
            data = coming.result()
        except _OtherSize as error:
            self.forget(chunk, block)
            raise self._other_size(chunk, error.size) from None
        except RangeOutside as error:
            self.forget(chunk, block)
            raise self._other_size(chunk, error.details.get("size")) from error
        except concurrent.futures.CancelledError as error:
            self.forget(chunk, block)
            raise ClosedError("the archive was closed while it was read", address=self.address(chunk)) from error
        except StoreError as error:
            self.forget(chunk, block)
            error.stream = chunk.video.name
            raise
        block.data = data
        block.coming = None
        return data

    def forget(self, chunk: Chunk, block: Block) -> None:
        """Do not keep a block any longer."""
        self._cache.drop([("bytes", chunk.key, block.start, block.end)])
        self.dropped(("bytes", chunk.key, block.start, block.end))

    def dropped(self, key: Any) -> None:
        """Take note that the cache has dropped what it had under `key`."""
        if key[0] != "bytes":
            return
        _, chunk, start, end = key
        with self._lock:
            left = [block for block in self._blocks.get(chunk, ()) if (block.start, block.end) != (start, end)]
            if left:
                self._blocks[chunk] = left
            else:
                self._blocks.pop(chunk, None)

    def hit(self, count: int) -> None:
        """Count bytes that were there already."""
        self._count(hits=count)

    def check_size(self, chunk: Chunk, size: int) -> None:
        """Compare the size of a chunk's file with the catalog.

        Raises:
            CorruptStream: it is another.
        """
        if size != chunk.row.bytes:
            raise self._other_size(chunk, size)

    def corrupt(self, chunk: Chunk, what: str, frame: int | None = None) -> CorruptStream:
        """Return the error that says what is wrong with a chunk; `frame` counts within the chunk."""
        address = self.address(chunk)
        offset = None if frame is None else chunk.row.first + frame
        where = "" if offset is None else f", at frame {offset}"
        return CorruptStream(
            f"chunk {chunk.row.number} of video {chunk.video.name!r} ({address}) {what}{where}: it is damaged or was "
            "replaced. archive.check(repair=True) finds and mends such chunks",
            stream=chunk.video.name,
            address=address,
            offset=offset,
            chunk=chunk.row.number,
        )

    def close(self) -> None:
        """Give the stores back, and stop what is under way."""
        with self._lock:
            self._closed = True
            blocks = [block for blocks in self._blocks.values() for block in blocks]
            self._blocks.clear()
            stores, self._stores = self._stores, {}
        for block in blocks:
            if block.coming is not None:
                block.coming.cancel()
        for store, _ in stores.values():
            store.close()

    def _address(self, place: int) -> str:
        try:
            return self._places[place]
        except KeyError:
            raise CatalogError(f"the catalog has chunks in place {place}, but says nothing of that place") from None

    def _join(self, chunk: Chunk) -> str:
        return f"{self._address(chunk.row.place).rstrip('/')}/{chunk.row.path}"

    def _store(self, place: int) -> tuple[SharedStore, str]:
        with self._lock:
            if self._closed:
                raise ClosedError("the archive was closed while it was read")
            known = self._stores.get(place)
            if known is None:
                address = self._address(place)
                store, folder = shared_store(address, options_for(address, self._options))
                known = self._stores[place] = store, folder.rstrip("/")
            return known

    def _count(self, *, requests: int = 0, misses: int = 0, hits: int = 0, prefetched: int = 0) -> None:
        with self._lock:
            self._counts.requests += requests
            self._counts.byte_misses += misses
            self._counts.byte_hits += hits
            self._counts.prefetched += prefetched

    def _other_size(self, chunk: Chunk, size: int | None) -> CorruptStream:
        has = "fewer" if size is None else str(size)
        return self.corrupt(chunk, f"has {has} bytes, but the catalog says {chunk.row.bytes}")

    def _translated(self, error: OSError, chunk: Chunk, path: str) -> StoreError:
        kind: type[StoreError] = StoreError
        if isinstance(error, FileNotFoundError):
            kind = NotFound
        elif isinstance(error, PermissionError):
            kind = AccessDenied
        what = os.strerror(error.errno or errno.EIO)
        return kind(
            f"chunk {chunk.row.number} of video {chunk.video.name!r} cannot be read: {path}: {what}. If chunks were "
            "moved, open the archive with places={number: folder}",
            stream=chunk.video.name,
            address=path,
        )


class _OtherSize(Exception):
    """The object has another size than was expected."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


async def _fetch(store: Store, path: str, start: int, end: int, size: int) -> bytes:
    """Read bytes [start, end) of an object of `size` bytes."""

    def look(info: ObjectInfo, begin: int) -> None:
        del begin
        if info.size is not None and info.size != size:
            raise _OtherSize(info.size)

    async with contextlib.aclosing(store.stream(path, ByteRange(start, end), on_begin=look)) as pieces:
        parts = [piece async for piece in pieces]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pread(descriptor: int, start: int, end: int) -> bytes:
    data = os.pread(descriptor, end - start, start)
    while data and len(data) < end - start:
        more = os.pread(descriptor, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
