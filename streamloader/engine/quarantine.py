"""Streams that are skipped for the rest of an epoch because they failed or crashed their worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from streamloader.engine.ring import Status
from streamloader.engine.workload import StreamCutoff

__all__ = ["CrashTracker", "FailurePoint", "Quarantine", "Quarantined"]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A skipped stream: its steps from `step` on were not delivered in `epoch`; the lane's next stream followed.

    It is tried again in the next epoch. All topologies quarantine the same streams.

    Attributes:
        stream: Ordinal of the stream in ``loader.streams``.
        key: Key of the stream in ``loader.streams``.
        epoch: Epoch in which it was skipped.
        lane: Global number of the lane that read it.
        position: Position of the stream in the lane's list of that epoch.
        step: First step that was not delivered.
        reason: Message of the error.
        timed_out: Whether it was left out because it made no progress until the deadline in several workers, which is
            no sign of damage.
    """

    stream: int
    key: str
    epoch: int
    lane: int
    position: int
    step: int
    reason: str
    timed_out: bool = False


class Quarantine:
    """Register of quarantined streams, and of streams that fail at a step.

    Args:
        first_lane: Global number of row 0.
    """

    def __init__(self, first_lane: int) -> None:
        self._first_lane = first_lane
        self._entries: dict[tuple[int, int, int], Quarantined] = {}  # by epoch, lane and position
        self._failing: dict[tuple[int, int, int], StreamCutoff] = {}

    @property
    def entries(self) -> tuple[Quarantined, ...]:
        """All quarantined streams, in the order in which they were added."""
        return tuple(self._entries.values())

    def add(self, entry: Quarantined) -> bool:
        """Add a stream; return False if it was added before."""
        key = (entry.epoch, entry.lane, entry.position)
        is_new = key not in self._entries
        self._entries.setdefault(key, entry)
        return is_new

    def add_crashed(self, entry: Quarantined) -> bool:
        """Add a stream that crashed or stopped its worker; return False if it was added before.

        In that case it does so although it is cut off, so none of it is read from now on.
        """
        is_new = self.add(entry)
        if not is_new:
            self._entries[entry.epoch, entry.lane, entry.position] = replace(entry, step=0)
        return is_new

    def fail_at(self, cutoff: StreamCutoff) -> None:
        """Have the error of `cutoff` raised at its step."""
        self._failing[cutoff.epoch, self._first_lane + cutoff.row, cutoff.position] = cutoff

    def replace(self, entries: Iterable[Quarantined]) -> None:
        """Replace all entries by these."""
        self._entries.clear()
        self._failing.clear()
        for entry in entries:
            self.add(entry)

    def forget_before(self, epoch: int) -> None:
        """Remove all entries of epochs before `epoch`."""
        self._entries = {key: entry for key, entry in self._entries.items() if key[0] >= epoch}
        self._failing = {key: cutoff for key, cutoff in self._failing.items() if key[0] >= epoch}

    def cutoffs(self) -> list[StreamCutoff]:
        """Return the cutoffs of all streams that are skipped or fail."""
        skipped = [StreamCutoff(e.lane - self._first_lane, e.epoch, e.position, e.step) for e in self._entries.values()]
        return [*skipped, *self._failing.values()]


class FailurePoint(NamedTuple):
    """State of a row when its worker crashed, or when a deadline had passed.

    Attributes:
        row: Row of the ring.
        seq: Number of the grant that was being filled.
        epoch: Epoch of the stream.
        position: Position of the stream in the lane's list.
        stream: Ordinal of the stream.
        step: Step of the stream.
    """

    row: int
    seq: int
    epoch: int
    position: int
    stream: int
    step: int

    @classmethod
    def read(cls, row: int, line: Sequence[int]) -> FailurePoint:
        """Read the line of `row` in the status table."""
        columns = (Status.SEQ, Status.EPOCH, Status.POSITION, Status.STREAM, Status.STEP)
        return cls(row, *(line[column] for column in columns))

    def is_same_place(self, other: FailurePoint | None) -> bool:
        """Return whether another point is in the same row of the same batch, and in the same stream."""
        return other is not None and self[:-1] == other[:-1]


class CrashTracker:
    """Finds the stream that crashes or stops its worker: it was read each time, with no row filled in between."""

    def __init__(self) -> None:
        self._last_crash: dict[int, FailurePoint] = {}  # by row
        self._stalls: dict[int, tuple[FailurePoint, int]] = {}  # by row, with their number

    def record_crash(self, points: Iterable[FailurePoint]) -> list[FailurePoint]:
        """Record the crash of a worker, and return the streams that have crashed it twice.

        After a first crash, rows are filled one at a time, so at a second crash there is at most one point.

        Args:
            points: State of the rows that were being filled. No other can be the cause.
        """
        crashed_twice = []
        for point in points:
            if point.is_same_place(self._last_crash.get(point.row)):
                crashed_twice.append(point)
                self.forget(point.row)
            else:
                self._last_crash[point.row] = point
        return crashed_twice

    def record_stall(self, points: Iterable[FailurePoint]) -> None:
        """Record that a worker was killed at a deadline. `points` are the state of the rows that were being filled."""
        for point in points:
            self._stalls[point.row] = point, self.count_stalls([point]) + 1

    def count_stalls(self, points: Iterable[FailurePoint]) -> int:
        """Return how many workers were killed at a deadline at one of these points: the highest number of all."""
        highest = 0
        for point in points:
            previous, count = self._stalls.get(point.row, (None, 0))
            if point.is_same_place(previous):
                highest = max(highest, count)
        return highest

    def suspects(self, rows: Sequence[int], filled: int) -> list[tuple[int, int]]:
        """Return (row, seq) of the rows that have not yet filled the grant of their crash or stall."""
        points = [*self._last_crash.values(), *(point for point, _ in self._stalls.values())]
        return [(point.row, point.seq) for point in points if point.row in rows and point.seq >= filled]

    def forget(self, row: int) -> None:
        """Forget the crashes and stalls of a row."""
        self._last_crash.pop(row, None)
        self._stalls.pop(row, None)

    def forget_from(self, seq: int) -> None:
        """Forget crashes and stalls at the grants from number `seq` on, which are void."""
        self._last_crash = {row: point for row, point in self._last_crash.items() if point.seq < seq}
        self._stalls = {row: stall for row, stall in self._stalls.items() if stall[0].seq < seq}
