"""Run an S3 server of the tests beside a program that blocks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from faults.s3_server import PlainS3

from streamloader.stores.io_thread import close_shared_stores

_SECONDS = 30.0


@contextlib.contextmanager
def run_beside(server: PlainS3) -> Iterator[PlainS3]:
    """Run a server in a thread of its own. The shared stores are closed before it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="s3-server")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(_SECONDS)
        try:
            yield server
        finally:
            close_shared_stores()
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
        loop.close()
