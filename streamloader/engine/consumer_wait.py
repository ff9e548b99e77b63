"""One wait of the consumer for a batch: its deadline, and the lane that caused it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamloader.engine.ring import Status

if TYPE_CHECKING:
    from streamloader.errors import LoaderTimeout
    from streamloader.values import Array

__all__ = ["ConsumerWait", "is_stalled"]


class ConsumerWait:
    """One wait of the consumer.

    When half of the timeout has passed, it takes a snapshot of the status table. At the deadline, a worker whose rows
    have made no progress since then is killed, and the timeout starts again for the worker that replaces it.

    Args:
        timeout: Time limit in seconds, or None for no limit.
        status: Status table of the ring, int64 (lanes, ``Status.COLUMNS``).
        find_slowest_lane: Function that returns the row that has filled the fewest batches.
        kill_stalled_worker: Function that kills the worker of the slowest lane if its rows have made no progress since
            the given snapshot of `status`. Returns whether it did.
        timed_out: Function that returns the error for a wait of the given number of seconds.
    """

    def __init__(
        self,
        timeout: float | None,
        status: Array,
        find_slowest_lane: Callable[[], int],
        kill_stalled_worker: Callable[[Array], bool],
        timed_out: Callable[[float], LoaderTimeout],
    ) -> None:
        self._timeout, self._status, self._find_slowest_lane = timeout, status, find_slowest_lane
        self._kill_stalled_worker, self._timed_out = kill_stalled_worker, timed_out
        self._started = self._timer_started = time.perf_counter()
        self._lane: int | None = None  # row that the consumer waits for
        self._status_snapshot: Array | None = None  # taken at half of the timeout

    def remaining(self) -> float | None:
        """Return the seconds until :meth:`check` has to be called again, or None for no limit."""
        if self._timeout is None:
            return None
        limit = self._timeout if self._status_snapshot is not None else self._timeout / 2
        return max(0.0, self._timer_started + limit - time.perf_counter())

    def check(self) -> None:
        """Note the lane that is waited for; at the deadline, have a stalled worker killed.

        The caller holds the supervisor's lock.

        Raises:
            LoaderTimeout: If the deadline has passed and no worker has stalled.
        """
        if self._lane is None:
            self._lane = self._find_slowest_lane()
        if self._timeout is None:
            return
        elapsed = time.perf_counter() - self._timer_started
        if self._status_snapshot is None:
            if elapsed >= self._timeout / 2:
                self._status_snapshot = self._status.copy()
        elif elapsed >= self._timeout:
            if not self._kill_stalled_worker(self._status_snapshot):
                raise self._timed_out(time.perf_counter() - self._started)
            self._timer_started, self._status_snapshot = time.perf_counter(), None

    def finish(self) -> tuple[int, float] | None:
        """Return the row that was waited for and the seconds, or None if nothing was waited for."""
        return None if self._lane is None else (self._lane, time.perf_counter() - self._started)


def is_stalled(rows: Sequence[int], before: Array, status: Array) -> bool:
    """Return whether some of `rows` are being filled and none of those has made progress since `before`."""
    busy_rows = [row for row in rows if status[row, Status.BUSY]]
    return bool(busy_rows) and bool((before[busy_rows] == status[busy_rows]).all())
