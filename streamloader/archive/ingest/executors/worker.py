"""A worker process of an ingest, which runs one work unit after the other.

The driver starts it with :meth:`~streamloader.child_processes.Surroundings.start`. It inherits its end of a socket, and
the file descriptors that mark its temporary folder as in use. It exits when the socket is closed or its parent exits.
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

from streamloader.archive.ingest.executors.messages import WorkerConnection
from streamloader.common.subprocesses import LogForwarder, exit_process, exit_with_parent, shield_from_signals

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run units until the driver closes the socket, and return the exit status.

    Args:
        argv: File descriptor of the socket, process id of the parent, and path of the temporary folder.
    """
    shield_from_signals()
    sock = socket.socket(fileno=int(argv[0]))
    folder = argv[2]
    connection = WorkerConnection(sock)
    exit_with_parent(int(argv[1]))
    with contextlib.suppress(OSError):
        os.nice(5)  # interactive processes have priority
    try:
        sys.path[:] = json.loads(connection.receive())
        _forward_logs(connection)
        from streamloader.archive.ingest.unit import run_unit

        while True:
            unit = pickle.loads(connection.receive())  # noqa: S301 - from the parent process
            unit_folder = os.path.join(folder, str(unit.number))
            os.makedirs(unit_folder, exist_ok=True)
            last_message = run_unit(unit, _ProcessChannel(connection), unit_folder)
            shutil.rmtree(unit_folder, ignore_errors=True)
            connection.send(last_message)
    except (EOFError, OSError):
        return 0  # the driver is gone, or has closed the connection


class _ProcessChannel:
    """The channel of a unit that runs in a worker process.

    It implements :class:`streamloader.archive.ingest.unit.Channel`, whose module is imported after the start.
    """

    def __init__(self, connection: WorkerConnection) -> None:
        self._connection = connection

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. Exit the process if the driver is gone."""
        try:
            self._connection.send(message)
        except OSError:
            os._exit(0)

    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a message, wait for the answer and return it. Exit the process if the driver is gone."""
        self.send(message)
        try:
            answer: Mapping[str, Any] = self._connection.receive()
        except (EOFError, OSError):
            os._exit(0)
        return answer

    def is_cancelled(self) -> bool:
        """Return False: the driver kills the whole process instead."""
        return False


def _forward_logs(connection: WorkerConnection) -> None:
    def send_log(name: str, level: int, message: str) -> None:
        connection.send({"kind": "log", "name": name, "level": level, "message": message})

    logger = logging.getLogger("streamloader")
    logger.addHandler(LogForwarder(send_log))
    logger.setLevel(logging.INFO)
    logger.propagate = False


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
