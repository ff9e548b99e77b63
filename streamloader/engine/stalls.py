"""Decide what follows when a batch is late: whether to wait on, to replace the worker, or to leave out the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from streamloader.engine.worker_activity import ActivityMeter

if TYPE_CHECKING:
    from streamloader.engine.worker_process import WorkerHandle

__all__ = ["MAX_STALLS", "Remedy", "StallJudge"]

MAX_STALLS: Final = 2  # workers that are killed at the same place, before something else is done
_MAX_TIMEOUTS: Final = 20  # of a worker that lacks the processor, or is busy: a machine may be so much slower
_MIN_OWN_SHARE: Final = 0.75  # of a timeout, in which a worker must have been able to make progress
_NO_PROGRESS: Final = "it made no progress before the deadline, and was killed"
_HALTED: Final = "it was stopped by a signal until the deadline, and was killed"


class Remedy(NamedTuple):
    """What follows from a batch that is late.

    Attributes:
        waits: Whether the wait goes on. If not, it ends with an error.
        kill_reason: Reason for which the worker is to be killed, so that another one continues for it, or empty.
        is_stall: Whether it is to be killed because it makes no progress where it is.
        leaves_out: Whether the stream is to be left out because of which it makes no progress.
    """

    waits: bool
    kill_reason: str = ""
    is_stall: bool = False
    leaves_out: bool = False


_WAIT_ON: Final = Remedy(waits=True)
_GIVE_UP: Final = Remedy(waits=False)


class StallJudge:
    """Decides, during one wait of the consumer, what follows from each deadline that passes.

    A deadline proves no fault of a stream: the machine may be slow, and the worker may be stopped, frozen, or without a
    processor. So a worker that makes no progress is replaced. A stream at which that happens again and again is named
    by an error, or left out because of its time, but it is never called damaged.

    Args:
        timeout: Time limit in seconds, or None for no limit.
        replaces_workers: Whether a worker may be killed, because another one continues for it.
        leaves_out_streams: Whether streams may be left out.

    Attributes:
        meter: Meter of what the worker does, for which the consumer waits.
    """

    def __init__(self, timeout: float | None, *, replaces_workers: bool, leaves_out_streams: bool) -> None:
        self._timeout_s = timeout or 0.0
        self._replaces_workers, self._leaves_out_streams = replaces_workers, leaves_out_streams
        self._deadlines = 0  # that have passed since the wait has started, or since the latest kill
        self._has_killed = False
        self.meter = ActivityMeter()

    def decide(self, worker: WorkerHandle, *, is_stalled: bool, kills_here: int) -> Remedy:
        """Return what follows from a deadline that has passed.

        Args:
            worker: Worker of the slowest lane.
            is_stalled: Whether rows of the worker are being filled, and have made no progress.
            kills_here: Number of workers that were killed because they made no progress where it is.
        """
        self._deadlines += 1
        if worker.kill_reason:  # the system cannot end it yet: it is frozen, or waits for a server of files
            return _GIVE_UP
        if self._replaces_workers and self.meter.halted_s >= self._timeout_s / 2:
            return self._kill(Remedy(waits=True, kill_reason=_HALTED))
        if self._own_s < _MIN_OWN_SHARE * self._timeout_s:
            return _WAIT_ON if self._deadlines < _MAX_TIMEOUTS else _GIVE_UP
        if not is_stalled and self._has_killed and self._deadlines == 1:  # the time in which the new worker started
            return _WAIT_ON
        return self._judge_stall(kills_here) if is_stalled and self._replaces_workers else _GIVE_UP

    @property
    def _own_s(self) -> float:
        """Seconds in which the worker could do what it wanted."""
        return self._timeout_s * self._deadlines - self.meter.starved_s

    def _judge_stall(self, kills_here: int) -> Remedy:
        if kills_here < MAX_STALLS:
            return self._kill(Remedy(waits=True, kill_reason=_NO_PROGRESS, is_stall=True))
        if not self._leaves_out_streams:
            return _GIVE_UP
        if self.meter.busy_s >= self._own_s / 2 and self._own_s < _MAX_TIMEOUTS * self._timeout_s * _MIN_OWN_SHARE:
            return _WAIT_ON if self._deadlines < 2 * _MAX_TIMEOUTS else _GIVE_UP
        return self._kill(Remedy(waits=True, kill_reason=_NO_PROGRESS, is_stall=True, leaves_out=True))

    def _kill(self, remedy: Remedy) -> Remedy:
        self._deadlines, self._has_killed = 0, True
        return remedy
