"""Computation of a :class:`PlanReport` from the plan and the lengths of the streams: no payload, no workers.

The reading order of all lanes is laid out in one array with cumulative sums of steps and bytes. The end of each lane in
it then follows by binary search, so that a million streams take as long as making their plan.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, get_args

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.engine.plan import Plan, Switch, Tail, count_batches, make_plan
from streamloader.engine.ring import Ring, SlotLayout
from streamloader.errors import ConfigError
from streamloader.loader.plan_report import (
    MAX_KEY_CHARACTERS,
    LaneLoads,
    PlannedEpoch,
    PlanReport,
    RankShare,
    RingMemory,
    StreamLengths,
)
from streamloader.stream_table import StreamTable
from streamloader.streams.base import SourceSizes
from streamloader.values import Array

__all__ = ["report_plan"]

_MIN_HINTED_SHARE: Final = 0.05  # of steps that are padded, repeated or dropped; less is not worth a hint
_MAX_STEPS: Final = 1 << 60  # the counts of each lane then fit into 64 bits
_IDLE_LANES: Final = {
    "pad": "the other lanes are padding",
    "cycle": "the other lanes repeat streams",
    "drop": "an epoch has no batch",
}
_LONG_LANE: Final = {
    "pad": "the other lanes are padded until it ends",
    "cycle": "the other lanes repeat streams until it ends",
    "drop": "its end is left out",
}


def report_plan(
    plan: Plan,
    table: StreamTable,
    sources: SourceSizes,
    layout: SlotLayout,
    *,
    ahead: int,
    slots: int,
    epoch: int = 0,
    hints: Iterable[str] = (),
) -> PlanReport:
    """Return the report of a plan.

    Args:
        plan: Plan of all lanes of all ranks.
        table: Streams of the dataset.
        sources: Sizes of the streams in bytes.
        layout: Layout of a batch of one rank.
        ahead: Number of batches that workers prepare ahead of the consumer.
        slots: Number of slots of the ring.
        epoch: Number of the epoch. Defaults to 0.
        hints: Hints that take the first places. Defaults to none.

    Raises:
        ConfigError: If the streams have more steps than 64-bit integers can count.
    """
    if float(table.lengths.sum(dtype=np.float64)) > _MAX_STEPS:
        raise ConfigError(
            "the streams declare more than 2^60 steps, too many to count: declare no length (None) for endless streams"
        )
    report = PlanReport(
        batch_size=layout.lanes,
        window=plan.window,
        world_size=plan.lanes // layout.lanes,
        seed=plan.seed,
        shuffle=plan.shuffle,
        epoch=epoch,
        streams=_describe_lengths(table, plan.window),
        epochs=(),
        loads=None,
        ranks=(),
        ring=_describe_ring(layout, ahead, slots),
        hints=(),
    )
    if plan.batches is None:
        report = dataclasses.replace(report, epochs=tuple(_plan_unknown_epochs(plan, sources)))
    else:
        report = _plan_epochs(report, plan, table.lengths, sources)
    return dataclasses.replace(report, hints=(*hints, *_find_hints(report)))


def _describe_lengths(table: StreamTable, window: int) -> StreamLengths:
    known = table.lengths[table.lengths >= 0]
    count = len(table)
    if not len(known):
        return StreamLengths(count, count, 0, 0, 0, 0, 0.0, 0, None)
    longest = int(table.lengths.argmax())
    return StreamLengths(
        count=count,
        unknown=count - len(known),
        steps=int(known.sum()),
        empty=int(np.count_nonzero(known == 0)),
        short=int(np.count_nonzero(known < window)),
        shortest=int(known.min()),
        median=float(np.median(known)),
        longest=int(table.lengths[longest]),
        longest_key=table[longest].key,
    )


def _describe_ring(layout: SlotLayout, ahead: int, slots: int) -> RingMemory:
    return RingMemory(
        nbytes=Ring.size(layout, slots),
        slots=slots,
        ahead=ahead,
        slot_bytes=layout.nbytes,
        fields={name: layout.arrays[name].nbytes for name in layout.fields},
        marks_bytes=layout.nbytes - layout.data_bytes,
    )


def _list_settings() -> Iterator[tuple[Switch, Tail]]:
    return itertools.product(get_args(Switch), get_args(Tail))


# --- unknown lengths -------------------------------------------------------------------------------------------------


def _plan_unknown_epochs(plan: Plan, sources: SourceSizes) -> Iterator[PlannedEpoch]:
    """Yield epochs in which only the bytes are known: with ``tail="pad"``, each stream is read once."""
    known = np.maximum(sources.sizes, 0)
    local_bytes, remote_bytes = int(known[~sources.remote].sum()), int(known[sources.remote].sum())
    unknown_sources = int(np.count_nonzero(sources.sizes < 0))
    for switch, tail in _list_settings():
        chosen = (switch, tail) == (plan.switch, plan.tail)
        sizes = (local_bytes, remote_bytes, unknown_sources) if tail == "pad" else (None, None, None)
        yield PlannedEpoch(switch, tail, chosen, None, None, None, None, None, None, *sizes)


# --- known lengths ---------------------------------------------------------------------------------------------------


class _LaneCounts(NamedTuple):
    """Counts of one epoch, one entry for each lane.

    Attributes:
        delivered: Number of steps that are delivered for the first time.
        padded: Number of padded steps.
        repeated: Number of steps that are delivered again.
        local_bytes: Number of bytes from local files.
        remote_bytes: Number of bytes from stores.
        unknown_sources: Number of times that a stream of unknown size is read.
    """

    delivered: Array
    padded: Array
    repeated: Array
    local_bytes: Array
    remote_bytes: Array
    unknown_sources: Array

    def sum_up(self) -> dict[str, int]:
        """Return the sum of each array, by name."""
        return {name: sum(array.tolist()) for name, array in self._asdict().items()}  # may exceed 64 bits


class _EpochCounter:
    """Counts what the lanes deliver and read in one epoch, with one `switch` and any `tail`.

    Lanes advance in units, which fill batches: steps, or whole windows for ``switch="align"``.

    Args:
        plan: Plan of all lanes. Its `tail` does not matter.
        lengths: Lengths of all streams, int64 (n,).
        sources: Sizes of all streams.
        epoch: Number of the epoch.
    """

    def __init__(self, plan: Plan, lengths: Array, sources: SourceSizes, epoch: int) -> None:
        align = plan.switch == "align"
        self._window = plan.window
        self._steps_per_unit = plan.window if align else 1
        self._units_per_batch = 1 if align else plan.window
        self._lanes = plan.tabulate_lanes(epoch)
        self._by_step = sources.by_step
        ordinals = self._lanes.ordinals
        self._steps = lengths[ordinals]
        self._sizes = _split_sizes(sources.sizes[ordinals], sources.remote[ordinals])
        # Sums over all streams before each stream, and before the end.
        self._units_before = _sum_before(-(-self._steps // self._steps_per_unit))
        self._steps_before = _sum_before(self._steps)
        self._sizes_before = [_sum_before(sizes) for sizes in self._sizes]
        self._units_of_list = np.diff(self._units_before[self._lanes.bounds])

    @property
    def loads(self) -> Array:
        """Load of each lane, in steps."""
        loads: Array = self._units_of_list[self._lanes.lists] * self._steps_per_unit
        return loads

    def count_batches(self, tail: Tail) -> int:
        """Return the number of batches of the epoch."""
        return count_batches(self._units_of_list, self._units_per_batch, tail)

    def count(self, tail: Tail) -> _LaneCounts:
        """Return the counts of each lane."""
        batches = self.count_batches(tail)
        lists, borrowed = self._lanes.assign_lists(tail)
        rounds, units = self._divide_into_rounds(batches, self._units_of_list[lists], tail)
        first, end = self._lanes.bounds[lists], self._lanes.bounds[lists + 1]
        target = self._units_before[first] + units
        # The streams [first, complete) are read to their ends, and the first `partial` steps of the next one.
        complete = np.clip(np.searchsorted(self._units_before[1:], target, side="right"), first, end)
        partial = np.where(complete < end, target - self._units_before[complete], 0) * self._steps_per_unit
        steps_of_list = self._steps_before[end] - self._steps_before[first]
        read = rounds * steps_of_list + self._steps_before[complete] - self._steps_before[first] + partial
        delivered = np.where(borrowed, 0, np.minimum(read, steps_of_list))
        own_first, own_end = (self._lanes.bounds[self._lanes.lists + offset] for offset in (0, 1))
        has_read_own = borrowed & bool(batches)  # streams without steps, before those of another lane
        opened = np.clip(np.searchsorted(self._units_before[:-1], target, side="left"), first, end)
        sizes = [
            rounds * (before[end] - before[first])
            + np.where(has_read_own, before[own_end] - before[own_first], 0)
            + (before[opened] - before[first] - unread)
            for before, unread in zip(self._sizes_before, self._count_unread(complete, partial), strict=True)
        ]
        return _LaneCounts(delivered, batches * self._window - read, read - delivered, *sizes)

    def _divide_into_rounds(self, batches: int, units_of_list: Array, tail: Tail) -> tuple[Any, Any]:
        """Return how often each lane reads its list completely, and the number of units that it reads after that."""
        quota = batches * self._units_per_batch
        if not batches:
            return 0, np.zeros_like(units_of_list)
        if tail == "pad":
            return 1, np.zeros_like(units_of_list)
        if tail == "drop":
            return 0, np.full_like(units_of_list, quota)
        rounds, units = np.divmod(quota, np.maximum(units_of_list, 1))
        has_steps = units_of_list > 0  # a list without steps is read once
        return np.where(has_steps, rounds, 1), np.where(has_steps, units, 0)

    def _count_unread(self, complete: Array, partial: Array) -> list[Any]:
        """Return the sizes (local, remote, unknown) of what each lane does not read of its last stream."""
        if not self._by_step:
            return [0, 0, 0]
        cut = partial > 0
        last = complete[cut]
        unread_share = 1 - partial[cut] / self._steps[last]
        local_bytes, remote_bytes = np.zeros_like(complete), np.zeros_like(complete)
        for unread, sizes in ((local_bytes, self._sizes[0]), (remote_bytes, self._sizes[1])):
            unread[cut] = np.rint(sizes[last] * unread_share)
        return [local_bytes, remote_bytes, 0]


def _sum_before(values: Array) -> Array:
    """Return the sums of the values before each value, and before the end, int64 (n + 1,)."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _split_sizes(sizes: Array, remote: Array) -> tuple[Array, Array, Array]:
    """Return the local bytes and the remote bytes of each stream, and 1 where its size is unknown."""
    known = np.maximum(sizes, 0)
    return np.where(remote, 0, known), np.where(remote, known, 0), (sizes < 0).astype(np.int64)


def _plan_epochs(report: PlanReport, plan: Plan, lengths: Array, sources: SourceSizes) -> PlanReport:
    """Return `report` with the epochs, the loads of the lanes, and the shares of the ranks."""
    counters = {
        switch: _EpochCounter(_with_switch(plan, switch, lengths), lengths, sources, report.epoch)
        for switch in get_args(Switch)
    }
    epochs: list[PlannedEpoch] = []
    ranks: tuple[RankShare, ...] = ()
    for switch, tail in _list_settings():
        counter = counters[switch]
        batches, counts = counter.count_batches(tail), counter.count(tail)
        totals = counts.sum_up()
        chosen = (switch, tail) == (plan.switch, plan.tail)
        steps = plan.lanes * batches * plan.window
        epochs.append(
            PlannedEpoch(
                switch,
                tail,
                chosen,
                batches,
                padded_share=totals["padded"] / steps if steps else 0.0,
                dropped=report.streams.steps - totals["delivered"],
                **totals,
            )
        )
        if chosen:
            ranks = tuple(_divide_among_ranks(counter.loads, counts, report.batch_size))
    loads = _describe_loads(counters[plan.switch].loads)
    return dataclasses.replace(report, epochs=tuple(epochs), loads=loads, ranks=ranks)


def _with_switch(plan: Plan, switch: Switch, lengths: Array) -> Plan:
    if switch == plan.switch:
        return plan
    return make_plan(lengths, lanes=plan.lanes, window=plan.window, seed=plan.seed, shuffle=plan.shuffle, switch=switch)


def _divide_among_ranks(loads: Array, counts: _LaneCounts, batch_size: int) -> Iterator[RankShare]:
    for rank in range(len(loads) // batch_size):
        lanes = slice(rank * batch_size, (rank + 1) * batch_size)
        totals = _LaneCounts(*(array[lanes] for array in counts)).sum_up()
        yield RankShare(rank, _describe_loads(loads[lanes]), **totals)


def _describe_loads(loads: Array) -> LaneLoads:
    mean, highest = float(loads.mean()), int(loads.max())
    imbalance = highest / mean - 1 if mean else 0.0
    return LaneLoads(len(loads), int(loads.min()), float(np.median(loads)), mean, highest, imbalance)


# --- hints -----------------------------------------------------------------------------------------------------------


def _find_hints(report: PlanReport) -> Iterator[str]:
    """Yield a sentence for each setting that would clearly help."""
    streams, loads = report.streams, report.loads
    if streams.unknown:
        yield (
            f"{streams.unknown:,} of {streams.count:,} streams declare no length: the number of batches, the padding "
            "and the loads are unknown, and several ranks may end at different batches"
        )
    if loads is None or not streams.steps:
        return
    epochs = {(planned.switch, planned.tail): planned for planned in report.epochs}
    chosen = report.chosen
    pack, align = epochs["pack", chosen.tail].padded_share or 0.0, epochs["align", chosen.tail].padded_share or 0.0
    if chosen.switch == "align" and align - pack >= _MIN_HINTED_SHARE:
        yield f'switch="align" pads {align:.1%} of the batches; switch="pack" pads {pack:.1%}'
    dropped_share = (epochs[chosen.switch, "drop"].dropped or 0) / streams.steps
    uneven_share = 1 - loads.mean / loads.highest
    if (dropped_share if chosen.tail == "drop" else uneven_share) < _MIN_HINTED_SHARE:
        return
    used_lanes = streams.count - streams.empty
    longest = -(-streams.longest // report.window) * report.window if chosen.switch == "align" else streams.longest
    key = make_printable(streams.longest_key, MAX_KEY_CHARACTERS)
    if used_lanes < loads.lanes:
        yield (
            f"there are {loads.lanes:,} lanes for {used_lanes:,} streams with steps, so {_IDLE_LANES[chosen.tail]}: "
            "use fewer lanes (batch_size x ranks), or cut streams into several"
        )
    elif longest > loads.mean:
        yield (
            f"the stream {key} has {streams.longest:,} steps, more than the mean load of a lane "
            f"({loads.mean:,.0f}), so {_LONG_LANE[chosen.tail]}: use fewer lanes, or cut it into several streams"
        )
    else:
        yield (
            f"the lanes end unevenly: {uneven_share:.1%} of an epoch passes after the ends of lanes; "
            f'tail="drop" leaves out {dropped_share:.1%} of the steps'
        )
