"""Stop servers of aiohttp without leaving a connection open."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

__all__ = ["stop_web_runner"]

_LOOP_ROUNDS: Final = 10  # an accepted connection needs a few rounds of the event loop until its handler exists


async def stop_web_runner(runner: web.BaseRunner) -> None:
    """Stop a server, and close its connections at once, whatever their clients do.

    asyncio's server loses the connections that it is about to accept when it is closed (in Python 3.11), so it first
    stops accepting. aiohttp leaves a connection open while its client does not read.
    """
    loop, server = asyncio.get_running_loop(), runner.server
    if isinstance(loop, asyncio.SelectorEventLoop):
        for site in runner.sites:
            for listener in getattr(getattr(site, "_server", None), "sockets", ()):
                loop.remove_reader(listener.fileno())
    for _ in range(_LOOP_ROUNDS):
        await asyncio.sleep(0)
    transports = [] if server is None else [handler.transport for handler in server.connections]
    await runner.cleanup()
    for transport in transports:
        if isinstance(transport, asyncio.Transport):
            transport.abort()
    for _ in range(_LOOP_ROUNDS):
        await asyncio.sleep(0)  # lets the connections close
