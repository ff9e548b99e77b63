"""Messages between a driver and a worker process: JSON, or bytes that the driver pickled, each with a length prefix.

A worker trusts its driver. What a worker sends is limited in size here, and checked by :mod:`unit_protocol`.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from streamloader.common.worker_messages import InvalidMessage, parse_json

__all__ = ["JsonMessageDecoder", "WorkerConnection"]

_HEADER: Final = struct.Struct("<cI")  # encoding, length of the body in bytes
_JSON, _BYTES = b"J", b"P"
_MAX_MESSAGE_BYTES: Final = 4 << 20
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
    """Decodes the messages of a worker from the data of a socket. Bytes are refused: only a driver sends them.

    Attributes:
        max_bytes: Maximum size of a message. Defaults to 4 MiB.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.max_bytes = _MAX_MESSAGE_BYTES

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that `data` completes.

        Raises:
            InvalidMessage: If a message is malformed or too large.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            encoding, size = _HEADER.unpack_from(self._buffer)
            if encoding != _JSON or size > self.max_bytes:
                raise InvalidMessage(f"it has the encoding {encoding!r} and {size} bytes")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield parse_json(body)


def _decode_body(encoding: bytes, body: bytes) -> Any:
    return body if encoding == _BYTES else json.loads(body)
