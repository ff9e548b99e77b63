"""Read the samples of one window: look up where their fields lie, and slice them out of files and fetched spans."""

from __future__ import annotations

import itertools
import mmap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import SampleBlock
from streamloader.datasets.shards.source import ByteSpan, SampleSource
from streamloader.datasets.shards.table import MAX_FIELDS, ShardTable
from streamloader.errors import ConfigError, CorruptSample, DatasetError, StreamloaderError
from streamloader.values import Array

__all__ = ["KEY", "URL", "RawSample", "WindowReader"]

RawSample: TypeAlias = dict[str, Any]

KEY: Final = "__key__"  # WebDataset's names
URL: Final = "__url__"
_MAX_BLOCK_SAMPLES: Final = 512  # that are made at once
_MAX_BLOCK_BYTES: Final = 1 << 20
_MAX_LOCAL_GAP_BYTES: Final = 4 << 10  # between two members, read to save a call
_MAX_REMOTE_GAP_BYTES: Final = 64 << 10  # between two members, transferred to save a request
_MAX_SPAN_BYTES: Final = 4 << 20  # beyond which the next member starts another span
_MAX_ADJACENT_SAMPLES: Final = 8  # between two samples, which the system reads in advance with them
_MAX_BLOCK_SHARDS: Final = 32  # whose files are open at once
_MAX_OFFSET: Final = np.int64(1 << 62)
_NO_PIECE: Final = -1


class WindowReader:
    """The samples of one window.

    Files of this machine that are mapped are one piece each. Everything else is read in spans, and each of them is a
    piece, which is dropped when no later sample needs it.

    Args:
        source: Bytes of the samples.
        window: Samples in the order in which they are played.

    Attributes:
        size: Number of bytes of all spans together.
        is_remote: Whether some of them are in a store.
    """

    def __init__(self, source: SampleSource, window: ShuffleWindow) -> None:
        self._source = source
        self._shards, self._samples = (numbers.astype(np.int32) for numbers in window)
        positions = (self._shards.astype(np.int64) << 32) | self._samples
        self._order = np.argsort(positions)  # as they lie in the shards
        shards = self._shards[self._order]
        starts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist()]
        bounds = itertools.pairwise([*starts, len(shards)])
        self._groups = {
            shard: self._order[start:end] for shard, (start, end) in zip(shards[starts].tolist(), bounds, strict=True)
        }
        source.prefetch_tables(self._groups)
        found = {shard: source.find_table(shard) for shard in self._groups}
        self._failures = {shard: error for shard, error in found.items() if isinstance(error, StreamloaderError)}
        self._tables = {shard: table for shard, table in found.items() if isinstance(table, ShardTable)}
        self._urls = {shard: source.find_url(shard) for shard in self._tables}
        self._key_array = self._gather_keys()
        self._names = self._list_fields()
        self._columns = range(len(self._names))
        self._gather()
        self._ends = np.cumsum(self._sizes.sum(axis=1, dtype=np.int64))
        self._data: list[Any] = []  # of each piece: bytes, or the error that occurred instead, or None
        self._spans: list[ByteSpan] | None = None
        self._is_kept = False
        self._position = 0
        self._plan_pieces()

    @property
    def is_played(self) -> bool:
        """Whether all samples were returned."""
        return self._position == len(self._shards)

    def open(self) -> None:
        """Start to fetch all spans that are in stores."""
        if self._spans is None:
            bounds = zip(self._span_shards.tolist(), self._span_starts.tolist(), self._span_ends.tolist(), strict=True)
            self._spans = [self._source.open_span(self._tables[bound[0]], *bound) for bound in bounds]
            self._data = [None] * (len(self._mapped) + len(self._spans))
            self._keep_mappings()

    def _keep_mappings(self) -> None:
        """Keep all mapped files, if there are no spans, no errors and no missing fields, so that blocks cost less."""
        if self._failures or self._spans or not self._source.may_keep_mappings or (self._pieces == _NO_PIECE).any():
            return
        self._data = [self._source.map_shard(shard, self._tables[shard]) for shard in self._mapped]
        self._is_kept = all(isinstance(data, mmap.mmap) for data in self._data)

    def cancel(self) -> None:
        """Cancel all transfers."""
        for span in self._spans or ():
            if span.future is not None:
                span.future.cancel()
        self._spans = None
        self._position = len(self._shards)

    # --- where the fields lie ----------------------------------------------------------------------------------------

    def _list_fields(self) -> tuple[str, ...]:
        fields = {table.fields for table in self._tables.values()}
        names = next(iter(fields)) if len(fields) == 1 else tuple(sorted({name for each in fields for name in each}))
        if len(names) > MAX_FIELDS:
            raise ConfigError(
                f"the data set {self._source.shards.address} has more than {MAX_FIELDS} different fields: name those "
                "that you need in to_tuple()"
            )
        return names

    def _gather(self) -> None:
        """Look up start, size and checksum of all fields, and the bounds of all keys."""
        fields = len(self._names)
        dtype = np.result_type(np.uint32, *(table.rows.dtype for table in self._tables.values()))
        self._rows: Array = np.zeros((len(self._shards), 3 * fields + 2), dtype)
        self._is_verified: Array = np.zeros(len(self._shards), bool)
        for shard, table in self._tables.items():
            group = self._groups[shard]
            if table.fields == self._names:
                self._rows[group] = table.rows[self._samples[group]]
            else:
                columns = np.array([self._names.index(name) for name in table.fields], np.int64)
                columns = np.concatenate([columns, fields + columns, 2 * fields + columns, 3 * fields + np.arange(2)])
                self._rows[group[:, None], columns] = table.rows[self._samples[group]]
            self._is_verified[group] = self._source.verify and table.has_checksums
        self._starts, self._sizes, self._checksums = np.split(self._rows[:, : 3 * fields], 3, axis=1)

    def _plan_pieces(self) -> None:
        """Assign each member to a mapped file or to a span. Offsets are relative to the piece."""
        is_present = self._starts != 0
        self._pieces: Array = np.full(self._sizes.shape, _NO_PIECE, np.int32)
        ranges = self._find_ranges() if self._names else {}
        self._mapped = [
            shard for shard, table in self._tables.items() if self._map(shard, table, ranges.get(shard, ())) is not None
        ]
        for number, shard in enumerate(self._mapped):
            self._pieces[self._groups[shard]] = number
        if not is_present.all():
            self._pieces[~is_present] = _NO_PIECE
        spanned = list(self._tables.keys() - set(self._mapped))
        self.is_remote = any(not self._source.is_local(shard) for shard in spanned)
        is_spanned = np.isin(self._shards, spanned)[:, None] if spanned else np.zeros((len(self._shards), 1), bool)
        self._plan_spans(is_present & is_spanned)

    def _map(
        self, shard: int, table: ShardTable, ranges: Iterable[tuple[int, int]]
    ) -> mmap.mmap | StreamloaderError | None:
        """Return the mapping of a shard, and have the system read some ranges of it."""
        mapped = self._source.map_shard(shard, table)
        if isinstance(mapped, mmap.mmap):
            for start, end in ranges:
                mapped.madvise(mmap.MADV_WILLNEED, start, end - start)
        return mapped

    def _find_ranges(self) -> dict[int, list[tuple[int, int]]]:
        """Return the ranges of whole pages of each shard that contain what this window needs, without large gaps."""
        shards, samples = self._shards[self._order], self._samples[self._order]
        breaks = (shards[1:] != shards[:-1]) | (samples[1:] - samples[:-1] > _MAX_ADJACENT_SAMPLES)
        lasts = np.append(np.flatnonzero(breaks), len(shards) - 1)
        first, last = self._order[np.append(0, lasts[:-1] + 1)], self._order[lasts]
        present = np.where(self._starts[first] == 0, _MAX_OFFSET, self._starts[first])
        starts = present.min(axis=1) // mmap.PAGESIZE * mmap.PAGESIZE
        ends = (self._starts[last] + self._sizes[last]).max(axis=1)
        ranges: dict[int, list[tuple[int, int]]] = {}
        for shard, start, end in zip(shards[lasts].tolist(), starts.tolist(), ends.tolist(), strict=True):
            if start < end:
                ranges.setdefault(shard, []).append((start, end))
        return ranges

    def _plan_spans(self, is_spanned: Array) -> None:
        """Merge the members that lie next to each other in a shard into spans.

        Args:
            is_spanned: Whether a member is read by spans, bool (samples, fields).
        """
        present = is_spanned.reshape(-1)
        shards = np.repeat(self._shards, len(self._columns))[present]
        starts = self._starts.reshape(-1)[present].astype(np.int64)
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
        members = np.flatnonzero(present)[order]
        samples, columns = np.divmod(members, max(1, len(self._columns)))
        self._pieces[samples, columns] = len(self._mapped) + spans
        self._starts[samples, columns] = starts - self._span_starts[spans]
        # After which sample the bytes of a span are not needed any more.
        self._last_uses: Array = np.zeros(len(firsts), np.int64)
        np.maximum.at(self._last_uses, spans, samples)

    # --- samples -----------------------------------------------------------------------------------------------------

    def read_block(self) -> SampleBlock:
        """Return the next samples."""
        start = self._position
        end = self._find_block_end(start)
        rows = slice(start, end)
        shards, numbers = self._shards[rows].tolist(), self._samples[rows]
        columns = self._read_columns(rows) if self._read_pieces(rows) else None
        if columns is not None:
            samples: list[Any] = _make_samples(self._names, self._read_keys(rows, shards), self._urls, shards, columns)
        else:
            samples = [
                self._make_sample(position, shard, number)
                for position, shard, number in zip(range(start, end), shards, numbers.tolist(), strict=True)
            ]
        self._free_spans(rows)
        self._position = end  # only now: a wait that is interrupted loses nothing
        return SampleBlock(samples, shards, numbers, columns is not None)

    def _find_block_end(self, start: int) -> int:
        """Return the position after a block of samples of moderate size."""
        before = int(self._ends[start - 1]) if start else 0
        end = int(np.searchsorted(self._ends, before + _MAX_BLOCK_BYTES))
        end = min(max(start + 1, end), start + _MAX_BLOCK_SAMPLES, len(self._shards))
        if len(self._mapped) <= _MAX_BLOCK_SHARDS:
            return end
        seen: set[int] = set()
        for position, shard in enumerate(self._shards[start:end].tolist(), start):
            seen.add(shard)
            if len(seen) > _MAX_BLOCK_SHARDS:
                return position
        return end

    def _read_pieces(self, rows: slice) -> bool:
        """Have the bytes of some samples ready. Return whether that succeeded, and all of them have all fields."""
        assert self._spans is not None
        if self._is_kept and self._source.are_mappings_intact():
            return True
        self._is_kept = False
        needed = np.unique(self._pieces[rows]).tolist()
        is_whole = not self._failures and _NO_PIECE not in needed
        for number in needed:
            if number == _NO_PIECE:
                continue
            if number < len(self._mapped):
                shard = self._mapped[number]
                self._data[number] = self._source.map_again(shard, self._tables[shard])
            elif self._data[number] is None:
                self._data[number] = self._source.read_span(self._spans[number - len(self._mapped)])
            is_whole &= not isinstance(self._data[number], StreamloaderError)
        return is_whole

    def _read_columns(self, rows: slice) -> list[list[bytes]] | None:
        """Return the fields of some samples that all have them. None if a checksum is wrong."""
        data = self._data
        is_verified = bool(self._is_verified[rows].all())
        columns: list[list[bytes]] = []
        for column in self._columns:
            starts, sizes = self._starts[rows, column], self._sizes[rows, column]
            bounds = zip(self._pieces[rows, column].tolist(), starts.tolist(), (starts + sizes).tolist(), strict=True)
            values = [data[piece][start:end] for piece, start, end in bounds]
            if is_verified and [*map(zlib.crc32, values)] != self._checksums[rows, column].tolist():
                return None
            columns.append(values)
        return columns if is_verified or not self._is_verified[rows].any() else None

    def _read_keys(self, rows: slice, shards: list[int]) -> list[str]:
        if self._key_array is not None:
            names: list[str] = self._key_array[rows].astype(np.str_).tolist()  # several times faster
            return names
        bounds = zip(shards, self._rows[rows, -2].tolist(), self._rows[rows, -1].tolist(), strict=True)
        return [self._read_key(shard, start, end) for shard, start, end in bounds]

    def _read_key(self, shard: int, start: int, end: int) -> str:
        keys = self._tables[shard].keys
        if isinstance(keys, np.ndarray):
            return str(keys[start // keys.itemsize], "ascii")
        key = keys[start:end]
        return key if isinstance(key, str) else str(key, "utf-8", "surrogatepass")

    def _gather_keys(self) -> Array | None:
        """Return the keys of all samples, if they are ASCII and of one length in all shards."""
        columns = {shard: keys for shard, table in self._tables.items() if isinstance(keys := table.keys, np.ndarray)}
        dtypes = {keys.dtype for keys in columns.values()}
        if self._failures or len(columns) != len(self._tables) or len(dtypes) != 1:
            return None
        gathered: Array = np.empty(len(self._shards), dtypes.pop())
        for shard, keys in columns.items():
            group = self._groups[shard]
            gathered[group] = keys[self._samples[group]]
        return gathered

    def _make_sample(self, position: int, shard: int, number: int) -> RawSample | StreamloaderError:
        """Return a sample that may lack fields, or whose bytes may be bad."""
        failure = self._failures.get(shard)
        if failure is not None:
            return failure
        key = self._read_keys(slice(position, position + 1), [shard])[0]
        sample: RawSample = {KEY: key, URL: self._source.find_url(shard)}
        for column in self._columns:
            piece = int(self._pieces[position, column])
            if piece == _NO_PIECE:
                continue
            data, name = self._data[piece], self._names[column]
            if isinstance(data, StreamloaderError):
                return data
            start = int(self._starts[position, column])
            value = data[start : start + int(self._sizes[position, column])]
            if self._is_verified[position] and int(self._checksums[position, column]) != zlib.crc32(value):
                return self._make_checksum_error(shard, number, name)
            sample[name] = value
        return sample

    def _make_checksum_error(self, shard: int, number: int, name: str) -> DatasetError:
        place = self._source.describe(shard, number, name)
        return CorruptSample(
            f"{place['address']}, byte {place['offset']}: the member {place['member']} has another checksum than its "
            f"index declares (data set {place['dataset']}). Write the shard again, or leave the sample out with "
            "on_error='skip'",
            **place,
        )

    def _free_spans(self, rows: slice) -> None:
        """Drop the bytes that no later sample needs, and mapped files that many others may need."""
        if self._is_kept:
            return
        assert self._spans is not None
        for number in np.unique(self._pieces[rows]).tolist():
            span = number - len(self._mapped)
            if number != _NO_PIECE and span < 0:
                self._data[number] = None
            elif span >= 0 and self._last_uses[span] < rows.stop:
                self._data[number] = b""
                self._spans[span].future = None


def _make_samples(
    names: Sequence[str], keys: list[str], urls: dict[int, str], shards: list[int], columns: list[list[bytes]]
) -> list[RawSample]:
    """Return samples that all have the same fields. One or two fields, the usual case, take half the time."""
    rows = zip(keys, shards, *columns, strict=True)
    if len(names) == 1:
        (one,) = names
        return [{KEY: key, URL: urls[shard], one: first} for key, shard, first in rows]
    if len(names) == 2:  # noqa: PLR2004
        one, two = names
        return [{KEY: key, URL: urls[shard], one: first, two: second} for key, shard, first, second in rows]
    names = (KEY, URL, *names)
    return [dict(zip(names, (key, urls[shard], *row), strict=True)) for key, shard, *row in rows]
