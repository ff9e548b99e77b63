"""Clocks that a test controls, so that no deadline under test depends on how busy the machine is."""

from __future__ import annotations

import asyncio
import selectors
import time
import types
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from streamloader.engine import consumer_wait
from streamloader.engine.ring import Status

_MIN_RESTS = 10  # in succession


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be set forward.

    Deadlines can be generous then: whatever has to stay within them has a minute of real time, and those that have to
    expire do so at once.
    """

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._rest_counter = _RestCounter()
        super().__init__(self._rest_counter)

    def time(self) -> float:
        """Return the loop's time in seconds."""
        return super().time() + self._ahead_s

    def jump(self, seconds: float) -> None:
        """Set the clock forward."""
        self._ahead_s += seconds

    async def rest(self) -> None:
        """Wait until no task but this one has anything to do. What another task of the loop has sent is read then."""
        self._rest_counter.rests = 0
        while self._rest_counter.rests < _MIN_RESTS:  # noqa: ASYNC110 - what is counted are passes of this loop
            await asyncio.sleep(0.001)  # between two looks


class _RestCounter(selectors.DefaultSelector):
    """Counts how often in succession the loop had no callback to run, and nothing came to be read or written."""

    rests = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(timeout)
        if events:
            self.rests = 0
        elif timeout is None or timeout > 0:
            self.rests += 1
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when nothing is ready, its clock jumps to the next timer.

    For code that waits for nothing outside of the loop. A wait that nothing can end expires at once.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        selector = _SkippingSelector()
        super().__init__(selector)
        selector.skip = self._skip

    def time(self) -> float:
        """Return the loop's time in seconds."""
        return self._now_s

    def _skip(self, seconds: float) -> None:
        self._now_s += seconds


class _SkippingSelector(selectors.DefaultSelector):
    skip: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(0)
        if not events:
            self.skip(timeout)
        return events


def run_in(loop: Callable[[], asyncio.AbstractEventLoop], function: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in a new loop of this kind, as `asyncio.run` does."""

    async def run() -> Any:
        return await function()

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(run())


def use_loop_time(monkeypatch: Any, module: types.ModuleType) -> None:
    """Let `time.monotonic` of a module follow the clock of the running event loop."""
    clock = types.SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(module, "time", clock)


class StallClock:
    """A `time.perf_counter` that runs only while a loader stalls.

    A deadline that it measures expires because of the stall under test, and of nothing else that is slow.

    Args:
        get_stall: Function that returns the state of a loader that stalls, or None. Time counts between two calls that
            find the same state.
    """

    def __init__(self, get_stall: Callable[[], bytes | None]) -> None:
        self._get_stall = get_stall
        self._stall: bytes | None = None
        self._elapsed_s = 0.0
        self._last_s = time.perf_counter()

    def __call__(self) -> float:
        """Return the seconds of the stalls so far."""
        now, before = time.perf_counter(), self._stall
        self._stall = self._get_stall()
        if before is not None and before == self._stall:
            self._elapsed_s += now - self._last_s
        self._last_s = now
        return self._elapsed_s


def count_only_stalls(monkeypatch: Any, get_stall: Callable[[], bytes | None]) -> None:
    """Let the `timeout` of loaders count only the time of stalls. `get_stall` must not take a lock."""
    monkeypatch.setattr(consumer_wait, "time", types.SimpleNamespace(perf_counter=StallClock(get_stall)))


def stall_at(loader: Any, lane: int, stage: int, step: int) -> bytes | None:
    """Return the status of all lanes if `lane` stands at this step, and all others have got further and rest."""
    status = loader._ring.status.copy()
    others = np.delete(status, lane, axis=0)
    is_there = status[lane, [Status.BUSY, Status.STAGE, Status.STEP]].tolist() == [1, stage, step]
    rest = not others[:, Status.BUSY].any() and (others[:, Status.SEQ] > status[lane, Status.SEQ]).all()
    return status.tobytes() if is_there and rest else None
