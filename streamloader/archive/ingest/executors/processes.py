"""Units of work in worker processes of this machine: plain subprocesses, no fork, no ``__main__`` guard."""

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
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cloudpickle

from streamloader.archive.ingest.executors.base import LAST, Event
from streamloader.archive.ingest.executors.messages import Assembler, Line
from streamloader.archive.ingest.temp_dir import Scratch
from streamloader.archive.ingest.unit import Unit
from streamloader.common.subprocesses import child_environment, interrupts_blocked
from streamloader.errors import ConfigError

__all__ = ["Processes"]

_END_WITHIN: Final = 2.0  # seconds
_READS_WITHIN: Final = 60.0  # seconds: a worker that is started on a busy machine


class Processes:
    """Does one unit at a time in each of some worker processes, which are started as they are needed.

    Args:
        at_once: processes.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._scratch = Scratch()
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}
        self._begun = 0
        self._news: deque[Event] = deque()

    def room(self) -> int:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        return self._at_once - len(self._busy)

    def start(self, unit: Unit) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`.

        Raises:
            ConfigError: the options of a store cannot be sent to another process.
        """
        try:
            pickled = cloudpickle.dumps(unit)
        except Exception as error:
            raise ConfigError(f"storage_options cannot be sent to worker processes: {error}") from error
        worker = self._idle.pop() if self._idle else self._new()
        self._busy[unit.number] = worker
        worker.unit = unit.number
        with contextlib.suppress(OSError):  # it is dead: that is told where its messages come from
            worker.line.send(pickled)

    def answer(self, number: int, answer: Mapping[str, Any]) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        if number in self._busy:
            with contextlib.suppress(OSError):
                self._busy[number].line.send(answer)

    def events(self, seconds: float) -> list[Event]:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        found = list(self._news)
        self._news.clear()
        for key, _ in self._selector.select(0 if found else seconds):
            found += self._heard(key.data)
        return found

    def kill(self, number: int, why: str) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        worker = self._busy[number]
        worker.why = why
        worker.process.kill()

    def close(self) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        workers = [*self._idle, *self._busy.values()]
        for worker in self._busy.values():
            worker.process.kill()
        for worker in workers:
            self._forget(worker)
        deadline = time.monotonic() + _END_WITHIN
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._idle, self._busy = [], {}
        self._selector.close()
        self._scratch.close()

    def _new(self) -> _Worker:
        self._begun += 1
        folder = os.path.join(self._scratch.folder, f"worker-{self._begun}")
        os.mkdir(folder)
        worker = _Worker(folder, self._scratch.fds)
        self._selector.register(worker.line.sock, selectors.EVENT_READ, worker)
        return worker

    def _heard(self, worker: _Worker) -> Iterator[Event]:
        try:
            data = worker.line.sock.recv(1 << 20)
            messages = list(worker.assembler.take(data))
        except (OSError, ValueError):
            data, messages = b"", []
        for message in messages:
            if message["kind"] == "log":
                logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
                continue
            number = worker.unit
            assert number is not None
            if message["kind"] in LAST:
                del self._busy[number]
                worker.unit = None
                self._idle.append(worker)
            yield Event(number, message)
        if not data:
            yield from self._ended(worker)

    def _ended(self, worker: _Worker) -> Iterator[Event]:
        """Bury a worker that is gone."""
        self._forget(worker)
        worker.process.kill()  # it may have closed its socket only
        status = worker.process.wait()
        shutil.rmtree(worker.folder, ignore_errors=True)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.unit is not None:
            del self._busy[worker.unit]
            details = {"pid": worker.process.pid, "exit_status": status, "signal": -status if status < 0 else None}
            yield Event(worker.unit, {"kind": "died", "why": worker.why or _how(status), "details": details})

    def _forget(self, worker: _Worker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.line.sock)
        worker.line.sock.close()


class _Worker:
    """One process and this side's end of its socket."""

    def __init__(self, folder: str, held: tuple[int, ...]) -> None:
        self.folder = folder
        self.unit: int | None = None
        self.why = ""
        self.assembler = Assembler()
        ours, theirs = socket.socketpair()
        ours.settimeout(_READS_WITHIN)
        self.line = Line(ours)
        with theirs, interrupts_blocked():  # until the child ignores them itself
            arguments = [str(value) for value in (theirs.fileno(), os.getpid(), folder)]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamloader.archive.ingest.executors.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # which is the command's own
                pass_fds=(theirs.fileno(), *held),
                env=child_environment() | {"TMPDIR": os.path.dirname(folder)},
            )
        self.line.send(json.dumps([os.path.abspath(path) for path in sys.path]).encode())


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
