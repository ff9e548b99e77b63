"""Play the part of an epoch that one worker has: batches of its lanes, in turn."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from streamloader.datasets.shards.chain import ChainSource, SampleChain
from streamloader.datasets.shards.lanes import END, LanePlayer, LaneSettings, LaneStream, SkippedSample
from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import OpenSamples
from streamloader.datasets.shards.stages import find_fields
from streamloader.datasets.shards.state import NO_LANE, PlayedPart, PlayedStep
from streamloader.datasets.workers import DataLoaderWorker

__all__ = ["EpochPlayer"]

_MAX_VALUES_AT_ONCE: Final = 256  # of a lane, if they are not batched
_MAX_ROW_S: Final = 0.005  # to make these of all lanes: large values would take much memory
_log: Final = logging.getLogger("streamloader")


class EpochPlayer:
    """The part of an epoch that one worker plays.

    Args:
        chain: Data sets, and the stages of their samples.
        part: Part of the epoch that was played before.
        first_epoch: First epoch of the iteration.
        worker: Worker of a DataLoader that plays it.
        offset: Number of batches that all workers together have played before in this iteration.

    Attributes:
        lanes: Number of lanes of all workers together.
        remaining_batches: Number of batches that all workers together play, as long as none is left out.
        is_counted: Whether the number of batches says which samples were played.
    """

    def __init__(
        self, chain: SampleChain, part: PlayedPart, first_epoch: int, worker: DataLoaderWorker, offset: int
    ) -> None:
        self._chain = chain
        self._part = part
        self._first_epoch = first_epoch
        is_sequential = len(chain.sources) == 1 and not chain.sources[0].settings.shuffle
        # In their own order, batches go to the workers in turn, whatever their number.
        self.lanes = chain.sources[0].settings.lanes
        if is_sequential:
            self.lanes = part.lanes if part.positions else worker.workers
        self._orders = chain.make_orders(part.epoch, self.lanes)
        self._skipped: list[SkippedSample] = []
        self._sources = [self._open(source) for source in chain.sources]
        # DataLoader takes its workers in turn, so the worker of a batch follows from its position.
        first = part.next_lane if part.positions else part.batches % self.lanes
        own = range((worker.number - offset) % worker.workers, self.lanes, worker.workers)
        if worker.number >= self.lanes:
            _log.warning("worker %d has nothing to do: there are %d lanes", worker.number, self.lanes)
        consumed = [order.count_consumed(part.counted) for order in self._orders]
        starts = {
            lane: part.positions.get(lane) or [counts[lane] for counts in consumed]
            for lane in ((first + number) % self.lanes for number in own)
        }
        windows = [
            order.open_lanes({lane: positions[number] for lane, positions in starts.items()})
            for number, order in enumerate(self._orders)
        ]
        self._players = {
            lane: self._make_player(lane, positions, [opened[lane] for opened in windows])
            for lane, positions in starts.items()
        }
        self.remaining_batches = max(0, chain.count_batches(self._orders) - part.batches)
        is_in_turn = is_sequential or self.lanes % worker.workers == 0
        self.is_counted = is_in_turn and not chain.leaves_out and not part.positions

    def play_counted(self) -> Iterator[list[Any]]:
        """Yield the batches of this worker's lanes, in turn: one at a time, or some values that are not batched."""
        self._prefetch()
        if self._chain.batch_size is None:
            yield from self._play_rows()
            return
        live = dict(self._players)
        while live:
            for lane, player in list(live.items()):
                value = player.play()
                if value is END:
                    del live[lane]
                else:
                    yield [value]

    def _play_rows(self) -> Iterator[list[Any]]:
        """Yield values of all lanes in turn: at first one at a time, and more while that takes no time to speak of."""
        values: dict[int, list[Any]] = {}
        for lane, player in self._players.items():
            values[lane] = []
            if first := player.play_many(1):
                yield first
        size = 1
        while values:
            start_s = time.perf_counter()
            for lane in [lane for lane, made in values.items() if not made]:
                try:
                    values[lane] = self._players[lane].play_many(size)
                except Exception:
                    yield [made[0] for made in [*values.values()][: [*values].index(lane)]]
                    raise
                if not values[lane]:
                    del values[lane]
            count = min(map(len, values.values()), default=0)
            yield [*itertools.chain.from_iterable(zip(*values.values(), strict=False))]
            for made in values.values():
                del made[:count]
            is_quick = time.perf_counter() - start_s < _MAX_ROW_S
            size = min(2 * size, _MAX_VALUES_AT_ONCE) if is_quick else max(1, size // 2)

    def play_exactly(self) -> Iterator[tuple[Any, PlayedStep]]:
        """Yield the batches of this worker's lanes, in turn, each with the position of its lane."""
        self._prefetch()
        live = dict(self._players)
        while live:
            for lane, player in list(live.items()):
                value = player.play()
                if value is END:
                    del live[lane]
                    continue
                yield value, self.make_step(lane, player.positions)
        if self._skipped:
            yield None, self.make_step(NO_LANE, [])

    def make_step(self, lane: int, positions: list[int]) -> PlayedStep:
        """Return what a state needs of a batch."""
        skipped = tuple(self._skipped)
        self._skipped.clear()
        return PlayedStep(self._first_epoch, self._part.epoch, self.lanes, lane, positions, skipped)

    def _prefetch(self) -> None:
        streams = [stream for player in self._players.values() for stream in player.streams]
        for stream in streams:
            stream.prefetch_tables()
        for stream in streams:
            stream.prefetch()

    def close(self) -> None:
        """Cancel all transfers and close all files."""
        for player in self._players.values():
            player.close()
        for source in self._sources:
            source.close()

    def _open(self, source: ChainSource) -> OpenSamples:
        fields = find_fields([*source.stages, *self._chain.stages])
        return source.kind.open(
            source.shards, verify=source.verify, prefetch_bytes=source.prefetch_bytes, fields=fields
        )

    def _make_player(
        self, lane: int, positions: Sequence[int], windows: Sequence[Iterator[ShuffleWindow]]
    ) -> LanePlayer:
        chain = self._chain
        skip = chain.on_error == "skip"
        streams = [
            LaneStream(
                source,
                owner.kind,
                opened,
                position,
                order.lane_samples(lane),
                # Also those after mix(): here the location of the sample is known, for messages.
                stages=[*owner.stages, *chain.stages],
                skip=skip,
                skipped=self._skipped,
            )
            for source, order, owner, position, opened in zip(
                self._sources, self._orders, chain.sources, positions, windows, strict=True
            )
        ]
        settings = LaneSettings(chain.batch_size, chain.collate, chain.partial, chain.batch_stages)
        order = self._orders[0].settings
        number = lane * order.world_size + order.rank
        return LanePlayer(streams, chain.weights, settings, seed=order.seed, epoch=self._part.epoch, number=number)
