"""Enforce a transfer's deadlines: a time limit for the first byte, then a minimum throughput."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from types import TracebackType

from typing_extensions import override

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout

__all__ = ["TransferDeadline", "WaitTimer"]


class WaitTimer:
    """Cancels the tasks that wait for too long: one timer of the event loop for all waits of a store.

    Most waits end soon, and a timer for each of them would cost more than the rest of the wait. This timer is set for
    the wait that is due first, keeps running when that one ends, and is then set again for the later ones.
    """

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None
        self._handle_due_s = 0.0  # in the time of the loop
        self._waits: set[_Wait] = set()

    def add(self, wait: _Wait, loop: asyncio.AbstractEventLoop) -> None:
        """Start a wait."""
        self._waits.add(wait)
        if self._handle is None or wait.due_s < self._handle_due_s:
            self._set(loop, wait.due_s)

    def remove(self, wait: _Wait) -> None:
        """End a wait, which may have expired."""
        self._waits.discard(wait)

    def _set(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle_due_s = due_s
        self._handle = loop.call_at(due_s, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        now = loop.time()
        for wait in [wait for wait in self._waits if wait.due_s <= now]:
            self._waits.remove(wait)
            wait.expire()
        if self._waits:
            self._set(loop, min(wait.due_s for wait in self._waits))


class TransferDeadline:
    """Enforces a transfer's deadlines: a time limit for the first byte, then a minimum throughput.

    Throughput is measured over windows of ``Timeouts.window`` seconds. Only time spent waiting for bytes counts.

    Args:
        timeouts: Deadlines to enforce.
        address: Address of the object, for error messages.
        timer: Timer of the store, in the current event loop.

    Attributes:
        offset: Offset of the next byte, for error messages. Defaults to None: messages then name no offset.
    """

    def __init__(self, timeouts: Timeouts, address: str, timer: WaitTimer) -> None:
        self._timeouts = timeouts
        self._address = address
        self._timer = timer
        self._min_window_bytes = timeouts.min_rate * timeouts.window
        self._window_bytes = 0
        self._window_waited = 0.0  # seconds
        self.offset: int | None = None

    def limit_response(self, stage: str) -> AbstractContextManager[None]:
        """Limit the wait for a response, including the time to open a connection.

        Args:
            stage: Name of the operation, for error messages.

        Raises:
            StoreTimeout: If no response arrives in time.
        """
        return _Wait(self, self._timer, self._timeouts.connect + self._timeouts.response, stage)

    def limit_next_bytes(self, stage: str) -> AbstractContextManager[None]:
        """Limit the wait for the next bytes.

        Args:
            stage: Name of the operation, for error messages.

        Raises:
            StoreTimeout: If no bytes arrive, or if the throughput over one window is below the minimum.
        """
        return _BytesWait(self, self._timer, max(0.0, self._timeouts.window - self._window_waited), stage)

    def count_received(self, count: int) -> None:
        """Count received bytes. Start a new window once the current one has reached the minimum.

        Args:
            count: Number of bytes received.
        """
        self._window_bytes += count
        if self.offset is not None:
            self.offset += count
        if self._window_bytes >= self._min_window_bytes:
            self._window_bytes, self._window_waited = 0, 0.0

    def count_waited(self, seconds: float) -> None:
        """Count the time of a wait for bytes that ended in time."""
        self._window_waited += seconds

    def make_response_error(self, stage: str) -> StoreTimeout:
        """Build the error for a response that did not arrive in time."""
        return self._make_error(self._timeouts.connect + self._timeouts.response, stage, "no response")

    def make_rate_error(self, stage: str) -> StoreTimeout:
        """Build the error for a throughput below the minimum."""
        window, count = self._timeouts.window, self._window_bytes
        rate = count / window if window else 0.0
        return self._make_error(window, stage, f"received {count} bytes in that time ({rate:.0f} B/s)")

    def _make_error(self, seconds: float, stage: str, detail: str) -> StoreTimeout:
        offset = "" if self.offset is None else f", at byte {self.offset}"
        return StoreTimeout(
            f"waited {seconds:.1f} s for {self._address} ({stage}{offset}): {detail}",
            address=self._address,
            offset=self.offset,
            waited=seconds,
            stage=stage,
        )


class _Wait(AbstractContextManager[None]):
    """A wait for a response. Its task is cancelled when it takes too long, by the rules of ``asyncio.timeout``.

    Attributes:
        due_s: Time of the loop at which it expires.
    """

    __slots__ = ("_cancel_requests", "_deadline", "_expired", "_seconds", "_stage", "_task", "_timer", "due_s")

    def __init__(self, deadline: TransferDeadline, timer: WaitTimer, seconds: float, stage: str) -> None:
        self._deadline = deadline
        self._timer = timer
        self._seconds = seconds
        self._stage = stage
        self._expired = False

    @override
    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a store is used outside of a task")
        self._task, self._cancel_requests = task, task.cancelling()
        self.due_s = loop.time() + self._seconds
        self._timer.add(self, loop)

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.remove(self)
        # If the task was cancelled by somebody else, too, it stays cancelled.
        if self._expired and self._task.uncancel() <= self._cancel_requests and kind is asyncio.CancelledError:
            raise self.make_error() from error

    def expire(self) -> None:
        """Cancel the task."""
        self._expired = True
        self._task.cancel()

    def make_error(self) -> StoreTimeout:
        """Build the error for a wait that took too long."""
        return self._deadline.make_response_error(self._stage)


class _BytesWait(_Wait):
    """A wait for the next bytes of a body."""

    __slots__ = ("_started_s",)

    @override
    def __enter__(self) -> None:
        self._started_s = time.monotonic()
        super().__enter__()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if error is None:
            self._deadline.count_waited(time.monotonic() - self._started_s)

    @override
    def make_error(self) -> StoreTimeout:
        return self._deadline.make_rate_error(self._stage)
