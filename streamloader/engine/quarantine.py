"""Streams that are left for the rest of an epoch, because they failed or killed their worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from streamloader.engine.ring import Status
from streamloader.engine.workload import Limit
from streamloader.values import Array

__all__ = ["Quarantine", "Quarantined", "Spot", "Strikes"]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A stream that was left: the steps from `step` on were not delivered in `epoch`; the lane's next stream followed.

    It is tried again in the next epoch, and on every topology with the same result.

    Attributes:
        stream: its ordinal in ``loader.streams``; key: its name there.
        lane: global number of the lane that played it; position: in the lane's list of that epoch.
        reason: what it failed with.
    """

    stream: int
    key: str
    epoch: int
    lane: int
    position: int
    step: int
    reason: str


class Quarantine:
    """What is known of streams that are left.

    Args:
        first_lane: global number of row 0.
    """

    def __init__(self, first_lane: int) -> None:
        self._first_lane = first_lane
        self._entries: dict[tuple[int, int, int], Quarantined] = {}
        self._condemned: dict[tuple[int, int, int], Limit] = {}

    @property
    def entries(self) -> tuple[Quarantined, ...]:
        """All of them, in the order in which they were found."""
        return tuple(self._entries.values())

    def add(self, entry: Quarantined) -> bool:
        """Enter one; False if it is known already."""
        place = (entry.epoch, entry.lane, entry.position)
        new = place not in self._entries
        self._entries.setdefault(place, entry)
        return new

    def leave_out(self, entry: Quarantined) -> bool:
        """Enter one that was found by a death; False if it is known already, and does harm even so: left out wholly."""
        new = self.add(entry)
        if not new:
            self._entries[entry.epoch, entry.lane, entry.position] = replace(entry, step=0)
        return new

    def condemn(self, limit: Limit) -> None:
        """Have an error raised at a step."""
        self._condemned[limit.epoch, self._first_lane + limit.row, limit.position] = limit

    def replace(self, entries: Iterable[Quarantined]) -> None:
        """Forget all, and know these."""
        self._entries.clear()
        self._condemned.clear()
        for entry in entries:
            self.add(entry)

    def forget_before(self, epoch: int) -> None:
        """Forget the epochs before `epoch`."""
        self._entries = {place: entry for place, entry in self._entries.items() if place[0] >= epoch}
        self._condemned = {place: limit for place, limit in self._condemned.items() if place[0] >= epoch}

    def limits(self) -> list[Limit]:
        """Say where streams end early."""
        left = [Limit(e.lane - self._first_lane, e.epoch, e.position, e.step) for e in self._entries.values()]
        return [*left, *self._condemned.values()]


class Spot(NamedTuple):
    """What a row was doing when its worker died."""

    row: int
    seq: int
    epoch: int
    position: int
    stream: int
    step: int


class Strikes:
    """Finds the stream that kills its worker: the one at which it died twice, with no row filled in between."""

    def __init__(self) -> None:
        self._last: dict[int, Spot] = {}

    def count(self, status: Array, rows: Sequence[int]) -> list[Spot]:
        """Book the death of the worker of `rows`, and return what has killed it twice now.

        Only rows that were being filled can be the cause. After a first death rows are filled one at a time, so that
        at a second one there is one such row at most.
        """
        struck_twice = []
        for row in rows:
            line: list[Any] = status[row].tolist()
            if not line[Status.BUSY]:
                continue
            spot = Spot(
                row,
                line[Status.SEQ],
                line[Status.EPOCH],
                line[Status.POSITION],
                line[Status.STREAM],
                line[Status.STEP],
            )
            before = self._last.get(row)
            if before is not None and before[:5] == spot[:5]:
                struck_twice.append(spot)
                del self._last[row]
            else:
                self._last[row] = spot
        return struck_twice

    def suspects(self, rows: Sequence[int], filled: int) -> list[tuple[int, int]]:
        """Return (row, seq) of the rows that have not got past the grant of a first strike."""
        return [(row, self._last[row].seq) for row in rows if row in self._last and self._last[row].seq >= filled]

    def forget_from(self, seq: int) -> None:
        """Forget strikes at grants that are void now."""
        self._last = {row: spot for row, spot in self._last.items() if spot.seq < seq}
