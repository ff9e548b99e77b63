"""Noticing at once that a process has ended, whatever the consumer is doing."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

__all__ = ["Watch"]

_LOOK_EVERY = 0.1  # seconds between two looks where the kernel has no descriptors for processes
_STOP_WITHIN = 1.0  # seconds


class Watch:
    """A thread that sleeps until a watched child process ends, and calls `ended` with its process id.

    It does not reap the child: the exit status is left to whoever started it.

    Args:
        ended: called in the thread; what it raises ends the thread.
    """

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended
        self._pids: dict[int, int | None] = {}  # pid -> its descriptor
        self._stopping = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, name="streamloader-watch", daemon=True)
        self._thread.start()

    def add(self, pid: int) -> None:
        """Watch a child that was not waited for yet."""
        try:
            self._pids[pid] = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self._pids[pid] = None
        self._rouse()

    def stop(self) -> None:
        """End the thread and close what it holds."""
        self._stopping = True
        self._rouse()
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_WITHIN)

    def drop(self) -> None:
        """Close the copies of its descriptors in a fork of the process that watches."""
        self._close()

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake up anyway
            os.write(self._wake, b"!")

    def _run(self) -> None:
        try:
            while not self._stopping:
                for pid in self._wait():
                    if self._stopping:
                        break
                    self._ended(pid)
        finally:
            self._close()

    def _wait(self) -> list[int]:
        """Return the processes that have ended, and watch these no more."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        watched = dict(self._pids)
        for fd in watched.values():
            if fd is not None:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(_LOOK_EVERY * 1000 if None in watched.values() else None)}
        if self._woken in ready:
            os.read(self._woken, 1 << 10)
        ended = [pid for pid, fd in watched.items() if (_has_ended(pid) if fd is None else fd in ready)]
        for pid in ended:
            fd = self._pids.pop(pid)
            if fd is not None:
                os.close(fd)
        return ended

    def _close(self) -> None:
        for fd in (*self._pids.values(), self._woken, self._wake):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._pids.clear()


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody has waited for it
        return True
