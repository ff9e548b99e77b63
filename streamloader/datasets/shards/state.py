"""Save how far a data set was played, and read that again."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from streamloader.datasets.shards.lanes import SkippedSample
from streamloader.errors import StateError

__all__ = ["NO_LANE", "PlayedPart", "PlayedStep", "make_state", "read_state"]

NO_LANE: Final = -1
_VERSION: Final = 2  # also that of the order: with another one, a position stands for other samples
_MAX_SKIPPED: Final = 1000  # that are listed
_MAX_NUMBER: Final = (1 << 63) - 1


class PlayedStep:
    """What a worker reports with each batch. DataLoader passes objects of unknown classes on unchanged.

    Attributes:
        first_epoch: Number of the first epoch of the iteration.
        epoch: Number of the epoch.
        lanes: Number of lanes.
        lane: Number of the lane that played it. -1 if there is no batch.
        positions: Number of samples of the lane in each data set that were played.
        skipped: Bad samples that were left out since the last report of the worker.
    """

    __slots__ = ("epoch", "first_epoch", "lane", "lanes", "positions", "skipped")

    def __init__(
        self,
        first_epoch: int,
        epoch: int,
        lanes: int,
        lane: int,
        positions: list[int],
        skipped: tuple[SkippedSample, ...],
    ) -> None:
        self.first_epoch = first_epoch
        self.epoch = epoch
        self.lanes = lanes
        self.lane = lane
        self.positions = positions
        self.skipped = skipped


@dataclass(slots=True)
class PlayedPart:
    """How far an epoch was played.

    Attributes:
        epoch: Number of the epoch.
        batches: Number of batches that were played, see :meth:`count`.
        first_epoch: Number of the first epoch of the iteration. Defaults to `epoch`.
        lanes: Number of lanes. 0 if it does not matter, because nothing else depends on it.
        next_lane: Lane that plays the next batch.
        counted: Number of batches in the order of the lanes after which `positions` were noted.
        positions: Number of samples of each lane in each data set that were played, where that does not follow from
            `counted`.
        skipped: Bad samples that were left out; at most 1000 are listed.
    """

    epoch: int = 0
    batches: int = 0
    first_epoch: int = -1
    lanes: int = 0
    next_lane: int = 0
    counted: int = 0
    positions: dict[int, list[int]] = field(default_factory=dict)
    skipped: list[SkippedSample] = field(default_factory=list)
    _taking: tuple[int, Iterator[Any], int] | None = field(default=None, repr=False, compare=False)

    def count_as_taken(self, values: list[Any]) -> Iterator[Any]:
        """Return an iterator over values, each of which counts as a batch as soon as it is taken.

        It is one of C, so that small samples do not wait for Python; :meth:`count` asks it how many were taken.
        """
        iterator = iter(values)
        self._taking = (self.count(), iterator, len(values))  # at once: a signal may ask for a state at any moment
        return iterator

    def count(self) -> int:
        """Return the number of batches that were played until now."""
        taking = self._taking
        if taking is None:
            return self.batches
        before, iterator, size = taking
        return before + size - operator.length_hint(iterator)

    def settle(self) -> None:
        """Let go of values that were not taken."""
        self.batches = self.count()
        self._taking = None

    def __post_init__(self) -> None:
        """Fill in the first epoch."""
        if self.first_epoch < 0:
            self.first_epoch = self.epoch

    def copy(self) -> PlayedPart:
        """Return a copy that can be changed."""
        return replace(
            self,
            batches=self.count(),
            positions=dict(self.positions),
            skipped=list(self.skipped),
            _taking=None,
        )

    def add(self, step: PlayedStep) -> None:
        """Count a batch, or the bad samples of a step without one.

        Args:
            step: Report of the worker that played it.
        """
        self.skipped += step.skipped[: max(0, _MAX_SKIPPED - len(self.skipped))]
        if step.lane == NO_LANE:
            return
        self.first_epoch = step.first_epoch
        if step.epoch != self.epoch:
            self.start_epoch(step.epoch, step.first_epoch)
        self.batches += 1
        if step.positions:  # otherwise the number of batches says it all
            self.lanes = step.lanes
            self.next_lane = (step.lane + 1) % step.lanes
            self.positions[step.lane] = step.positions

    def start_epoch(self, epoch: int, first_epoch: int) -> None:
        """Count from the start of another epoch of the iteration on."""
        self._taking = None
        self.epoch, self.first_epoch, self.batches, self.counted, self.positions = epoch, first_epoch, 0, 0, {}

    def finish(self) -> PlayedPart:
        """Return where the iteration after this one starts, once it has ended."""
        return PlayedPart(self.epoch + 1, skipped=self.skipped)


def make_state(part: PlayedPart, identity: Mapping[str, Any], *, rank: int) -> dict[str, Any]:
    """Return plain JSON that describes how far a data set was played.

    Args:
        part: Part that was played.
        identity: Values that decide the order: digest of the shards, and settings.
        rank: Number of this rank.
    """
    state: dict[str, Any] = {
        "version": _VERSION,
        "identity": dict(identity),
        "first_epoch": part.first_epoch,
        "epoch": part.epoch,
        "batches": part.batches,
    }
    if part.positions:
        state["lanes"] = part.lanes
        state["next_lane"] = part.next_lane
        state["positions"] = [[lane, *positions] for lane, positions in sorted(part.positions.items())]
        state["rank"] = rank
    return state


def read_state(state: Any, identity: Mapping[str, Any], *, rank: int, sources: int) -> PlayedPart:
    """Return the part that a state describes.

    Args:
        state: State.
        identity: Values that decide the order of the data set that is to continue.
        rank: Number of this rank.
        sources: Number of data sets that are mixed.

    Raises:
        StateError: If it is damaged, or belongs to other data or settings.
    """

    def fail(problem: str) -> NoReturn:
        raise StateError(f"the state of a data set {problem}")

    if (
        not isinstance(state, Mapping)
        or state.get("version") != _VERSION
        or not isinstance(state.get("identity"), Mapping)
    ):
        fail("is damaged, or was saved by a version of streamloader that plays samples in another order")
    saved = state["identity"]
    different = [name for name in {**saved, **identity} if saved.get(name) != identity.get(name)]
    if different:
        shown = ", ".join(f"{name}={saved.get(name)!r:.60} (now {identity.get(name)!r:.60})" for name in different)
        fail(f"belongs to other data or settings: {shown}. Use the data set and the arguments with which it was saved")
    names = ("epoch", "batches", "first_epoch", "lanes", "next_lane")
    numbers = [state.get(name, 0) for name in names]
    if not all(_is_number(number) for number in numbers) or not {"epoch", "batches", "first_epoch"} <= set(state):
        fail("is damaged: it has an impossible number")
    epoch, batches, first_epoch, lanes, next_lane = numbers
    counted = 0 if state.get("positions") else batches
    part = PlayedPart(epoch, batches, first_epoch, lanes, next_lane, counted)
    if part.first_epoch > part.epoch:
        fail("is damaged: its iteration starts after its epoch")
    rows = state.get("positions", [])
    if rows:
        if state.get("rank") != rank:
            fail(f"was saved by rank {state.get('rank')!r:.20}, and this is rank {rank}: each rank needs its own")
        if not isinstance(rows, list) or not all(_is_row(row, part.lanes, sources) for row in rows) or not part.lanes:
            fail("is damaged: it has impossible positions")
        part.positions = {row[0]: list(row[1:]) for row in rows}
    return part


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER


def _is_row(row: Any, lanes: int, sources: int) -> bool:
    return isinstance(row, list) and len(row) == 1 + sources and all(map(_is_number, row)) and row[0] < lanes
