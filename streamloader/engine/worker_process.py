"""Starting and ending one worker, as a process or as a thread."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import cloudpickle
import numpy as np

from streamloader.engine.ring import Ring, nameless_memory
from streamloader.engine.worker import HEADER, Job, run_thread
from streamloader.errors import ConfigError

__all__ = ["Worker", "job_memory"]

_OUT_OF_BAND, _BORDER = 1024, 64  # bytes: of an array that is mapped, at least, and what it is aligned to
_READS_WITHIN = 30.0  # seconds
_SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _pack_job(job: Job) -> list[bytes | memoryview]:
    """Encode a job for worker processes, as pieces that are to be written one after the other.

    First come the sizes and places of what follows (``<Q`` each), then the module search path as JSON, the job pickled
    by cloudpickle, and the arrays in it: out of band, each on a border of 64 bytes, so that workers map them.

    Raises:
        ConfigError: something in it cannot be pickled.
    """
    search = json.dumps([os.path.abspath(path) for path in sys.path]).encode()
    arrays: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _OUT_OF_BAND:
            arrays.append(raw)
        return raw.nbytes < _OUT_OF_BAND

    try:
        pickled: bytes = cloudpickle.dumps(job, protocol=5, buffer_callback=keep_in_band)
    except Exception as error:
        raise ConfigError(
            f"the data set, or make_env, cannot be sent to worker processes ({type(error).__name__}: {error}): open "
            "files, locks and connections in make, open() or make_env, not before, or use num_workers=0"
        ) from error
    end = HEADER.size * (3 + 2 * len(arrays)) + len(search) + len(pickled)
    pieces: list[bytes | memoryview] = [search, pickled]
    numbers = [len(search), len(pickled), len(arrays)]
    begins: dict[tuple[int, int], int] = {}
    for array in arrays:
        memory = (np.frombuffer(array, np.uint8).ctypes.data, array.nbytes)
        if memory not in begins:  # two arrays may be views of the same
            begins[memory] = begin = -(-end // _BORDER) * _BORDER
            pieces += (bytes(begin - end), array)
            end = begin + array.nbytes
        numbers += (begins[memory], array.nbytes)
    return [b"".join(map(HEADER.pack, numbers)), *pieces]


def job_memory(job: Job) -> int:
    """Write the job into memory without a name, once for all workers, and return its descriptor."""
    pieces = _pack_job(job)
    fd = nameless_memory("streamloader-job")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.writelines(pieces)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
        environment = dict.fromkeys(_SINGLE_THREADED, "1") | dict(os.environ)
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        with _interrupts_blocked():  # until the child ignores them itself
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamloader.engine.worker", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs, ring.fd, job_fd),
                env=environment,
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


@contextlib.contextmanager
def _interrupts_blocked():  # type: ignore[no-untyped-def]
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
