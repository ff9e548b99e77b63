"""The workers of one loader: started, heard, replaced when they die, and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable

from streamloader.engine.job import Job, job_memory
from streamloader.engine.process_watcher import Watch
from streamloader.engine.ring import Ring
from streamloader.engine.slot_release import Returner
from streamloader.engine.worker_process import Worker

__all__ = ["Crew"]

_LOGGER = logging.getLogger("streamloader")
_CLOSE_WITHIN = 3.0  # seconds for all workers together, then they are killed
_RECEIVE = 1 << 18
_FEW_SLOTS = 8


class Crew:
    """The workers of one loader.

    Args:
        processes: whether workers are processes; else there is one, a thread.
        ended: called in a thread of its own, with the process id, as soon as a worker process has ended.
        returned: called in a thread of its own, with the slot, as soon as the user has let go of one. Where batches
            are so small that there are many slots, it is not: slots wait in ``ring.returns`` for the next batch.

    Neither may refer to whoever owns the crew, which would never be collected.

    Attributes:
        workers: by number.
        selector: readable when a worker has said something, or :meth:`wake` was called. Workers are its data.
    """

    def __init__(
        self,
        job: Job,
        ring: Ring,
        *,
        processes: bool,
        ended: Callable[[int], None],
        returned: Callable[[int], None],
    ) -> None:
        self._job, self._ring, self._processes = job, ring, processes
        self._ended, self._returned = ended, returned
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe()
        for fd in (self._woken, self._wake):
            os.set_blocking(fd, False)
        self.selector.register(self._woken, selectors.EVENT_READ)
        self._job_fd = -1
        self._watch: Watch | None = None
        self._returner: Returner | None = None
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.RLock()  # between starting a worker and ending them all

    def start(self) -> None:
        """Start all workers."""
        if self._ring.slots <= _FEW_SLOTS:
            self._returner = Returner(self._ring.returns, self._returned)
        if self._processes:
            self._job_fd = job_memory(self._job)
            self._watch = Watch(self._ended)
        for number in range(len(self._job.lanes)):
            self.workers.append(self._started(number))

    def replace(self, worker: Worker) -> Worker | None:
        """Start another process in the place of one that has ended; None if the crew was closed meanwhile.

        Raises:
            OSError: the system does not start it.
        """
        self.forget(worker)
        worker.sock.close()
        with self._lock:
            if self._closed:
                return None
            new = self._started(worker.number)
            self.workers[worker.number] = new
            return new

    def _started(self, number: int) -> Worker:
        worker = Worker(number, self._job.lanes[number])
        try:
            if self._processes:
                worker.start_process(self._ring, self._job_fd)
            else:
                worker.start_thread(self._ring, self._job)
        except BaseException:
            worker.hang_up()
            raise
        if self._watch is not None and worker.pid is not None:
            self._watch.add(worker.pid)
        self.selector.register(worker.sock, selectors.EVENT_READ, worker)
        return worker

    def hear(self, worker: Worker) -> bytes | None:
        """Return what a worker said and nobody heard yet; empty at the end of file, None if there is nothing now."""
        try:
            return worker.sock.recv(_RECEIVE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def forget(self, worker: Worker) -> None:
        """Listen to a worker no more."""
        with contextlib.suppress(KeyError, ValueError, OSError):
            self.selector.unregister(worker.sock)

    def wake(self) -> None:
        """Make the selector readable, so that whoever waits looks again."""
        with contextlib.suppress(OSError):
            os.write(self._wake, b"!")

    def woken(self) -> None:
        """Take note of :meth:`wake`."""
        with contextlib.suppress(OSError):
            os.read(self._woken, 1 << 10)

    def of_process(self, pid: int) -> Worker | None:
        """Return the worker whose process this is, unless it was replaced."""
        return next((worker for worker in self.workers if worker.pid == pid), None)

    def close(self) -> None:
        """End the workers and wait until they are gone; in a fork of the owner, only drop copies of descriptors."""
        owned = os.getpid() == self._owner
        self._closed = True
        if owned:
            self.wake()
        with self._lock:
            workers = list(self.workers)
        if self._watch is not None:
            if owned:
                self._watch.stop()
            else:
                self._watch.drop()
        if self._returner is not None and owned:
            self._returner.stop()
        self.selector.close()
        for worker in workers:
            worker.hang_up()
        if owned:
            deadline = time.monotonic() + _CLOSE_WITHIN
            for worker in workers:
                if not worker.join(deadline):
                    _LOGGER.warning(
                        "a stream does not come back from a blocking call; its thread is left to itself "
                        "(num_workers > 0 can be ended in any case)"
                    )
        for fd in (self._woken, self._wake, self._job_fd):
            if fd >= 0:
                os.close(fd)
