"""Small web servers in this process: aiohttp's own, and one that sends what it is told to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler | web.Application) -> AsyncIterator[str]:
    """Serve all requests by one function, or an application, with aiohttp; yield the server's address."""
    if isinstance(handler, web.Application):
        runner: web.BaseRunner = web.AppRunner(handler, shutdown_timeout=0.5, handler_cancellation=True)
    else:
        runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def saying(*answers: bytes) -> AsyncIterator[str]:
    """Send these answers to one request after the other, the last one for good, and hang up after each.

    What follows the headers is left out where only those are asked for.
    """
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            said = left.pop(0) if len(left) > 1 else left[0]
            writer.write(said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if request.startswith(b"HEAD ") else said)
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


class Folder:
    """aiohttp's static files, from a thread of this process.

    Attributes:
        url: of its root.
    """

    def __init__(self, url: str, data: Path) -> None:
        self.url = url
        self._data = data
        self._written = 0

    def put(self, files: Mapping[str, bytes]) -> None:
        """Put objects there, as a whole each; the time of each is another one."""
        for name, data in files.items():
            target = self._data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._data / ".unfinished"
            unfinished.write_bytes(data)
            self._written += 1
            moment = time.time() - 3_600 + self._written
            os.utime(unfinished, (moment, moment))
            os.replace(unfinished, target)


@contextlib.contextmanager
def folder() -> Iterator[Folder]:
    """Serve a temporary folder."""
    data = Path(tempfile.mkdtemp(prefix="web-"))
    app = web.Application()
    app.router.add_static("/", data)
    ready, addresses, stop, loops = threading.Event(), [], asyncio.Event(), []

    async def serve() -> None:
        # All its threads from the beginning: a test that finds one more would take it for its own.
        workers, together = 4, threading.Barrier(5)
        executor = concurrent.futures.ThreadPoolExecutor(workers)
        asyncio.get_running_loop().set_default_executor(executor)
        for _ in range(workers):
            executor.submit(together.wait, 20)
        together.wait(20)
        async with serving(app) as address:
            addresses.append(address)
            loops.append(asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="web")
    thread.start()
    try:
        assert ready.wait(20), "the server does not start"
        yield Folder(addresses[0], data)
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(20)
        shutil.rmtree(data)
