"""Run coroutines concurrently, at most a given number at a time, and return their results in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["gather_bounded", "map_bounded"]

T = TypeVar("T")
R = TypeVar("R")


async def gather_bounded(coroutines: Iterable[Coroutine[Any, Any, R]], *, limit: int) -> list[R]:
    """Run coroutines concurrently and return their results in the order of the coroutines.

    If several fail, the error of the first one in that order is raised. The others are cancelled.

    Args:
        coroutines: Coroutines to run. The iterable is advanced only when another one can start.
        limit: Maximum number of coroutines that run at the same time.
    """
    async with contextlib.aclosing(map_bounded(lambda coroutine: coroutine, coroutines, limit=limit)) as results:
        return [result async for result in results]


async def map_bounded(
    function: Callable[[T], Coroutine[Any, Any, R]], items: AsyncGenerator[T, None] | Iterable[T], *, limit: int
) -> AsyncGenerator[R, None]:
    """Yield ``await function(item)`` for each item, in the order of the items.

    If a call fails, its error is raised in place of its result. Calls still running are cancelled when the generator
    ends or is closed.

    Args:
        function: Coroutine function to call with each item.
        items: Items to map. An asynchronous generator is closed together with this one.
        limit: Maximum number of calls that run at the same time.
    """
    running: deque[asyncio.Task[R]] = deque()
    source = items if isinstance(items, AsyncGenerator) else _iterate(items)
    try:
        async with contextlib.aclosing(source):
            async for item in source:
                running.append(asyncio.create_task(function(item)))
                if len(running) >= limit:
                    yield await running[0]
                    running.popleft()
            while running:
                yield await running[0]
                running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _iterate(items: Iterable[T]) -> AsyncGenerator[T, None]:
    for item in items:
        yield item
