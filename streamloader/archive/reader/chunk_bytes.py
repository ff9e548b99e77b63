"""Read the bytes of chunks: of local files directly, of stores through the I/O thread, concurrently and ahead."""

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
    RangeNotSatisfiable,
    StoreError,
    StreamloaderError,
    UntrustedHost,
)
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path, open_regular_file
from streamloader.stores.origins import make_untrusted_error
from streamloader.stores.registry import scheme_of
from streamloader.values import ByteRange

if TYPE_CHECKING:
    from streamloader.archive.location import PlaceAddress
    from streamloader.archive.reader.cache import FrameCache
    from streamloader.archive.reader.lookup import Chunk
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.stores.base import Store
    from streamloader.stores.io_thread import SharedStore
    from streamloader.values import ObjectInfo

__all__ = ["ByteBlock", "ChunkReader"]


@dataclass(slots=True)
class ByteBlock:
    """The bytes [start, end) of a chunk.

    Attributes:
        start: Offset of the first byte in the chunk.
        end: Offset after the last byte.
        data: The bytes, or None before they have arrived.
        future: The request for the bytes, or None once they have arrived.
    """

    start: int
    end: int
    data: bytes | None = None
    future: concurrent.futures.Future[bytes] | None = None


class ChunkReader:
    """Reads byte ranges of the chunks in the places of an archive. All methods are thread-safe.

    Args:
        places: Address of each place, by number of the place.
        options: Options of the stores. See :func:`streamloader.stores.registry.select_options`.
        cache: Cache for the blocks read from stores, under ``("bytes", chunk key, start, end)``.
        counts: Counters to update.
    """

    def __init__(
        self,
        places: Mapping[int, PlaceAddress],
        options: Mapping[str, Any] | None,
        cache: FrameCache,
        counts: ReadCounts,
    ) -> None:
        self._places = dict(places)
        self._options = options
        self._cache = cache
        self._counts = counts
        self._lock = threading.Lock()
        self._closed = False
        self._stores: dict[int, tuple[SharedStore, str]] = {}
        self._blocks: dict[tuple[str, int], list[ByteBlock]] = {}  # by chunk: cached blocks and pending requests

    def is_local(self, place: int) -> bool:
        """Return whether the chunks of a place are local files."""
        return scheme_of(self._get_place(place).url) in ("", "file")

    def address(self, chunk: Chunk) -> str:
        """Return the address of a chunk's file, without secrets."""
        return redact_address(self._chunk_address(chunk))

    def read_local(self, chunk: Chunk, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return byte ranges of a chunk in a local file.

        Raises:
            CorruptStream: If the size of the file differs from the catalog.
            StoreError: If the file cannot be read.
        """
        path = local_path(self._chunk_address(chunk))
        try:
            descriptor = open_regular_file(path)
            try:
                self.check_size(chunk, os.fstat(descriptor).st_size)
                pieces = [_read_range(descriptor, start, end) for start, end in spans]
            finally:
                os.close(descriptor)
        except StreamloaderError as error:
            error.stream = chunk.video.name
            raise
        except OSError as error:
            raise self._translate_error(error, chunk, path) from error
        for (start, end), piece in zip(spans, pieces, strict=True):
            if len(piece) != end - start:
                raise self.corrupt_error(chunk, f"ends at byte {start + len(piece)}")
        self._count(requests=len(spans), misses=sum(map(len, pieces)))
        return pieces

    def find_block(self, chunk: Chunk, start: int, end: int) -> ByteBlock | None:
        """Return the block that contains the bytes [start, end) of a chunk in a store. Return None if there is none."""
        with self._lock:
            for block in self._blocks.get(chunk.key, ()):
                if block.start <= start and end <= block.end:
                    return block
        return None

    def list_blocks(self, chunk: Chunk) -> list[ByteBlock]:
        """Return the cached and requested blocks of a chunk in a store."""
        with self._lock:
            return list(self._blocks.get(chunk.key, ()))

    def request(self, chunk: Chunk, start: int, end: int, *, prefetch: bool = False) -> ByteBlock:
        """Start to fetch the bytes [start, end) of a chunk in a store, unless a block contains them already.

        Args:
            chunk: Chunk to read.
            start: Offset of the first byte.
            end: Offset after the last byte.
            prefetch: Whether the bytes are counted as prefetched. Defaults to False.
        """
        block = self.find_block(chunk, start, end)
        if block is not None:
            return block
        store, folder = self._open_store(chunk.row.place)
        block = ByteBlock(start, end)
        with self._lock:
            self._blocks.setdefault(chunk.key, []).append(block)
        path = f"{folder}/{chunk.row.path}" if folder else chunk.row.path
        block.future = store.submit(_fetch_bytes(store.store, path, start, end, chunk.row.bytes))
        if not self._cache.put(("bytes", chunk.key, start, end), block, end - start):
            self.remove_dropped(("bytes", chunk.key, start, end))
        self._count(requests=1, misses=end - start, prefetched=end - start if prefetch else 0)
        return block

    def wait_for(self, chunk: Chunk, block: ByteBlock) -> bytes:
        """Wait until the bytes of a block have arrived, and return them.

        Raises:
            StoreError: If the bytes cannot be read. A later request tries again.
            CorruptStream: If the size of the chunk differs from the catalog.
        """
        data, future = block.data, block.future
        if data is not None:
            return data
        assert future is not None
        try:
            data = future.result()
        except _SizeMismatch as error:
            self.forget(chunk, block)
            raise self._size_error(chunk, error.size) from None
        except RangeNotSatisfiable as error:
            self.forget(chunk, block)
            raise self._size_error(chunk, error.details.get("size")) from error
        except concurrent.futures.CancelledError as error:
            self.forget(chunk, block)
            raise ClosedError("the archive was closed during a read", address=self.address(chunk)) from error
        except StoreError as error:
            self.forget(chunk, block)
            place = self._get_place(chunk.row.place)
            if isinstance(error, UntrustedHost) and not place.named:  # for example, it is not at a public address
                raise make_untrusted_error(place.url, place.catalog, error.message) from error
            error.stream = chunk.video.name
            raise
        block.data = data
        block.future = None
        return data

    def forget(self, chunk: Chunk, block: ByteBlock) -> None:
        """Remove a block from the cache."""
        self._cache.drop([("bytes", chunk.key, block.start, block.end)])
        self.remove_dropped(("bytes", chunk.key, block.start, block.end))

    def remove_dropped(self, key: Any) -> None:
        """Called with each key that the cache has dropped. The block under the key is removed."""
        if key[0] != "bytes":
            return
        _, chunk, start, end = key
        with self._lock:
            remaining = [block for block in self._blocks.get(chunk, ()) if (block.start, block.end) != (start, end)]
            if remaining:
                self._blocks[chunk] = remaining
            else:
                self._blocks.pop(chunk, None)

    def count_hit(self, count: int) -> None:
        """Count bytes that were in the cache."""
        self._count(hits=count)

    def check_size(self, chunk: Chunk, size: int) -> None:
        """Compare the size of a chunk's file with the catalog.

        Raises:
            CorruptStream: If the sizes differ.
        """
        if size != chunk.row.bytes:
            raise self._size_error(chunk, size)

    def corrupt_error(self, chunk: Chunk, problem: str, frame: int | None = None) -> CorruptStream:
        """Build the error for a damaged chunk.

        Args:
            chunk: Damaged chunk.
            problem: Description of the damage, as a predicate of the chunk.
            frame: Number of the affected frame within the chunk. Defaults to none.
        """
        address = self.address(chunk)
        offset = None if frame is None else chunk.row.first_frame + frame
        where = "" if offset is None else f", at frame {offset}"
        return CorruptStream(
            f"chunk {chunk.row.number} of video {chunk.video.name!r} ({address}) {problem}{where}: it is damaged or "
            "was replaced. archive.check(repair=True) finds and repairs such chunks",
            stream=chunk.video.name,
            address=address,
            offset=offset,
            chunk=chunk.row.number,
        )

    def close(self) -> None:
        """Cancel pending requests and release the stores."""
        with self._lock:
            self._closed = True
            blocks = [block for blocks in self._blocks.values() for block in blocks]
            self._blocks.clear()
            stores, self._stores = self._stores, {}
        for block in blocks:
            if block.future is not None:
                block.future.cancel()
        for store, _ in stores.values():
            store.close()

    def _get_place(self, place: int) -> PlaceAddress:
        try:
            return self._places[place]
        except KeyError:
            raise CatalogError(f"the catalog has chunks in place {place}, but no address of that place") from None

    def _chunk_address(self, chunk: Chunk) -> str:
        return f"{self._get_place(chunk.row.place).url.rstrip('/')}/{chunk.row.path}"

    def _open_store(self, place: int) -> tuple[SharedStore, str]:
        with self._lock:
            if self._closed:
                raise ClosedError("the archive was closed during a read")
            opened = self._stores.get(place)
            if opened is None:
                address = self._get_place(place)
                store, folder = open_shared_store(address.url, address.select_options(self._options))
                opened = self._stores[place] = store, folder.rstrip("/")
            return opened

    def _count(self, *, requests: int = 0, misses: int = 0, hits: int = 0, prefetched: int = 0) -> None:
        with self._lock:
            self._counts.requests += requests
            self._counts.byte_misses += misses
            self._counts.byte_hits += hits
            self._counts.prefetched += prefetched

    def _size_error(self, chunk: Chunk, size: int | None) -> CorruptStream:
        actual = "fewer" if size is None else str(size)
        return self.corrupt_error(chunk, f"has {actual} bytes, but the catalog says {chunk.row.bytes}")

    def _translate_error(self, error: OSError, chunk: Chunk, path: str) -> StoreError:
        kind: type[StoreError] = StoreError
        if isinstance(error, FileNotFoundError):
            kind = NotFound
        elif isinstance(error, PermissionError):
            kind = AccessDenied
        reason = os.strerror(error.errno or errno.EIO)
        return kind(
            f"chunk {chunk.row.number} of video {chunk.video.name!r} cannot be read: {path}: {reason}. If the chunks "
            "were moved, open the archive with places={number: folder}",
            stream=chunk.video.name,
            address=path,
        )


class _SizeMismatch(Exception):
    """An object whose size differs from the catalog."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


async def _fetch_bytes(store: Store, path: str, start: int, end: int, size: int) -> bytes:
    """Read the bytes [start, end) of an object, which must have `size` bytes."""

    def check_object_size(info: ObjectInfo, offset: int) -> None:
        del offset
        if info.size is not None and info.size != size:
            raise _SizeMismatch(info.size)

    async with contextlib.aclosing(store.stream(path, ByteRange(start, end), on_start=check_object_size)) as pieces:
        parts = [piece async for piece in pieces]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_range(descriptor: int, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of an open file, or fewer if the file ends before."""
    data = os.pread(descriptor, end - start, start)
    while data and len(data) < end - start:
        more = os.pread(descriptor, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
