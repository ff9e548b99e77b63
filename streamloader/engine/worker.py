"""The worker: a plain process (``python -m streamloader.engine.worker``), or a thread for ``num_workers=0``.

As a process it gets three descriptors: its end of a socketpair, the ring, and the job (as ``process.py`` packs
it), which its own parent wrote. It ends when the socketpair does, or when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from streamloader.engine.messages import Kind, pack
from streamloader.errors import to_wire

if TYPE_CHECKING:
    from streamloader.engine.ring import Ring, SlotLayout
    from streamloader.engine.workload import Script

__all__ = ["HEADER", "Job", "main", "run_thread"]

HEADER = struct.Struct("<Q")  # each number before the job
_MMAP_THRESHOLD = 64 << 20  # bytes; a decoded frame is smaller
_LEAVE_WITHIN = 2.0  # seconds from a closed loader to a gone worker
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a loader needs to know."""

    script: Script
    layout: SlotLayout
    slots: int
    first_lane: int
    lanes: Sequence[Sequence[int]]  # of each worker
    log_level: int


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    number, sock_fd, ring_fd, job_fd = (int(text) for text in argv[:4])
    sock = socket.socket(fileno=sock_fd)
    playing = threading.Event()
    _leave_with_parent(sock, int(argv[4]), playing)
    _keep_freed_memory()
    _yield_to_the_consumer()
    try:
        job = _unpack_job(job_fd)
        from streamloader.engine.ring import Ring

        handler = _ToSupervisor(sock.sendall)
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


def _schedule(job: Job, ring: Ring, sock: socket.socket, number: int, handler: _ToSupervisor | None = None) -> None:
    from streamloader.engine.scheduler import Scheduler

    async def run() -> None:
        scheduler = Scheduler(job.script, ring, sock, job.lanes[number], job.first_lane)
        if handler is not None:
            handler.send = scheduler.post
        await scheduler.run()

    anyio.run(run, backend="asyncio", backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:  # Windows, and interpreters that uvloop has no build for
        return False
    return True


def _unpack_job(fd: int) -> Job:
    """Read the job; its arrays alias the mapping, which they keep alive.

    They cost this process no memory of its own, but for the pages that it writes to: these become its own.
    """
    data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    os.close(fd)

    def number(at: int) -> int:
        return int(HEADER.unpack_from(data, at * HEADER.size)[0])

    places = [(number(at), number(at + 1)) for at in range(3, 3 + 2 * number(2), 2)]
    start = HEADER.size * (3 + 2 * len(places))
    end = start + number(0)
    sys.path[:] = json.loads(bytes(data[start:end]))
    arrays = [data[begin : begin + size] for begin, size in places]
    job: Job = pickle.loads(data[end : end + number(1)], buffers=arrays)  # noqa: S301 - written by our own parent
    return job


def _send_fatal(sock: socket.socket, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        sock.setblocking(True)
        sock.settimeout(5.0)
        sock.sendall(pack(Kind.ERROR, a=-1, payload=to_wire(error)))


def _leave_with_parent(sock: socket.socket, parent: int, playing: threading.Event) -> None:
    """End this process at once when the parent is gone, whatever its other threads are doing.

    The same if the loader was closed before this process is `playing`: there is nothing to be closed in peace.
    """
    poll = select.poll()
    poll.register(sock, 0)  # only hang-ups
    wait: float | None = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)  # a fork of the parent may hold the socket open
    except (AttributeError, OSError):
        wait = 500.0  # no pidfd here: look now and then whose child this is

    def watch() -> None:
        while os.getppid() == parent:
            gone = {fd for fd, _ in poll.poll(wait)}
            if gone == {sock.fileno()}:  # a closed loader: streams may close in peace, but not for ever
                poll.unregister(sock)
                if playing.is_set():
                    poll.poll(_LEAVE_WITHIN * 1000)
                os._exit(0)
            if gone:
                break
        os._exit(1)

    threading.Thread(target=watch, name="streamloader-parent-watch", daemon=True).start()


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


class _ToSupervisor(logging.Handler):
    """Hands log records to `send`, for the supervisor, whose process has the handlers that the user configured."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        payload = {"name": record.name, "level": record.levelno, "message": text}
        with contextlib.suppress(OSError):
            self.send(pack(Kind.LOG, payload=payload))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # no interpreter teardown: a decoder thread may still be at work
