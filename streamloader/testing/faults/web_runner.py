"""Stop servers of aiohttp without leaving a connection open."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

__all__ = ["stop_web_runner"]

_LOOP_ROUNDS: Final = 10  # an accepted connection needs a few rounds of the event loop until its handler exists


async def stop_web_runner(runner: web.BaseRunner) -> None:
    """Stop a server, and close its connections at once, whatever their clients do.

    aiohttp closes the connections that have a handler. One that was accepted just before the server stopped gets its
    handler only afterwards, and one whose client does not read stays open until its buffer is empty.
    """
    server = runner.server
    before = [] if server is None else [handler.transport for handler in server.connections]
    await runner.cleanup()
    for _ in range(_LOOP_ROUNDS):
        await asyncio.sleep(0)
    late = [] if server is None else [handler.transport for handler in server.connections]
    for transport in (*before, *late):
        if isinstance(transport, asyncio.Transport):
            transport.abort()
    for _ in range(_LOOP_ROUNDS):
        await asyncio.sleep(0)  # lets the connections close
