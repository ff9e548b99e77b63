"""Messages between a driver and a worker process: JSON, or bytes that the driver pickled, with their length before."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["Assembler", "Line"]

_HEAD: Final = struct.Struct("<cI")  # kind, bytes that follow
_JSON, _BYTES = b"J", b"P"
_MOST: Final = 1 << 30  # bytes of a message


class Line:
    """One end of a socket, for blocking use by several threads.

    Raises:
        EOFError: from receiving: the other end is gone.
        OSError: from sending: the same.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message."""
        kind, body = (_BYTES, message) if isinstance(message, bytes) else (_JSON, json.dumps(message).encode())
        with self._sending:
            self.sock.sendall(_HEAD.pack(kind, len(body)) + body)

    def receive(self) -> Any:
        """Wait for a message: a JSON value or bytes."""
        kind, size = _HEAD.unpack(self._exactly(_HEAD.size))
        return _opened(kind, self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self.sock.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


class Assembler:
    """Puts messages together from what comes of a socket. Bytes are refused: only a driver sends such."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that are complete now.

        Raises:
            ValueError: that is no message.
        """
        self._rest += data
        while len(self._rest) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._rest)
            if kind != _JSON or size > _MOST:
                raise ValueError(f"a message of kind {kind!r} with {size} bytes")
            if len(self._rest) < _HEAD.size + size:
                return
            body = bytes(self._rest[_HEAD.size : _HEAD.size + size])
            del self._rest[: _HEAD.size + size]
            yield _opened(kind, body)


def _opened(kind: bytes, body: bytes) -> Any:
    return body if kind == _BYTES else json.loads(body)
