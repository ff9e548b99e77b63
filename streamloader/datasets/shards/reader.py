"""Read the raw samples of lanes: dicts of bytes, from shards on this machine or in stores."""

from __future__ import annotations

import concurrent.futures
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from streamloader.common.lru import LruCache
from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.datasets.shards.frames import FrameSpan, decompress_frames, find_frames
from streamloader.datasets.shards.index import ShardIndex
from streamloader.datasets.shards.local_bytes import LocalShards, make_shard_error
from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.remote_bytes import RemoteShards
from streamloader.datasets.shards.table import MISSING, SampleTable
from streamloader.errors import ClosedError, CorruptSample, DatasetError, StreamloaderError
from streamloader.values import Array

__all__ = ["KEY", "URL", "LaneReader", "RawSample", "SampleBlock", "SampleSource"]

RawSample: TypeAlias = dict[str, Any]

KEY: Final = "__key__"  # WebDataset's names
URL: Final = "__url__"
_MAX_BLOCK_SAMPLES: Final = 512  # that are made at once
_MAX_BLOCK_BYTES: Final = 1 << 20
_MAX_LOCAL_GAP_BYTES: Final = 4 << 10  # between two members, read to save a call
_MAX_REMOTE_GAP_BYTES: Final = 64 << 10  # between two members, transferred to save a request
_MAX_SPAN_BYTES: Final = 4 << 20  # beyond which the next member starts another span
_MAX_WHOLE_BYTES: Final = 256 << 20  # of decompressed shards that have no frames


class SampleBlock(NamedTuple):
    """Successive samples of one lane.

    Attributes:
        samples: Sample, or the error that occurred instead of it, for each position.
        shards: Number of the shard of each sample.
        numbers: Number of each sample within its shard.
        is_whole: Whether there is no error among the samples.
    """

    samples: list[Any]
    shards: list[int]
    numbers: list[int]
    is_whole: bool


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
        self.verify = verify
        self.prefetch_bytes = prefetch_bytes
        self.table = SampleTable(shards, fields)
        self.urls = _Urls(shards)
        self._places: dict[int, _ShardLocation] = {}
        self._local = LocalShards(shards)
        self._remote = RemoteShards(shards)
        self._whole_transfers: dict[int, concurrent.futures.Future[bytes]] = {}
        self._whole: LruCache[int, bytes] = LruCache(1 << 10, _MAX_WHOLE_BYTES)
        self._prefetched_bytes = 0
        self._waiting: deque[LaneReader] = deque()  # lanes whose next window did not fit

    def describe(self, shard: int, sample: int, field: str | None = None) -> dict[str, Any]:
        """Return the keywords for an error about a sample: address, offset, dataset, shard and member."""
        member, offset = self.shards.index(shard).describe_member(sample, field)
        return {
            "address": self.shards.shard_address(shard),
            "offset": offset,
            "dataset": self.shards.address,
            "shard": self.shards.infos[shard].name,
            "member": member,
        }

    def close(self) -> None:
        """Close all files."""
        self._local.close()
        self.shards.close()

    # --- spans -------------------------------------------------------------------------------------------------------

    def is_local(self, shard: int) -> bool:
        """Return whether a shard lies on this machine."""
        return self._find_place(shard).path is not None

    def _find_place(self, shard: int) -> _ShardLocation:
        place = self._places.get(shard)
        if place is None:
            index = self.shards.index(shard)
            place = _ShardLocation(self.shards.local_path(shard), None if index.compression is None else index)
            self._places[shard] = place
        return place

    def open_span(self, shard: int, start: int, end: int) -> _Span:
        """Return a span of a shard's content. Its bytes are fetched now if they are in a store."""
        index = self._find_place(shard).compressed
        frames = None if index is None else find_frames(index, start, end)
        span = _Span(shard, start, end, frames)
        if not self.is_local(shard) and (frames is None or self._whole.get(shard) is None):
            span.future = self._submit(span)
        return span

    def _submit(self, span: _Span) -> concurrent.futures.Future[bytes]:
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

    def read_span(self, span: _Span) -> bytes | StreamloaderError:
        """Return the bytes of a span, or the error that occurred instead."""
        try:
            if span.frames is None:
                return self._read_file(span, span.start, span.end)
            return self._decompress(span, span.frames)
        except StreamloaderError as error:
            return error

    def _read_file(self, span: _Span, start: int, end: int) -> bytes:
        path = self._find_place(span.shard).path
        if path is None:
            span.future = span.future or self._submit(span)  # it was decompressed, and forgotten
            try:
                return span.future.result()
            except concurrent.futures.CancelledError as error:
                address = self.shards.shard_address(span.shard)
                raise ClosedError(f"{address}: the stores were closed while it was read", address=address) from error
        return self._local.read(span.shard, path, start, end)

    def _decompress(self, span: _Span, frames: FrameSpan) -> bytes:
        index = self.shards.index(span.shard)
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

    def take_budget(self, lane: LaneReader, size: int) -> bool:
        """Return whether `size` bytes may be fetched in advance. If not, the lane is called when there is room."""
        if self._prefetched_bytes and self._prefetched_bytes + size > self.prefetch_bytes:
            self._waiting.append(lane)
            return False
        self._prefetched_bytes += size
        return True

    def return_budget(self, size: int) -> None:
        """Return the budget of a window that is played now, and let other lanes fetch."""
        self._prefetched_bytes -= size
        waiting, self._waiting = self._waiting, deque()
        for lane in waiting:
            lane.prefetch()


class _ShardLocation(NamedTuple):
    """Where a shard lies.

    Attributes:
        path: Path of its file on this machine. None if it is in a store.
        compressed: Index of a compressed shard. None for a plain one.
    """

    path: str | None
    compressed: ShardIndex | None


class _Urls:
    """Address of each shard, made when it is first needed."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._urls: dict[int, str] = {}

    def get(self, shards: list[int]) -> list[str]:
        for shard in set(shards).difference(self._urls):
            self._urls[shard] = self._shards.shard_address(shard)
        return [self._urls[shard] for shard in shards]


class _Span:
    """Successive bytes of a shard's content, which are read together.

    Attributes:
        frames: Compressed frames that contain them. None for a plain shard.
        future: Transfer of the bytes from a store. None if they are read when they are needed.
    """

    __slots__ = ("end", "frames", "future", "shard", "start")

    def __init__(self, shard: int, start: int, end: int, frames: FrameSpan | None) -> None:
        self.shard = shard
        self.start = start
        self.end = end
        self.frames = frames
        self.future: concurrent.futures.Future[bytes] | None = None


class LaneReader:
    """The raw samples of one lane in one epoch.

    Args:
        source: Bytes of the samples.
        windows: Windows of the lane, from :meth:`streamloader.datasets.shards.order.EpochOrder.windows`.
    """

    def __init__(self, source: SampleSource, windows: Iterator[ShuffleWindow]) -> None:
        self._source = source
        self._windows = windows
        self._planned: ShuffleWindow | None = None  # an interrupted wait for an index must not lose it
        self._current: _WindowReader | None = None
        self._next: _WindowReader | None = None
        self._next_bytes: int | None = None  # of the budget that the next window has taken

    def prefetch(self) -> None:
        """Start to fetch the next window, if it is in a store and the budget allows it."""
        if self._next is None:
            self._planned = self._planned or next(self._windows, None)
            self._next = None if self._planned is None else _WindowReader(self._source, self._planned)
            self._planned = None
        if self._next is not None and self._next_bytes is None and self._next.is_remote:
            size = self._next.size
            if self._source.take_budget(self, size):
                self._next_bytes = size
                self._next.open()

    def read_block(self) -> SampleBlock | None:
        """Return the next samples. None at the end of the lane.

        Bad samples are errors in the block. The next call returns what follows it.
        """
        while self._current is None or self._current.is_played:
            if self._current is not None or self._next is None:
                self.prefetch()
            self._current, self._next = self._next, None
            if self._current is None:
                return None
            self._current.open()
            size, self._next_bytes = self._next_bytes, None
            if size is not None:
                self._source.return_budget(size)
            self.prefetch()
        return self._current.read_block()

    def close(self) -> None:
        """Cancel all transfers."""
        for window in (self._current, self._next):
            if window is not None:
                window.cancel()
        self._planned = self._current = self._next = None
        self._windows = iter(())


class _WindowReader:
    """The spans of one window, and its samples.

    Args:
        source: Bytes of the samples.
        window: Samples in the order in which they are played.

    Attributes:
        size: Number of bytes of all spans together.
        is_remote: Whether some of them are in a store.
    """

    def __init__(self, source: SampleSource, window: ShuffleWindow) -> None:
        self._source = source
        table = source.table
        self._shards, self._samples = window
        rows = table.find_rows(*window)
        distinct = np.unique(self._shards).tolist()
        self._failures = {shard: error for shard in distinct if (error := table.get_failure(shard)) is not None}
        self._names = tuple(table.names)  # a later window may add some
        self.is_remote = any(not source.is_local(shard) for shard in distinct if shard not in self._failures)
        self._starts, self._sizes = table.starts[rows], table.sizes[rows]
        self._checksums = table.checksums[rows]
        self._key_spans = table.key_spans[rows]
        if self._failures:
            self._sizes = np.where(np.isin(self._shards, list(self._failures))[:, None], MISSING, self._sizes)
        self._columns = range(len(self._names))
        self._ends = np.cumsum(np.maximum(self._sizes, 0).sum(axis=1))
        self._spans: list[_Span] | None = None
        self._data: list[Any] = []  # of each span: bytes, or the error that occurred instead, or None
        self._position = 0
        self._plan_spans()

    @property
    def is_played(self) -> bool:
        """Whether all samples were returned."""
        return self._position == len(self._shards)

    def open(self) -> None:
        """Start to fetch all spans that are in stores."""
        if self._spans is None:
            bounds = zip(self._span_shards.tolist(), self._span_starts.tolist(), self._span_ends.tolist(), strict=True)
            self._spans = [self._source.open_span(*bound) for bound in bounds]
            self._data = [None] * len(self._spans)

    def cancel(self) -> None:
        """Cancel all transfers."""
        for span in self._spans or ():
            if span.future is not None:
                span.future.cancel()
        self._spans = None
        self._position = len(self._shards)

    def _plan_spans(self) -> None:
        """Merge the members that lie next to each other in a shard into spans."""
        present = self._sizes.reshape(-1) != MISSING
        shards = np.repeat(self._shards, len(self._columns))[present]
        starts = self._starts.reshape(-1)[present]
        ends = starts + self._sizes.reshape(-1)[present]
        order = np.lexsort((starts, shards))
        shards, starts, ends = shards[order], starts[order], ends[order]
        gap = _MAX_REMOTE_GAP_BYTES if self.is_remote else _MAX_LOCAL_GAP_BYTES
        is_first = np.ones(len(starts), bool)
        is_first[1:] = (shards[1:] != shards[:-1]) | (starts[1:] - ends[:-1] > gap)
        run_starts = starts[np.flatnonzero(is_first)][np.cumsum(is_first) - 1] if len(starts) else starts
        parts = (starts - run_starts) // _MAX_SPAN_BYTES
        is_first[1:] |= parts[1:] != parts[:-1]
        firsts = np.flatnonzero(is_first)
        lasts = np.append(firsts[1:], len(starts)) - 1 if len(firsts) else firsts
        self._span_shards, self._span_starts, self._span_ends = shards[firsts], starts[firsts], ends[lasts]
        self.size = int((self._span_ends - self._span_starts).sum())
        spans = np.cumsum(is_first) - 1
        self._member_spans: Array = np.full(present.shape, -1, np.int64)
        self._member_spans[np.flatnonzero(present)[order]] = spans
        offsets: Array = np.zeros(present.shape, np.int64)
        offsets[np.flatnonzero(present)[order]] = starts - self._span_starts[spans]
        self._member_spans = self._member_spans.reshape(self._sizes.shape)
        self._offsets = offsets.reshape(self._sizes.shape)
        # After which sample the bytes of a span are not needed any more.
        self._last_uses: Array = np.zeros(len(firsts), np.int64)
        positions = np.repeat(np.arange(len(self._shards)), len(self._columns))[present][order]
        np.maximum.at(self._last_uses, spans, positions)

    # --- samples -----------------------------------------------------------------------------------------------------

    def read_block(self) -> SampleBlock:
        """Return the next samples."""
        start = self._position
        end = self._find_block_end(start)
        rows = slice(start, end)
        shards, numbers = self._shards[rows].tolist(), self._samples[rows].tolist()
        is_regular = self._read_spans(rows) and not self._failures and not (self._sizes[rows] == MISSING).any()
        columns = [self._read_column(column, rows) for column in self._columns] if is_regular else []
        if is_regular and self._are_intact(columns, rows):
            keys, urls = self._read_keys(rows, shards), self._source.urls.get(shards)
            samples: list[Any] = _make_samples(self._names, keys, urls, columns)
            is_whole = True
        else:
            is_whole = False
            samples = [
                self._make_sample(position, shard, number)
                for position, shard, number in zip(range(start, end), shards, numbers, strict=True)
            ]
        self._free_spans(rows)
        self._position = end  # only now: a wait that is interrupted loses nothing
        return SampleBlock(samples, shards, numbers, is_whole)

    def _find_block_end(self, start: int) -> int:
        """Return the position after a block of samples of moderate size."""
        before = int(self._ends[start - 1]) if start else 0
        end = int(np.searchsorted(self._ends, before + _MAX_BLOCK_BYTES))
        return min(max(start + 1, end), start + _MAX_BLOCK_SAMPLES, len(self._shards))

    def _read_spans(self, rows: slice) -> bool:
        """Read the spans of some samples. Return whether that succeeded for all."""
        assert self._spans is not None
        is_whole = True
        for number in np.unique(self._member_spans[rows]).tolist():
            if number >= 0:
                if self._data[number] is None:
                    self._data[number] = self._source.read_span(self._spans[number])
                is_whole &= isinstance(self._data[number], bytes)
        return is_whole

    def _read_column(self, column: int, rows: slice) -> list[bytes]:
        """Return one field of some samples that all have it."""
        data = self._data
        starts = self._offsets[rows, column]
        ends = starts + self._sizes[rows, column]
        spans = self._member_spans[rows, column].tolist()
        return [data[span][start:end] for span, start, end in zip(spans, starts.tolist(), ends.tolist(), strict=True)]

    def _are_intact(self, columns: list[list[Any]], rows: slice) -> bool:
        """Return whether the contents of some samples have the checksums of the index."""
        if not self._source.verify:
            return True
        for column, values in zip(self._columns, columns, strict=True):
            expected = self._checksums[rows, column].tolist()
            if [*map(zlib.crc32, values)] != expected and any(
                want not in (MISSING, zlib.crc32(value)) for want, value in zip(expected, values, strict=True)
            ):
                return False
        return True

    def _read_keys(self, rows: slice, shards: list[int]) -> list[str]:
        keys = self._source.table.keys
        starts, ends = self._key_spans[rows].T.tolist()
        if all(isinstance(keys[shard], str) for shard in set(shards)):
            return [keys[shard][start:end] for shard, start, end in zip(shards, starts, ends, strict=True)]
        return [
            key if isinstance(key := keys[shard][start:end], str) else key.decode("utf-8", "surrogatepass")
            for shard, start, end in zip(shards, starts, ends, strict=True)
        ]

    def _make_sample(self, position: int, shard: int, number: int) -> RawSample | StreamloaderError:
        """Return a sample that may lack fields, or whose bytes may be bad."""
        failure = self._failures.get(shard)
        if failure is not None:
            return failure
        key = self._read_keys(slice(position, position + 1), [shard])[0]
        sample: RawSample = {KEY: key, URL: self._source.urls.get([shard])[0]}
        for column in self._columns:
            span = int(self._member_spans[position, column])
            if span < 0:
                continue
            data, name = self._data[span], self._names[column]
            if isinstance(data, StreamloaderError):
                return data
            start = int(self._offsets[position, column])
            value = data[start : start + int(self._sizes[position, column])]
            if not self._is_intact(position, column, value):
                return self._make_checksum_error(shard, number, name)
            sample[name] = value
        return sample

    def _is_intact(self, position: int, column: int, value: bytes) -> bool:
        expected = int(self._checksums[position, column])
        return not self._source.verify or expected in (MISSING, zlib.crc32(value))

    def _make_checksum_error(self, shard: int, number: int, name: str) -> DatasetError:
        place = self._source.describe(shard, number, name)
        return CorruptSample(
            f"{place['address']}, byte {place['offset']}: the member {place['member']} has another checksum than its "
            f"index declares (data set {place['dataset']}). Write the shard again, or leave the sample out with "
            "on_error='skip'",
            **place,
        )

    def _free_spans(self, rows: slice) -> None:
        """Drop the bytes that no later sample needs."""
        assert self._spans is not None
        for number in np.unique(self._member_spans[rows]).tolist():
            if number >= 0 and self._last_uses[number] < rows.stop:
                self._data[number] = b""
                self._spans[number].future = None


def _make_samples(
    names: Sequence[str], keys: list[str], urls: list[str], columns: list[list[bytes]]
) -> list[RawSample]:
    """Return samples that all have the same fields. One or two fields, the usual case, take half the time."""
    rows = zip(keys, urls, *columns, strict=True)
    if len(names) == 1:
        (one,) = names
        return [{KEY: key, URL: url, one: first} for key, url, first in rows]
    if len(names) == 2:  # noqa: PLR2004
        one, two = names
        return [{KEY: key, URL: url, one: first, two: second} for key, url, first, second in rows]
    names = (KEY, URL, *names)
    return [dict(zip(names, row, strict=True)) for row in rows]
