"""Plan the order in which an epoch plays the samples of all shards: a pure function, without I/O.

An epoch is a sequence of batches. Batch g of all ranks belongs to lane ``g mod (ranks x lanes)``, and a lane reads its
samples in windows. A worker hosts whole lanes, so no two workers read the same bytes, and the batches are the same for
any number of workers.

With shuffling, each shard is cut into blocks of a few neighbouring samples, which one request reads. The blocks are
sorted by random keys such that about `open_shards` shards are read at any position of the sequence. Each lane gets a
range of this sequence, and permutes its samples window by window. Any position is computed directly, so that resuming
reads nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from streamloader.datasets.random_order import draw_words, permute
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["EpochOrder", "OrderSettings", "SampleTail", "ShuffleWindow"]

SampleTail: TypeAlias = Literal["once", "drop", "repeat"]

_MIN_BLOCKS_PER_WINDOW: Final = 32  # so that a batch has samples of many places, also if its neighbours are alike
_MAX_SEQUENTIAL_SAMPLES: Final = 256  # of a window
_SMALLER_WINDOWS: Final = 2  # at the start of a lane
_SHARDS, _BLOCKS, _WINDOWS = range(3)  # purposes of random words


class ShuffleWindow(NamedTuple):
    """Samples of one lane that are read together.

    Attributes:
        shards: Number of the shard of each sample, int64 (n,), in the order in which the samples are played.
        samples: Number of each sample within its shard, int64 (n,).
    """

    shards: Array
    samples: Array


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
        block_bytes: Approximate size in bytes of the largest span of neighbouring samples that stay together.
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
    block_bytes: int = 1 << 19
    tail: SampleTail = "once"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Validate the values."""
        for name in ("batch_size", "lanes", "buffer_size", "buffer_bytes", "open_shards", "block_bytes", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be 1 or more")
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
        self._lane_starts = np.cumsum(self._lane_sizes) - self._lane_sizes
        self.batches = max(0, -(-(units - settings.rank) // settings.world_size))
        self.samples = int(self._lane_sizes[settings.rank :: settings.world_size].sum())
        buffered = min(settings.buffer_size, settings.buffer_bytes * self._total // max(1, total_bytes))
        self._window_samples = max(1, buffered // settings.lanes)
        self._sequential_samples = min(_MAX_SEQUENTIAL_SAMPLES, self._window_samples)
        if settings.shuffle and self._total:
            self._block_samples = self._choose_block(total_bytes)
            self._sort_blocks()
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
        number = self._number_lane(lane)
        size = int(self._lane_sizes[number])
        while start < size:
            window, first, end = self._find_window(start)
            positions = self._find_positions(number, first, min(end, size))
            if self.settings.shuffle:
                key = (number << 32) | window
                positions = positions[
                    permute(len(positions), seed=self.settings.seed, epoch=self.epoch, purpose=_WINDOWS, number=key)
                ]
            yield self._find_samples(positions[start - first :])
            start = first + len(positions)

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
        if not self.settings.shuffle:
            window = position // self._sequential_samples
            return window, window * self._sequential_samples, (window + 1) * self._sequential_samples
        first = 0
        for window in range(_SMALLER_WINDOWS):
            end = first + max(1, self._window_samples >> (_SMALLER_WINDOWS - window))
            if position < end:
                return window, first, end
            first = end
        windows = (position - first) // self._window_samples
        first += windows * self._window_samples
        return _SMALLER_WINDOWS + windows, first, first + self._window_samples

    def _find_positions(self, number: int, start: int, end: int) -> Array:
        """Return the positions in the sequence of all samples that a lane plays at its positions [start, end)."""
        own = np.arange(start, end, dtype=np.int64)
        if self.settings.shuffle:
            positions = int(self._lane_starts[number]) + own
        else:
            turn, offset = np.divmod(own, self.settings.batch_size)
            positions = (number + turn * self._stride) * self.settings.batch_size + offset
        return positions % self._total  # tail="repeat"

    # --- the sequence of all samples ---------------------------------------------------------------------------------

    def _choose_block(self, total_bytes: int) -> int:
        smallest = min(self._window_samples, self._total // self._stride)
        by_size = self.settings.block_bytes * self._total // max(1, total_bytes)
        return int(max(1, min(by_size, smallest // _MIN_BLOCKS_PER_WINDOW)))

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

    def _find_samples(self, positions: Array) -> ShuffleWindow:
        rows = np.searchsorted(self._ends, positions, side="right")
        if not self.settings.shuffle:
            return ShuffleWindow(rows, positions - (self._ends[rows] - self._counts[rows]))
        blocks = self._blocks[rows].astype(np.int64)
        shards = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        first = (blocks - self._first_blocks[shards]) * self._block_samples
        starts = np.where(rows, self._ends[rows - 1], 0)
        return ShuffleWindow(shards, first + positions - starts)
