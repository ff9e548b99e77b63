"""Share one asynchronous call between tasks that request the same result at the same time."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from streamloader.errors import StreamloaderError

__all__ = ["SingleFlight"]

T = TypeVar("T")


class _SharedCall(Generic[T]):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.result: tuple[T] | None = None
        self.error: StreamloaderError | None = None


class SingleFlight(Generic[T]):
    """Running calls by key. A task that requests a running call waits for it, and gets the same result or error.

    The first task runs the call itself, under its own deadlines and cancellation. If that task is cancelled, the next
    waiting task starts the call again. Results are dropped when no task waits any more. The object can be pickled, and
    used after a fork or in another event loop.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, _SharedCall[T]] = {}
        self._loop_id: tuple[int, asyncio.AbstractEventLoop] | None = None

    def is_running(self, key: Hashable) -> bool:
        """Return whether :meth:`do` would wait for another task."""
        self._bind_to_loop()
        return key in self._calls

    async def do(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `fetch`, or of a call that is already running for the same key."""
        self._bind_to_loop()
        calls = self._calls
        call = calls.setdefault(key, _SharedCall())
        call.users += 1
        try:
            async with call.lock:
                if call.error is not None:
                    raise copy.copy(call.error) from call.error
                if call.result is None:
                    try:
                        call.result = (await fetch(),)
                    except StreamloaderError as error:
                        call.error = error
                        raise
                return call.result[0]
        finally:
            call.users -= 1
            if not call.users:
                calls.pop(key, None)

    def _bind_to_loop(self) -> None:
        loop_id = os.getpid(), asyncio.get_running_loop()
        if self._loop_id != loop_id:
            self._calls, self._loop_id = {}, loop_id

    def __getstate__(self) -> dict[str, Any]:
        """Leave out running calls."""
        return {"_calls": {}, "_loop_id": None}
