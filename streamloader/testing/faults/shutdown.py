"""Stop servers without leaving a connection open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

__all__ = ["stop_accepting", "stop_web_runner"]

_LOOP_ROUNDS: Final = 10  # an accepted connection needs a few rounds of the event loop until its handler exists


async def stop_accepting(listeners: Iterable[Any]) -> None:
    """Accept no more connections, and wait until those that were accepted have their handlers.

    asyncio's server loses the connections that it is about to accept when it is closed (in Python 3.11). Call this
    before.

    Args:
        listeners: Listening sockets of the server.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, asyncio.SelectorEventLoop):
        for listener in listeners:
            loop.remove_reader(listener.fileno())
    await _run_loop()


async def stop_web_runner(runner: web.BaseRunner) -> None:
    """Stop a server, and close its connections at once, whatever their clients do.

    aiohttp leaves a connection open while its client does not read.
    """
    server = runner.server
    await stop_accepting(
        listener for site in runner.sites for listener in getattr(getattr(site, "_server", None), "sockets", ())
    )
    transports = [] if server is None else [handler.transport for handler in server.connections]
    await runner.cleanup()
    for transport in transports:
        if isinstance(transport, asyncio.Transport):
            transport.abort()
    await _run_loop()  # lets the connections close


async def _run_loop() -> None:
    for _ in range(_LOOP_ROUNDS):
        await asyncio.sleep(0)
