"""What a driver needs of whatever does the units of work; and the plainest kind, which does them in threads of its own.

A driver starts units, answers what they ask, and learns of all that happens from one queue of events. Events of a unit
come in order. One of these is the last: ``done``, ``failed``, ``left`` (it was answered ``go: False``), ``died``.
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

from streamloader.archive.ingest.temp_dir import Scratch
from streamloader.archive.ingest.unit import Unit, perform

__all__ = ["LAST", "Engine", "Event", "Threads"]

LAST: Final = frozenset({"done", "failed", "left", "died"})
_END_WITHIN: Final = 30.0  # seconds for a thread that was told to end


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a unit told, or that happened to it.

    Attributes:
        unit: its number.
        message: see :mod:`streamloader.archive.ingest.unit`; or ``{"kind": "died", "why": ..., "details": {...}}``.
    """

    unit: int
    message: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Of the message."""
        return str(self.message["kind"])


class Engine(Protocol):
    """Does units of work. All methods are called by one thread, its driver's."""

    def room(self) -> int:
        """Return how many more units can be started now."""

    def start(self, unit: Unit) -> None:
        """Begin a unit. A number may be used again once its last event has come."""

    def answer(self, number: int, answer: Mapping[str, Any]) -> None:
        """Answer what a unit asked."""

    def events(self, seconds: float) -> list[Event]:
        """Return what happened, waiting up to so many seconds for it."""

    def kill(self, number: int, why: str) -> None:
        """End a unit that makes no progress: ``died`` comes from it."""

    def close(self) -> None:
        """End all units at once, and remove what they kept in temporary files."""


class Threads:
    """Units in threads of this process, one after the other: for few small videos, and for what no other process sees.

    Args:
        at_once: units that are done side by side.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._scratch = Scratch()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[int, _ThreadPort] = {}

    def room(self) -> int:
        """See :class:`Engine`."""
        return self._at_once - len(self._running)

    def start(self, unit: Unit) -> None:
        """See :class:`Engine`."""
        folder = os.path.join(self._scratch.folder, str(unit.number))
        os.mkdir(folder)
        port = _ThreadPort(unit, folder, self._events)
        self._running[unit.number] = port
        port.thread.start()

    def answer(self, number: int, answer: Mapping[str, Any]) -> None:
        """See :class:`Engine`."""
        self._running[number].answers.put(answer)

    def events(self, seconds: float) -> list[Event]:
        """See :class:`Engine`."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
            while True:
                found.append(self._events.get_nowait())
        for event in found:
            if event.kind in LAST and event.unit in self._running:
                self._running.pop(event.unit).thread.join(_END_WITHIN)
        return found

    def kill(self, number: int, why: str) -> None:
        """See :class:`Engine`. A thread cannot be killed: it is left to itself."""
        port = self._running.pop(number)
        port.end()
        self._events.put(Event(number, {"kind": "died", "why": why, "details": {}}))

    def close(self) -> None:
        """See :class:`Engine`."""
        for port in self._running.values():
            port.end()
        for port in self._running.values():
            port.thread.join(_END_WITHIN)
        self._running.clear()
        self._scratch.close()


class _ThreadPort:
    """The port of a unit in a thread."""

    def __init__(self, unit: Unit, folder: str, events: queue.SimpleQueue[Event]) -> None:
        self.answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._number = unit.number
        self._events = events
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(unit, folder), name="streamloader-ingest", daemon=True)

    def end(self) -> None:
        """Tell the unit to end."""
        self._ended.set()
        self.answers.put({"go": False})

    def tell(self, message: Mapping[str, Any]) -> None:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        if not self._ended.is_set():
            self._events.put(Event(self._number, message))

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        self.tell(message)
        return self.answers.get()

    def cancelled(self) -> bool:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        return self._ended.is_set()

    def _run(self, unit: Unit, folder: str) -> None:
        last: dict[str, Any] | None = None
        try:
            last = perform(unit, self, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self.tell(last or {"kind": "died", "why": "the thread ended", "details": {}})
