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
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from streamloader.archive.ingest.executors.messages import Line
from streamloader.common.subprocesses import LogForwarder, exit_process, exit_with_parent, ignore_interrupts

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Work with the descriptor of the socket, the pid of the parent and the temporary folder in `argv`."""
    ignore_interrupts()
    sock = socket.socket(fileno=int(argv[0]))
    folder = argv[2]
    line = Line(sock)
    exit_with_parent(int(argv[1]))
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


def _forward_logs(line: Line) -> None:
    def send_log(name: str, level: int, message: str) -> None:
        line.send({"kind": "log", "name": name, "level": level, "text": message})

    logger = logging.getLogger("streamloader")
    logger.addHandler(LogForwarder(send_log))
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
