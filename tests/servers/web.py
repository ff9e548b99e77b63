"""Small web servers in this process: one of aiohttp, and one that sends prepared responses."""

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

from streamloader.testing.faults.shutdown import stop_web_runner

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler | web.Application) -> AsyncIterator[str]:
    """Serve all requests with a function or an application of aiohttp, and yield the server's address."""
    if isinstance(handler, web.Application):
        runner: web.BaseRunner = web.AppRunner(handler, shutdown_timeout=0.5, handler_cancellation=True)
    else:
        runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await stop_web_runner(runner)


@contextlib.asynccontextmanager
async def serve_responses(*answers: bytes) -> AsyncIterator[str]:
    """Send one of these responses to each request, repeating the last one, and close the connection after each.

    HEAD requests get only the headers.
    """
    remaining = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            response = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            headers = response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            writer.write(headers if request.startswith(b"HEAD ") else response)
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
    """Static files served by aiohttp in a thread of this process.

    Attributes:
        url: URL of the root.
    """

    def __init__(self, url: str, data: Path) -> None:
        self.url = url
        self._data = data
        self._written = 0

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects atomically. Each gets a different time."""
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
        # Start all threads now. A thread that starts during a test would be reported as leaked.
        workers, all_started = 4, threading.Barrier(5)
        executor = concurrent.futures.ThreadPoolExecutor(workers)
        asyncio.get_running_loop().set_default_executor(executor)
        for _ in range(workers):
            executor.submit(all_started.wait, 60)
        all_started.wait(60)
        async with serving(app) as address:
            addresses.append(address)
            loops.append(asyncio.get_running_loop())
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="web")
    thread.start()
    try:
        assert ready.wait(60), "the server does not start"
        yield Folder(addresses[0], data)
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(60)
        shutil.rmtree(data)
