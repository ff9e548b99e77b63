"""A server that speaks MongoDB's wire protocol and answers commands with any document that a test wants.

It answers the handshake as a server does. See https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator
from typing import Any

import bson

_HEADER = struct.Struct("<iiii")
_REPLY, _QUERY, _MESSAGE = 1, 2004, 2013
_HANDSHAKE = ("hello", "ismaster", "isMaster", "ping", "endSessions")
_HELLO = {
    "ok": 1.0, "helloOk": True, "ismaster": True, "isWritablePrimary": True, "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21,
    "logicalSessionTimeoutMinutes": 30,
}  # fmt: skip


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    answer: dict[str, Any]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while header := self.rfile.read(_HEADER.size):
                size, request, _, kind = _HEADER.unpack(header)
                body = self.rfile.read(size - _HEADER.size)
                if kind == _QUERY:
                    self.send(request, _REPLY, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(_HELLO))
                else:
                    command = next(iter(bson.decode(body[5 : 5 + int.from_bytes(body[5:9], "little")])))
                    answer = _HELLO if command in _HANDSHAKE else self.server.answer
                    self.send(request, _MESSAGE, struct.pack("<iB", 0, 0) + bson.encode(answer))

    def send(self, request: int, kind: int, body: bytes) -> None:
        self.wfile.write(_HEADER.pack(_HEADER.size + len(body), 0, request, kind) + body)


@contextlib.contextmanager
def odd_mongo(answer: dict[str, Any]) -> Iterator[str]:
    """Start the server, yield the URL of a database, then stop it.

    Args:
        answer: Answer to every command but those of the handshake.
    """
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.answer = answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"mongodb://127.0.0.1:{server.server_address[1]}/odd?directConnection=true"
        finally:
            server.shutdown()
            thread.join(60)
