"""Run the blocking calls of streams: each lane has one thread for them, so a stream never changes threads.

Decoding takes turns. When several lanes of a process decode on one core, they interrupt each other at nearly every
frame, because Python's lock changes hands there, and each finds the processor's caches full of another lane's frames.
Whole windows in turn take about 3 % less processor time on an idle machine, and 10 % less on a busy one.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

__all__ = ["LaneThread", "decode_in_lane_thread", "in_lane_thread"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_MAX_TURN_WAIT_S: Final = 0.1

_Call = tuple[asyncio.Future[Any], asyncio.AbstractEventLoop, Callable[..., Any], tuple[Any, ...]]


class LaneThread:
    """A daemon thread that runs the blocking calls of one lane, one at a time, in order.

    It does not belong to a pool: user code that is bound to its thread (an OpenGL context, an SQLite connection) works,
    and a call that never returns delays neither other lanes nor the exit of the process. A cancelled call runs to its
    end in the background; later calls of the lane wait for it.

    Args:
        name: Name of the thread.
        decode_slots: Slots for the lanes of this process that decode at the same time. Defaults to None: no limit.

    Attributes:
        decode_slots: Slots for the lanes that decode at the same time, or None.
    """

    def __init__(self, name: str, decode_slots: asyncio.Semaphore | None = None) -> None:
        self.decode_slots = decode_slots
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Call `function` in the thread. Return its result, or raise its error."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_calls, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((future, loop, function, args))
        return await future

    def stop(self, timeout: float = 0.0) -> bool:
        """End the thread after its pending calls, and return whether it ended within `timeout` seconds."""
        self._calls.put(None)
        if self._thread is not None and timeout > 0:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            future, loop, function, args = call
            result, error = None, None
            try:
                result = function(*args)
            except BaseException as caught:  # noqa: BLE001 - passed to the calling task
                error = caught
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop was closed, and its tasks with it
                return
            del call, future, loop, function, args, result, error


def _resolve(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # a future cannot hold a StopIteration
        future.set_exception(RuntimeError(f"a blocking call raised {error!r}"))
    else:
        future.set_exception(error)


current_lane_thread: ContextVar[LaneThread | None] = ContextVar("current_lane_thread", default=None)


async def in_lane_thread(function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """Run a blocking call of a stream in its lane's thread; outside of a loader, in a thread of anyio's pool."""
    thread = current_lane_thread.get()
    if thread is None:
        import anyio.to_thread  # workers do not need it, and start sooner

        return await anyio.to_thread.run_sync(function, *args)
    return await thread.run(function, *args)


async def decode_in_lane_thread(function: Callable[[Unpack[Args]], T], *args: *Args) -> T:
    """Run a call that decodes in its lane's thread, when one of the slots for decoding is free.

    A call that waits for its slot too long runs without one: a lane with a slot may be waiting for a slow disk.
    """
    thread = current_lane_thread.get()
    slots = None if thread is None else thread.decode_slots
    if slots is None:
        return await in_lane_thread(function, *args)
    has_slot = await _acquire(slots)
    try:
        return await in_lane_thread(function, *args)
    finally:
        if has_slot:
            slots.release()


async def _acquire(slots: asyncio.Semaphore) -> bool:
    if not slots.locked():
        return await slots.acquire()
    try:
        async with asyncio.timeout(_MAX_TURN_WAIT_S):
            return await slots.acquire()
    except TimeoutError:
        return False
