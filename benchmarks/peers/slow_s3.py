"""A real S3 server that takes longer for each request: ``python -m benchmarks.peers.slow_s3 FOLDER SECONDS``.

It starts SeaweedFS, uploads the files of a folder, and a proxy delays what clients send by a fixed time. The proxy
forwards bytes unchanged, so that signatures stay valid, and requests on several connections wait at the same time. It
prints the fields of an `S3Access` as JSON, and exits at the end of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import ROOT
from streamloader.stores.io_thread import _make_loop

_BUCKET = "shards"


class SlowS3:
    """The server in a separate process.

    Attributes:
        access: Fields of an :class:`benchmarks.peers.shard_images.S3Access`.
    """

    def __init__(self, folder: Path, latency: float) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.slow_s3", str(folder), str(latency)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: exit status {self._process.wait()}")
        self.access: dict[str, str] = json.loads(line)

    def close(self) -> None:
        """Stop the server."""
        self._process.communicate(timeout=60)


class _Side(asyncio.Protocol):
    """One end of a connection. What it receives is written to the other end after `delay` seconds."""

    def __init__(self, delay: float) -> None:
        self.transport: Any = None
        self.other: _Side | None = None
        self._delay = delay
        self._pending: deque[bytes] = deque()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._pending.append(data)
        if self.other is None or self.other.transport is None:
            return  # sent when the server is connected
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self.send_next)
        else:
            self.send_next()

    def send_next(self) -> None:
        """Write the oldest piece to the other end."""
        assert self.other is not None
        if self._pending and not self.other.transport.is_closing():
            self.other.transport.write(self._pending.popleft())

    def join(self, other: _Side) -> None:
        """Connect both ends, and send what has come."""
        self.other, other.other = other, self
        for _ in range(len(self._pending)):
            asyncio.get_running_loop().call_later(self._delay, self.send_next)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Client(_Side):
    """The end of the client, which connects to the server."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        super().__init__(delay)
        self._server = (host, port)
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        _, server = await asyncio.get_running_loop().create_connection(lambda: _Side(0.0), *self._server)
        self.join(server)


async def _forward(server: Any, bucket: str, latency: float, keys: Any) -> None:
    address = urlsplit(server.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    host, port, loop = address.hostname, address.port, asyncio.get_running_loop()
    proxy = await loop.create_server(lambda: _Client(host, port, latency), "127.0.0.1", 0)
    access = {
        "endpoint": f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
        "bucket": bucket,
        "key_id": keys.access_key_id,
        "secret": keys.secret_access_key,
    }
    print(json.dumps(access), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    proxy.close()


def _serve(folder: Path, latency: float) -> None:
    import obstore

    sys.path.insert(0, str(ROOT / "tests"))
    from servers import seaweed

    with seaweed.seaweed() as server:
        bucket = server.bucket(_BUCKET)
        store = server.direct(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                obstore.put(store, path.relative_to(folder).as_posix(), path)
        with asyncio.Runner(loop_factory=_make_loop) as runner:
            runner.run(_forward(server, bucket, latency, seaweed.FULL))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
