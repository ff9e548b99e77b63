"""What the scheduler plays and the supervisor counts: whatever fills its rows of each batch, grant by grant.

A lane's cursor before a batch is (position, step, ended): the next step to be read is `step` of stream number
`position` in the lane's list (counted on over repeats), or whatever follows if it has no such step; `ended` is the
number of batches that hold steps of the lane once all its streams were played, and -1 until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from streamloader.engine.plan import Plan
from streamloader.engine.ring import Ring
from streamloader.errors import StreamFailed, StreamloaderError
from streamloader.values import StreamInfo

__all__ = ["START", "Cursor", "Grant", "Limit", "Orders", "Place", "Player", "Script", "Taken", "failed_at"]

Cursor = tuple[int, int, int]
START: Cursor = (0, 0, -1)


class Grant(NamedTuple):
    """Leave to fill one slot: batch number `batch` of `play`, a run through `epoch`."""

    seq: int
    play: int
    epoch: int
    batch: int
    slot: int


Taken = tuple[Grant, bytes]  # what the consumer has taken, and the cursors of all lanes behind it: int64 (lanes, 3)


class Place(NamedTuple):
    """Where all lanes of a loader stand before a batch.

    Attributes:
        cursors: int64 (lanes, 3) as bytes; None where every lane is at its beginning.
    """

    epoch: int
    batch: int
    cursors: bytes | None = None


class Limit(NamedTuple):
    """From `step` on, stream number `position` of a lane's list in `epoch` is not played.

    Attributes:
        row: of the lane in this ring.
        wire: what is raised there (:func:`~streamloader.errors.to_wire`), or None: the lane's next stream follows.
    """

    row: int
    epoch: int
    position: int
    step: int
    wire: dict[str, Any] | None = None


class Orders(NamedTuple):
    """What a PLACE record holds; plain JSON values.

    Attributes:
        places: (play, batch, cursor of each row): where `play` may be entered in the middle.
        limits: all that hold for the rows of this ring.
        suspects: (row, seq): the row died at that grant, perhaps of its stream. Until these rows have filled it, rows
            are filled one at a time.
    """

    places: Sequence[tuple[int, int, Sequence[Sequence[int]]]] = ()
    limits: Sequence[Limit] = ()
    suspects: Sequence[tuple[int, int]] = ()


class Player(Protocol):
    """One task of a worker: it fills certain rows of each granted slot, in order.

    Attributes:
        number: first row that it fills; `global_number`: the same over all ranks.
        done: grants filled; kept by the scheduler.
        held: the only play whose grants it may fill now, or None for any.
        status: its line of the ring's status table; the scheduler writes ``status[Status.SEQ]``.
    """

    number: int
    global_number: int
    done: int
    held: int | None
    status: Any

    async def fill(self, grant: Grant) -> None:
        """Fill its rows of the granted slot, whole.

        Raises:
            StreamloaderError: it failed; the error names lane, stream, stage and step.
        """

    async def reset(self) -> None:
        """Give back what it holds; called after an error, and at the end."""

    def place(self, orders: Orders) -> None:
        """Heed where plays may be entered, and where streams end early."""


class Script(Protocol):
    """What the workers of a loader play. It is sent to them by cloudpickle."""

    @property
    def plan(self) -> Plan:
        """How many lanes there are, how long an epoch is, and what ends it."""

    @property
    def streams(self) -> Sequence[StreamInfo]:
        """What the numbers in the status table stand for."""

    @property
    def resumes(self) -> bool:
        """Whether players can begin anywhere in a play, so that a new worker can go on for one that died."""

    @property
    def on_error(self) -> Literal["raise", "skip"]:
        """Whether a stream that fails is an error of the loader, or is left for the next one."""

    @property
    def fixed(self) -> bool:
        """Whether a play has the batches that are planned whatever its streams do, because other ranks count on it."""

    @property
    def plays_again(self) -> bool:
        """Whether the end of one play is followed by another, which is made ahead."""

    def players(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, report: Callable[[bytes], None]
    ) -> Sequence[Player]:
        """Make the players of one worker.

        Args:
            ring: what they fill.
            lanes: rows of the ring that the worker hosts.
            first_lane: global number of the ring's row 0.
            report: sends an encoded record to the supervisor.
        """


def failed_at(error: Exception, where: str, *, stream: str, lane: int, stage: str, step: int) -> StreamloaderError:
    """Return `error`, or for a foreign one an error of ours, such that it says where it arose."""
    if isinstance(error, StreamloaderError):
        named = error
        named.stream = named.stream or stream
        named.offset = step if named.offset is None else named.offset
    else:
        named = StreamFailed(
            f"{where}, {stage} at step {step}: {type(error).__name__}: {error}",
            stream=stream,
            offset=step,
            cause=type(error).__name__,
        )
    named.details.update(lane=lane, stage=stage, step=step)
    return named
