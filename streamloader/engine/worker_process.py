"""Starting and ending one worker, as a process or as a thread."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from streamloader.common.subprocesses import child_environment, interrupts_blocked
from streamloader.engine.job import Job
from streamloader.engine.ring import Ring
from streamloader.engine.worker import run_thread

__all__ = ["Worker"]

_READS_WITHIN = 30.0  # seconds


class Worker:
    """One worker and this side's end of its socketpair.

    Attributes:
        number: among the workers of the loader.
        lanes: rows of the ring that it hosts.
        sock: this side's end; non-blocking.
        pid: of the process; None for a thread.
        why: why it was killed by us, if it was.
    """

    def __init__(self, number: int, lanes: Sequence[int]) -> None:
        self.number, self.lanes = number, tuple(lanes)
        self.sock, self._theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.pid: int | None = None
        self.why = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start_process(self, ring: Ring, job_fd: int) -> None:
        """Start it as a child process. It gets the descriptors it needs and no others."""
        theirs = self._theirs.fileno()
        arguments = [str(value) for value in (self.number, theirs, ring.fd, job_fd, os.getpid())]
        with interrupts_blocked():  # until the child ignores them itself
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamloader.engine.worker", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs, ring.fd, job_fd),
                env=child_environment(),
            )
        self.pid = self._process.pid
        self._theirs.close()

    def start_thread(self, ring: Ring, job: Job) -> None:
        """Start it as a thread of this process."""
        self._thread = threading.Thread(
            target=run_thread, args=(job, ring, self._theirs), name="streamloader-worker", daemon=True
        )
        self._thread.start()

    def tell(self, data: bytes) -> None:
        """Send records, waiting for a worker that is still starting, or has much to read.

        Raises:
            TimeoutError: it does not read.
            OSError: it is gone.
        """
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[self.sock.send(view) :]
                continue
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT)
            if not poll.poll(_READS_WITHIN * 1000):
                raise TimeoutError

    def kill(self, why: str = "") -> None:
        """Kill the process, if it is one and lives; `why` says what for."""
        if self._process is not None and self._process.poll() is None:
            self.why = self.why or why
            self._process.kill()

    def exit_status(self, wait: float = 5.0) -> int | None:
        """Return how the process ended (negative: the signal), waiting up to `wait` seconds for it to be known."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(wait)
        return None

    def hang_up(self) -> None:
        """Tell the worker to end."""
        self.sock.close()
        if self._process is None and self._thread is None:
            self._theirs.close()

    def join(self, deadline: float) -> bool:
        """Wait for its end until `deadline` (monotonic), then kill a process; return False if a thread lives on."""
        left = max(0.0, deadline - time.monotonic())
        if self._thread is not None:
            self._thread.join(left)
            return not self._thread.is_alive()
        if self._process is not None:
            try:
                self._process.wait(left)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return True
