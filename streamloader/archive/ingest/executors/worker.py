"""A worker process of ingest: it does one unit of work after the other.

It is started as ``python -m streamloader.archive.ingest.executors.worker``.

It gets its end of a socket, and the descriptors by which its temporary folder is in use. It ends when the socket does,
or when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from streamloader.archive.ingest.executors.messages import Line

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Work with the descriptor of the socket, the pid of the parent and the temporary folder in `argv`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sock = socket.socket(fileno=int(argv[0]))
    folder = argv[2]
    line = Line(sock)
    _leave_with_parent(int(argv[1]))
    with contextlib.suppress(OSError):
        os.nice(5)  # others have work to do that somebody waits for
    try:
        sys.path[:] = json.loads(line.receive())
        _forward_logs(line)
        from streamloader.archive.ingest.unit import perform

        while True:
            unit = pickle.loads(line.receive())  # noqa: S301 - from our own parent
            place = os.path.join(folder, str(unit.number))
            os.makedirs(place, exist_ok=True)
            last = perform(unit, _Port(line), place)
            shutil.rmtree(place, ignore_errors=True)
            line.send(last)
    except (EOFError, OSError):
        return 0  # the driver is gone, or does not want us any more


class _Port:
    """The port of a unit in a process of its own."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def tell(self, message: Mapping[str, Any]) -> None:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        try:
            self._line.send(message)
        except OSError:
            os._exit(0)  # nobody listens any more

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        self.tell(message)
        try:
            answer: Mapping[str, Any] = self._line.receive()
        except (EOFError, OSError):
            os._exit(0)
        return answer

    def cancelled(self) -> bool:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        return False  # the whole process is killed


def _leave_with_parent(parent: int) -> None:
    """End this process at once when the parent is gone, whatever its other threads are doing."""
    poll = select.poll()
    wait: float | None = None
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except (AttributeError, OSError):
        wait = 500.0  # no pidfd here: look now and then whose child this is

    def watch() -> None:
        while os.getppid() == parent and not poll.poll(wait):
            continue
        os._exit(1)

    threading.Thread(target=watch, name="streamloader-parent-watch", daemon=True).start()


def _forward_logs(line: Line) -> None:
    logger = logging.getLogger("streamloader")
    logger.addHandler(_ToDriver(line))
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _ToDriver(logging.Handler):
    """Hands log records to the driver, whose process has the handlers that the user configured."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        with contextlib.suppress(OSError):
            self._line.send({"kind": "log", "name": record.name, "level": record.levelno, "text": text})


if __name__ == "__main__":
    status = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # no interpreter teardown: a decoder thread may still be at work
