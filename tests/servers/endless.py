"""A web server, in a thread, whose objects have no end."""

from __future__ import annotations

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DECLARED_BYTES = 1 << 59  # the largest power of two with 18 digits
PIECE_BYTES = 1 << 18
FTYP = (20).to_bytes(4, "big") + b"ftypisom\0\0\2\0isom"
MOOV = (1).to_bytes(4, "big") + b"moov" + (DECLARED_BYTES - len(FTYP)).to_bytes(8, "big")
EMPTY_BOX = (8).to_bytes(4, "big") + b"free"
NULL_PACKET = b"\x47\x1f\xff\x10" + b"\xff" * 184  # of an MPEG transport stream


def moov(start, count):
    """Return bytes of an MP4 whose moov has an endless number of empty boxes."""
    return _with_head(FTYP + MOOV, EMPTY_BOX, start, count)


def boxes(start, count):
    """Return bytes of an MP4 that has an endless number of empty boxes instead of a moov."""
    return _with_head(FTYP, EMPTY_BOX, start, count)


def _with_head(head, unit, start, count):
    shift = (start - len(head)) % len(unit)
    body = (unit * (count // len(unit) + 2))[shift if start >= len(head) else 0 :]
    return (head[start:] + body)[:count]


def padding(start, count):
    """Return bytes of a transport stream of padding."""
    return _with_head(b"", NULL_PACKET, start, count)


CONTENT = {"moov.mp4": moov, "boxes.mp4": boxes, "padding.ts": padding}


class EndlessServer(ThreadingHTTPServer):
    """``/chunked/NAME`` declares no size, ``/declared/NAME`` a huge one, and ``/declared-N/NAME`` 2**N bytes.

    All but the first support ranges.
    """

    daemon_threads = False

    def handle_error(self, *_):
        """Say nothing: clients that have seen enough reset the connection."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sent_bytes = 0
        self.stopping = False

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def _size(self):
        found = re.match(r"/declared-(\d+)/", self.path)
        return 1 << int(found[1]) if found else DECLARED_BYTES

    def do_HEAD(self):
        self._begin(200, {} if "/chunked/" in self.path else {"Content-Length": str(self._size)})

    def do_GET(self):
        content = CONTENT.get(self.path.rpartition("/")[2], lambda start, count: bytes(count))
        if "/chunked/" in self.path:
            self._begin(200, {"Transfer-Encoding": "chunked"})
            self._send(0, None, content)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, self._size
        if found:
            start, end = int(found[1]), int(found[2] or self._size - 1) + 1
        headers = {"Content-Length": str(end - start)}
        if found:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{self._size}"
        self._begin(206 if found else 200, headers)
        self._send(start, end, content)

    def _begin(self, status, headers):
        self.send_response(status)
        for name, value in {"ETag": '"endless"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, start, end, content):
        with contextlib.suppress(OSError):  # the client has seen enough
            while not self.server.stopping and (end is None or start < end):
                count = PIECE_BYTES if end is None else min(PIECE_BYTES, end - start)
                piece = content(start, count)
                self.wfile.write(piece if end is not None else b"%x\r\n%s\r\n" % (count, piece))
                self.server.sent_bytes += count
                start += count
            return
        self.close_connection = True


@contextlib.contextmanager
def endless_server():
    server = EndlessServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopping = True
        server.shutdown()
        server.server_close()  # joins the threads of all connections
        thread.join()
