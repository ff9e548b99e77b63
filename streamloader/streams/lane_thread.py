"""Blocking calls of streams: each lane has one thread for them, so that nothing of a stream ever changes threads."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple, Unpack

import anyio.to_thread

__all__ = ["LaneThread", "in_lane_thread"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_Call = tuple[asyncio.Future[Any], asyncio.AbstractEventLoop, Callable[..., Any], tuple[Any, ...]]


class LaneThread:
    """A daemon thread that runs the blocking calls of one lane, one after the other, in the order they came.

    It is not one of a pool: user code that is bound to its thread (an OpenGL context, an SQLite connection) works,
    and a call that never returns holds up neither another lane nor the end of the process. A cancelled call
    runs to its end in the background; later calls of the lane wait for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Call `function` in the thread and return what it returns, or raise what it raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((future, loop, function, args))
        return await future

    def stop(self, timeout: float = 0.0) -> bool:
        """End the thread after the calls that it has, waiting up to `timeout` seconds; return whether it ended."""
        self._calls.put(None)
        if self._thread is not None and timeout > 0:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, loop, function, args = call
            result, error = None, None
            try:
                result = function(*args)
            except BaseException as caught:  # noqa: BLE001 - handed to the task that asked
                error = caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is gone, and with it whoever waited
                return
            del call, future, loop, function, args, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future cannot carry it
        future.set_exception(RuntimeError(f"a blocking call raised {error!r}"))
    else:
        future.set_exception(error)


current_lane_thread: ContextVar[LaneThread | None] = ContextVar("current_lane_thread", default=None)


async def in_lane_thread(function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """Run a blocking call of a stream in its lane's thread (outside of a loader: in any thread)."""
    thread = current_lane_thread.get()
    if thread is None:
        return await anyio.to_thread.run_sync(function, *args)
    return await thread.run(function, *args)
