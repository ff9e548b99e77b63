"""Start and end one worker, as a process or as a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

from streamloader.child_processes import Surroundings, keep_off_standard_streams
from streamloader.engine.job import WorkerJob
from streamloader.engine.ring import Ring
from streamloader.engine.worker import run_in_thread

__all__ = ["WorkerHandle"]

_LOGGER = logging.getLogger("streamloader")
_SEND_TIMEOUT_S: Final = 30.0
_EXIT_STATUS_TIMEOUT_S: Final = 5.0


class WorkerHandle:
    """The supervisor's handle of one worker, with its end of the socketpair.

    Args:
        number: Number of the worker in its loader.
        lanes: Rows of the ring that it hosts.

    Attributes:
        number: Number of the worker in its loader.
        lanes: Rows of the ring that it hosts.
        sock: Supervisor's end of the socketpair, non-blocking.
        pid: Process id, or None for a thread.
        kill_reason: Reason why the supervisor killed it, or empty.
        rejected: Whether it has sent an invalid message.
        is_blameless: Whether it was killed for a reason that lies outside of it, so that no stream is to blame.
    """

    def __init__(self, number: int, lanes: Sequence[int]) -> None:
        self.number, self.lanes = number, tuple(lanes)
        self.sock, child_sock = socket.socketpair()
        self.sock.setblocking(False)
        self._child_sock = socket.socket(fileno=keep_off_standard_streams(child_sock.detach()))
        self.pid: int | None = None
        self.kill_reason = ""
        self.rejected = False
        self.is_blameless = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start_process(self, surroundings: Surroundings, ring: Ring, job_fd: int) -> None:
        """Start it as a child process, which inherits only the descriptors that it needs."""
        child_fd = self._child_sock.fileno()
        fds = (child_fd, ring.fd, job_fd)
        arguments = (self.number, *fds, os.getpid())
        self._process = surroundings.start("streamloader.engine.worker", *arguments, pass_fds=fds)
        self.pid = self._process.pid
        self._child_sock.close()

    def start_thread(self, ring: Ring, job: WorkerJob) -> None:
        """Start it as a thread of this process."""
        self._thread = threading.Thread(
            target=run_in_thread, args=(job, ring, self._child_sock), name="streamloader-worker", daemon=True
        )
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Send messages, waiting for a worker that is still starting or has much to read.

        Raises:
            TimeoutError: If the worker does not read all of them within 30 seconds.
            OSError: If the worker is gone.
        """
        view = memoryview(data)
        deadline: float | None = None
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[self.sock.send(view) :]
                continue
            now = time.monotonic()
            deadline = now + _SEND_TIMEOUT_S if deadline is None else deadline
            poll = select.poll()
            poll.register(self.sock, select.POLLOUT)
            if not poll.poll(max(0.0, deadline - now) * 1000):
                raise TimeoutError

    def kill(self, reason: str = "") -> None:
        """Kill the process, if it is one and is alive. `reason` becomes part of the error's message."""
        if self._process is not None and self._process.poll() is None:
            self.kill_reason = self.kill_reason or reason
            self._process.kill()

    def reject(self, reason: str) -> None:
        """Kill the process because of what it has sent. Nothing that it has sent since is read.

        Args:
            reason: Description of the message. It becomes the reason of the death, even if the process has exited.
        """
        self.rejected = True
        self.kill_reason = f"it sent an invalid message ({reason}), and was killed"
        self.kill()

    def exit_status(self, timeout: float = _EXIT_STATUS_TIMEOUT_S) -> int | None:
        """Return the exit status of the process, or minus the signal that ended it.

        Args:
            timeout: Time limit in seconds for the status to become available.

        Returns:
            None for a thread, or if the time is over.
        """
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def close_socket(self) -> None:
        """Close the supervisor's end of the socketpair, whereupon the worker ends."""
        self.sock.close()
        if self._process is None and self._thread is None:
            self._child_sock.close()

    def join(self, deadline: float) -> bool:
        """Wait until the worker has ended. A process is killed at the deadline.

        Args:
            deadline: Monotonic time in seconds.

        Returns:
            False if it is a thread that is still alive.
        """
        remaining = max(0.0, deadline - time.monotonic())
        if self._thread is threading.current_thread():  # the loader was collected there; the thread ends by itself
            return True
        if self._thread is not None:
            self._thread.join(remaining)
            return not self._thread.is_alive()
        if self._process is not None:
            for limit_s in (remaining, _EXIT_STATUS_TIMEOUT_S):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(limit_s)
                    return True
                self._process.kill()
            _LOGGER.warning("worker process %d was killed, but the system cannot end it yet", self.pid)
        return True
