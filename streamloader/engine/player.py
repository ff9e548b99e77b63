"""What the scheduler plays and the supervisor counts: whatever fills its rows of each batch, grant by grant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from streamloader.engine.plan import Plan
from streamloader.engine.ring import Ring
from streamloader.errors import StreamFailed, StreamloaderError
from streamloader.values import StreamInfo

__all__ = ["Grant", "Player", "Script", "failed_at"]


class Grant(NamedTuple):
    """Leave to fill one slot: batch number `batch` of `play`, a run through `epoch`."""

    seq: int
    play: int
    epoch: int
    batch: int
    slot: int


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


class Script(Protocol):
    """What the workers of a loader play. It is sent to them by cloudpickle."""

    @property
    def plan(self) -> Plan:
        """How many lanes there are, how long an epoch is, and what ends it."""

    @property
    def streams(self) -> Sequence[StreamInfo]:
        """What the numbers in the status table stand for."""

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
