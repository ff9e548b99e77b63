"""Read samples ahead, in their order, within limits of bytes and requests. Everything here runs in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["ByteBudget", "OrderedPrefetcher", "PendingRead"]

R = TypeVar("R")


class ByteBudget:
    """Bytes that may be held at the same time. Reservations are granted in the order of their tickets.

    The first ticket that was not released is always granted, in addition to the budget, so that an item may be larger
    than it, and so that no item waits for a later one.

    Args:
        max_bytes: Maximum number of bytes.

    Attributes:
        held: Number of bytes that are reserved.
        peak: Largest value that `held` has had.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._first = 0
        self._sizes: dict[int, int] = {}
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.held = 0
        self.peak = 0

    async def reserve(self, ticket: int, size: int) -> None:
        """Wait until `size` bytes may be held for a ticket."""
        if not self._waiting and self._fits(ticket, size):
            self._hold(ticket, size)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (ticket, size, granted))
        self._grant()
        await granted

    def release(self, ticket: int) -> None:
        """Free the bytes of a ticket, and of none before it: tickets are released in their order."""
        self.held -= self._sizes.pop(ticket, 0)
        self._first = ticket + 1
        self._grant()

    def _fits(self, ticket: int, size: int) -> bool:
        return ticket == self._first or self.held + size <= self._max_bytes

    def _hold(self, ticket: int, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)
        self._sizes[ticket] = size

    def _grant(self) -> None:
        while self._waiting and (self._waiting[0][2].done() or self._fits(*self._waiting[0][:2])):
            ticket, size, granted = heapq.heappop(self._waiting)
            if not granted.done():
                self._hold(ticket, size)
                granted.set_result(None)


@dataclass(slots=True)
class PendingRead(Generic[R]):
    """An item whose bytes are to be read.

    Attributes:
        read: Function that reads the item. It gets a coroutine function to call with the number of bytes before they
            are fetched.
        is_sequential: Whether the next item must not be requested before this one has been read.
    """

    read: Callable[[Callable[[int], Awaitable[None]]], Awaitable[R]]
    is_sequential: bool = False


class OrderedPrefetcher(Generic[R]):
    """Reads items ahead and returns their results in order.

    Args:
        items: Items to read. They are requested one after the other, ahead of their use.
        max_bytes: Maximum number of bytes of results that were not taken yet, see :class:`ByteBudget`.
        max_items: Maximum number of such results.
    """

    def __init__(self, items: AsyncGenerator[PendingRead[R], None], *, max_bytes: int, max_items: int) -> None:
        self._items = items
        self._max_items = max_items
        self.budget = ByteBudget(max_bytes)
        self._tasks: deque[asyncio.Task[R]] = deque()
        self._admission: asyncio.Task[None] | None = None
        self._admitted = asyncio.Event()
        self._taken = asyncio.Event()
        self._next_ticket = 0
        self._page = range(0)  # tickets of the results that the caller has

    async def take(self) -> list[R]:
        """Return the next results, as many as there are, at least one. An empty list is the end.

        The bytes of the last page count as free from now on.
        """
        if self._admission is None:
            self._admission = asyncio.create_task(self._admit())
        for ticket in self._page:
            self.budget.release(ticket)
        first, self._page = self._page.stop, range(self._page.stop, self._page.stop)
        while not self._tasks:
            if self._admission.done():
                self._admission.result()
                return []
            self._admitted.clear()
            await self._admitted.wait()
        await asyncio.wait([self._tasks[0]])
        page: list[R] = []
        while self._tasks and self._tasks[0].done():
            page.append(self._tasks.popleft().result())
        self._page = range(first, first + len(page))
        self._taken.set()
        return page

    def cancel(self) -> None:
        """Cancel all reads."""
        for task in (*self._tasks, *([self._admission] if self._admission is not None else [])):
            task.cancel()

    async def aclose(self) -> None:
        """Cancel all reads and wait until they have ended."""
        self.cancel()
        tasks = [*self._tasks, *([self._admission] if self._admission is not None else [])]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._items.aclose()

    async def _admit(self) -> None:
        try:
            async with contextlib.aclosing(self._items):
                async for item in self._items:
                    await self._start(item)
        finally:
            asyncio.get_running_loop().call_soon(self._admitted.set)  # when this task is done

    async def _start(self, item: PendingRead[R]) -> None:
        task = asyncio.create_task(self._read(self._next_ticket, item))
        self._next_ticket += 1
        self._tasks.append(task)
        self._admitted.set()
        if item.is_sequential:
            await asyncio.wait([task])
        while len(self._tasks) >= self._max_items:
            self._taken.clear()
            await self._taken.wait()

    async def _read(self, ticket: int, item: PendingRead[R]) -> R:
        return await item.read(lambda size: self.budget.reserve(ticket, size))
