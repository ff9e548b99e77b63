"""The plan: which lane plays which stream in which order. Pure: no I/O, no clock, no global state.

Streams of known length are dealt longest first to the least loaded lane (Graham's LPT rule, 1969), so the load
of the lanes, and with it the length of an epoch, is the same for every seed. Streams of which some have no
known length are dealt in turn. A shuffle then permutes the lanes and the order inside each lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from streamloader.errors import ConfigError, LengthUnknown
from streamloader.values import Array

__all__ = ["LaneList", "Lengths", "Plan", "Switch", "Tail", "make_plan"]

Switch = Literal["pack", "align"]
Tail = Literal["pad", "drop", "cycle"]
Lengths: TypeAlias = "Sequence[int | None] | Array"

_PLAN_DOMAIN: Final = 0x70_6C_61_6E  # keeps the plan's random numbers apart from those of the streams
_BLOCK: Final = 1 << 16  # streams of which there are Python numbers at one time
_LONG_RUN: Final = 256  # streams of one length that are worth dealing together


@dataclass(frozen=True, slots=True)
class LaneList:
    """The streams of one lane in one epoch, in playing order.

    Attributes:
        ordinals: int32 or int64 (n,), positions in the data set.
        borrowed: the lane has no stream of its own and repeats another lane's (``tail="cycle"`` only).
    """

    ordinals: Array
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the order of steps; equal plans give equal epochs.

    Attributes:
        lanes: global lanes, over all ranks.
        window: steps of one batch.
        batches: batches of an epoch, or None where a length is unknown.
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

    def lane(self, epoch: int, lane: int) -> LaneList:
        """Return what `lane` plays in `epoch`."""
        group = int(self._groups(epoch)[lane])
        borrowed = False
        used = int(np.count_nonzero(np.diff(self._bounds)))
        if self.tail == "cycle" and used and group >= used:  # dealing fills the groups in order
            group, borrowed = group % used, True
        ordinals = self._ordinals[self._bounds[group] : self._bounds[group + 1]]
        if self.shuffle:
            ordinals = ordinals[_permutation(len(ordinals), self.seed, epoch, group + 1)]
        return LaneList(ordinals, borrowed)

    def place(self, epoch: int, lane: int, batch: int, lengths: Lengths) -> tuple[int, int, int]:
        """Return where `lane` stands before batch `batch` of `epoch`, if streams have the `lengths` they declare.

        Args:
            epoch: of the batch.
            lane: over all ranks.
            batch: 0 or more; one beyond the end of the epoch is placed as if the lane played on.
            lengths: of all streams of the data set, as :func:`make_plan` takes them.

        Returns:
            (position, step, ended). The next step to be read is number `step` of the stream at `position` of the lane's
            list, counted on over repeats; `step` is less than the length of that stream, so streams without steps
            are passed over. Where nothing follows, it is (n, 0) for a list of n streams. `ended` is -1 as long as a
            step is left that is no repeat; then it is the number of batches that hold such steps.

        Raises:
            LengthUnknown: a stream of this lane declares no length.
            ConfigError: `batch` is negative.
        """
        if batch < 0:
            raise ConfigError(f"a batch is number 0 or more, got {batch}")
        listed = self.lane(epoch, lane)
        known = _known(lengths, listed.ordinals)
        if known is None:
            raise LengthUnknown(f"lane {lane} cannot be placed: a stream that it plays in epoch {epoch} has no length")
        # In units of what a stream takes of a batch: steps, or whole windows. `at` of them come before the batch.
        align = self.switch == "align"
        units = -(-known // self.window) if align else known
        at = batch if align else batch * self.window
        ends = np.cumsum(units)
        total = int(ends[-1]) if len(ends) else 0
        own = 0 if listed.borrowed else total
        ended = -1 if at < own else own if align else -(-own // self.window)
        if ended >= 0 and (self.tail != "cycle" or not total):
            return len(known), 0, ended
        rounds, at = divmod(at, total)
        index = int(np.searchsorted(ends, at, side="right"))
        inside = at - int(ends[index] - units[index])
        return rounds * len(known) + index, inside * self.window if align else inside, ended

    def _groups(self, epoch: int) -> Array:
        if self.shuffle:
            return _permutation(self.lanes, self.seed, epoch, 0)
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
        lengths: in steps: a sequence, None where unknown, or an array of integers, -1 where unknown.
        lanes: over all ranks.
        window: steps of a batch.
        seed: of the shuffle.
        shuffle: whether each epoch has an order of its own.
        switch: whether streams start anywhere, or on window borders.
        tail: what lanes do that end before others.

    Raises:
        ConfigError: an argument is out of range.
    """
    if lanes < 1 or window < 1:
        raise ConfigError(f"batch_size and window must be at least 1, got {lanes} and {window}")
    if switch not in get_args(Switch):
        raise ConfigError(f"switch must be one of {get_args(Switch)}, got {switch!r}")
    if tail not in get_args(Tail):
        raise ConfigError(f"tail must be one of {get_args(Tail)}, got {tail!r}")
    known = _known(lengths)
    if known is None:
        group_of = (np.arange(len(lengths)) % lanes).astype(_small(lanes))
        batches = None
    else:
        cost = -(-known // window) if switch == "align" else known
        group_of, loads = _deal(cost, lanes)
        batches = _count(loads, window if switch == "pack" else 1, tail)
    bounds = np.zeros(lanes + 1, np.int64)
    np.cumsum(np.bincount(group_of, minlength=lanes), out=bounds[1:])
    ordinals = np.argsort(group_of, kind="stable")  # inside a lane: in the order of the data set
    if len(ordinals) < 1 << 31:
        ordinals = ordinals.astype(np.int32)  # every worker has them
    return Plan(lanes, window, seed, shuffle, switch, tail, batches, ordinals, bounds)


def _known(lengths: Lengths, some: Array | None = None) -> Array | None:
    """Return the lengths, or those of `some` streams, as int64 (n,); None if one of them is unknown."""
    if isinstance(lengths, np.ndarray):
        known = (lengths if some is None else lengths[some]).astype(np.int64, copy=False)
        unknown = -1  # all that is below is an error
    else:
        listed = lengths if some is None else [lengths[ordinal] for ordinal in some]
        if any(length is None for length in listed):
            return None
        known, unknown = np.array(listed, np.int64), 0
    lowest = int(known.min()) if known.size else 0
    if lowest < unknown:
        worst = int(known.argmin())
        number = worst if some is None else int(some[worst])
        raise ConfigError(f"stream {number} declares a negative length, {lowest}")
    return None if lowest < 0 else known


def _deal(cost: Array, lanes: int) -> tuple[Array, Array]:
    """Longest first to the least loaded lane; ties go to the earlier stream and the lower lane.

    Returns:
        the lane of each stream, and int64 (lanes,), what each of them has got.
    """
    order = _longest_first(cost)
    falling = cost[order]
    dealt = np.empty(len(cost), _small(lanes))
    loads = np.zeros(lanes, np.int64)
    # An int64 holds the numbers of _deal_by_heap, or else Python's own numbers do.
    exact: Any = np.int64 if float(falling.sum(dtype=np.float64) + 1) * lanes < float(1 << 62) else object
    starts = np.append(np.flatnonzero(np.diff(falling, prepend=-1)), len(falling))
    long_runs = np.flatnonzero(np.diff(starts) >= max(_LONG_RUN, 4 * lanes))
    done = 0
    for begin, end in zip(starts[long_runs].tolist(), starts[long_runs + 1].tolist(), strict=True):
        _deal_by_heap(falling[done:begin], loads, dealt[done:begin], exact)
        dealt[begin:end] = _dealt_alike(int(falling[begin]), end - begin, loads)
        done = end
    _deal_by_heap(falling[done:], loads, dealt[done:], exact)
    group_of = np.empty_like(dealt)
    group_of[order] = dealt
    return group_of, loads


def _longest_first(cost: Array) -> Array:
    longest = int(cost.max(initial=0))
    shortness = longest - cost
    # Numbers of 16 bits are sorted by radix, in a fraction of the time.
    return np.argsort(shortness.astype(np.uint16) if longest < 1 << 16 else shortness, kind="stable")


def _deal_by_heap(costs: Array, loads: Array, dealt: Array, exact: Any) -> None:
    """Deal one by one; write the lanes into `dealt`, and add to `loads`."""
    if not len(costs):
        return
    lanes = len(loads)
    heap = [load * lanes + lane for lane, load in enumerate(loads.tolist())]  # one number orders load, then lane
    heapify(heap)
    for begin in range(0, len(costs), _BLOCK):
        scaled = costs[begin : begin + _BLOCK].astype(exact) * lanes
        least = [heapreplace(heap, heap[0] + cost) for cost in scaled.tolist()]
        dealt[begin : begin + _BLOCK] = np.array(least, exact) % lanes
    for number in heap:
        loads[number % lanes] = number // lanes


def _dealt_alike(cost: int, count: int, loads: Array) -> Array:
    """Deal `count` streams of one cost as the heap would; return the lane of each, and add to `loads`.

    The heap serves loads in their order, so that lane i is served at loads[i], loads[i] + cost, loads[i] + 2 cost, ...:
    in rounds of one cost each, the lanes within a round in the order of what their load leaves when divided
    by the cost, beginning with the round that the lane's load is in.
    """
    if cost == 0:
        return np.full(count, loads.argmin())
    first_round, rest = np.divmod(loads, cost)
    by_rest = np.argsort(rest, kind="stable")
    begins = np.unique(first_round)
    parts, left = [], count
    for number, begin in enumerate(begins):
        active = by_rest[first_round[by_rest] <= begin]
        size = left
        if number + 1 < len(begins):
            size = min(left, int(begins[number + 1] - begin) * len(active))
        parts.append(np.resize(active, size))
        left -= size
        if not left:
            break
    dealt = np.concatenate(parts)
    loads += cost * np.bincount(dealt, minlength=len(loads))
    return dealt


def _small(lanes: int) -> Any:
    """Return the dtype of lane numbers: the one that is sorted fast, if it will do."""
    return np.uint16 if lanes <= 1 << 16 else np.int64


def _count(loads: Array, window: int, tail: Tail) -> int:
    if tail == "drop":
        return int(loads.min()) // window
    return -(-int(loads.max()) // window)


def _permutation(n: int, seed: int, epoch: int, domain: int) -> Array:
    """Permute range(n) by sorting raw Philox words: unlike ``Generator`` methods, these never change with NumPy."""
    mask = (1 << 64) - 1
    key = np.array([seed & mask, epoch & mask], np.uint64)  # a list would pass through float64
    bits = np.random.Philox(key=key, counter=[0, 0, domain, _PLAN_DOMAIN])
    return np.argsort(bits.random_raw(n), kind="stable")
