"""Provide the bytes of a data set's samples to the lanes of one process, from this machine or from stores."""

from __future__ import annotations

import concurrent.futures
import mmap
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from streamloader.common.lru import LruCache
from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.datasets.shards.frames import FrameSpan, decompress_frames, find_frames
from streamloader.datasets.shards.index import ShardIndex
from streamloader.datasets.shards.local_bytes import LocalShards, make_shard_error
from streamloader.datasets.shards.remote_bytes import RemoteShards
from streamloader.datasets.shards.table import ShardTable
from streamloader.errors import ClosedError, DatasetError, StoreError, StreamloaderError

__all__ = ["ByteSpan", "SampleSource"]

_MAX_READINGS: Final = 24  # of indexes, at once
_MAX_WHOLE_BYTES: Final = 256 << 20  # of decompressed shards that have no frames


class SampleSource:
    """The bytes of a data set's samples, shared by the lanes of one process.

    Args:
        shards: Data set.
        verify: Whether to compare contents with their checksums. Defaults to True.
        prefetch_bytes: Maximum number of bytes that are fetched in advance from stores, for windows that are not being
            played yet. Defaults to 32 MiB.
        fields: Names of the fields that are needed. Defaults to all.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        verify: bool = True,
        prefetch_bytes: int = 32 << 20,
        fields: Sequence[str] | None = None,
    ) -> None:
        self.shards = shards
        self._is_open = True
        shards.acquire()
        self.verify = verify
        self.prefetch_bytes = prefetch_bytes
        self._fields = None if fields is None else frozenset(fields)
        self._failures: dict[int, DatasetError] = {}
        self._readings: dict[int, concurrent.futures.Future[bytes]] = {}  # of indexes
        self._unread: dict[int, None] = {}  # shards whose indexes are read as soon as others have been
        self._paths: dict[int, str | None] = {}  # of shards on this machine; None for those in stores
        self._urls: dict[int, str] = {}
        self._local = LocalShards(shards)
        self._remote = RemoteShards(shards)
        self._whole_transfers: dict[int, concurrent.futures.Future[bytes]] = {}
        self._whole: LruCache[int, bytes] = LruCache(1 << 10, _MAX_WHOLE_BYTES)
        self._prefetched_bytes = 0
        self._waiting: dict[_Prefetching, None] = {}  # lanes whose next window did not fit

    def find_table(self, shard: int) -> ShardTable | StreamloaderError:
        """Return where the samples of a shard lie, or the error of its index.

        A bad index is read once. An error of a store is valid for this call only: the next one tries again.
        """
        failure = self._failures.get(shard)
        if failure is not None:
            return failure
        try:
            table: ShardTable | StreamloaderError
            table = self.shards.table(shard, self._fields, self._readings.get(shard))
        except DatasetError as error:
            table = self._failures.setdefault(shard, error)
        except StreamloaderError as error:
            table = error
        self._readings.pop(shard, None)  # only now: an interrupted wait does not lose it
        self._read_indexes()
        return table

    @property
    def address(self) -> str:
        """Address of the data set, without secrets."""
        return self.shards.address

    def prefetch_tables(self, shards: Iterable[int]) -> None:
        """Start to read what :meth:`find_table` will need, for several shards at once."""
        known = self._readings.keys() | self._failures.keys()
        self._unread.update(dict.fromkeys(shard for shard in shards if shard not in known))
        self._read_indexes()

    def _read_indexes(self) -> None:
        while self._unread and len(self._readings) < _MAX_READINGS:
            shard = next(iter(self._unread))
            del self._unread[shard]
            reading = self.shards.submit_index(shard, self._fields)
            if reading is not None:
                self._readings[shard] = reading

    def find_url(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        url = self._urls.get(shard)
        return url if url is not None else self._urls.setdefault(shard, self.shards.shard_address(shard))

    def describe(self, shard: int, sample: int, field: str | None = None) -> dict[str, Any]:
        """Return the keywords for an error about a sample: address, offset, dataset, shard and member."""
        try:
            member, offset = self.shards.index(shard).describe_member(sample, field)
        except StreamloaderError:  # the index was there before: an error about the sample must not become another one
            member, offset = f"number {sample}", 0
        return {
            "address": self.shards.shard_address(shard),
            "offset": offset,
            "dataset": self.shards.address,
            "shard": self.shards.infos[shard].name,
            "member": member,
        }

    def close(self) -> None:
        """Release the stores."""
        for reading in self._readings.values():
            reading.cancel()
        self._readings.clear()
        self._unread.clear()
        if self._is_open:
            self._is_open = False
            self.shards.release()

    # --- spans -------------------------------------------------------------------------------------------------------

    def is_local(self, shard: int) -> bool:
        """Return whether a shard lies on this machine."""
        return self._find_path(shard) is not None

    def _find_path(self, shard: int) -> str | None:
        if shard not in self._paths:
            self._paths[shard] = self.shards.local_path(shard)
        return self._paths[shard]

    def map_shard(self, shard: int, table: ShardTable) -> mmap.mmap | StreamloaderError | None:
        """Return a shard's file, mapped, or the error that occurred instead. None if it has to be read by spans.

        Reading a file that was cut after this call ends the process.
        """
        path = self._find_path(shard)
        if path is None or table.compressed is not None:
            return None
        try:
            return self._local.map(shard, path)
        except StreamloaderError as error:
            return error

    def map_again(self, shard: int, table: ShardTable) -> mmap.mmap | StreamloaderError:
        """Return a shard's file, which :meth:`map_shard` has mapped before, or the error that occurred instead."""
        mapped = self.map_shard(shard, table)
        if mapped is None:
            address = self.shards.shard_address(shard)
            return StoreError(f"{address} cannot be mapped any more: read it again", address=address)
        return mapped

    @property
    def may_keep_mappings(self) -> bool:
        """Whether the results of :meth:`map_shard` may be kept while :meth:`are_mappings_intact` is true."""
        return self._local.may_be_kept

    def are_mappings_intact(self) -> bool:
        """Return whether no mapped file was cut until now, or until one millisecond ago."""
        return self._local.are_intact()

    def open_span(self, table: ShardTable, shard: int, start: int, end: int) -> ByteSpan:
        """Return a span of a shard's content. Its bytes are fetched now if they are in a store."""
        frames = None if table.compressed is None else find_frames(table.compressed, start, end)
        span = ByteSpan(table, shard, start, end, frames)
        if not self.is_local(shard) and (frames is None or self._whole.get(shard) is None):
            span.future = self._submit(span)
        return span

    def _submit(self, span: ByteSpan) -> concurrent.futures.Future[bytes]:
        """Start a transfer. Spans of a shard that is decompressed as a whole share one."""
        if span.frames is None:
            return self._remote.submit(span.shard, span.start, span.end)
        start, end = span.frames.start, span.frames.end
        if start or end < self.shards.infos[span.shard].bytes:
            return self._remote.submit(span.shard, start, end)
        future = self._whole_transfers.get(span.shard)
        if future is None or (future.done() and (future.cancelled() or future.exception() is not None)):
            future = self._whole_transfers[span.shard] = self._remote.submit(span.shard, start, end)
        return future

    def read_span(self, span: ByteSpan) -> bytes | StreamloaderError:
        """Return the bytes of a span, or the error that occurred instead."""
        try:
            if span.frames is None or span.table.compressed is None:
                return self._read_file(span, span.start, span.end)
            return self._decompress(span, span.frames, span.table.compressed)
        except StreamloaderError as error:
            return error

    def _read_file(self, span: ByteSpan, start: int, end: int) -> bytes:
        path = self._find_path(span.shard)
        if path is None:
            span.future = span.future or self._submit(span)  # it was decompressed, and forgotten
            try:
                return span.future.result()
            except concurrent.futures.CancelledError as error:
                address = self.shards.shard_address(span.shard)
                raise ClosedError(f"{address}: the stores were closed while it was read", address=address) from error
        return self._local.read(span.shard, path, start, end)

    def _decompress(self, span: ByteSpan, frames: FrameSpan, index: ShardIndex) -> bytes:
        whole = self._whole.get(span.shard)
        try:
            if whole is None:
                data = self._read_file(span, frames.start, frames.end)
                if len(index.frames) > 1:
                    return decompress_frames(index, frames, data, span.start, span.end)
                whole = decompress_frames(index, frames, data, 0, index.data_size)
                self._whole.put(span.shard, whole, len(whole))
                self._whole_transfers.pop(span.shard, None)
        except ValueError as error:
            if isinstance(error, StreamloaderError):
                raise
            raise make_shard_error(self.shards, span.shard, f"is damaged: {error}", frames.start) from error
        return whole[span.start : span.end]

    # --- the budget for reading ahead --------------------------------------------------------------------------------

    def take_budget(self, lane: _Prefetching, size: int) -> bool:
        """Return whether `size` bytes may be fetched in advance. If not, the lane is called when there is room."""
        if self._prefetched_bytes and self._prefetched_bytes + size > self.prefetch_bytes:
            self._waiting[lane] = None
            return False
        self._prefetched_bytes += size
        return True

    def return_budget(self, size: int) -> None:
        """Return the budget of a window that is played now, and let other lanes fetch."""
        self._prefetched_bytes -= size
        waiting, self._waiting = self._waiting, {}
        for lane in waiting:
            lane.prefetch()


class _Prefetching(Protocol):
    """A lane that waits for a part of the budget."""

    def prefetch(self) -> None:
        """Fetch the next window."""


class ByteSpan:
    """Successive bytes of a shard's content, which are read together.

    Attributes:
        table: Table of the shard.
        shard: Number of the shard.
        start: Offset of the first byte in the shard's content.
        end: Offset after the last byte.
        frames: Compressed frames that contain them. None for a plain shard.
        future: Transfer of the bytes from a store. None if they are read when they are needed.
    """

    __slots__ = ("end", "frames", "future", "shard", "start", "table")

    def __init__(self, table: ShardTable, shard: int, start: int, end: int, frames: FrameSpan | None) -> None:
        self.table = table
        self.shard = shard
        self.start = start
        self.end = end
        self.frames = frames
        self.future: concurrent.futures.Future[bytes] | None = None
