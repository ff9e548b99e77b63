"""Plan the order in which an epoch plays the samples of all shards: a pure function, without I/O.

An epoch is a sequence of batches. Batch g of all ranks belongs to lane ``g mod (ranks x lanes)``, and a lane reads its
samples in windows. A worker hosts whole lanes, so no two workers read the same bytes, and the batches are the same for
any number of workers.

With shuffling, each shard is cut into blocks of neighbouring samples, which one request reads. The blocks are sorted by
random keys such that about `open_shards` shards are read at any position of the sequence. The lanes share each block:
every lane gets an equal part of neighbouring samples, so a lane has samples of many blocks, although there are few
requests. A lane permutes its samples window by window, and the windows of all lanes cover the same blocks, so a process
reads each block once for all lanes that it hosts. Any position is computed directly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np

from streamloader.arguments import check_integer
from streamloader.datasets.random_order import draw_words, permute
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["EpochOrder", "OrderSettings", "SampleTail", "ShuffleWindow", "WindowGroup"]

SampleTail: TypeAlias = Literal["once", "drop", "repeat"]

_MIN_BLOCKS: Final = 128  # in the buffers of all lanes, so that a batch has samples of many places
_MIN_UNSHARED_BLOCKS: Final = 32  # in a window of a lane, as far as it does not share them
_MAX_SEQUENTIAL_SAMPLES: Final = 256  # of a window
_SMALLER_WINDOWS: Final = 3  # at the start of a lane
_SHARDS, _BLOCKS, _WINDOWS = range(3)  # purposes of random words


class WindowGroup:
    """Samples that several lanes of one process play at the same time, so that they are read together.

    Args:
        shards: Number of the shard of each sample, int64 (n,).
        samples: Number of each sample within its shard, int64 (n,).
        rows: Samples of each lane, as indices into these arrays, int64, in the order in which they are played.

    Attributes:
        plan: Plan of the reader for all these samples, which it keeps here for its other lanes. None at first.
    """

    def __init__(self, shards: Array, samples: Array, rows: Mapping[int, Array]) -> None:
        self.plan: Any = None
        self.shards = shards
        self.samples = samples
        self.rows = rows


class ShuffleWindow(NamedTuple):
    """Samples of one lane that are read together.

    Attributes:
        shards: Number of the shard of each sample, int64 (n,), in the order in which the samples are played.
        samples: Number of each sample within its shard, int64 (n,).
        group: Samples of all lanes of the process that are read together with these. Defaults to None: only these.
        lane: Number of the lane.
    """

    shards: Array
    samples: Array
    group: WindowGroup | None = None
    lane: int = 0


_MAX_NUMBER: Final = 1 << 62
_MAX_LANES: Final = 1 << 24
_POSITIVE: Final = (
    "batch_size", "lanes", "buffer_size", "buffer_bytes", "open_shards", "block_bytes", "world_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSettings:
    """Everything besides the data set and the epoch that decides the order.

    Attributes:
        batch_size: Number of samples of a batch. 1 if samples are not batched.
        lanes: Number of lanes of each rank.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        buffer_size: Number of samples of a rank that are mixed with each other, in all its lanes together.
        buffer_bytes: Approximate size in bytes of these samples together, for data sets of large ones.
        open_shards: Number of shards that are read in turn.
        block_bytes: Approximate size in bytes of the largest block. Smaller buffers have smaller blocks.
        tail: Rule for what does not divide evenly. "once": every sample exactly once, so ranks may differ by one batch
            and the last batch may be smaller. "drop": every rank has the same number of full batches, and the last
            samples of the order are left out. "repeat": the same, with the first samples once more instead.
        rank: Number of this rank.
        world_size: Number of ranks.
    """

    batch_size: int = 1
    lanes: int = 12
    shuffle: bool = True
    seed: int = 0
    buffer_size: int = 49152
    buffer_bytes: int = 1 << 26
    open_shards: int = 16
    block_bytes: int = 1 << 22
    tail: SampleTail = "once"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Normalize the numbers, and validate the values."""
        for name in ("seed", "rank", *_POSITIVE):
            object.__setattr__(self, name, check_integer(name, getattr(self, name)))
        for name in _POSITIVE:
            maximum = _MAX_LANES if name == "lanes" else _MAX_NUMBER
            if not 1 <= getattr(self, name) <= maximum:
                raise ConfigError(f"{name}={getattr(self, name)!r:.80}: must be 1 or more, and at most {maximum:,}")
        if self.tail not in ("once", "drop", "repeat"):
            raise ConfigError(f"tail={self.tail!r}: must be 'once', 'drop' or 'repeat'")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be in 0 .. world_size - 1, got rank {self.rank} of {self.world_size}")


class EpochOrder:
    """The order of one epoch for one rank.

    Args:
        counts: Number of samples of each shard, int64 (shards,).
        total_bytes: Size of all shards together in bytes.
        settings: Settings of the order.
        epoch: Number of the epoch.

    Attributes:
        settings: Settings of the order.
        epoch: Number of the epoch.
        batches: Number of batches of this rank, as long as no sample is left out later.
        samples: Number of samples of this rank.
    """

    def __init__(self, counts: Array, total_bytes: int, settings: OrderSettings, epoch: int) -> None:
        self.settings = settings
        self.epoch = epoch
        self._counts = np.asarray(counts, np.int64)
        self._total = int(self._counts.sum())
        self._stride = settings.world_size * settings.lanes
        units, used = self._count_units()
        self._lane_sizes = self._size_lanes(units, used)  # of all lanes of all ranks
        self.batches = max(0, -(-(units - settings.rank) // settings.world_size))
        self.samples = int(self._lane_sizes[settings.rank :: settings.world_size].sum())
        buffered = min(settings.buffer_size, settings.buffer_bytes * self._total // max(1, total_bytes))
        self._window_samples = max(1, buffered // settings.lanes)
        self._sequential_samples = min(_MAX_SEQUENTIAL_SAMPLES, self._window_samples)
        if settings.shuffle and self._total:
            self._share = self._choose_share()
            self._block_samples = self._choose_block(total_bytes)
            self._sort_blocks()
            self._shares = self._share_sequence()
        else:
            self._ends = np.cumsum(self._counts)

    def lane_samples(self, lane: int) -> int:
        """Return the number of samples of a lane of this rank in this epoch."""
        return int(self._lane_sizes[self._number_lane(lane)])

    def count_consumed(self, batches: int) -> list[int]:
        """Return how many samples of each lane the first `batches` batches of this rank contain."""
        lanes = self.settings.lanes
        turns, rest = divmod(batches, lanes)
        return [
            min(self.lane_samples(lane), (turns + (lane < rest)) * self.settings.batch_size) for lane in range(lanes)
        ]

    def windows(self, lane: int, start: int = 0) -> Iterator[ShuffleWindow]:
        """Yield the windows of a lane of this rank.

        Args:
            lane: Number of the lane.
            start: Number of samples of the lane to leave out. Defaults to 0.
        """
        return self.open_lanes({lane: start})[lane]

    def open_lanes(self, starts: Mapping[int, int]) -> dict[int, Iterator[ShuffleWindow]]:
        """Return iterators over the windows of the lanes of this rank that one process hosts.

        The windows of different lanes that have the same blocks have the same :class:`WindowGroup`.

        Args:
            starts: Number of samples to leave out, for each of these lanes.
        """
        if not self.settings.shuffle:
            return {lane: self._play_stored(self._number_lane(lane), start) for lane, start in starts.items()}
        sizes = {lane: self.lane_samples(lane) for lane in starts}
        open_groups: dict[tuple[int, int], tuple[WindowGroup, set[int]]] = {}

        def play(lane: int, position: int) -> Iterator[ShuffleWindow]:
            while position < sizes[lane]:
                window, first, end = self._find_window(position)
                number = lane % len(self._shares)
                key = number, window
                if key not in open_groups:
                    group = self._make_group(self._shares[number], window, first, end, starts)
                    open_groups[key] = group, set(group.rows)
                group, waiting = open_groups[key]
                waiting.discard(lane)
                if not waiting:
                    del open_groups[key]
                rows = group.rows[lane]
                yield ShuffleWindow(group.shards[rows], group.samples[rows], group, lane)
                position = min(end, sizes[lane])

        return {lane: play(lane, start) for lane, start in starts.items()}

    def _play_stored(self, number: int, start: int) -> Iterator[ShuffleWindow]:
        """Yield the windows of a lane in the stored order."""
        size = int(self._lane_sizes[number])
        while start < size:
            end = min(size, (start // self._sequential_samples + 1) * self._sequential_samples)
            turn, offset = np.divmod(np.arange(start, end, dtype=np.int64), self.settings.batch_size)
            positions = (number + turn * self._stride) * self.settings.batch_size + offset
            positions %= self._total  # tail="repeat"
            rows = np.searchsorted(self._ends, positions, side="right")
            yield ShuffleWindow(rows, positions - (self._ends[rows] - self._counts[rows]))
            start = end

    # --- batches and lanes -------------------------------------------------------------------------------------------

    def _count_units(self) -> tuple[int, int]:
        """Return the number of batches of all ranks, and the number of samples in them."""
        batch, ranks = self.settings.batch_size, self.settings.world_size
        if self.settings.tail == "once" or not self._total:
            return -(-self._total // batch), self._total
        if self.settings.tail == "drop":
            units = self._total // (batch * ranks) * ranks
        else:
            units = -(-self._total // (batch * ranks)) * ranks
        return units, units * batch

    def _size_lanes(self, units: int, used: int) -> Array:
        numbers = np.arange(self._stride, dtype=np.int64)
        sizes = -(-np.maximum(0, units - numbers) // self._stride) * self.settings.batch_size
        if units:
            sizes[(units - 1) % self._stride] -= units * self.settings.batch_size - used
        return sizes

    def _number_lane(self, lane: int) -> int:
        """Return the number of a lane of this rank among those of all ranks."""
        if not 0 <= lane < self.settings.lanes:
            raise ConfigError(f"lane must be in 0 .. {self.settings.lanes - 1}, got {lane}")
        return lane * self.settings.world_size + self.settings.rank

    def _find_window(self, position: int) -> tuple[int, int, int]:
        """Return number, start and end of the window of a lane that contains a position.

        The first windows of a lane are smaller, each twice as large as the one before, so that an epoch starts soon.
        """
        first = 0
        for window in range(_SMALLER_WINDOWS):
            end = first + max(1, self._window_samples >> (_SMALLER_WINDOWS - window))
            if position < end:
                return window, first, end
            first = end
        windows = (position - first) // self._window_samples
        first += windows * self._window_samples
        return _SMALLER_WINDOWS + windows, first, first + self._window_samples

    # --- the lanes that share blocks ---------------------------------------------------------------------------------

    def _choose_share(self) -> int:
        """Return how many lanes share the blocks.

        They take turns batch by batch, so what all of them play in a turn is in memory together.
        """
        settings = self.settings
        buffered = self._window_samples * settings.lanes
        divisors = (share for share in range(settings.lanes, 0, -1) if settings.lanes % share == 0)
        return next((share for share in divisors if share * settings.batch_size <= buffered), 1)

    def _share_sequence(self) -> list[list[_ShareStage]]:
        """Return the part of the sequence that each set of lanes of this rank shares, in stages.

        Lane l belongs to the set l mod n of n. In each stage of a set, more of its lanes have ended.
        """
        settings = self.settings
        count = settings.lanes // self._share
        sizes = self._lane_sizes.reshape(settings.lanes, settings.world_size).T
        totals = sizes.reshape(settings.world_size, self._share, count).sum(axis=1)
        starts = (np.cumsum(totals) - totals.reshape(-1)).reshape(totals.shape)[settings.rank]
        shares = []
        for number in range(count):
            lanes = _sort_lanes(range(number, settings.lanes, count), settings.lanes)
            stages, before, position = [], 0, int(starts[number])
            for size in np.unique(sizes[settings.rank, lanes]).tolist():  # lanes differ by a batch, or a part of one
                live = np.array([lane for lane in lanes if sizes[settings.rank, lane] >= size], np.int64)
                stages.append(_ShareStage(before, size, position, live))
                position += (size - before) * len(live)
                before = size
            shares.append(stages)
        return shares

    def _make_group(
        self, stages: Sequence[_ShareStage], window: int, first: int, end: int, starts: Mapping[int, int]
    ) -> WindowGroup:
        """Return what the lanes with these starts play at the positions [first, end) of a lane."""
        parts = [self._deal(stage, max(first, stage.first), min(end, stage.end)) for stage in stages]
        shards, samples, lanes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        own: dict[int, Array] = {}
        for lane, start in starts.items():
            rows = np.flatnonzero(lanes == lane)
            if len(rows) > max(0, start - first):
                key = (self._number_lane(lane) << 32) | window
                seed, epoch = self.settings.seed, self.epoch
                rows = rows[permute(len(rows), seed=seed, epoch=epoch, purpose=_WINDOWS, number=key)]
                own[lane] = rows[max(0, start - first) :]
        used = np.sort(np.concatenate([*own.values()]))
        return WindowGroup(shards[used], samples[used], {lane: np.searchsorted(used, own[lane]) for lane in own})

    def _deal(self, stage: _ShareStage, first: int, end: int) -> tuple[Array, Array, Array]:
        """Return shard, sample and lane of what the lanes of a stage play at their positions [first, end).

        Of a block between the positions c and d of the sequence, the i-th of k lanes gets the next
        floor((d + i) / k) - floor((c + i) / k) samples. The sum over all lanes is d - c (Hermite's identity).
        """
        count = len(stage.lanes)
        start, size = count * (first - stage.first), count * max(0, end - first)
        positions = (stage.position + start + np.arange(size, dtype=np.int64)) % self._total  # tail="repeat"
        blocks = np.searchsorted(self._ends, positions, side="right")
        bounds = np.concatenate([[0], np.flatnonzero(blocks[1:] != blocks[:-1]) + 1, [size]]) if size else np.zeros(1)
        shared = (bounds.astype(np.int64)[:, None] + np.arange(count)) // count
        lanes = np.repeat(np.tile(stage.lanes, len(bounds) - 1), np.diff(shared, axis=0).reshape(-1))
        return (*self._find_samples(positions, blocks), lanes)

    # --- the sequence of all samples ---------------------------------------------------------------------------------

    def _choose_block(self, total_bytes: int) -> int:
        shared = self._share * min(self._window_samples, self._total // self._stride)
        by_size = self.settings.block_bytes * self._total // max(1, total_bytes)
        by_buffer = self._window_samples * self.settings.lanes // _MIN_BLOCKS
        by_window = shared // min(_MIN_BLOCKS, _MIN_UNSHARED_BLOCKS * self._share)
        return int(max(1, min(by_size, by_buffer, by_window)))

    def _sort_blocks(self) -> None:
        """Sort the blocks of all shards by random keys."""
        settings, epoch = self.settings, self.epoch
        blocks_of_shard = -(-self._counts // self._block_samples)
        shard_of_block = np.repeat(np.arange(len(self._counts)), blocks_of_shard)
        self._first_blocks = np.cumsum(blocks_of_shard) - blocks_of_shard
        shard_order = permute(len(self._counts), seed=settings.seed, epoch=epoch, purpose=_SHARDS)
        ranks = np.empty_like(shard_order)
        ranks[shard_order] = np.arange(len(shard_order))
        words = draw_words(len(shard_of_block), seed=settings.seed, epoch=epoch, purpose=_BLOCKS)
        # The blocks of the i-th shard get keys between i and i + open_shards, in units of 2^-32, on a circle.
        spread = np.uint64(min(settings.open_shards, len(self._counts)))
        starts = ranks.astype(np.uint64)[shard_of_block] << np.uint64(32)
        keys = (starts + spread * (words >> np.uint64(32))) % (np.uint64(len(self._counts)) << np.uint64(32))
        self._blocks = np.argsort(keys, kind="stable").astype(np.int32 if len(keys) < 1 << 31 else np.int64)
        shards = shard_of_block[self._blocks]
        firsts = (self._blocks - self._first_blocks[shards]) * self._block_samples
        self._ends = np.cumsum(np.minimum(self._block_samples, self._counts[shards] - firsts))

    def _find_samples(self, positions: Array, rows: Array) -> tuple[Array, Array]:
        """Return shard and sample at some positions of the sequence.

        Args:
            positions: The positions.
            rows: Place of the block of each position in the sequence of blocks.
        """
        blocks = self._blocks[rows].astype(np.int64)
        shards = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        first = (blocks - self._first_blocks[shards]) * self._block_samples
        starts = np.where(rows, self._ends[rows - 1], 0)
        return shards, first + positions - starts


class _ShareStage(NamedTuple):
    """A part of the sequence that some lanes share equally.

    Attributes:
        first: Position of each lane where it starts.
        end: Position of each lane where it ends.
        position: Position in the sequence where it starts.
        lanes: Numbers of the lanes, int64 (lanes,).
    """

    first: int
    end: int
    position: int
    lanes: Array


def _sort_lanes(lanes: Sequence[int], total: int) -> list[int]:
    """Return lanes in the order of their parts of a block.

    Worker w of W hosts the lanes w, w + W, ... They follow one another for as many W as possible: for 2, 4 and 12
    workers, if there are 12 lanes.
    """
    divisors, rest = [], total
    for factor in range(2, total + 1):
        while rest % factor == 0:
            rest //= factor
            divisors.append(total // rest)
    return sorted(lanes, key=lambda lane: [lane % divisor for divisor in divisors])
