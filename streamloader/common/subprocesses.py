"""Helpers for Python worker processes and the process that starts them.

The parent calls :func:`python_command`, :func:`child_environment` and :func:`block_interrupts` to start a worker. The
worker calls the other functions first, so this module imports only light modules of the standard library.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

from streamloader.common.worker_messages import LOGGER_NAME, MAX_LOG_CHARS, MAX_LOG_LEVEL, MIN_LOG_LEVEL

__all__ = [
    "LogForwarder",
    "LogSender",
    "block_interrupts",
    "child_environment",
    "exit_process",
    "exit_with_parent",
    "ignore_interrupts",
    "module_search_path",
    "python_command",
]

_THREAD_COUNT_VARIABLES: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM",
)  # fmt: skip
_SHUTDOWN_GRACE_MS: Final = 2000.0
_PARENT_POLL_INTERVAL_MS: Final = 500.0
_START_MODULE: Final = (
    "import json, runpy, sys; _, path, module, *sys.argv[1:] = sys.argv; sys.path[:] = json.loads(path); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)

LogSender = Callable[[str, int, str], None]  # called with logger name, level and message


# --- in the parent -----------------------------------------------------------------------------------------------


def python_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module in a new interpreter with the flags of this one.

    If this interpreter ignores the environment, the user's packages or the current folder (``-I``, ``-E``, ``-s``,
    ``-P``), so does the new one: a ``sitecustomize`` module that this process did not run is not run there either.

    The new interpreter has the module search path of this one without the current folder, and finds this package first.

    Args:
        module: Name of the module.
        arguments: Arguments of the module.
    """
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    path = json.dumps([package_parent, *(os.path.abspath(entry) for entry in sys.path if entry)])
    return [sys.executable, *_interpreter_flags(), "-c", _START_MODULE, path, module, *map(str, arguments)]


def module_search_path() -> list[str]:
    """Return this process's whole module search path in absolute paths, for objects that a worker unpickles."""
    return [os.path.abspath(entry) for entry in sys.path]


def _interpreter_flags() -> list[str]:
    """Return the flags of this interpreter, and ``-P``, which keeps the current folder off the search path."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    options = [name if value is True else f"{name}={value}" for name, value in sys._xoptions.items()]  # noqa: SLF001
    passed = {option for flag, option in itertools.pairwise(flags) if flag == "-X"}
    for option in options:
        if option not in passed:
            flags += ["-X", option]
    return flags if "-P" in flags or "-I" in flags else [*flags, "-P"]


def child_environment() -> dict[str, str]:
    """Return the environment of a worker, in which numeric libraries start no threads.

    Thread counts that are set in this process's environment are kept.
    """
    return dict.fromkeys(_THREAD_COUNT_VARIABLES, "1") | dict(os.environ)


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
        """Send the record's message, with its traceback if it has one, in the limits that the parent sets."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        if len(message) > MAX_LOG_CHARS:
            message = message[: MAX_LOG_CHARS - 1] + "\u2026"
        name = record.name if LOGGER_NAME.fullmatch(record.name) else "streamloader"
        level = min(max(record.levelno // 10 * 10, MIN_LOG_LEVEL), MAX_LOG_LEVEL)
        with contextlib.suppress(OSError):
            self.send(name, level, message.encode(errors="replace").decode())
