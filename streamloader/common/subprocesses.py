"""Helpers for worker processes, which call them first: so this module imports only light modules.

:mod:`streamloader.child_processes` starts them.
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

from streamloader.common.worker_messages import LOGGER_NAME, MAX_LOG_CHARS, MAX_LOG_LEVEL, MIN_LOG_LEVEL

__all__ = [
    "OUTSIDE_SIGNALS",
    "LogForwarder",
    "LogSender",
    "exit_process",
    "exit_with_parent",
    "shield_from_signals",
]

_SHUTDOWN_GRACE_MS: Final = 2000.0
_PARENT_POLL_INTERVAL_MS: Final = 500.0

_LIMIT_SIGNAL: Final = getattr(signal, "SIGXCPU", None)  # the limit of processor time: another worker goes on


def _list_outside_signals() -> Iterator[int]:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF")
    for name in (*names, "SIGIO", "SIGPWR", "SIGSTKFLT", "SIGXCPU"):
        if hasattr(signal, name):
            yield getattr(signal, name)
    if hasattr(signal, "SIGRTMIN"):
        yield from range(signal.SIGRTMIN, signal.SIGRTMAX + 1)


# Of terminals, schedulers and service managers, which send them to all processes of a job, and of limits of the system.
# Not those that a process raises by an error of its own, such as SIGSEGV and SIGABRT.
OUTSIDE_SIGNALS: Final = frozenset(_list_outside_signals())
_FOR_TIMERS: Final = frozenset(
    getattr(signal, name) for name in ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO") if hasattr(signal, name)
)

LogSender = Callable[[str, int, str], None]  # called with logger name, level and message


def shield_from_signals() -> None:
    """Let no signal end this process that terminals and schedulers send to all processes of a job.

    The parent handles them. If they end it, this process ends too. Programs that this process starts are not shielded,
    except from SIGINT.
    """
    for number in OUTSIDE_SIGNALS:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        elif number in _FOR_TIMERS and signal.getsignal(number) != signal.SIG_DFL:
            pass  # a profiler uses it
        elif number != _LIMIT_SIGNAL:
            signal.signal(number, _do_nothing)
            signal.siginterrupt(number, False)  # FFmpeg would take an interrupted read for an error
    for name in ("SIGTTOU", "SIGTTIN"):  # would stop a process of the background that writes to its terminal
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OUTSIDE_SIGNALS)


def _do_nothing(*_: object) -> None:
    """Handle a signal. Unlike SIG_IGN, a handler is not inherited by other programs."""


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
