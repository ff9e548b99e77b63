"""A web server that delays every response: ``python -m benchmarks.peers.slow_server FOLDER SECONDS``.

It serves the files of a folder, with ranges and ETags, on a free port of this machine, and prints the port. It exits at
the end of its standard input.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from aiohttp import web


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


async def _serve(folder: Path, latency: float) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency)
        path = folder / request.match_info["name"]
        return web.FileResponse(path, chunk_size=1 << 18) if path.is_file() else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{name}", respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
