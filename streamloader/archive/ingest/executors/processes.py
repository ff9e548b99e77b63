"""An executor that runs work units in worker processes of this machine.

The workers are plain subprocesses: no fork, and no ``__main__`` guard is needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cloudpickle
from typing_extensions import override

from streamloader.archive.ingest.executors.base import FINAL_KINDS, Executor, UnitEvent
from streamloader.archive.ingest.executors.messages import JsonMessageDecoder, WorkerConnection
from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.archive.ingest.unit import WorkUnit
from streamloader.common.subprocesses import block_interrupts, child_environment
from streamloader.errors import ConfigError

__all__ = ["ProcessExecutor"]

_EXIT_TIMEOUT_S: Final = 2.0
_SEND_TIMEOUT_S: Final = 60.0  # covers the start of a worker on a busy machine
_RECEIVE_BYTES: Final = 1 << 20


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
        worker.unit_number = unit.number
        with contextlib.suppress(OSError):  # the worker is dead: wait_for_events() reports it
            worker.connection.send(pickled_unit)

    @override
    def send_answer(self, number: int, answer: Mapping[str, Any]) -> None:
        if number in self._busy:
            with contextlib.suppress(OSError):
                self._busy[number].connection.send(answer)

    @override
    def wait_for_events(self, timeout_s: float) -> list[UnitEvent]:
        events: list[UnitEvent] = []
        for key, _ in self._selector.select(timeout_s):
            events += self._read_from(key.data)
        return events

    @override
    def kill_unit(self, number: int, reason: str) -> None:
        worker = self._busy[number]
        worker.kill_reason = reason
        worker.process.kill()

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
        worker = _IngestWorker(folder, self._temp_dir.fds)
        self._selector.register(worker.connection.sock, selectors.EVENT_READ, worker)
        return worker

    def _read_from(self, worker: _IngestWorker) -> Iterator[UnitEvent]:
        try:
            data = worker.connection.sock.recv(_RECEIVE_BYTES)
            messages = list(worker.decoder.feed(data))
        except (OSError, ValueError):
            data, messages = b"", []
        for message in messages:
            if message["kind"] == "log":
                logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
                continue
            number = worker.unit_number
            assert number is not None
            if message["kind"] in FINAL_KINDS:
                del self._busy[number]
                worker.unit_number = None
                self._idle.append(worker)
            yield UnitEvent(number, message)
        if not data:
            yield from self._handle_worker_exit(worker)

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
        folder: Temporary folder of the worker.
        inherited_fds: File descriptors that the worker keeps open.
    """

    def __init__(self, folder: str, inherited_fds: tuple[int, ...]) -> None:
        self.folder = folder
        self.unit_number: int | None = None
        self.kill_reason = ""
        self.decoder = JsonMessageDecoder()
        parent_end, child_end = socket.socketpair()
        parent_end.settimeout(_SEND_TIMEOUT_S)
        self.connection = WorkerConnection(parent_end)
        with child_end, block_interrupts():  # until the child ignores interrupts itself
            arguments = [str(value) for value in (child_end.fileno(), os.getpid(), folder)]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamloader.archive.ingest.executors.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # stdout belongs to the command line
                pass_fds=(child_end.fileno(), *inherited_fds),
                env=child_environment() | {"TMPDIR": os.path.dirname(folder)},
            )
        self.connection.send(json.dumps([os.path.abspath(path) for path in sys.path]).encode())


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
