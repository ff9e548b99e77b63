"""Run a misbehaving server in a thread, for tests that use several event loops, or block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])


@contextlib.contextmanager
def run_gateway(gateway: T) -> Iterator[T]:
    """Serve a gateway, or another server, in a thread until the context ends."""
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with gateway:
            ready.set()
            await done.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        assert ready.wait(60.0)
        yield gateway
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60.0)
