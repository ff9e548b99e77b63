"""A gateway in a thread of its own, for tests whose event loops come and go."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from streamloader.testing.faults.ipfs_gateway import FaultyGateway


@contextlib.contextmanager
def served(gateway: FaultyGateway) -> Iterator[FaultyGateway]:
    """Serve a gateway in a thread until the end of the context."""
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def play() -> None:
        async with gateway:
            ready.set()
            await done.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(play())

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        assert ready.wait(30.0)
        yield gateway
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30.0)
