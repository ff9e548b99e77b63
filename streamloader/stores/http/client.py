"""Send HTTP requests for stores: pooled connections, restricted redirects, translated errors."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    LimitExceeded,
    ProtocolError,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import MASK
from streamloader.stores.http.address_scope import (
    AddressScope,
    ForbiddenAddress,
    ScopedResolver,
    allowed_redirect_scope,
)
from streamloader.stores.http.responses import ErrorContext, make_protocol_error

__all__ = ["HttpClient", "HttpServerConfig", "quote_url_path", "translate_errors"]

_REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
_MAX_LENGTH_DIGITS: Final = 18
_MAX_DRAINED_BYTES: Final = 64 << 10  # reading a short unwanted body is cheaper than another connection
_READ_BUFFER_BYTES: Final = 256 << 10
_MAX_HEADER_BYTES: Final = 64 << 10  # of one line: signed addresses in Location are long
_DNS_CACHE_S: Final = 10
_KEEPALIVE_S: Final = 15.0

# RFC 3986. A "%" that begins an escape is kept, see `quote_url_path`.
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
_SAFE_IN_PATH: Final = "%/:@!$&'()*+,;=-._~"
_SAFE_IN_QUERY: Final = _SAFE_IN_PATH + "?"


@dataclass(frozen=True, slots=True)
class HttpServerConfig:
    """A server, and the settings of its connections.

    Attributes:
        root: Address of the server in normal form, without path and user.
        headers: Headers that only this server may receive.
        scope: Largest scope of addresses that the server's name may resolve to.
        ca_file: PEM file of the trusted certificate authorities. None for those of the system.
    """

    root: str
    headers: Mapping[str, str] = field(repr=False)
    scope: AddressScope
    ca_file: str | None


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
        self._origin = URL(server.root)
        self._timeouts = timeouts
        self._limits = limits
        self._seen_scopes: dict[str, AddressScope] = {}
        self._ssl: ssl.SSLContext | bool = True if server.ca_file is None else _load_authorities(server.ca_file)
        # By allowed scope, so that a connection of one scope is never used where only a smaller one is allowed.
        self._sessions: dict[AddressScope, tuple[aiohttp.ClientSession, ScopedResolver]] = {}
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
        url = self._server.root + "/" + quote_url_path(path)
        response = await self._follow_redirects(method, url, headers, context)
        try:
            yield response
        finally:
            response.close()  # the connection of an exhausted response is back in the pool already

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Read an unwanted body so that its connection can be reused. Close the connection if the body is long."""
        length = response.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > _MAX_LENGTH_DIGITS or int(length) > _MAX_DRAINED_BYTES:
            response.close()
            return
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await response.read()

    async def _follow_redirects(
        self, method: str, url: str, headers: Mapping[str, str], context: ErrorContext
    ) -> aiohttp.ClientResponse:
        current = URL(url, encoded=True)
        scope, trusted, visited = self._server.scope, True, {current}
        while True:
            response = await self._send(method, current, headers, scope, context, trusted=trusted)
            if response.status not in _REDIRECT_STATUSES or "Location" not in response.headers:
                return response
            try:
                await self.drain(response)
                target = _resolve_redirect(current, response.headers["Location"], context)
            finally:
                response.close()
            if target in visited:
                raise make_protocol_error(context, f"{target.origin()} redirects in a circle")
            if len(visited) > self._limits.redirects:
                raise LimitExceeded(
                    f"{context.address}: redirected more than {self._limits.redirects} times: raise "
                    "Limits(redirects=...)",
                    address=context.address,
                    offset=context.offset,
                )
            visited.add(target)
            if target.origin() != self._origin:
                trusted = False  # for all later redirects, too: only the server that the user named gets credentials
            if not trusted:
                sender = self._seen_scopes.get(current.raw_host or "", AddressScope.PUBLIC)
                scope = min(scope, allowed_redirect_scope(sender))
            current = target

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        scope: AddressScope,
        context: ErrorContext,
        *,
        trusted: bool,
    ) -> aiohttp.ClientResponse:
        session, resolver = self._get_session(scope, context)
        sent = {"Accept": "*/*", "User-Agent": "streamloader", **(self._server.headers if trusted else {})}
        sent.update(headers)
        sent["Accept-Encoding"] = "identity"
        with translate_errors(context, str(url.origin()), self._timeouts):
            if url.raw_host is not None and _is_numeric(url.raw_host):
                resolver.check(url.raw_host, url.raw_host)  # aiohttp resolves names only
            return await session.request(method, url, headers=sent, allow_redirects=False)

    def _get_session(self, scope: AddressScope, context: ErrorContext) -> tuple[aiohttp.ClientSession, ScopedResolver]:
        if self._closed:
            raise ClosedError(f"the store of {context.address} was closed", address=context.address)
        if scope not in self._sessions:
            resolver = ScopedResolver(scope, self._seen_scopes)
            session = aiohttp.ClientSession(
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
            self._sessions[scope] = session, resolver
        return self._sessions[scope]

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """Close the sessions when this generator is closed: by :meth:`aclose`, or by an ending event loop."""
        try:
            yield
        finally:
            self._closed = True
            sessions = [session for session, _ in self._sessions.values()]
            self._sessions.clear()
            for session in sessions:
                await session.close()


def quote_url_path(path: str) -> str:
    """Percent-encode the characters of a path and query that a URL must not contain. Existing escapes are kept."""
    path, mark, query = path.partition("?")
    return _quote(path, _SAFE_IN_PATH) + mark + _quote(query, _SAFE_IN_QUERY)


def _quote(text: str, safe: str) -> str:
    return quote(_LONE_PERCENT.sub("%25", text), safe=safe)


def _resolve_redirect(current: URL, location: str, context: ErrorContext) -> URL:
    """Return the target of a redirect.

    Raises:
        ProtocolError: If the target is malformed, or if it is HTTP and the current address is HTTPS.
    """
    # aiohttp keeps bytes that are not UTF-8 as surrogates.
    text = location.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip().partition("#")[0]
    absolute = _ABSOLUTE_URL.fullmatch(text)
    try:
        if absolute is None:
            target = current.join(URL(quote_url_path(text), encoded=True)).with_user(None)
        else:
            origin = URL(absolute[1]).origin()
            target = URL(f"{origin}/{quote_url_path(absolute[2].removeprefix('/'))}", encoded=True)
        valid = target.scheme in ("http", "https") and bool(target.host) and bool(target.port)
    except ValueError:
        raise make_protocol_error(context, f"{current.origin()} redirects to a malformed address") from None
    if not valid:
        raise make_protocol_error(context, f"{current.origin()} redirects to an address that is not HTTP")
    if current.scheme == "https" and target.scheme != "https":
        raise make_protocol_error(
            context, f"{current.origin()} redirects to {target.origin()}, which is not encrypted: not followed"
        )
    return target


@contextlib.contextmanager
def translate_errors(
    context: ErrorContext, origin: str, timeouts: Timeouts, *, started: bool = False
) -> Iterator[None]:
    """Translate aiohttp's errors. Errors that show full addresses, which may contain secrets, are not chained.

    Args:
        context: Address and offset for the message.
        origin: Origin of the server that the request was sent to, for the message.
        timeouts: Deadlines, for the message.
        started: Whether the response has started to arrive. Defaults to False.
    """

    def make_error(kind: type[StoreError], detail: str) -> StoreError:
        # Of an address that is hidden, the origin may be a user name and a part of a password.
        server = "" if origin in context.address or context.address.endswith(f"://{MASK}") else f" ({origin})"
        return kind(f"{context.address}{server}: {detail}", address=context.address, offset=context.offset)

    try:
        yield
    except aiohttp.ClientSSLError as error:
        raise make_error(
            UntrustedHost,
            f"its certificate or TLS connection is not valid: {_describe(error)}. For your own certificate authority "
            "pass ca_file=",
        ) from error
    except (aiohttp.ClientConnectorDNSError, ForbiddenAddress) as error:
        cause = getattr(error, "os_error", error)
        if isinstance(cause, ForbiddenAddress):
            raise make_error(
                UntrustedHost,
                f"{cause}, which a redirect must not reach; if it is intended, name that address itself",
            ) from None
        raise make_error(Unreachable, f"its name does not resolve: {_describe(error)}") from error
    except aiohttp.ServerTimeoutError:
        raise StoreTimeout(
            f"waited {timeouts.connect:.1f} s for {context.address} (connecting): no response",
            address=context.address,
            offset=context.offset,
            waited=timeouts.connect,
            stage="connecting",
        ) from None
    except aiohttp.InvalidURL:
        raise make_error(ProtocolError, f"{origin} is not the address of a server") from None
    except aiohttp.ClientResponseError as error:
        raise make_error(ProtocolError, f"the response is not valid HTTP: {make_printable(error.message)}") from None
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        # aiohttp raises RuntimeError for a wait on a connection that was closed from this side.
        closed = started and str(error) == "Connection closed."
        if isinstance(error, StoreError) or (isinstance(error, RuntimeError) and not closed):
            raise
        if started:
            raise make_error(
                TransferInterrupted, f"the transfer broke off at byte {context.offset}: {_describe(error)}"
            ) from None
        raise make_error(Unreachable, f"no connection, or it was closed by the server: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    reason = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return make_printable(reason)


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _load_authorities(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file={ca_file!r} contains no readable certificates: {error}") from error
