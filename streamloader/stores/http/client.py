"""Requests over HTTP as stores need them: pooled, redirects followed with care, errors translated."""

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

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    Interrupted,
    LimitExceeded,
    ProtocolFault,
    StoreError,
    StoreTimeout,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.http.address_scope import Guard, Reach, TooNear, may_send_to
from streamloader.stores.http.responses import Where, fault

__all__ = ["HttpClient", "Target", "legal", "translated"]

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_DRAINED: Final = 64 << 10  # bytes of a body that nobody wants: to read them is cheaper than another connection
_BUFFER: Final = 256 << 10  # bytes of an answer that may wait here
_HEADER: Final = 64 << 10  # bytes of one header line: signed addresses in Location are long
_DNS_SECONDS: Final = 10
_IDLE_SECONDS: Final = 15.0  # that an unused connection is kept

# RFC 3986. "%" is kept where it begins an escape, see `legal`.
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
_PATH: Final = "%/:@!$&'()*+,;=-._~"
_QUERY: Final = _PATH + "?"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it is spoken to.

    Attributes:
        root: its address in normal form, without a path or user.
        headers: for it alone.
        reach: how near it may be.
        ca_file: certificates of those who are trusted instead of the system's.
    """

    root: str
    headers: Mapping[str, str] = field(repr=False)
    reach: Reach
    ca_file: str | None


class HttpClient:
    """Sends requests to one server, and to those that it redirects to. It lives in one event loop.

    It closes with the loop, should nobody do so before.

    Raises:
        ConfigError: `ca_file` of the target has no certificates.
    """

    def __init__(self, target: Target, timeouts: Timeouts, limits: Limits) -> None:
        self.pid = os.getpid()
        self._target = target
        self._origin = URL(target.root)
        self._timeouts = timeouts
        self._limits = limits
        self._known: dict[str, Reach] = {}
        self._trust: ssl.SSLContext | bool = True if target.ca_file is None else _trust(target.ca_file)
        # By what they may reach: a connection of one is never used where less is allowed.
        self._sessions: dict[Reach, tuple[aiohttp.ClientSession, Guard]] = {}
        self._keeper = self._until_the_end()
        self._closed = False

    async def open(self) -> None:
        """Have it closed with the event loop; nothing is connected yet."""
        await anext(self._keeper)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._keeper.aclose()

    @contextlib.asynccontextmanager
    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], where: Where
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, follow redirects, and yield the answer, whatever its status.

        Raises:
            StoreError: there is no answer.
        """
        response = await self._follow(method, self._target.root + "/" + legal(path), headers, where)
        try:
            yield response
        finally:
            response.close()  # a connection whose answer was taken to its end is back in the pool already

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Take a body that nobody wants, so that its connection can be used again; not if it is long."""
        if response.content_length is None or response.content_length > _DRAINED:
            response.close()
            return
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await response.read()

    async def _follow(self, method: str, url: str, headers: Mapping[str, str], where: Where) -> aiohttp.ClientResponse:
        at = URL(url, encoded=True)
        allowed, ours, seen = self._target.reach, True, {at}
        while True:
            response = await self._send(method, at, headers, allowed, where, ours=ours)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            try:
                await self.drain(response)
                to = _redirected(at, response.headers["Location"], where)
            finally:
                response.close()
            if to in seen:
                raise fault(where, f"{to.origin()} redirects in a circle")
            if len(seen) > self._limits.redirects:
                raise LimitExceeded(
                    f"{where.address}: redirected more than {self._limits.redirects} times; Limits(redirects=...)",
                    address=where.address,
                    offset=where.offset,
                )
            seen.add(to)
            if to.origin() != self._origin:
                ours = False  # from here on, and for good: credentials are for those addresses that the user wrote
            if not ours:
                allowed = min(allowed, may_send_to(self._known.get(at.raw_host or "", Reach.PUBLIC)))
            at = to

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], allowed: Reach, where: Where, *, ours: bool
    ) -> aiohttp.ClientResponse:
        session, guard = self._session(allowed, where)
        sent = {"Accept": "*/*", "User-Agent": "streamloader", **(self._target.headers if ours else {})}
        sent.update(headers)
        sent["Accept-Encoding"] = "identity"
        with translated(where, str(url.origin()), self._timeouts):
            if url.raw_host is not None and _is_numeric(url.raw_host):
                guard.check(url.raw_host, url.raw_host)  # only names are looked up
            return await session.request(method, url, headers=sent, allow_redirects=False)

    def _session(self, allowed: Reach, where: Where) -> tuple[aiohttp.ClientSession, Guard]:
        if self._closed:
            raise ClosedError(f"the store of {where.address} was closed", address=where.address)
        if allowed not in self._sessions:
            guard = Guard(allowed, self._known)
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=self._limits.connections,
                    keepalive_timeout=_IDLE_SECONDS,
                    ttl_dns_cache=_DNS_SECONDS,
                    resolver=guard,
                    ssl=self._trust,
                ),
                # Every other wait is limited by the store.
                timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect or None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=_BUFFER,
                max_line_size=_HEADER,
                max_field_size=_HEADER,
            )
            self._sessions[allowed] = session, guard
        return self._sessions[allowed]

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        """Close the sessions when this is closed: by us, or by an event loop that ends."""
        try:
            yield
        finally:
            self._closed = True
            sessions = [session for session, _ in self._sessions.values()]
            self._sessions.clear()
            for session in sessions:
                await session.close()


def legal(path: str) -> str:
    """Return a path and query with everything encoded that may not stand in a URL; escapes stay as they are."""
    path, mark, query = path.partition("?")
    return _escaped(path, _PATH) + mark + _escaped(query, _QUERY)


def _escaped(text: str, safe: str) -> str:
    return quote(_ESCAPE.sub("%25", text), safe=safe)


def _redirected(at: URL, location: str, where: Where) -> URL:
    """Return where a redirect leads.

    Raises:
        ProtocolFault: to nowhere, or from https to something less safe.
    """
    # As bytes that came: aiohttp keeps what is not UTF-8 as surrogates.
    text = location.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip().partition("#")[0]
    found = _ABSOLUTE.fullmatch(text)
    try:
        if found is None:
            to = at.join(URL(legal(text), encoded=True)).with_user(None)
        else:
            to = URL(f"{URL(found[1]).origin()}/{legal(found[2].removeprefix('/'))}", encoded=True)
        known = to.scheme in ("http", "https") and bool(to.host) and bool(to.port)
    except ValueError:
        raise fault(where, f"{at.origin()} redirects to what is no address") from None
    if not known:
        raise fault(where, f"{at.origin()} redirects to what is no HTTP address")
    if at.scheme == "https" and to.scheme != "https":
        raise fault(where, f"{at.origin()} redirects to {to.origin()}, where nothing is encrypted: not followed")
    return to


@contextlib.contextmanager
def translated(where: Where, origin: str, timeouts: Timeouts, *, begun: bool = False) -> Iterator[None]:
    """Turn aiohttp's errors into ours. Those that show whole addresses, with what is secret in them, are not chained.

    Args:
        where: for the error.
        origin: of the server that is spoken to, for the message.
        timeouts: for the message.
        begun: whether the answer has begun to come.
    """

    def failed(kind: type[StoreError], what: str) -> StoreError:
        server = "" if origin in where.address else f" ({origin})"
        return kind(f"{where.address}{server}: {what}", address=where.address, offset=where.offset)

    try:
        yield
    except aiohttp.ClientSSLError as error:
        raise failed(
            UntrustedHost,
            f"its certificate or TLS does not hold: {_reason(error)}. For a certificate authority of your own give "
            "ca_file=",
        ) from error
    except (aiohttp.ClientConnectorDNSError, TooNear) as error:
        cause = getattr(error, "os_error", error)
        if isinstance(cause, TooNear):
            raise failed(
                UntrustedHost, f"{cause}, to which it may not send us; if that is meant, name that address instead"
            ) from None
        raise failed(Unreachable, f"its name does not resolve: {_reason(error)}") from error
    except aiohttp.ServerTimeoutError as error:
        raise StoreTimeout(
            f"waited {timeouts.connect:.1f} s for {where.address} (connecting): no answer",
            address=where.address,
            offset=where.offset,
            waited=timeouts.connect,
            stage="connecting",
        ) from error
    except aiohttp.InvalidURL:
        raise failed(ProtocolFault, f"{origin} is no address of a server") from None
    except aiohttp.ClientResponseError as error:
        raise failed(ProtocolFault, f"what it sent is no HTTP: {error.message[:200]}") from None
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        # aiohttp has no error of its own for waiting on a connection that was closed from this side.
        lost = begun and str(error) == "Connection closed."
        if isinstance(error, StoreError) or (isinstance(error, RuntimeError) and not lost):
            raise
        if begun:
            what = f"broke off at byte {where.offset}: {_reason(error)}"
            raise failed(Interrupted, what) from None
        raise failed(Unreachable, f"no connection, or it hung up: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    reason = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return reason[:200]


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file={ca_file!r} has no certificates that can be read: {error}") from error
