"""The TCP connection under an SSH connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncssh

__all__ = ["Wire"]

_PORTION: Final = 32 << 10  # bytes: about one packet of a transfer


class Wire:
    """What asyncssh connects through, as it would through a jump host: a plain TCP connection.

    It hands on what comes in portions. Loops read 256 KiB at once, and asyncssh moves all that it has not yet worked on
    with each packet that it takes from the front: of portions the size of a packet there is little to move.

    Args:
        options: of the connection; address family and local address count here.
    """

    def __init__(self, options: asyncssh.SSHClientConnectionOptions) -> None:
        self._family = int(options.family or 0)
        self._local = options.local_addr or None

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        """Connect, as asyncssh asks for it; return the transport and what the factory made."""
        loop = asyncio.get_running_loop()
        transport, portions = await loop.create_connection(
            lambda: _Portions(factory()), host, port, family=self._family, local_addr=self._local
        )
        return transport, portions.connection


class _Portions(asyncio.Protocol):
    """Passes everything on, data in portions."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._receive = connection.data_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), _PORTION):
            self._receive(data[at : at + _PORTION])

    def eof_received(self) -> None:
        self.connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()
