"""Send HTTP requests for stores: pooled connections, restricted redirects, translated errors."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, TypeAlias

import aiohttp
from yarl import URL

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ClosedError,
    LimitExceeded,
    ProtocolError,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import MASK
from streamloader.stores.environment import find_ca_path, load_authorities
from streamloader.stores.http.address_scope import AddressScope, ForbiddenAddress, PinnedHosts, ScopedResolver
from streamloader.stores.http.redirects import (
    REDIRECT_STATUSES,
    RedirectChain,
    ScopedSessions,
    quote_url_path,
    resolve_redirect,
)
from streamloader.stores.http.responses import PROXY_ADVICE, ErrorContext, make_protocol_error

__all__ = ["ErrorTranslator", "HttpClient", "HttpServerConfig", "RequestGate", "describe_forbidden", "make_proxy_error"]

RequestGate: TypeAlias = Callable[[RedirectChain], Awaitable[None]]
"""Coroutine function that is awaited before each request of a chain of redirects. It raises an error to refuse it."""

_MAX_LENGTH_DIGITS: Final = 18
_MAX_DRAINED_BYTES: Final = 64 << 10  # reading a short unwanted body is cheaper than another connection
_READ_BUFFER_BYTES: Final = 256 << 10
_MAX_HEADER_BYTES: Final = 64 << 10  # of one line: signed addresses in Location are long
_DNS_CACHE_S: Final = 10
_HEADERS: Final = {"Accept": "*/*", "User-Agent": "streamloader"}  # unless the user sets others
_ENCODING: Final = {"Accept-Encoding": "identity"}
_KEEPALIVE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class HttpServerConfig:
    """A server, and the settings of its connections.

    Attributes:
        root: Address of the server in normal form, without path and user.
        headers: Headers that only this server may receive.
        scope: Largest scope of addresses that the server's name may resolve to.
        ca_file: PEM file of the trusted certificate authorities. None for those of the environment or the system.
        pinned_hosts: Scope of the first addresses of the server's name. The clients of one store share it.
    """

    root: str
    headers: Mapping[str, str] = field(repr=False)
    scope: AddressScope
    ca_file: str | None
    pinned_hosts: PinnedHosts


class HttpClient:
    """Sends requests to one server, and to those that it redirects to. It belongs to one event loop.

    It is closed at the latest when the event loop ends.

    Args:
        server: Server to send requests to.
        timeouts: Deadlines of requests.
        limits: Limits of connections and redirects.

    Raises:
        ConfigError: If the file of certificate authorities cannot be read.
    """

    def __init__(self, server: HttpServerConfig, timeouts: Timeouts, limits: Limits) -> None:
        self.pid = os.getpid()
        self._server = server
        self._timeouts = timeouts
        self._limits = limits
        ca_path = find_ca_path(server.ca_file)
        self._ssl: ssl.SSLContext | bool = True if ca_path is None else load_authorities(ca_path)
        self._sessions = ScopedSessions(self._make_session, server.pinned_hosts)
        self._closer = self._close_with_loop()
        self._closed = False

    async def open(self) -> None:
        """Register the client with the event loop, which closes it at its end. No connection is opened yet."""
        await anext(self._closer)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._closer.aclose()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], context: ErrorContext
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, follow redirects, and yield the response with any status.

        Raises:
            StoreError: If there is no response.
        """
        response = await self.send(method, path, headers, context)
        try:
            yield response
        finally:
            self.release(response)

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        context: ErrorContext,
        *,
        gate: RequestGate | None = None,
        limit_wait: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        body: bytes | memoryview = b"",
    ) -> aiohttp.ClientResponse:
        """Send a request, follow redirects, and return the response with any status. Pass it to :meth:`release`.

        Args:
            method: Method of the request.
            path: Path on the server, with query.
            headers: Headers of the request.
            context: Address and offset for error messages.
            gate: Coroutine function that is awaited before each request of the chain. Defaults to none.
            limit_wait: Function that returns a context which limits the wait for one response. The time that `gate`
                takes does not count. Defaults to no limit.
            body: Body of the request, which the targets of redirects get, too. Defaults to none.

        Raises:
            StoreError: If there is no response.
        """
        chain = self._sessions.start(_make_url(self._server.root, path), self._server.scope)

        async def request() -> aiohttp.ClientResponse:
            if gate is not None:
                await gate(chain)
            with limit_wait():
                return await self._send(method, chain, headers, context, body)

        response = await request()
        if response.status in REDIRECT_STATUSES:
            return await self._follow_redirects(response, chain, request, context)
        return response

    def release(self, response: aiohttp.ClientResponse) -> None:
        """Close the connection of a response, unless the response was read to its end: it is then in the pool again."""
        if not response.closed:
            response.close()

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Read an unwanted body so that its connection can be reused. Close the connection if the body is long."""
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > _MAX_LENGTH_DIGITS or int(length) > _MAX_DRAINED_BYTES:
            response.close()
            return
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await response.read()

    async def _follow_redirects(
        self,
        response: aiohttp.ClientResponse,
        chain: RedirectChain,
        request: Callable[[], Awaitable[aiohttp.ClientResponse]],
        context: ErrorContext,
    ) -> aiohttp.ClientResponse:
        while response.status in REDIRECT_STATUSES and "Location" in response.headers:
            try:
                chain.keep_cookies(response)
                await self.drain(response)
                target = resolve_redirect(chain.url, response.headers["Location"], context)
            finally:
                response.close()
            if chain.has_visited(target):
                raise make_protocol_error(context, f"{target.origin()} redirects in a circle")
            if len(chain.visited) > self._limits.redirects:
                raise LimitExceeded(
                    f"{context.address}: redirected more than {self._limits.redirects} times: raise "
                    "Limits(redirects=...)",
                    address=context.address,
                    offset=context.offset,
                )
            chain.move_to(target)
            response = await request()
        return response

    async def _send(
        self,
        method: str,
        chain: RedirectChain,
        headers: Mapping[str, str],
        context: ErrorContext,
        body: bytes | memoryview,
    ) -> aiohttp.ClientResponse:
        if self._closed:
            raise ClosedError(f"the store of {context.address} was closed", address=context.address)
        sent = {**_HEADERS, **(self._server.headers if chain.trusted else {}), **headers, **_ENCODING}
        if chain.cookies:
            name = next((name for name in sent if name.lower() == "cookie"), "Cookie")
            sent[name] = "; ".join(filter(None, (sent.get(name), chain.cookies)))
        with ErrorTranslator(context, chain.url, self._timeouts):
            session, proxy = self._sessions.select(chain)
            data = io.BytesIO(body) if body else None  # which aiohttp sends piece by piece
            return await session.request(method, chain.url, headers=sent, allow_redirects=False, data=data, **proxy)

    def _make_session(self, resolver: ScopedResolver) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=self._limits.connections,
                keepalive_timeout=_KEEPALIVE_S,
                ttl_dns_cache=_DNS_CACHE_S,
                resolver=resolver,
                ssl=self._ssl,
            ),
            # The store limits every other wait.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect or None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """Close the sessions when this generator is closed: by :meth:`aclose`, or by an ending event loop."""
        try:
            yield
        finally:
            self._closed = True
            await self._sessions.close()


class ErrorTranslator:
    """Translates aiohttp's errors. Errors that show full addresses, which may contain secrets, are not chained.

    The context manager can be entered again and again.

    Args:
        context: Address and offset for the message.
        url: URL that the request was sent to. Messages show its origin.
        timeouts: Deadlines, for the message.
        started: Whether the response has started to arrive. Defaults to False.

    Attributes:
        offset: Offset for the message. Defaults to that of `context`.
    """

    def __init__(self, context: ErrorContext, url: URL, timeouts: Timeouts, *, started: bool = False) -> None:
        self._address = context.address
        self._url = url
        self._timeouts = timeouts
        self._started = started
        self.offset = context.offset

    def __enter__(self) -> None:
        """Start to translate."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Translate the error, if any."""
        if error is not None:
            self._translate(error)

    def _translate(self, error: BaseException) -> None:
        origin = str(self._url.origin())
        if isinstance(error, aiohttp.ClientSSLError):
            raise self._make_error(
                UntrustedHost,
                f"its certificate or TLS connection is not valid: {_describe(error)}. For your own certificate "
                "authority pass ca_file=",
            ) from error
        if isinstance(error, (aiohttp.ClientConnectorDNSError, ForbiddenAddress)):
            cause = getattr(error, "os_error", error)
            if isinstance(cause, ForbiddenAddress):
                raise self._make_error(UntrustedHost, describe_forbidden(cause)) from None
            raise self._make_error(Unreachable, f"its name does not resolve: {_describe(error)}") from error
        if isinstance(error, aiohttp.ServerTimeoutError):
            seconds = self._timeouts.connect
            raise StoreTimeout(
                f"waited {seconds:.1f} s for {self._address} (connecting): no response",
                address=self._address,
                offset=self.offset,
                waited=seconds,
                stage="connecting",
            ) from None
        if isinstance(error, aiohttp.ClientHttpProxyError):
            raise make_proxy_error(error, self._address, self.offset) from None
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            raise self._make_error(
                Unreachable, f"the proxy of the environment cannot be reached: {_describe(error)}. {PROXY_ADVICE}"
            ) from error
        if isinstance(error, aiohttp.InvalidURL):
            raise self._make_error(ProtocolError, f"{origin} is not the address of a server") from None
        is_named = origin in self._address
        if isinstance(error, aiohttp.ClientResponseError):
            # Another origin's text may come from any service inside the user's network.
            reason = f": {make_printable(error.message)}" if is_named else ""
            raise self._make_error(ProtocolError, f"the response is not valid HTTP{reason}") from None
        # aiohttp raises RuntimeError for a wait on a connection that was closed from this side.
        closed = isinstance(error, RuntimeError) and self._started and str(error) == "Connection closed."
        if isinstance(error, StoreError) or not (closed or isinstance(error, (aiohttp.ClientError, OSError))):
            return
        if self._started:
            reason = _describe(error) if is_named else type(error).__name__
            raise self._make_error(
                TransferInterrupted, f"the transfer broke off at byte {self.offset}: {reason}"
            ) from None
        raise self._make_error(
            Unreachable, f"no connection, or it was closed by the server: {_describe(error)}"
        ) from error

    def _make_error(self, kind: type[StoreError], detail: str) -> StoreError:
        # Of an address that is hidden, the origin may be a user name and a part of a password.
        origin = str(self._url.origin())
        server = "" if origin in self._address or self._address.endswith(f"://{MASK}") else f" ({origin})"
        return kind(f"{self._address}{server}: {detail}", address=self._address, offset=self.offset)


@functools.lru_cache(maxsize=1024)
def _make_url(root: str, path: str) -> URL:
    return URL(f"{root}/{quote_url_path(path)}", encoded=True)


def _describe(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    reason = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return make_printable(reason)


def make_proxy_error(error: aiohttp.ClientHttpProxyError, address: str, offset: int | None) -> StoreError:
    """Build the error for a proxy that refuses to connect to a server."""
    status = error.status
    kind: type[StoreError] = AccessDenied if status in (401, 403, 407) else Unreachable
    return kind(
        f"{address}: the proxy of the environment refuses the connection with status {status}: check HTTPS_PROXY (with "
        "user and password), or exempt the host with NO_PROXY",
        address=address,
        offset=offset,
        status=status,
    )


def describe_forbidden(error: ForbiddenAddress) -> str:
    """Return why an address is not contacted, and what to do if it should be."""
    if error.pinned is None:
        return f"{error}, which a redirect must not reach; if it is intended, name that address itself"
    before = error.pinned.name.lower().replace("special", "link-local or reserved")
    return (
        f"{error}, but it had a {before} address before, so the new one is not contacted (DNS rebinding); if the "
        "server was really moved, create the loader again"
    )
