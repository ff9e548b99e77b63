"""A trustless gateway over a real node: it serves the node's blocks, which js-ipfs's own gateway does not."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servers.jsipfs import Node

_PATH = re.compile(r"/ipfs/(\w+)\?format=raw")


@contextlib.contextmanager
def serve_blocks(node: Node) -> Iterator[str]:
    """Serve ``/ipfs/CID?format=raw`` on a free port of loopback until the context ends; give the gateway's URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30.0

        def do_GET(self):
            found = _PATH.fullmatch(self.path)
            try:
                block = node.call("block/get", arg=found[1], timeout="20000ms") if found else None
            except RuntimeError:
                block = None
            self.send_response(404 if block is None else 200)
            self.send_header("Content-Type", "application/vnd.ipld.raw")
            self.send_header("Content-Length", str(len(block or b"")))
            self.end_headers()
            self.wfile.write(block or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
