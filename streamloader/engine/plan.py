"""The plan: which lane reads which streams, in which order. Pure functions: no I/O, no clock, no global state.

If all lengths are known, streams are dealt longest first to the least loaded lane (Graham's LPT rule, 1969). The load
of the lanes, and with it the length of an epoch, is therefore the same for every seed. If any length is unknown,
streams are dealt in turn. A shuffle then permutes the lanes and the order inside each lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.random import Philox  # now: imported during an iteration, this module swallows a Ctrl-C

from streamloader.arguments import check_choice, check_integer
from streamloader.errors import ConfigError, LengthUnknown
from streamloader.values import Array

__all__ = ["MAX_LANES", "LaneList", "LaneTable", "Lengths", "Plan", "Switch", "Tail", "count_batches", "make_plan"]

Switch = Literal["pack", "align"]
Tail = Literal["pad", "drop", "cycle"]
Lengths: TypeAlias = "Sequence[int | None] | Array"

_PLAN_DOMAIN: Final = 0x70_6C_61_6E  # separates the plan's random numbers from those of the streams
_HEAP_BLOCK_STREAMS: Final = 1 << 16  # bounds the Python integers that exist at one time
MAX_LANES: Final = 1 << 24  # the plan has a few numbers for each lane
_MAX_WINDOW: Final = 1 << 31
_MIN_RUN_STREAMS: Final = 256  # shorter runs of one length are dealt faster by the heap


@dataclass(frozen=True, slots=True)
class LaneList:
    """The streams of one lane in one epoch, in reading order.

    Attributes:
        ordinals: Ordinals of the streams in the dataset, int32 or int64 (n,).
        borrowed: Whether the lane has no stream of its own and repeats another lane's (``tail="cycle"`` only).
        substitute: Ordinals of another lane's streams, (m,), which the lane repeats if its own turn out to have no
            steps (``tail="cycle"`` only).
    """

    ordinals: Array
    borrowed: bool = False
    substitute: Array = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def order(self) -> Array:
        """Ordinals of all streams that the lane may read, (n + m,): its own, and then those that replace them."""
        return np.concatenate([self.ordinals, self.substitute]) if len(self.substitute) else self.ordinals

    def repeats_substitute(self, ended: int) -> bool:
        """Return whether a lane with the cursor's `ended` repeats the substitute, because its own list has no steps."""
        return ended == 0 and len(self.substitute) > 0


@dataclass(frozen=True, slots=True)
class LaneTable:
    """The streams of all lanes in one epoch, as lists of streams. Each list is read by one lane, or by none.

    Attributes:
        ordinals: Ordinals of the streams in the dataset, list after list in reading order, int32 or int64 (n,).
        bounds: Offset in `ordinals` of each list and of the end, int64 (lanes + 1,).
        lists: Number of the list that belongs to each lane, int64 (lanes,).
        used_lists: Number of lists that have steps, as far as lengths are declared. They are the first ones.
    """

    ordinals: Array
    bounds: Array
    lists: Array
    used_lists: int

    def assign_lists(self, tail: Tail) -> tuple[Array, Array]:
        """Return the number of the list that each lane plays (int64), and whether it is another lane's (bool)."""
        if tail != "cycle" or not self.used_lists:
            return self.lists, np.zeros(len(self.lists), bool)
        return self.lists % self.used_lists, self.lists >= self.used_lists


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides the order of steps. Equal plans give equal epochs.

    Attributes:
        lanes: Number of lanes over all ranks.
        window: Number of steps of one batch.
        seed: Seed of the shuffle.
        shuffle: Whether streams are shuffled in each epoch.
        switch: Whether streams start at any step, or only at the start of a window.
        tail: Rule for lanes that end before others.
        batches: Number of batches of an epoch, or None where a length is unknown.
    """

    lanes: int
    window: int
    seed: int
    shuffle: bool
    switch: Switch
    tail: Tail
    batches: int | None
    _ordinals: Array = field(repr=False)
    _bounds: Array = field(repr=False)
    _used_groups: int = field(repr=False)  # groups that have steps, as far as is declared: dealing fills them in order

    def lane(self, epoch: int, lane: int) -> LaneList:
        """Return the streams that `lane` reads in `epoch`."""
        group = int(self._lane_groups(epoch)[lane])
        ordinals = self._order_group(epoch, group)
        substitute_group = self._substitute_group(group)
        if substitute_group is None:
            return LaneList(ordinals)
        substitute = self._order_group(epoch, substitute_group)
        return LaneList(ordinals, substitute=substitute) if len(ordinals) else LaneList(substitute, borrowed=True)

    def _order_group(self, epoch: int, group: int) -> Array:
        ordinals = self._ordinals[self._bounds[group] : self._bounds[group + 1]]
        return ordinals[_permute(len(ordinals), self.seed, epoch, group + 1)] if self.shuffle else ordinals

    def _substitute_group(self, group: int) -> int | None:
        """Return the group that a lane repeats whose own has no steps, or None if there is none."""
        used = self._used_groups
        if self.tail != "cycle" or not used:
            return None
        if group >= used:
            return group % used
        return (group + 1) % used if used > 1 else None

    def tabulate_lanes(self, epoch: int) -> LaneTable:
        """Return the streams that all lanes read in `epoch`, as :meth:`lane` returns them for each."""
        bounds, ordinals = self._bounds, self._ordinals
        if self.shuffle:
            ordinals = ordinals.copy()
            for group in np.flatnonzero(np.diff(bounds) > 1).tolist():
                part = ordinals[bounds[group] : bounds[group + 1]]
                part[:] = part[_permute(len(part), self.seed, epoch, group + 1)]
        return LaneTable(ordinals, bounds, self._lane_groups(epoch), self._used_groups)

    def count_streams(self, epoch: int, lanes: Sequence[int]) -> list[int]:
        """Return the length of :attr:`LaneList.order` of each of `lanes` in `epoch`, without computing the order."""
        groups: list[int] = self._lane_groups(epoch)[list(lanes)].tolist()
        sizes: list[int] = np.diff(self._bounds).tolist()
        substitutes = map(self._substitute_group, groups)
        return [
            sizes[group] + (0 if substitute is None else sizes[substitute])
            for group, substitute in zip(groups, substitutes, strict=True)
        ]

    def cursor_at(self, epoch: int, lane: int, batch: int, lengths: Lengths) -> tuple[int, int, int]:
        """Return the cursor of `lane` before batch `batch` of `epoch`, if streams have the `lengths` they declare.

        Args:
            epoch: Epoch of the batch.
            lane: Number of the lane over all ranks.
            batch: Index of the batch, 0 or more. Beyond the end of the epoch, the lane is taken to read on.
            lengths: Lengths of all streams of the dataset, as :func:`make_plan` takes them.

        Returns:
            (position, step, ended). The next step to be read is number `step` of the stream at `position` of the lane's
            list, counted on over repeats. `step` is less than the length of that stream, so streams without steps
            are passed over. Where nothing follows, it is (n, 0) for a list of n streams. In a lane that repeats its
            substitute, which follows its own n streams, `position` is n or more. `ended` is -1 as long as a step
            remains that is no repeat; then it is the number of batches that hold such steps.

        Raises:
            LengthUnknown: If a stream of this lane declares no length.
            ConfigError: If `batch` is negative.
        """
        if batch < 0:
            raise ConfigError(f"a batch is number 0 or more, got {batch}")
        lane_list = self.lane(epoch, lane)
        known_lengths = _check_lengths(lengths, lane_list.ordinals)
        if known_lengths is None:
            raise LengthUnknown(
                f"the cursor of lane {lane} cannot be computed: a stream that it reads in epoch {epoch} has no length"
            )
        skipped = 0  # streams of the lane's own, if none of them has a step
        if len(lane_list.substitute) and not known_lengths.any():
            skipped = len(known_lengths)
            substitute_lengths = _check_lengths(lengths, lane_list.substitute)
            if substitute_lengths is None:
                raise LengthUnknown(
                    f"the cursor of lane {lane} cannot be computed: a stream that it repeats in epoch {epoch} has no "
                    "length"
                )
            known_lengths = substitute_lengths
        # Count in units that fill batches: steps, or whole windows. `offset` of them come before the batch.
        align = self.switch == "align"
        units = -(-known_lengths // self.window) if align else known_lengths
        offset = batch if align else batch * self.window
        ends = np.cumsum(units)
        total = int(ends[-1]) if len(ends) else 0
        own_total = 0 if lane_list.borrowed or skipped else total
        ended = -1 if offset < own_total else own_total if align else -(-own_total // self.window)
        if ended >= 0 and (self.tail != "cycle" or not total):
            return skipped + len(units), 0, ended
        rounds, offset = divmod(offset, total)
        index = int(np.searchsorted(ends, offset, side="right"))
        unit = offset - int(ends[index] - units[index])
        return skipped + rounds * len(units) + index, unit * self.window if align else unit, ended

    def _lane_groups(self, epoch: int) -> Array:
        if self.shuffle:
            return _permute(self.lanes, self.seed, epoch, 0)
        return np.arange(self.lanes)


def make_plan(
    lengths: Lengths,
    *,
    lanes: int,
    window: int,
    seed: int = 0,
    shuffle: bool = True,
    switch: Switch = "pack",
    tail: Tail = "pad",
) -> Plan:
    """Deal streams of these `lengths` to `lanes`.

    Args:
        lengths: Lengths of the streams in steps: a sequence with None where unknown, or an array of integers with -1
            where unknown.
        lanes: Number of lanes over all ranks.
        window: Number of steps of a batch.
        seed: Seed of the shuffle. Defaults to 0.
        shuffle: Whether streams are shuffled in each epoch. Defaults to True.
        switch: Whether streams start at any step (``"pack"``, the default), or only at the start of a window.
        tail: Rule for lanes that end before others. Defaults to ``"pad"``.

    Raises:
        ConfigError: If an argument is out of range.
    """
    if lanes < 1 or window < 1:
        raise ConfigError(f"batch_size and window must be at least 1, got {lanes} and {window}")
    check_integer("batch_size x world_size", lanes, maximum=MAX_LANES)
    check_integer("window", window, maximum=_MAX_WINDOW)
    check_choice("switch", switch, get_args(Switch))
    check_choice("tail", tail, get_args(Tail))
    known_lengths = _check_lengths(lengths)
    if known_lengths is None:
        groups = (np.arange(len(lengths)) % lanes).astype(_lane_dtype(lanes))
        used_groups = min(lanes, len(lengths))
        batches = None
    else:
        costs = -(-known_lengths // window) if switch == "align" else known_lengths
        groups, loads = _deal(costs, lanes)
        used_groups = int(np.count_nonzero(loads)) or int(np.count_nonzero(np.bincount(groups)))
        batches = count_batches(loads, window if switch == "pack" else 1, tail)
    bounds = np.zeros(lanes + 1, np.int64)
    np.cumsum(np.bincount(groups, minlength=lanes), out=bounds[1:])
    ordinals = np.argsort(groups, kind="stable")  # inside a lane: in the order of the dataset
    if len(ordinals) < 1 << 31:
        ordinals = ordinals.astype(np.int32)  # halves their size in every worker
    return Plan(lanes, window, seed, shuffle, switch, tail, batches, ordinals, bounds, used_groups)


def _check_lengths(lengths: Lengths, ordinals: Array | None = None) -> Array | None:
    """Return the lengths of all streams, or of those with `ordinals`, as int64 (n,); None if one is unknown.

    Raises:
        ConfigError: If a length is negative.
    """
    if isinstance(lengths, np.ndarray):
        known_lengths = (lengths if ordinals is None else lengths[ordinals]).astype(np.int64, copy=False)
        lowest_allowed = -1  # means unknown
    else:
        listed = lengths if ordinals is None else [lengths[ordinal] for ordinal in ordinals]
        if any(length is None for length in listed):
            return None
        known_lengths, lowest_allowed = np.array(listed, np.int64), 0
    lowest = int(known_lengths.min()) if known_lengths.size else 0
    if lowest < lowest_allowed:
        index = int(known_lengths.argmin())
        ordinal = index if ordinals is None else int(ordinals[index])
        raise ConfigError(f"stream {ordinal} declares a negative length, {lowest}")
    return None if lowest < 0 else known_lengths


def _deal(costs: Array, lanes: int) -> tuple[Array, Array]:
    """Deal streams longest first to the least loaded lane. Ties go to the earlier stream and the lower lane.

    Returns:
        The lane of each stream, and the load of each lane as int64 (lanes,).
    """
    order = _sort_longest_first(costs)
    sorted_costs = costs[order]
    dealt = np.empty(len(costs), _lane_dtype(lanes))
    loads = np.zeros(lanes, np.int64)
    # The integers of _deal_by_heap fit into an int64, or else Python's own integers are used.
    dtype: Any = np.int64 if float(sorted_costs.sum(dtype=np.float64) + 1) * lanes < float(1 << 62) else object
    starts = np.append(np.flatnonzero(np.diff(sorted_costs, prepend=-1)), len(sorted_costs))
    long_runs = np.flatnonzero(np.diff(starts) >= max(_MIN_RUN_STREAMS, 4 * lanes))
    done = 0
    for start, end in zip(starts[long_runs].tolist(), starts[long_runs + 1].tolist(), strict=True):
        _deal_by_heap(sorted_costs[done:start], loads, dealt[done:start], dtype)
        dealt[start:end] = _deal_equal_costs(int(sorted_costs[start]), end - start, loads)
        done = end
    _deal_by_heap(sorted_costs[done:], loads, dealt[done:], dtype)
    groups = np.empty_like(dealt)
    groups[order] = dealt
    return groups, loads


def _sort_longest_first(costs: Array) -> Array:
    longest = int(costs.max(initial=0))
    shortness = longest - costs
    # NumPy sorts integers of 16 bits by radix, in a fraction of the time.
    return np.argsort(shortness.astype(np.uint16) if longest < 1 << 16 else shortness, kind="stable")


def _deal_by_heap(costs: Array, loads: Array, dealt: Array, dtype: Any) -> None:
    """Deal one by one; write the lanes into `dealt`, and add the costs to `loads`."""
    if not len(costs):
        return
    lanes = len(loads)
    heap = [load * lanes + lane for lane, load in enumerate(loads.tolist())]  # one integer orders load, then lane
    heapify(heap)
    for start in range(0, len(costs), _HEAP_BLOCK_STREAMS):
        scaled_costs = costs[start : start + _HEAP_BLOCK_STREAMS].astype(dtype) * lanes
        least = [heapreplace(heap, heap[0] + cost) for cost in scaled_costs.tolist()]
        dealt[start : start + _HEAP_BLOCK_STREAMS] = np.array(least, dtype) % lanes
    for item in heap:
        loads[item % lanes] = item // lanes


def _deal_equal_costs(cost: int, count: int, loads: Array) -> Array:
    """Deal `count` streams of one cost as the heap would; return the lane of each, and add the costs to `loads`.

    The heap serves loads in their order, so that lane i is served at loads[i], loads[i] + cost, loads[i] + 2 cost, ...:
    in rounds of one cost each. A lane takes part from the round that its load lies in. Within a round, lanes are served
    in the order of the remainder of their load divided by the cost.
    """
    if cost == 0:
        return np.full(count, loads.argmin())
    first_rounds, remainders = np.divmod(loads, cost)
    by_remainder = np.argsort(remainders, kind="stable")
    round_starts = np.unique(first_rounds)
    parts, remaining = [], count
    for index, round_start in enumerate(round_starts):
        active = by_remainder[first_rounds[by_remainder] <= round_start]
        size = remaining
        if index + 1 < len(round_starts):
            size = min(remaining, int(round_starts[index + 1] - round_start) * len(active))
        parts.append(np.resize(active, size))
        remaining -= size
        if not remaining:
            break
    dealt = np.concatenate(parts)
    loads += cost * np.bincount(dealt, minlength=len(loads))
    return dealt


def _lane_dtype(lanes: int) -> Any:
    """Return the dtype of lane numbers: uint16, which is sorted fastest, where it suffices."""
    return np.uint16 if lanes <= 1 << 16 else np.int64


def count_batches(loads: Array, window: int, tail: Tail) -> int:
    """Return the number of batches of an epoch.

    Args:
        loads: Load of each lane, int64 (lanes,): steps, or whole windows.
        window: Size of a batch in units of `loads`.
        tail: Rule for lanes that end before others.
    """
    if tail == "drop":
        return int(loads.min()) // window
    return -(-int(loads.max()) // window)


def _permute(n: int, seed: int, epoch: int, domain: int) -> Array:
    """Permute range(n) by sorting raw Philox words. Unlike ``Generator`` methods, they never change with NumPy."""
    mask = (1 << 64) - 1
    key = np.array([seed & mask, epoch & mask], np.uint64)  # a list would pass through float64
    bits = Philox(key=key, counter=[0, 0, domain, _PLAN_DOMAIN])
    return np.argsort(bits.random_raw(n), kind="stable")
