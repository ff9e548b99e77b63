"""Messages between a driver and a worker process: JSON, or bytes that the driver pickled, each with a length prefix."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["JsonMessageDecoder", "WorkerConnection"]

_HEADER: Final = struct.Struct("<cI")  # encoding, length of the body in bytes
_JSON, _BYTES = b"J", b"P"
_MAX_MESSAGE_BYTES: Final = 1 << 30
_RECEIVE_BYTES: Final = 1 << 20


class WorkerConnection:
    """One end of a socket between a driver and a worker. Calls block, and several threads may send.

    Args:
        sock: Socket of this side.

    Attributes:
        sock: Socket of this side.

    Raises:
        EOFError: If the other end is closed during a receive.
        OSError: If the other end is closed during a send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._send_lock = threading.Lock()

    def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send a message."""
        encoding, body = (_BYTES, message) if isinstance(message, bytes) else (_JSON, json.dumps(message).encode())
        with self._send_lock:
            self.sock.sendall(_HEADER.pack(encoding, len(body)) + body)

    def receive(self) -> Any:
        """Wait for a message, and return it: a JSON value or bytes."""
        encoding, size = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        return _decode_body(encoding, self._receive_exactly(size))

    def _receive_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(min(count - len(data), _RECEIVE_BYTES))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class JsonMessageDecoder:
    """Decodes the messages of a worker from the data of a socket. Bytes are refused: only a driver sends them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that `data` completes.

        Raises:
            ValueError: If a message is malformed.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            encoding, size = _HEADER.unpack_from(self._buffer)
            if encoding != _JSON or size > _MAX_MESSAGE_BYTES:
                raise ValueError(f"unexpected message of encoding {encoding!r} with {size} bytes")
            if len(self._buffer) < _HEADER.size + size:
                return
            body = bytes(self._buffer[_HEADER.size : _HEADER.size + size])
            del self._buffer[: _HEADER.size + size]
            yield _decode_body(encoding, body)


def _decode_body(encoding: bytes, body: bytes) -> Any:
    return body if encoding == _BYTES else json.loads(body)
