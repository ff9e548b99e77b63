"""An executor that runs work units in worker processes of this machine.

The workers are plain subprocesses: no fork, and no ``__main__`` guard is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cloudpickle
from typing_extensions import override

from streamloader.archive.ingest.executors.base import FINAL_KINDS, Executor, UnitEvent
from streamloader.archive.ingest.executors.messages import JsonMessageDecoder, WorkerConnection
from streamloader.archive.ingest.executors.unit_protocol import UnitProtocol
from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.archive.ingest.unit import WorkUnit
from streamloader.child_processes import Surroundings, keep_off_standard_streams, module_search_path
from streamloader.common.worker_messages import MAX_LOG_CHARS, InvalidMessage, WorkerLog, check_fields, integer, text
from streamloader.errors import ConfigError

__all__ = ["ProcessExecutor"]

_EXIT_TIMEOUT_S: Final = 2.0
_SEND_TIMEOUT_S: Final = 60.0  # covers the start of a worker on a busy machine
_RECEIVE_BYTES: Final = 1 << 20
_LOG_FIELDS: Final = {"kind": text(10), "name": text(1000), "level": integer(), "message": text(MAX_LOG_CHARS)}


class ProcessExecutor(Executor):
    """Runs units in worker processes, one unit at a time in each. Workers are started on demand.

    Args:
        max_units: Number of concurrent units, and so of worker processes.
    """

    def __init__(self, max_units: int) -> None:
        self._max_units = max_units
        self._temp_dir = TempDir()
        self._selector = selectors.DefaultSelector()
        self._idle: list[_IngestWorker] = []
        self._busy: dict[int, _IngestWorker] = {}
        self._started_workers = 0

    @override
    def count_free_slots(self) -> int:
        return self._max_units - len(self._busy)

    @override
    def start_unit(self, unit: WorkUnit) -> None:
        try:
            pickled_unit = cloudpickle.dumps(unit)
        except Exception as error:
            raise ConfigError(f"storage_options cannot be sent to worker processes: {error}") from error
        worker = self._idle.pop() if self._idle else self._start_worker()
        self._busy[unit.number] = worker
        worker.begin_unit(unit)
        self._send(worker, pickled_unit)

    @override
    def send_answer(self, number: int, answer: Mapping[str, Any]) -> None:
        if number in self._busy:
            worker = self._busy[number]
            if worker.protocol is not None:
                worker.protocol.record_answer(answer)
            self._send(worker, answer)

    def _send(self, worker: _IngestWorker, message: Mapping[str, Any] | bytes) -> None:
        try:
            worker.connection.send(message)
        except TimeoutError:
            worker.kill("it has stopped reading")
        except OSError:
            pass  # it is dead, which wait_for_events() reports

    @override
    def wait_for_events(self, timeout_s: float) -> list[UnitEvent]:
        events: list[UnitEvent] = []
        for key, _ in self._selector.select(timeout_s):
            events += self._read_from(key.data)
        return events

    @override
    def kill_unit(self, number: int, reason: str) -> None:
        self._busy[number].kill(reason)

    @override
    def close(self) -> None:
        workers = [*self._idle, *self._busy.values()]
        for worker in self._busy.values():
            worker.process.kill()
        for worker in workers:
            self._disconnect(worker)
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._idle, self._busy = [], {}
        self._selector.close()
        self._temp_dir.close()

    def _start_worker(self) -> _IngestWorker:
        self._started_workers += 1
        folder = os.path.join(self._temp_dir.folder, f"worker-{self._started_workers}")
        os.mkdir(folder)
        worker = _IngestWorker(self._started_workers, folder, self._temp_dir.fds)
        self._selector.register(worker.connection.sock, selectors.EVENT_READ, worker)
        return worker

    def _read_from(self, worker: _IngestWorker) -> list[UnitEvent]:
        """Receive from a worker, and return the events of its unit. A worker that sends invalid messages is killed."""
        events: list[UnitEvent] = []
        data = b""
        if not worker.kill_reason:  # nothing that it sends is of use any more
            with contextlib.suppress(OSError):
                data = worker.connection.sock.recv(_RECEIVE_BYTES)
        try:
            for message in worker.decoder.feed(data):
                if isinstance(message, dict) and message.get("kind") == "log":
                    worker.log.write(check_fields(message, _LOG_FIELDS, "a log record"))
                    continue
                event = UnitEvent(*worker.check(message))
                events.append(event)
                if event.kind in FINAL_KINDS:
                    del self._busy[event.unit_number]
                    worker.end_unit()
                    self._idle.append(worker)
        except InvalidMessage as error:
            worker.kill(f"it sent an invalid message ({error}), and was killed")
            data = b""
        if not data:
            events += self._handle_worker_exit(worker)
        return events

    def _handle_worker_exit(self, worker: _IngestWorker) -> Iterator[UnitEvent]:
        """Clean up after a worker that exited, and yield the event for its unit."""
        self._disconnect(worker)
        worker.process.kill()  # it may only have closed its socket
        status = worker.process.wait()
        shutil.rmtree(worker.folder, ignore_errors=True)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.unit_number is not None:
            del self._busy[worker.unit_number]
            details = {"pid": worker.process.pid, "exit_status": status, "signal": -status if status < 0 else None}
            reason = worker.kill_reason or _describe_exit(status)
            yield UnitEvent(worker.unit_number, {"kind": "died", "why": reason, "details": details})

    def _disconnect(self, worker: _IngestWorker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.connection.sock)
        worker.connection.sock.close()


class _IngestWorker:
    """A worker process, and this side's end of its socket.

    Args:
        number: Number of the worker, for log records.
        folder: Temporary folder of the worker.
        inherited_fds: File descriptors that the worker keeps open.

    Attributes:
        unit_number: Number of the unit that it runs, or None.
        protocol: Checks of the messages of that unit, or None.
        kill_reason: Reason why it was killed, or empty.
    """

    def __init__(self, number: int, folder: str, inherited_fds: tuple[int, ...]) -> None:
        self.folder = folder
        self.unit_number: int | None = None
        self.protocol: UnitProtocol | None = None
        self.kill_reason = ""
        self.decoder = JsonMessageDecoder()
        self.log = WorkerLog(f"ingest worker {number}")
        parent_end, inherited = socket.socketpair()
        child_end = socket.socket(fileno=keep_off_standard_streams(inherited.detach()))
        parent_end.settimeout(_SEND_TIMEOUT_S)
        self.connection = WorkerConnection(parent_end)
        with child_end, Surroundings() as surroundings:
            self.process = surroundings.start(
                "streamloader.archive.ingest.executors.worker",
                *(child_end.fileno(), os.getpid(), folder),
                pass_fds=(child_end.fileno(), *inherited_fds),
                environment={"TMPDIR": os.path.dirname(folder)},
                stdout=subprocess.DEVNULL,  # stdout belongs to the command line
            )
        self.connection.send(json.dumps(module_search_path()).encode())

    def begin_unit(self, unit: WorkUnit) -> None:
        """Expect the messages of this unit from now on."""
        self.unit_number, self.protocol = unit.number, UnitProtocol(unit)
        self.decoder.max_bytes = self.protocol.max_message_bytes

    def end_unit(self) -> None:
        """Expect no message of a unit until the next one begins."""
        self.unit_number = self.protocol = None

    def check(self, message: Any) -> tuple[int, dict[str, Any]]:
        """Check a message of the current unit, and return the number of the unit with it.

        Raises:
            InvalidMessage: If there is no unit, or the message is invalid.
        """
        if self.unit_number is None or self.protocol is None:
            raise InvalidMessage("it was given no unit to send messages about")
        return self.unit_number, self.protocol.check(message)

    def kill(self, reason: str) -> None:
        """Kill the process. `reason` becomes part of the error's message."""
        self.kill_reason = self.kill_reason or reason
        self.process.kill()


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
