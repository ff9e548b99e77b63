"""Servers that redirect requests, and a server that must not be reached by it.

Both answer in threads of this process, so that they can be used outside of an event loop, and both close each
connection after one response, so that the next request resolves the server's name again. ::

    with InnerServer() as inner, RedirectServer(f"{inner.url}/secret") as outer:
        open_store("s3://bucket", endpoint_url=outer.url, ...)
"""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from typing_extensions import override

from streamloader.stores.http import address_scope
from streamloader.stores.http.address_scope import AddressScope

__all__ = ["INNER_TEXT", "InnerServer", "ReceivedRequest", "RedirectServer", "override_address_scopes"]

INNER_TEXT: Final = "page-of-the-inside"
"""Text in every response of an inner server. It must not come back."""
_INNER_PAGE: Final = f"<Error><Code>{INNER_TEXT}</Code><Message>{INNER_TEXT}</Message></Error>"
_MAX_LINE_BYTES: Final = 1 << 16
_MAX_BODY_BYTES: Final = 1 << 20
_SOCKET_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request that a server received.

    Attributes:
        line: Request line: method, target and version.
        headers: Headers by lower-case name.
    """

    line: str
    headers: Mapping[str, str] = field(repr=False)


class _ThreadedServer:
    """A web server in threads: a context manager.

    Args:
        host: Address to listen on.
        name: Host name for `url`. Defaults to the address.
        port: Port. Defaults to a free one.

    Attributes:
        requests: All requests so far.
        port: Port of the server.
        url: URL of the server, without a trailing "/".
    """

    def __init__(self, *, host: str = "127.0.0.1", name: str | None = None, port: int = 0) -> None:
        self.requests: list[ReceivedRequest] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout: ClassVar[float] = _SOCKET_TIMEOUT_S

            @override
            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):  # clients may disconnect at any time
                    self.answer()

            def answer(self) -> None:
                self.close_connection = True
                self.raw_requestline = self.rfile.readline(_MAX_LINE_BYTES)
                if not self.raw_requestline or not self.parse_request():
                    return
                fields = {key.lower(): value for key, value in self.headers.items()}
                owner.requests.append(ReceivedRequest(self.requestline, fields))
                length = fields.get("content-length", "")
                self.rfile.read(min(int(length), _MAX_BODY_BYTES) if length.isdigit() else 0)
                status, answer_headers, body = owner.respond()
                self.send_response(status)
                for key, value in answer_headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = False  # so that closing waits for them
        self.port: int = self._server.server_address[1]
        self.url = f"http://{name or host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def respond(self) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of every response."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class RedirectServer(_ThreadedServer):
    """A server that redirects every request to one location.

    Args:
        location: Target of the redirects.
        status: HTTP status of the responses.
        host: Address to listen on.
        name: Host name for `url`. Defaults to the address.
        port: Port. Defaults to a free one.
    """

    def __init__(
        self, location: str, *, status: int = 302, host: str = "127.0.0.1", name: str | None = None, port: int = 0
    ) -> None:
        super().__init__(host=host, name=name, port=port)
        self._location = location
        self._status = status

    @override
    def respond(self) -> tuple[int, Mapping[str, str], bytes]:
        return self._status, {"Location": self._location}, b""


class InnerServer(_ThreadedServer):
    """A service inside the user's network, which answers every request with an error page (:data:`INNER_TEXT`)."""

    @override
    def respond(self) -> tuple[int, Mapping[str, str], bytes]:
        return 403, {"Content-Type": "application/xml", "X-Page": INNER_TEXT}, _INNER_PAGE.encode()


@contextlib.contextmanager
def override_address_scopes(scopes: Mapping[str, AddressScope]) -> Iterator[None]:
    """Treat numeric addresses as members of other scopes in this process.

    Tests can therefore play a public server at an address of this machine.

    Args:
        scopes: Address -> its scope.
    """
    original = address_scope.classify_address

    def classify(address: str) -> AddressScope:
        return scopes[address] if address in scopes else original(address)

    address_scope.classify_address = classify
    try:
        yield
    finally:
        address_scope.classify_address = original
