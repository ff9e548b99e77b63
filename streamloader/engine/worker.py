"""The worker: a plain process (``python -m streamloader.engine.worker``), or a thread for ``num_workers=0``.

As a process it gets three descriptors: its end of a socketpair, the ring, and the job (as ``process.py`` packs
it), which its own parent wrote. It ends when the socketpair does, or when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from streamloader.common.subprocesses import LogForwarder, LogSender, exit_process, exit_with_parent, ignore_interrupts
from streamloader.engine.job import Job, unpack_job
from streamloader.engine.messages import Kind, pack
from streamloader.errors import to_wire

if TYPE_CHECKING:
    from streamloader.engine.ring import Ring

__all__ = ["main", "run_thread"]

_MMAP_THRESHOLD = 64 << 20  # bytes; a decoded frame is smaller
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def run_thread(job: Job, ring: Ring, sock: socket.socket) -> None:
    """Be worker 0 in this thread, until the other end of `sock` closes."""
    try:
        _schedule(job, ring, sock, 0)
    except BaseException as error:  # noqa: BLE001 - the supervisor raises it in the user's thread
        _send_fatal(sock, error)
    finally:
        sock.close()


def main(argv: Sequence[str]) -> int:
    """Be worker `argv[0]` with the descriptors of socket, ring and job in `argv[1:]`."""
    ignore_interrupts()
    number, sock_fd, ring_fd, job_fd = (int(text) for text in argv[:4])
    sock = socket.socket(fileno=sock_fd)
    playing = threading.Event()
    exit_with_parent(int(argv[4]), sock, playing)
    _keep_freed_memory()
    _yield_to_the_consumer()
    try:
        job = unpack_job(job_fd)
        from streamloader.engine.ring import Ring

        handler = LogForwarder(_log_sender(sock.sendall))
        logger = logging.getLogger("streamloader")
        logger.setLevel(job.log_level)
        logger.addHandler(handler)
        logger.propagate = False
        ring = Ring(ring_fd, job.layout, job.slots)
        playing.set()
        _schedule(job, ring, sock, number, handler)
    except BaseException as error:  # noqa: BLE001 - told to the supervisor, which raises it
        _send_fatal(sock, error)
        return 1
    return 0


def _schedule(job: Job, ring: Ring, sock: socket.socket, number: int, handler: LogForwarder | None = None) -> None:
    from streamloader.engine.scheduler import Scheduler

    async def run() -> None:
        scheduler = Scheduler(job.script, ring, sock, job.lanes[number], job.first_lane)
        if handler is not None:
            handler.send = _log_sender(scheduler.post)
        await scheduler.run()

    anyio.run(run, backend="asyncio", backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:  # Windows, and interpreters that uvloop has no build for
        return False
    return True


def _log_sender(send: Callable[[bytes], None]) -> LogSender:
    """Return a function that encodes a log record as a LOG message and passes it to `send`."""

    def send_log(name: str, level: int, message: str) -> None:
        send(pack(Kind.LOG, payload={"name": name, "level": level, "message": message}))

    return send_log


def _send_fatal(sock: socket.socket, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        sock.setblocking(True)
        sock.settimeout(5.0)
        sock.sendall(pack(Kind.ERROR, a=-1, payload=to_wire(error)))


def _keep_freed_memory() -> None:
    """Let glibc keep freed frame buffers instead of giving them back to the kernel and faulting them in again."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD)


def _yield_to_the_consumer() -> None:
    """Ask Linux not to take the consumer off its core for a worker that wakes up: there is work for long enough."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
