"""The interface of executors, and an executor that uses threads.

A driver starts units, answers their requests, and receives everything else as events from one queue. The events of a
unit are in order. Its last event has one of these kinds: ``done``, ``failed``, ``left`` (after the answer ``go:
False``), ``died``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from typing_extensions import override

from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.archive.ingest.unit import Channel, WorkUnit, run_unit

__all__ = ["FINAL_KINDS", "Executor", "ThreadExecutor", "UnitEvent"]

FINAL_KINDS: Final = frozenset({"done", "failed", "left", "died"})
_THREAD_EXIT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class UnitEvent:
    """A message of a unit, or the death of its worker.

    Attributes:
        unit_number: Number of the unit.
        message: Message as described in :mod:`streamloader.archive.ingest.unit`, or ``{"kind": "died", "why": ...,
            "details": {...}}``.
    """

    unit_number: int
    message: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Kind of the message."""
        return str(self.message["kind"])


class Executor(Protocol):
    """Runs work units. One thread, the driver's, calls all methods."""

    def count_free_slots(self) -> int:
        """Return how many more units can be started now."""

    def start_unit(self, unit: WorkUnit) -> None:
        """Start a unit. Its number can be used again after its last event.

        Raises:
            ConfigError: If the options of a store cannot be sent to a worker.
        """

    def send_answer(self, number: int, answer: Mapping[str, Any]) -> None:
        """Answer the request of a unit."""

    def wait_for_events(self, timeout_s: float) -> list[UnitEvent]:
        """Return new events. If there are none, wait up to `timeout_s` seconds for them."""

    def kill_unit(self, number: int, reason: str) -> None:
        """Kill a unit that makes no progress. Its last event has the kind ``died``."""

    def close(self) -> None:
        """Stop all units at once, and remove their temporary files."""


class ThreadExecutor(Executor):
    """Runs units in threads of this process, for a few small videos, or for resources that only this process has.

    Args:
        max_units: Number of concurrent units. Defaults to 1.
    """

    def __init__(self, max_units: int = 1) -> None:
        self._max_units = max_units
        self._temp_dir = TempDir()
        self._events: queue.SimpleQueue[UnitEvent] = queue.SimpleQueue()
        self._running: dict[int, _ThreadChannel] = {}

    @override
    def count_free_slots(self) -> int:
        return self._max_units - len(self._running)

    @override
    def start_unit(self, unit: WorkUnit) -> None:
        folder = os.path.join(self._temp_dir.folder, str(unit.number))
        os.mkdir(folder)
        channel = _ThreadChannel(unit, folder, self._events)
        self._running[unit.number] = channel
        channel.thread.start()

    @override
    def send_answer(self, number: int, answer: Mapping[str, Any]) -> None:
        self._running[number].answers.put(answer)

    @override
    def wait_for_events(self, timeout_s: float) -> list[UnitEvent]:
        events: list[UnitEvent] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout_s))
            while True:
                events.append(self._events.get_nowait())
        for event in events:
            if event.kind in FINAL_KINDS and event.unit_number in self._running:
                self._running.pop(event.unit_number).thread.join(_THREAD_EXIT_TIMEOUT_S)
        return events

    @override
    def kill_unit(self, number: int, reason: str) -> None:
        # A thread cannot be killed: it is cancelled and no longer tracked.
        channel = self._running.pop(number)
        channel.cancel()
        self._events.put(UnitEvent(number, {"kind": "died", "why": reason, "details": {}}))

    @override
    def close(self) -> None:
        for channel in self._running.values():
            channel.cancel()
        for channel in self._running.values():
            channel.thread.join(_THREAD_EXIT_TIMEOUT_S)
        self._running.clear()
        self._temp_dir.close()


class _ThreadChannel(Channel):
    """The channel of a unit that runs in a thread, and the thread."""

    def __init__(self, unit: WorkUnit, folder: str, events: queue.SimpleQueue[UnitEvent]) -> None:
        self.answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._number = unit.number
        self._events = events
        self._cancelled = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(unit, folder), name="streamloader-ingest", daemon=True)

    def cancel(self) -> None:
        """Stop the unit soon. Its later messages are dropped."""
        self._cancelled.set()
        self.answers.put({"go": False})

    @override
    def send(self, message: Mapping[str, Any]) -> None:
        if not self._cancelled.is_set():
            self._events.put(UnitEvent(self._number, message))

    @override
    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        self.send(message)
        return self.answers.get()

    @override
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def _run(self, unit: WorkUnit, folder: str) -> None:
        last_message: dict[str, Any] | None = None
        try:
            last_message = run_unit(unit, self, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self.send(last_message or {"kind": "died", "why": "the thread ended", "details": {}})
