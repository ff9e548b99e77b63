"""The plan: which lane plays which stream in which order. Pure: no I/O, no clock, no global state.

Streams of known length are dealt longest first to the least loaded lane (Graham's LPT rule, 1969), so the load
of the lanes, and with it the length of an epoch, is the same for every seed. Streams of which some have no
known length are dealt in turn. A shuffle then permutes the lanes and the order inside each lane.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["LaneList", "Plan", "Switch", "Tail", "make_plan"]

Switch = Literal["pack", "align"]
Tail = Literal["pad", "drop", "cycle"]

_PLAN_DOMAIN = 0x70_6C_61_6E  # keeps the plan's random numbers apart from those of the streams


@dataclass(frozen=True, slots=True)
class LaneList:
    """The streams of one lane in one epoch, in playing order.

    Attributes:
        ordinals: int64 (n,), positions in the data set.
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

    def _groups(self, epoch: int) -> Array:
        if self.shuffle:
            return _permutation(self.lanes, self.seed, epoch, 0)
        return np.arange(self.lanes)


def make_plan(
    lengths: Sequence[int | None],
    *,
    lanes: int,
    window: int,
    seed: int = 0,
    shuffle: bool = True,
    switch: Switch = "pack",
    tail: Tail = "pad",
) -> Plan:
    """Deal streams of these `lengths` (steps; None where unknown) to `lanes`.

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
        group_of = np.arange(len(lengths)) % lanes
        batches = None
    else:
        cost = -(-known // window) if switch == "align" else known
        group_of, loads = _deal(cost, lanes)
        batches = _count(loads, window if switch == "pack" else 1, tail)
    bounds = np.zeros(lanes + 1, np.int64)
    np.cumsum(np.bincount(group_of, minlength=lanes), out=bounds[1:])
    ordinals = np.argsort(group_of, kind="stable").astype(np.int64)  # inside a lane: in the order of the data set
    return Plan(lanes, window, seed, shuffle, switch, tail, batches, ordinals, bounds)


def _known(lengths: Sequence[int | None]) -> Array | None:
    if any(length is None for length in lengths):
        return None
    known = np.array(lengths, np.int64)
    if known.size and int(known.min()) < 0:
        raise ConfigError(f"stream {int(known.argmin())} declares a negative length, {int(known.min())}")
    return known


def _deal(cost: Array, lanes: int) -> tuple[Array, Array]:
    """Longest first to the least loaded lane; ties go to the earlier stream and the lower lane."""
    group_of = np.empty(len(cost), np.int64)
    heap = [(0, lane) for lane in range(lanes)]
    for ordinal in np.argsort(-cost, kind="stable").tolist():
        load, lane = heap[0]
        group_of[ordinal] = lane
        heapq.heapreplace(heap, (load + int(cost[ordinal]), lane))
    loads = np.zeros(lanes, np.int64)
    for load, lane in heap:
        loads[lane] = load
    return group_of, loads


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
