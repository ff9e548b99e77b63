"""A web server that delays every response: ``python -m benchmarks.peers.slow_server FOLDER SECONDS``.

It serves the files of a folder, with ranges and ETags, on a free port of this machine, and prints the port. It exits at
the end of its standard input.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from streamloader.stores.io_thread import _make_loop


class SlowServer:
    """The server in a separate process.

    Attributes:
        url: URL of the folder.
    """

    def __init__(self, folder: Path, latency: float) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.slow_server", str(folder), str(latency)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the server did not start: exit status {self._process.wait()}")
        self.url = f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """Stop the server."""
        self._process.communicate(timeout=30)


def _respond(request: web.BaseRequest, descriptor: int) -> web.Response:
    info = os.fstat(descriptor)
    size, etag = info.st_size, f'"{info.st_mtime_ns:x}-{info.st_size:x}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if request.headers.get("If-Match", etag) != etag:
        return web.Response(status=412, headers=headers)
    if request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": str(size)})
    start, end, _ = request.http_range.indices(size)
    if "Range" in request.headers:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if "Range" in request.headers else 200
    return web.Response(status=status, body=os.pread(descriptor, end - start, start), headers=headers)


async def _serve(folder: Path, latency: float) -> None:
    """Serve the folder. Each request takes little of the processor, which the clients share."""

    async def respond(request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(latency)
        try:
            with (folder / request.path.removeprefix("/")).open("rb") as file:
                return _respond(request, file.fileno())
        except FileNotFoundError:
            return web.Response(status=404)

    server = await asyncio.get_running_loop().create_server(web.Server(respond, access_log=None), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_make_loop) as runner:
        runner.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
