"""A forward proxy for HTTP in this process: requests in absolute form, and tunnels (CONNECT)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit


class Proxy:
    """The proxy.

    Attributes:
        url: Its address.
        requests: Method and target of the first request of each connection.
        headers: Headers of these requests, with names in lower case.
        hosts: Host name -> address to connect to, for names that only the proxy can resolve.
        status: Status to refuse every request with, or None.
    """

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self.hosts = dict(hosts)
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.status: int | None = None
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a client: one request of the plain kind, or one tunnel."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            method, target, version = first.split(" ")
            self.requests.append(f"{method} {target}")
            self.headers.append({name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)})
            if self.status is not None:
                writer.write(f"HTTP/1.1 {self.status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                return
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            host, port = parts.hostname or "", parts.port or 80
            upstream, sink = await asyncio.open_connection(self.hosts.get(host, host), port)
            with contextlib.closing(sink):
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    path = parts.path + (f"?{parts.query}" if parts.query else "")
                    sink.write("\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode("latin-1"))
                back = asyncio.create_task(_pump(upstream, writer))
                await _pump(reader, sink)
                await back


@contextlib.asynccontextmanager
async def serve_proxy(hosts: Mapping[str, str] | None = None) -> AsyncIterator[Proxy]:
    """Start a proxy on a free port of 127.0.0.1, and stop it at the end."""
    proxy = Proxy(hosts or {})
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(proxy.answer(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof() if writer.can_write_eof() else writer.close()
