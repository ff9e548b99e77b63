"""Plan how the samples of a window are read: where their fields lie, and which spans of the shards contain them.

All lanes of a process that play samples of the same blocks share a plan, so each span is read once.
"""

from __future__ import annotations

import itertools
import mmap
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.datasets.shards.order import ShuffleWindow, WindowGroup
from streamloader.datasets.shards.source import ByteSpan, SampleSource
from streamloader.datasets.shards.table import MAX_FIELDS, ShardTable
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.values import Array

__all__ = ["NO_PIECE", "LaneSamples", "WindowPlan", "plan_window"]

NO_PIECE: Final = -1
_MAX_LOCAL_GAP_BYTES: Final = 4 << 10  # between two members, read to save a call
_MAX_REMOTE_GAP_BYTES: Final = 64 << 10  # between two members, transferred to save a request
_MAX_SPAN_BYTES: Final = 4 << 20  # beyond which the next member starts another span
_MAX_ADJACENT_SAMPLES: Final = 8  # between two samples, which the system reads in advance with them
_MAX_OFFSET: Final = np.int64(1 << 62)


def plan_window(source: SampleSource, window: ShuffleWindow) -> WindowPlan:
    """Return the plan for a window, which the other windows of its group share."""
    group = window.group
    if group is None:
        return WindowPlan(source, WindowGroup(window.shards, window.samples, {window.lane: np.arange(len(window[0]))}))
    if group.plan is None:
        group.plan = WindowPlan(source, group)
    plan: WindowPlan = group.plan
    return plan


class LaneSamples(NamedTuple):
    """Where the samples of a lane lie, in the order in which they are played.

    Attributes:
        shards: Number of the shard of each sample, int32 (n,).
        samples: Number of each sample within its shard, int32 (n,).
        starts: Offset of each field in its piece, (n, fields).
        sizes: Size of each field in bytes, (n, fields).
        checksums: CRC-32 of each field, (n, fields).
        is_verified: Whether the checksums are compared, bool (n,).
        keys: Key of each sample, bytes (n,), if all of them are ASCII and of one length. None otherwise.
        key_bounds: Start and end of each sample's key in the keys of its shard, (n, 2).
        pieces: Piece of each field, int32 (n, fields). -1 for a field that the sample does not have.
    """

    shards: Array
    samples: Array
    starts: Array
    sizes: Array
    checksums: Array
    is_verified: Array
    keys: Array | None
    key_bounds: Array
    pieces: Array


class WindowPlan:
    """Where the samples of a window lie, in all lanes of this process, and their bytes while they are needed.

    Files of this machine that are mapped are one piece each. Everything else is read in spans, and each of them is a
    piece, which is dropped when no lane needs it any more.

    Args:
        source: Bytes of the samples.
        group: Samples of all lanes.

    Attributes:
        names: Names of the fields.
        tables: Table of each shard.
        failures: Error of each shard whose index is bad.
        urls: Address of each shard.
        mapped: Shards that are mapped files: the first pieces. The spans follow.
        data: Bytes of each piece, or the error that occurred instead. None for a piece that was not read yet.
        is_remote: Whether some of the spans are in a store.
        is_kept: Whether `data` has all mapped files, and there is nothing else.
    """

    def __init__(self, source: SampleSource, group: WindowGroup) -> None:
        self._source = source
        self._rows = dict(group.rows)  # of the lanes that have not taken theirs
        self._shards, self._samples = group.shards.astype(np.int32), group.samples.astype(np.int32)
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
        self.failures = {shard: error for shard, error in found.items() if isinstance(error, StreamloaderError)}
        self.tables = {shard: table for shard, table in found.items() if isinstance(table, ShardTable)}
        self.urls = {shard: source.find_url(shard) for shard in self.tables}
        self._keys = self._gather_keys()
        self.names = self._list_fields()
        self._gather()
        self._plan_pieces()
        self.data: list[Any] = [None] * (len(self.mapped) + len(self.span_starts))
        self.is_kept = False
        self._spans: list[ByteSpan | None] = [None] * len(self.span_starts)
        self._unopened = deque(range(len(self.span_starts)))
        self._lacks_fields = bool((self._pieces == NO_PIECE).any())
        self._users = self._count_users()
        self._is_playing = False
        self._prefetched_bytes = 0  # of the source's budget

    def take_lane(self, lane: int) -> LaneSamples:
        """Return where the samples of a lane lie, once. After the last lane, only the bytes are kept."""
        rows = self._rows.pop(lane)
        taken = LaneSamples(
            shards=self._shards[rows],
            samples=self._samples[rows],
            starts=self._starts[rows],
            sizes=self._sizes[rows],
            checksums=self._checksums[rows],
            is_verified=self._is_verified[rows],
            keys=None if self._keys is None else self._keys[rows],
            key_bounds=self._key_bounds[rows],
            pieces=self._pieces[rows],
        )
        if not self._rows:
            del self._shards, self._samples, self._starts, self._sizes, self._checksums, self._is_verified
            del self._keys, self._key_bounds, self._pieces, self._order, self._groups, self._table_rows
        return taken

    # --- reading -----------------------------------------------------------------------------------------------------

    def prefetch(self, lane: Any) -> bool:
        """Start to fetch the spans that are in stores, as far as the budget of the source allows it.

        Args:
            lane: Lane that is called when more of them may be fetched.

        Returns:
            Whether nothing remains to be fetched.
        """
        while self.is_remote and self._unopened:
            span = self._unopened[0]
            size = int(self.span_ends[span] - self.span_starts[span])
            if not self._source.take_budget(lane, size):
                return False
            self._prefetched_bytes += size
            self._open_span(self._unopened.popleft())
        return True

    def start_playing(self) -> None:
        """Fetch all other spans as well: a lane plays samples of this plan now."""
        if self._is_playing:
            return
        self._is_playing = True
        self._keep_mappings()
        while self._unopened:
            self._open_span(self._unopened.popleft())
        size, self._prefetched_bytes = self._prefetched_bytes, 0
        if size:
            self._source.return_budget(size)

    def _open_span(self, span: int) -> None:
        shard, start, end = (int(values[span]) for values in (self.span_shards, self.span_starts, self.span_ends))
        self._spans[span] = self._source.open_span(self.tables[shard], shard, start, end)

    def read_piece(self, number: int) -> None:
        """Have the bytes of a piece ready in :attr:`data`, or the error that occurred instead."""
        span = number - len(self.mapped)
        if span < 0:
            shard = self.mapped[number]
            self.data[number] = self._source.map_again(shard, self.tables[shard])
        elif self.data[number] is None:
            opened = self._spans[span]
            assert opened is not None
            self.data[number] = self._source.read_span(opened)

    def check_mappings(self) -> bool:
        """Return whether :attr:`data` has all mapped files, none of which was cut."""
        self.is_kept = self.is_kept and self._source.are_mappings_intact()
        return self.is_kept

    def release_piece(self, number: int, *, is_last: bool) -> None:
        """Let go of a piece.

        Args:
            number: Number of the piece.
            is_last: Whether the lane does not need it any more. Mapped files are released at once: many others may need
                them.
        """
        span = number - len(self.mapped)
        if span < 0:
            self.data[number] = None
        elif is_last:
            self._users[span] -= 1
            if not self._users[span]:
                self.data[number] = b""
                self._spans[span] = None

    def cancel(self) -> None:
        """Cancel all transfers."""
        for span in self._spans:
            if span is not None and span.future is not None:
                span.future.cancel()

    def _keep_mappings(self) -> None:
        """Keep all mapped files, if there are no spans, no errors and no missing fields, so that blocks cost less."""
        if self.failures or self._spans or not self._source.may_keep_mappings or self._lacks_fields:
            return
        self.data = [self._source.map_shard(shard, self.tables[shard]) for shard in self.mapped]
        self.is_kept = all(isinstance(data, mmap.mmap) for data in self.data)

    def _count_users(self) -> list[int]:
        """Return how many lanes need each span."""
        users: Array = np.zeros(len(self.span_starts), np.int64)
        if len(users):
            for rows in self._rows.values():
                spans = np.unique(self._pieces[rows]) - len(self.mapped)
                users[spans[spans >= 0]] += 1
        return [*map(int, users)]

    # --- where the fields lie ----------------------------------------------------------------------------------------

    def _gather_keys(self) -> Array | None:
        """Return the keys of all samples, if they are ASCII and of one length in all shards."""
        columns = {shard: keys for shard, table in self.tables.items() if isinstance(keys := table.keys, np.ndarray)}
        dtypes = {keys.dtype for keys in columns.values()}
        if self.failures or len(columns) != len(self.tables) or len(dtypes) != 1:
            return None
        gathered: Array = np.empty(len(self._shards), dtypes.pop())
        for shard, keys in columns.items():
            group = self._groups[shard]
            gathered[group] = keys[self._samples[group]]
        return gathered

    def _list_fields(self) -> tuple[str, ...]:
        fields = {table.fields for table in self.tables.values()}
        names = next(iter(fields)) if len(fields) == 1 else tuple(sorted({name for each in fields for name in each}))
        if len(names) > MAX_FIELDS:
            raise ConfigError(
                f"the data set {self._source.shards.address} has more than {MAX_FIELDS} different fields: name those "
                "that you need in to_tuple()"
            )
        return names

    def _gather(self) -> None:
        """Look up start, size and checksum of all fields, and the bounds of all keys."""
        fields = len(self.names)
        dtype = np.result_type(np.uint32, *(table.rows.dtype for table in self.tables.values()))
        self._table_rows: Array = np.zeros((len(self._shards), 3 * fields + 2), dtype)
        self._is_verified: Array = np.zeros(len(self._shards), bool)
        for shard, table in self.tables.items():
            group = self._groups[shard]
            if table.fields == self.names:
                self._table_rows[group] = table.rows[self._samples[group]]
            else:
                columns = np.array([self.names.index(name) for name in table.fields], np.int64)
                columns = np.concatenate([columns, fields + columns, 2 * fields + columns, 3 * fields + np.arange(2)])
                self._table_rows[group[:, None], columns] = table.rows[self._samples[group]]
            self._is_verified[group] = self._source.verify and table.has_checksums
        self._starts, self._sizes, self._checksums = np.split(self._table_rows[:, : 3 * fields], 3, axis=1)
        self._key_bounds = self._table_rows[:, -2:]

    def _plan_pieces(self) -> None:
        """Assign each member to a mapped file or to a span. Offsets are relative to the piece."""
        is_present = self._starts != 0
        self._pieces: Array = np.full(self._sizes.shape, NO_PIECE, np.int32)
        ranges = self._find_ranges() if self.names else {}
        self.mapped = [
            shard for shard, table in self.tables.items() if self._map(shard, table, ranges.get(shard, ())) is not None
        ]
        for number, shard in enumerate(self.mapped):
            self._pieces[self._groups[shard]] = number
        if not is_present.all():
            self._pieces[~is_present] = NO_PIECE
        spanned = list(self.tables.keys() - set(self.mapped))
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
        """Return the ranges of whole pages of each shard that contain what this plan needs, without large gaps."""
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
        shards = np.repeat(self._shards, len(self.names))[present]
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
        self.span_shards, self.span_starts, self.span_ends = shards[firsts], starts[firsts], ends[lasts]
        spans = np.cumsum(is_first) - 1
        members = np.flatnonzero(present)[order]
        samples, columns = np.divmod(members, max(1, len(self.names)))
        self._pieces[samples, columns] = len(self.mapped) + spans
        self._starts[samples, columns] = starts - self.span_starts[spans]
