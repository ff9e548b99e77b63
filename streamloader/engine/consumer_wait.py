"""How long the consumer waits for a batch, and what becomes of a lane that keeps it waiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streamloader.engine.ring import Status

if TYPE_CHECKING:
    from streamloader.engine.supervisor import Supervisor
    from streamloader.values import Array

__all__ = ["Patience"]


class Patience:
    """One wait of the consumer.

    Args:
        timeout: seconds; None: no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._started = self._since = time.perf_counter()
        self._late: int | None = None  # the lane it waits for
        self._halfway: Array | None = None  # where all lanes stood when half of the time was over

    def left(self) -> float | None:
        """Seconds until :meth:`check` has something to do."""
        if self._timeout is None:
            return None
        until = self._timeout if self._halfway is not None else self._timeout / 2
        return max(0.0, self._since + until - time.perf_counter())

    def check(self, supervisor: Supervisor) -> None:
        """Note what is waited for; at the deadline, have a worker killed that stands still. Called with the lock.

        Raises:
            LoaderTimeout: the time is over, and no worker can be blamed.
        """
        if self._late is None:
            self._late = supervisor.latest_lane()
        if self._timeout is None:
            return
        passed = time.perf_counter() - self._since
        if self._halfway is None:
            if passed >= self._timeout / 2:
                self._halfway = supervisor.where_lanes_stand()
        elif passed >= self._timeout:
            if not supervisor.end_standstill(self._halfway):
                raise supervisor.timed_out(time.perf_counter() - self._started)
            self._since, self._halfway = time.perf_counter(), None

    def book(self, supervisor: Supervisor) -> None:
        """Book the wait on the lane that was waited for."""
        if self._late is not None:
            seconds = time.perf_counter() - self._started
            supervisor.wait_seconds += seconds
            supervisor.waited_for[self._late] = supervisor.waited_for.get(self._late, 0.0) + seconds


def stand_still(rows: list[int], before: Array, now: Array) -> bool:
    """Whether some of these rows are being filled, and none of those has moved."""
    filled = [row for row in rows if now[row, Status.BUSY]]
    return bool(filled) and bool((before[filled] == now[filled]).all())
