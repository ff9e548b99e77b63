"""What the system says about a worker that makes no progress: it was halted, it lacked the processor, or it worked."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final, NamedTuple

__all__ = ["Activity", "ActivityMeter", "read_activity"]

_HALTED_STATES: Final = ("T", "t")  # proc(5): stopped by a signal, or by a debugger
_BUSY_STATES: Final = ("R", "D")  # runs or would run; waits for a disk, swapped memory, or a server of files
_FREEZERS: Final = ("__refrigerator", "do_freezer_trap")  # of control groups, in the kernel
_NANO: Final = 1e-9


class Activity(NamedTuple):
    """State of a process, and the time that its threads have run and waited so far.

    Attributes:
        is_halted: Whether it is stopped by a signal or a debugger, or frozen by a control group.
        is_busy: Whether a thread runs, would run if it had a processor, or waits for a disk or swapped memory.
        cpu_s: Seconds that its threads have run.
        delayed_s: Seconds that its threads were ready to run, but had no processor.
    """

    is_halted: bool
    is_busy: bool
    cpu_s: float
    delayed_s: float


def read_activity(pid: int | None) -> Activity | None:
    """Return what a process of this user is doing, or None where the system does not say it."""
    states, cpu_ns, delayed_ns = [], 0, 0
    try:
        folder = f"/proc/{pid}/task"
        for thread in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                states.append(_read(f"{folder}/{thread}/stat").rpartition(")")[2].split()[0])
                cpu, delayed, *_ = map(int, _read(f"{folder}/{thread}/schedstat").split())
                cpu_ns, delayed_ns = cpu_ns + cpu, delayed_ns + delayed
        is_frozen = _read(f"/proc/{pid}/wchan") in _FREEZERS
    except (OSError, ValueError, IndexError):
        return None
    if not states:
        return None
    is_halted = is_frozen or any(state in _HALTED_STATES for state in states)
    is_busy = not is_halted and any(state in _BUSY_STATES for state in states)
    return Activity(is_halted, is_busy, cpu_ns * _NANO, delayed_ns * _NANO)


def _read(path: str) -> str:
    with open(path, encoding="latin-1") as file:
        return file.read()


class ActivityMeter:
    """Adds up, over one wait, how a worker has spent its time. Another worker starts it again.

    Attributes:
        halted_s: Seconds up to the latest observation during which the worker was halted, and did not run in between.
        starved_s: Seconds during which it was halted, or ready without a processor.
        busy_s: Seconds during which it was busy.
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self.restart()

    def restart(self) -> None:
        """Forget all times."""
        self._last: tuple[float, Activity] | None = None
        self.halted_s = self.starved_s = self.busy_s = 0.0

    def observe(self, pid: int | None) -> None:
        """Take note of what a worker is doing. The time since the last observation counts as it is found now.

        Args:
            pid: Process id, or None for a thread.
        """
        if pid != self._pid:
            self._pid = pid
            self.restart()
        activity, now = read_activity(pid), time.monotonic()
        if activity is None:
            self.restart()
            return
        if self._last is not None:
            before, previous = self._last
            seconds = now - before
            ran = activity.cpu_s - previous.cpu_s
            self.halted_s = self.halted_s + seconds if activity.is_halted and not ran else 0.0
            self.busy_s += seconds if activity.is_busy else min(seconds, ran)
            self.starved_s += seconds if activity.is_halted else min(seconds, activity.delayed_s - previous.delayed_s)
        self._last = now, activity
