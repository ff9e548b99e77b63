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
from dataclasses import dataclass
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

__all__ = ["LaneInfo", "LaneThread", "decode_in_lane_thread", "get_lane_info", "in_lane_thread", "set_lane_info"]

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
        lane_info: Lane, epoch and stream that it works for now, for :func:`get_lane_info`.
    """

    def __init__(self, name: str, decode_slots: asyncio.Semaphore | None = None) -> None:
        self.decode_slots = decode_slots
        self.lane_info: LaneInfo | None = None
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
        _of_thread.lane_thread = self
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
_current_lane: ContextVar[LaneInfo | None] = ContextVar("current_lane", default=None)
_of_thread = threading.local()


@dataclass(frozen=True, slots=True)
class LaneInfo:
    """What a lane reads, for code of the user that runs in a worker.

    Attributes:
        epoch: Number of the epoch.
        lane: Number of the lane over all ranks.
        rank: Rank of the loader that hosts the lane.
        world_size: Number of ranks.
        stream: Ordinal of the stream in ``loader.streams``.
        key: Key of the stream.
        seed: Seed of the loader.
    """

    epoch: int
    lane: int
    rank: int
    world_size: int
    stream: int
    key: str
    seed: int


def get_lane_info() -> LaneInfo | None:
    """Return which lane, stream and epoch the calling code works for, or None outside of a loader.

    It can be called in ``make`` of :class:`IterStreams`, in ``transform``, in a tokenizer, and in the ``open``,
    ``read_into`` and ``seek`` of your own datasets, whatever thread or process runs them: what ``get_worker_info`` is
    for a DataLoader. What a stream yields must not depend on `rank` or `lane`, if a run is to be continued with another
    number of them.
    """
    info = _current_lane.get()
    if info is not None:
        return info
    thread: LaneThread | None = getattr(_of_thread, "lane_thread", None)
    return None if thread is None else thread.lane_info


def set_lane_info(info: LaneInfo) -> None:
    """Set what the lane of this task reads from now on."""
    _current_lane.set(info)
    thread = current_lane_thread.get()
    if thread is not None:
        thread.lane_info = info


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
