"""TCP transport of an SSH connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncssh

__all__ = ["ChunkedTransport"]

_SLICE_BYTES: Final = 32 << 10  # about one SSH packet of a transfer


class ChunkedTransport:
    """A plain TCP connection that passes received data on in small slices.

    It takes the role of asyncssh's `tunnel`, like a jump host. Event loops read 256 KiB at once, and asyncssh moves all
    unprocessed data with each packet that it takes from its buffer. Slices of one packet's size leave little to move.

    Args:
        options: Options of the connection. Only the address family and the local address are used.
    """

    def __init__(self, options: asyncssh.SSHClientConnectionOptions) -> None:
        self._family = int(options.family or 0)
        self._local = options.local_addr or None

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        """Open the connection for asyncssh. Return the transport and the protocol that the factory made."""
        loop = asyncio.get_running_loop()
        transport, slicer = await loop.create_connection(
            lambda: _SlicingProtocol(factory()), host, port, family=self._family, local_addr=self._local
        )
        return transport, slicer.connection


class _SlicingProtocol(asyncio.Protocol):
    """Forward all events to another protocol, and received data in slices."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._receive = connection.data_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        for offset in range(0, len(data), _SLICE_BYTES):
            self._receive(data[offset : offset + _SLICE_BYTES])

    def eof_received(self) -> None:
        self.connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()
