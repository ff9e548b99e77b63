"""Protocols between scheduler, supervisor and the objects that fill rows of batches, grant by grant.

A lane's cursor before a batch is (position, step, ended). The next step to be read is `step` of the stream at
`position` in the lane's list, counted on over repeats. If that stream has no such step, the lane's next stream follows.
`ended` is the number of batches that hold steps of the lane once all its streams were read, and -1 until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from streamloader.engine.plan import Plan
from streamloader.engine.ring import Ring
from streamloader.errors import StreamFailed, StreamloaderError
from streamloader.values import StreamInfo

__all__ = [
    "INITIAL_CURSOR",
    "ConsumedBatch",
    "Cursor",
    "EpochPosition",
    "Grant",
    "LaneDirectives",
    "RowFiller",
    "StreamCutoff",
    "Workload",
    "locate_error",
]

Cursor = tuple[int, int, int]
INITIAL_CURSOR: Cursor = (0, 0, -1)


class Grant(NamedTuple):
    """Permission for the workers to fill one slot.

    Attributes:
        seq: Number of the grant, from 0 in the order in which grants are sent.
        run: Number of the epoch run.
        epoch: Epoch that the run reads.
        batch: Index of the batch in the epoch.
        slot: Slot of the ring to be filled.
    """

    seq: int
    run: int
    epoch: int
    batch: int
    slot: int


ConsumedBatch = tuple[Grant, bytes]  # a consumed grant, and the cursors of all lanes after it: int64 (lanes, 3)


class EpochPosition(NamedTuple):
    """Position of all lanes of a loader before a batch.

    Attributes:
        epoch: Epoch of the batch.
        batch: Index of the batch in the epoch.
        cursors: Cursors of the lanes, int64 (lanes, 3) as bytes. None where every lane is at its start.
    """

    epoch: int
    batch: int
    cursors: bytes | None = None


class StreamCutoff(NamedTuple):
    """Step from which on one stream of one lane is not read in one epoch.

    Attributes:
        row: Row of the lane in this ring.
        epoch: Epoch in which the cutoff holds.
        position: Position of the stream in the lane's list of that epoch.
        step: First step that is not read.
        error: Error to be raised at that step (:func:`~streamloader.errors.to_wire`). None to go on with the lane's
            next stream.
    """

    row: int
    epoch: int
    position: int
    step: int
    error: dict[str, Any] | None = None


class LaneDirectives(NamedTuple):
    """Payload of a DIRECTIVES message, in plain JSON values.

    Attributes:
        entry_points: Batches at which a run may be entered in the middle: (run, batch, cursor of each row).
        cutoffs: All cutoffs for the rows of this ring.
        suspects: Rows that may have crashed the worker: (row, seq of the grant). Until these rows have filled that
            grant, rows are filled one at a time.
    """

    entry_points: Sequence[tuple[int, int, Sequence[Sequence[int]]]] = ()
    cutoffs: Sequence[StreamCutoff] = ()
    suspects: Sequence[tuple[int, int]] = ()


class RowFiller(Protocol):
    """Object that fills certain rows of each granted slot, in order. The scheduler drives each with one task.

    Attributes:
        row: First row that it fills.
        rows: Rows that it fills.
        global_lane: Number of that lane over all ranks.
        grants_filled: Number of grants filled. Kept by the scheduler.
        only_run: Number of the only run whose grants it may fill now, or None for any run.
        status: Line of the ring's status table. The scheduler writes the columns ``SEQ`` and ``BUSY``.
    """

    row: int
    rows: range
    global_lane: int
    grants_filled: int
    only_run: int | None
    status: Any

    async def fill(self, grant: Grant) -> None:
        """Fill its rows of the granted slot completely.

        Raises:
            StreamloaderError: If a stream or env failed. The error names lane, stream, stage and step.
        """

    async def reset(self) -> None:
        """Close all that is open. Called after an error and at the end."""

    def apply_directives(self, directives: LaneDirectives) -> None:
        """Replace the cutoffs, and add the entry points of runs."""


class Workload(Protocol):
    """Work of a loader's workers: which streams or envs they read. It is sent to them by cloudpickle."""

    @property
    def plan(self) -> Plan:
        """Plan of the lanes, with the number of batches of an epoch and the rule for its end."""

    @property
    def streams(self) -> Sequence[StreamInfo]:
        """Streams by ordinal, as the status table numbers them."""

    @property
    def can_resume(self) -> bool:
        """Whether row fillers can start at any batch of a run, so that a worker that died can be replaced."""

    @property
    def has_single_filler(self) -> bool:
        """Whether a worker has one row filler, whose calls never wait for an event loop: it needs no other thread."""

    @property
    def on_error(self) -> Literal["raise", "skip"]:
        """Whether a stream that fails raises in the consumer, or is skipped."""

    @property
    def fixed_length(self) -> bool:
        """Whether a run always has the planned number of batches, because other ranks count on it."""

    @property
    def has_next_epoch(self) -> bool:
        """Whether the end of a run is followed by another run, whose batches are prefetched."""

    def make_fillers(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, send: Callable[[bytes], None]
    ) -> Sequence[RowFiller]:
        """Create the row fillers of one worker.

        Args:
            ring: Ring whose slots they fill.
            lanes: Rows of the ring that the worker hosts.
            first_lane: Global number of the ring's row 0.
            send: Function that sends an encoded message to the supervisor.
        """

    def decode_infos(self, data: bytes) -> Any:
        """Return what an env returned for a batch, from the bytes of an INFO message.

        Raises:
            InvalidMessage: If no correct worker sends these bytes, or if the workload has no envs.
        """


def locate_error(error: Exception, where: str, *, stream: str, lane: int, stage: str, step: int) -> StreamloaderError:
    """Return `error` with the location added. A foreign exception becomes a :class:`StreamFailed`."""
    if isinstance(error, StreamloaderError):
        located = error
        located.stream = located.stream or stream
        located.offset = step if located.offset is None else located.offset
    else:
        located = StreamFailed(
            f"{where}, {stage} at step {step}: {type(error).__name__}: {error}",
            stream=stream,
            offset=step,
            cause=type(error).__name__,
        )
    located.details.update(lane=lane, stage=stage, step=step)
    return located
