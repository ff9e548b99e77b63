"""Helpers for Python worker processes and the process that starts them.

The parent calls :func:`child_environment` and :func:`block_interrupts` to start a worker. The worker calls the other
functions first, so this module imports only light modules of the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

__all__ = [
    "LogForwarder",
    "LogSender",
    "block_interrupts",
    "child_environment",
    "exit_process",
    "exit_with_parent",
    "ignore_interrupts",
]

_THREAD_COUNT_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SHUTDOWN_GRACE_MS: Final = 2000.0
_PARENT_POLL_INTERVAL_MS: Final = 500.0

LogSender = Callable[[str, int, str], None]  # called with logger name, level and message


# --- in the parent -----------------------------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """Return the environment of a worker: it finds this package, and numeric libraries start no threads.

    Thread counts that are set in this process's environment are kept.
    """
    environment = dict.fromkeys(_THREAD_COUNT_VARIABLES, "1") | dict(os.environ)
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package_parent, environment.get("PYTHONPATH"))))
    return environment


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Block SIGINT in this thread. A child started inside inherits that until it calls :func:`ignore_interrupts`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


# --- in the worker -----------------------------------------------------------------------------------------------


def ignore_interrupts() -> None:
    """Ignore SIGINT, which Ctrl-C sends to the whole process group. The parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def exit_with_parent(
    parent_pid: int, sock: socket.socket | None = None, working: threading.Event | None = None
) -> None:
    """Start a thread that exits this process as soon as its parent is gone, whatever its other threads are doing.

    Args:
        parent_pid: Process id of the parent.
        sock: Socket to the parent. When the parent closes its end, this process exits too. Optional.
        working: Event that is set once this process holds resources. From then on, it gets two seconds to close them
            after the socket was closed; before, it exits at once. Without an event, it always exits at once.
    """
    poll = select.poll()
    if sock is not None:
        poll.register(sock, 0)  # only hang-ups
    interval_ms: float | None = None
    try:
        poll.register(os.pidfd_open(parent_pid), select.POLLIN)  # a fork of the parent may hold the socket open
    except (AttributeError, OSError):
        interval_ms = _PARENT_POLL_INTERVAL_MS  # no pidfd on this system: compare the parent's pid at intervals

    def watch_parent() -> None:
        while os.getppid() == parent_pid:
            ready_fds = {fd for fd, _ in poll.poll(interval_ms)}
            if sock is not None and ready_fds == {sock.fileno()}:
                poll.unregister(sock)
                if working is not None and working.is_set():
                    poll.poll(_SHUTDOWN_GRACE_MS)
                os._exit(0)
            if ready_fds:
                break
        os._exit(1)

    threading.Thread(target=watch_parent, name="streamloader-parent-watch", daemon=True).start()


def exit_process(status: int) -> NoReturn:
    """Exit with `status` without finalizing the interpreter, because native threads may still run."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


class LogForwarder(logging.Handler):
    """Forwards log records to the parent, whose process has the handlers that the user configured.

    Args:
        send: Function that sends one record. Its `OSError` is ignored, because the parent is gone then.
    """

    def __init__(self, send: LogSender) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record's message, with its traceback if it has one."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        with contextlib.suppress(OSError):
            self.send(record.name, record.levelno, message)
