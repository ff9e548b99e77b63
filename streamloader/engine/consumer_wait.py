"""One wait of the consumer for a batch: its deadline, and the lane that caused it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from streamloader.engine.ring import Status

if TYPE_CHECKING:
    from streamloader.errors import LoaderTimeout
    from streamloader.values import Array

__all__ = ["MAX_POLL_S", "ConsumerWait", "is_stalled"]

MAX_POLL_S: Final = (
    1.0  # between two checks; Python also handles a signal that arrives right before a wait only after it
)
_MIN_POLLS: Final = 20  # in a timeout: a suspension counts as one of them at most
_MAX_LATENESS: Final = 1.25  # of a check, as a factor of the planned wait
_MIN_COUNTED_S: Final = 0.001
_GOLDEN_RATIO: Final = 0.618  # its multiples are spread evenly


class ConsumerWait:
    """One wait of the consumer.

    When half of the timeout has passed, it takes a snapshot of the status table. At the deadline, `handle_deadline`
    decides whether the wait goes on: for example, for the worker that replaces one whose rows have made no progress.

    Time in which this process does not run does not count: a job that was suspended continues as if nothing had
    happened. Such time shows as a check that comes much later than planned.

    Args:
        timeout: Time limit in seconds, or None for no limit.
        status: Status table of the ring, int64 (lanes, ``Status.COLUMNS``).
        find_slowest_lane: Function that returns the row that has filled the fewest batches.
        observe: Function that is called at intervals, of a twentieth of the timeout and of a second at most.
        handle_deadline: Function that is called at the deadline with the snapshot of `status`. Returns whether the
            timeout starts again. If not, the wait ends with an error.
        timed_out: Function that returns the error for a wait of the given number of seconds.
    """

    def __init__(
        self,
        timeout: float | None,
        status: Array,
        find_slowest_lane: Callable[[], int],
        observe: Callable[[], None],
        handle_deadline: Callable[[Array], bool],
        timed_out: Callable[[float], LoaderTimeout],
    ) -> None:
        self._timeout, self._status, self._find_slowest_lane = timeout, status, find_slowest_lane
        self._observe, self._handle_deadline, self._timed_out = observe, handle_deadline, timed_out
        self._last_check = time.perf_counter()
        self._max_poll_s = MAX_POLL_S if timeout is None else min(MAX_POLL_S, timeout / _MIN_POLLS)
        self._planned_s = self._max_poll_s
        self._next_observation, self._phase = self._last_check + self._max_poll_s, 0.0
        self._waited_s = self._timer_s = 0.0  # in total, and since the timeout has started
        self._lane: int | None = None  # row that the consumer waits for
        self._status_snapshot: Array | None = None  # taken at half of the timeout

    def remaining(self) -> float:
        """Return the seconds until :meth:`check` has to be called again, at most :data:`MAX_POLL_S`."""
        if self._timeout is None:
            return MAX_POLL_S
        limit = self._timeout if self._status_snapshot is not None else self._timeout / 2
        until_observation = max(_MIN_COUNTED_S, self._next_observation - self._last_check)
        self._planned_s = min(self._max_poll_s, until_observation, max(0.0, limit - self._timer_s))
        return self._planned_s

    def _count_time(self) -> None:
        """Count the time since the last check, as far as this process was running."""
        now = time.perf_counter()
        counted = min(now - self._last_check, max(_MIN_COUNTED_S, self._planned_s * _MAX_LATENESS))
        self._last_check = now
        self._waited_s += counted
        self._timer_s += counted

    def check(self) -> None:
        """Note the lane that is waited for; at the deadline, have the cause dealt with.

        The caller holds the supervisor's lock.

        Raises:
            LoaderTimeout: If the deadline has passed and the wait does not go on.
        """
        if self._lane is None:
            self._lane = self._find_slowest_lane()
        self._count_time()
        if self._timeout is None:
            return
        if self._last_check >= self._next_observation:
            # At irregular intervals, lest a worker that is stopped at regular ones is always found the same.
            self._phase = (self._phase + _GOLDEN_RATIO) % 1
            self._next_observation = self._last_check + self._max_poll_s * (0.5 + self._phase)
            self._observe()
        if self._status_snapshot is None:
            if self._timer_s >= self._timeout / 2:
                self._status_snapshot = self._status.copy()
        elif self._timer_s >= self._timeout:
            if not self._handle_deadline(self._status_snapshot):
                raise self._timed_out(self._waited_s)
            self._timer_s, self._status_snapshot = 0.0, None

    def finish(self) -> tuple[int, float] | None:
        """Return the row that was waited for and the seconds, or None if nothing was waited for."""
        if self._lane is None:
            return None
        self._count_time()
        return self._lane, self._waited_s


def is_stalled(rows: Sequence[int], before: Array, status: Array) -> bool:
    """Return whether some of `rows` are being filled and none of those has made progress since `before`."""
    busy_rows = [row for row in rows if status[row, Status.BUSY]]
    return bool(busy_rows) and bool((before[busy_rows] == status[busy_rows]).all())
