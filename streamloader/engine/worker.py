"""A worker: a plain process that runs this module, or a thread for ``num_workers=0``.

As a process it gets three descriptors: its end of a socketpair, the ring, and the job (see ``job.py``), which its own
parent wrote. It ends when the parent closes the socketpair, or when the parent exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from streamloader.common.subprocesses import (
    LogForwarder,
    LogSender,
    exit_process,
    exit_with_parent,
    shield_from_signals,
)
from streamloader.common.worker_output import protect_output
from streamloader.engine.job import WorkerJob, read_job
from streamloader.engine.messages import MessageKind, encode_message
from streamloader.errors import to_wire

if TYPE_CHECKING:
    from streamloader.engine.ring import Ring

__all__ = ["import_event_loop", "main", "run_in_thread"]

_MMAP_THRESHOLD_BYTES: Final = 64 << 20  # a decoded frame is smaller
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SEND_TIMEOUT_S: Final = 5.0


def run_in_thread(job: WorkerJob, ring: Ring, sock: socket.socket) -> None:
    """Run worker 0 in this thread, until the other end of `sock` is closed."""
    try:
        _run_scheduler(job, ring, sock, 0)
    except BaseException as error:  # noqa: BLE001 - the supervisor raises it in the user's thread
        _send_fatal_error(sock, error)
    finally:
        sock.close()


def main(argv: Sequence[str]) -> int:
    """Run a worker process, and return its exit status.

    Args:
        argv: Number of the worker, its descriptors of socket, ring and job, and the process id of the parent.
    """
    shield_from_signals()
    protect_output()
    gc.disable()  # while modules are imported, whose objects it would search again and again
    number, sock_fd, ring_fd, job_fd, parent_pid = (int(text) for text in argv)
    sock = socket.socket(fileno=sock_fd)
    working = threading.Event()
    exit_with_parent(parent_pid, sock, working)
    _keep_freed_memory()
    _avoid_preempting_consumer()
    try:
        job = read_job(job_fd)
        from streamloader.engine.ring import Ring

        handler = LogForwarder(_log_sender(sock.sendall))
        logger = logging.getLogger("streamloader")
        logger.setLevel(job.log_level)
        logger.addHandler(handler)
        logger.propagate = False
        ring = Ring(ring_fd, job.layout, job.slots)
        working.set()
        gc.freeze()
        gc.enable()
        if job.workload.has_single_filler:
            _run_direct_scheduler(job, ring, sock, number, handler)
        else:
            _run_scheduler(job, ring, sock, number, handler)
    except BaseException as error:  # noqa: BLE001 - sent to the supervisor, which raises it
        _send_fatal_error(sock, error)
        return 1
    return 0


def _run_scheduler(
    job: WorkerJob, ring: Ring, sock: socket.socket, number: int, handler: LogForwarder | None = None
) -> None:
    from streamloader.engine.scheduler import Scheduler

    async def run() -> None:
        scheduler = Scheduler(job.workload, ring, sock, job.lanes[number], job.first_lane, job.cores)
        if handler is not None:
            handler.send = _log_sender(scheduler.send_if_possible)
        await scheduler.run()

    with asyncio.Runner(loop_factory=import_event_loop()) as runner:
        runner.run(run())


def _run_direct_scheduler(job: WorkerJob, ring: Ring, sock: socket.socket, number: int, handler: LogForwarder) -> None:
    from streamloader.engine.direct_scheduler import DirectScheduler

    scheduler = DirectScheduler(job.workload, ring, sock, job.lanes[number], job.first_lane)
    handler.send = _log_sender(scheduler.send_if_possible)
    scheduler.run()


def import_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the function that makes uvloop's event loop, or None without uvloop.

    Its first import fails once the main thread of a process has ended.
    """
    try:
        import uvloop
    except ImportError:  # Windows, and interpreters for which uvloop has no build
        return None
    return uvloop.new_event_loop


def _log_sender(send: Callable[[bytes], None]) -> LogSender:
    """Return a function that encodes a log record as a LOG message and passes it to `send`."""

    def send_log(name: str, level: int, message: str) -> None:
        send(encode_message(MessageKind.LOG, payload={"name": name, "level": level, "message": message}))

    return send_log


def _send_fatal_error(sock: socket.socket, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        sock.setblocking(True)
        sock.settimeout(_SEND_TIMEOUT_S)
        sock.sendall(encode_message(MessageKind.ERROR, a=-1, payload=to_wire(error)))


def _keep_freed_memory() -> None:
    """Have glibc keep freed frame buffers, which it would otherwise return to the kernel and fault in again."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD_BYTES)


def _avoid_preempting_consumer() -> None:
    """Keep Linux from preempting the consumer when this worker wakes up, since workers run ahead of the consumer."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
