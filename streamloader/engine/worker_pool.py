"""The workers of one loader: start them, receive from them, replace those that die, and end them."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable
from typing import Final

from streamloader.child_processes import Surroundings
from streamloader.engine.job import WorkerJob, write_job
from streamloader.engine.process_watcher import ProcessWatcher
from streamloader.engine.ring import Ring
from streamloader.engine.slot_release import SlotReclaimer
from streamloader.engine.worker_process import WorkerHandle

__all__ = ["WorkerPool"]

_LOGGER = logging.getLogger("streamloader")
_CLOSE_TIMEOUT_S: Final = 3.0  # for all workers together; then they are killed
_RECEIVE_BYTES: Final = 1 << 18
_WAKE_BYTES: Final = 1 << 10
_MAX_SLOTS_FOR_RECLAIMER: Final = 8  # with more slots, waiting for the next batch costs nothing


class WorkerPool:
    """The workers of one loader.

    The callbacks must not refer to the owner of the pool, which would then never be collected.

    Args:
        job: Job of the workers.
        ring: Ring that the workers fill. The pool does not close it.
        processes: Whether the workers are processes. If not, there is one worker, a thread.
        on_exit: Function that is called with the process id as soon as a worker process has exited, in a separate
            thread.
        on_slot_release: Function that drains ``ring.released``. It is called in a separate thread as soon as the user
            holds no reference to a slot any more. None if released slots are not needed before the next batch is
            requested. Not called either where batches are so small that the ring has many slots.

    Attributes:
        workers: Workers by number.
        selector: Selector that is ready when a worker has sent data, or after :meth:`wake`. The data of its keys is the
            worker, or None for the wake-up.
    """

    def __init__(
        self,
        job: WorkerJob,
        ring: Ring,
        *,
        processes: bool,
        on_exit: Callable[[int], None],
        on_slot_release: Callable[[], None] | None,
    ) -> None:
        # Of all workers, also of those that replace others. First, since what is opened may get the number of a stdout
        # that is closed.
        self._surroundings = Surroundings() if processes else None
        self._job, self._ring, self._processes = job, ring, processes
        self._on_exit, self._on_slot_release = on_exit, on_slot_release
        self.workers: list[WorkerHandle] = []
        try:
            self.selector = selectors.DefaultSelector()
            self._wake_receiver, self._wake_sender = os.pipe()
        except OSError:
            if self._surroundings is not None:
                self._surroundings.close()
            raise
        for fd in (self._wake_receiver, self._wake_sender):
            os.set_blocking(fd, False)
        self.selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._job_fd = -1
        self._watcher: ProcessWatcher | None = None
        self._reclaimer: SlotReclaimer | None = None
        self._owner_pid = os.getpid()
        self._closed = False
        self._lock = threading.RLock()  # no worker is started once the pool is being closed

    def start(self) -> None:
        """Start all workers."""
        if self._on_slot_release is not None and self._ring.slots <= _MAX_SLOTS_FOR_RECLAIMER:
            self._reclaimer = SlotReclaimer(self._ring.released, self._on_slot_release)
        if self._processes:
            self._job_fd = write_job(self._job)
            self._watcher = ProcessWatcher(self._on_exit)
        for number in range(len(self._job.lanes)):
            self.workers.append(self._start_worker(number))

    def replace(self, worker: WorkerHandle) -> WorkerHandle | None:
        """Start a process that replaces one that has exited; return None if the pool was closed.

        Raises:
            OSError: If the system cannot start a process.
        """
        self.unregister(worker)
        worker.sock.close()
        with self._lock:
            if self._closed:
                return None
            replacement = self._start_worker(worker.number)
            self.workers[worker.number] = replacement
            return replacement

    def _start_worker(self, number: int) -> WorkerHandle:
        worker = WorkerHandle(number, self._job.lanes[number])
        try:
            if self._surroundings is not None:
                worker.start_process(self._surroundings, self._ring, self._job_fd)
            else:
                worker.start_thread(self._ring, self._job)
        except BaseException:
            worker.close_socket()
            raise
        if self._watcher is not None and worker.pid is not None:
            self._watcher.add(worker.pid)
        self.selector.register(worker.sock, selectors.EVENT_READ, worker)
        return worker

    def receive(self, worker: WorkerHandle) -> bytes | None:
        """Return data that a worker has sent: empty at the end of file, None if there is no data now."""
        try:
            return worker.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def unregister(self, worker: WorkerHandle) -> None:
        """Remove a worker from the selector."""
        with contextlib.suppress(KeyError, ValueError, OSError):
            self.selector.unregister(worker.sock)

    def wake(self) -> None:
        """Make the selector ready, so that a waiting consumer checks its state again."""
        with contextlib.suppress(OSError):
            os.write(self._wake_sender, b"!")

    def clear_wake(self) -> None:
        """Reset the effect of :meth:`wake`."""
        with contextlib.suppress(OSError):
            os.read(self._wake_receiver, _WAKE_BYTES)

    def find_worker(self, pid: int) -> WorkerHandle | None:
        """Return the worker with this process id, or None if it was replaced."""
        return next((worker for worker in self.workers if worker.pid == pid), None)

    def close(self) -> None:
        """End the workers and wait for them. In a fork of the owner, only close the copies of descriptors."""
        is_owner = os.getpid() == self._owner_pid
        self._closed = True
        if is_owner:
            self.wake()
        with self._lock:
            workers = list(self.workers)
        if self._watcher is not None:
            if is_owner:
                self._watcher.stop()
            else:
                self._watcher.close_in_fork()
        if self._reclaimer is not None and is_owner:
            self._reclaimer.stop()
        self.selector.close()
        for worker in workers:
            worker.close_socket()
        if is_owner:
            deadline = time.monotonic() + _CLOSE_TIMEOUT_S
            for worker in workers:
                if not worker.join(deadline):
                    _LOGGER.warning(
                        "a stream does not return from a blocking call; its thread is abandoned "
                        "(with num_workers > 0, its process would be killed)"
                    )
        if self._surroundings is not None:
            self._surroundings.close()
        for fd in (self._wake_receiver, self._wake_sender, self._job_fd):
            if fd >= 0:
                os.close(fd)
