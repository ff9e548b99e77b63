"""Detect at once that a child process has exited, whatever the consumer is doing."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["ProcessWatcher"]

_POLL_INTERVAL_MS: Final = 100.0  # where the kernel has no descriptors for processes
_STOP_TIMEOUT_S: Final = 1.0
_WAKE_BYTES: Final = 1 << 10


class ProcessWatcher:
    """Thread that sleeps until a watched child process exits, and then calls `on_exit` with its process id.

    It does not reap the child, so the exit status is still available to the code that started it.

    Args:
        on_exit: Function that is called in the thread. An exception from it ends the thread.
    """

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit
        self._pidfds: dict[int, int | None] = {}  # by process id
        self._stopping = False
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_sender, False)
        self._thread = threading.Thread(target=self._run, name="streamloader-process-watch", daemon=True)
        self._thread.start()

    def add(self, pid: int) -> None:
        """Watch a child process that was not waited for yet."""
        try:
            self._pidfds[pid] = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self._pidfds[pid] = None
        self._wake_thread()

    def stop(self) -> None:
        """Stop the thread and close its descriptors."""
        self._stopping = True
        self._wake_thread()
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_TIMEOUT_S)

    def close_in_fork(self) -> None:
        """Close the copies of its descriptors in a fork of the process that owns it."""
        self._close_descriptors()

    def _wake_thread(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe wakes the thread anyway
            os.write(self._wake_sender, b"!")

    def _run(self) -> None:
        try:
            while not self._stopping:
                for pid in self._wait_for_exits():
                    if self._stopping:
                        break
                    self._on_exit(pid)
        finally:
            self._close_descriptors()

    def _wait_for_exits(self) -> list[int]:
        """Wait until processes exit or the thread is woken, and return the exited processes, no longer watched."""
        poll = select.poll()
        poll.register(self._wake_receiver, select.POLLIN)
        watched = dict(self._pidfds)
        for fd in watched.values():
            if fd is not None:
                poll.register(fd, select.POLLIN)
        ready_fds = {fd for fd, _ in poll.poll(_POLL_INTERVAL_MS if None in watched.values() else None)}
        if self._wake_receiver in ready_fds:
            os.read(self._wake_receiver, _WAKE_BYTES)
        exited = [pid for pid, fd in watched.items() if (_has_exited(pid) if fd is None else fd in ready_fds)]
        for pid in exited:
            fd = self._pidfds.pop(pid)
            if fd is not None:
                os.close(fd)
        return exited

    def _close_descriptors(self) -> None:
        for fd in (*self._pidfds.values(), self._wake_receiver, self._wake_sender):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._pidfds.clear()


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # its exit status was already collected
        return True
