"""Decide where redirects of HTTP servers may lead: one rule for all stores that speak HTTP.

A redirect leads to http or https, never from https to http, and only to addresses that the servers before it could
reach themselves (:mod:`streamloader.stores.http.address_scope`). Credentials and headers of the user go to the origin
that the user named and to no other; once a redirect has left it, they are not sent any more, even if a later one leads
back. Text that another origin sends is not shown in errors: it may come from a page inside the user's network.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from streamloader.stores.addresses import check_host_name, is_numeric_host
from streamloader.stores.environment import find_proxy
from streamloader.stores.http.address_scope import (
    AddressScope,
    PinnedHosts,
    ScopedResolver,
    allowed_redirect_scope,
)
from streamloader.stores.http.responses import ErrorContext, make_protocol_error

__all__ = ["REDIRECT_STATUSES", "RedirectChain", "ScopedSessions", "quote_url_path", "resolve_redirect"]

REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
# RFC 3986. A "%" that begins an escape is kept, see `quote_url_path`.
_MAX_COOKIES: Final = 50  # of one origin, as RFC 6265 recommends at least
_MAX_COOKIE_CHARACTERS: Final = 4096
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)(.*)", re.DOTALL)
_SAFE_IN_PATH: Final = "%/:@!$&'()*+,;=-._~"
_SAFE_IN_QUERY: Final = _SAFE_IN_PATH + "?"


class ScopedSessions:
    """Sessions of aiohttp, one for each allowed scope of addresses.

    A connection of one scope is therefore never used for a request that allows only a smaller one.

    Args:
        make_session: Function that creates a session with a given resolver.
        pinned_hosts: Hosts that the user named, with the scopes of their first addresses. They outlive the sessions.

    Attributes:
        seen_scopes: Host name -> smallest scope that it has resolved to.
    """

    def __init__(
        self, make_session: Callable[[ScopedResolver], aiohttp.ClientSession], pinned_hosts: PinnedHosts
    ) -> None:
        self._make_session = make_session
        self._pinned_hosts = pinned_hosts
        self.seen_scopes: dict[str, AddressScope] = {}
        self._sessions: dict[AddressScope, tuple[aiohttp.ClientSession, ScopedResolver]] = {}
        self._proxies: dict[URL, dict[str, Any]] = {}
        self._proxy_session: aiohttp.ClientSession | None = None
        self._allowed_hosts: set[tuple[AddressScope, str]] = set()  # hosts that are numbers

    def start(self, url: URL, scope: AddressScope) -> RedirectChain:
        """Return the chain of a request that begins at an address that the user named.

        Args:
            url: Address of the request.
            scope: Largest scope of addresses that the host may have.
        """
        host = url.raw_host or ""
        if not is_numeric_host(host):
            self._pinned_hosts.setdefault(host, None)
        return RedirectChain(url, scope, self.seen_scopes)

    def select(self, chain: RedirectChain) -> tuple[aiohttp.ClientSession, dict[str, Any]]:
        """Return the session for the current address of a request, and the arguments of the request for its proxy.

        A proxy of the user's environment decides which names it connects to.

        Raises:
            ForbiddenAddress: If the host is a number outside the allowed scope.
            ConfigError: If the environment names a proxy that is not one for HTTP.
        """
        if chain.scope not in self._sessions:
            resolver = ScopedResolver(chain.scope, self.seen_scopes, self._pinned_hosts)
            self._sessions[chain.scope] = self._make_session(resolver), resolver
        session, resolver = self._sessions[chain.scope]
        host = chain.url.raw_host
        if host is not None and is_numeric_host(host) and (chain.scope, host) not in self._allowed_hosts:
            resolver.check(host, host)  # aiohttp resolves names only
            self._allowed_hosts.add((chain.scope, host))
        proxy = self._find_proxy(chain.url.origin())
        if not proxy:
            return session, proxy
        if self._proxy_session is None:
            self._proxy_session = self._make_session(ScopedResolver(AddressScope.SPECIAL, {}))
        return self._proxy_session, proxy

    def _find_proxy(self, origin: URL) -> dict[str, Any]:
        """Return the arguments of aiohttp for the proxy of an origin. Empty if there is none."""
        found = self._proxies.get(origin)
        if found is None:
            found, proxy = {}, find_proxy(str(origin))
            if proxy is not None:
                url = URL(proxy)
                found = {"proxy": url.with_user(None)}
                if url.user is not None:
                    login = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode("ascii")
                    # aiohttp sends it to the proxy alone, as Proxy-Authorization.
                    found["proxy_headers"] = {"Authorization": f"Basic {login}"}
            self._proxies[origin] = found
        return found

    async def close(self) -> None:
        """Close all sessions."""
        sessions = [session for session, _ in self._sessions.values()]
        if self._proxy_session is not None:
            sessions.append(self._proxy_session)
        self._sessions.clear()
        self._proxy_session = None
        async with contextlib.AsyncExitStack() as stack:
            for session in sessions:
                stack.push_async_callback(session.close)


class RedirectChain:
    """The addresses of one request: the one that the user named, and those that it was redirected to.

    Args:
        url: First address.
        scope: Largest scope of addresses that its host may have.
        seen_scopes: Host name -> smallest scope that it has resolved to.

    Attributes:
        url: Current address.
        scope: Largest scope of addresses that the current host may have.
        trusted: Whether all addresses so far have the first one's scheme, host and port.
        visited: All addresses so far, with the cookies that were sent to them.
    """

    def __init__(self, url: URL, scope: AddressScope, seen_scopes: dict[str, AddressScope]) -> None:
        self.url = url
        self.scope = scope
        self.trusted = True
        self.visited = {(url, "")}
        self._cookies: dict[URL, dict[str, str]] = {}  # of this request alone, by origin
        self._first = url
        self._seen_scopes = seen_scopes

    def move_to(self, target: URL) -> None:
        """Continue at the target of a redirect."""
        if target.origin() != self._first.origin():
            self.trusted = False  # for all later redirects, too: only the server that the user named gets credentials
        if not self.trusted:
            sender = self._seen_scopes.get(self.url.raw_host or "", AddressScope.PUBLIC)
            self.scope = min(self.scope, allowed_redirect_scope(sender))
        self.url = target
        self.visited.add((target, self.cookies))

    @property
    def cookies(self) -> str:
        """The Cookie header for the current address: what its own origin has set during this request."""
        return "; ".join(f"{name}={value}" for name, value in self._cookies.get(self.url.origin(), {}).items())

    def has_visited(self, target: URL) -> bool:
        """Return whether the same request was sent before: to the same address, with the same cookies."""
        cookies = self._cookies.get(target.origin(), {})
        return (target, "; ".join(f"{name}={value}" for name, value in cookies.items())) in self.visited

    def keep_cookies(self, response: aiohttp.ClientResponse) -> None:
        """Keep the cookies of a redirect for later addresses of the same scheme, host and port."""
        kept = self._cookies.setdefault(self.url.origin(), {})
        for name, cookie in response.cookies.items():
            kept.pop(name, None)
            if cookie["max-age"] != "0" and len(kept) < _MAX_COOKIES and len(cookie.value) <= _MAX_COOKIE_CHARACTERS:
                kept[name] = cookie.coded_value


def resolve_redirect(current: URL, location: str, context: ErrorContext) -> URL:
    """Return the target of a redirect.

    Raises:
        ProtocolError: If the target is malformed, or if it is HTTP and the current address is HTTPS.
    """
    # aiohttp keeps bytes that are not UTF-8 as surrogates.
    text = location.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip().partition("#")[0]
    absolute = _ABSOLUTE_URL.fullmatch(text)
    scheme = (absolute[1].partition(":")[0] if absolute else current.scheme).lower()
    if scheme not in ("http", "https"):
        raise make_protocol_error(context, f"{current.origin()} redirects to {scheme[:20]}://, which is not HTTP")
    try:
        if absolute is None:
            target = current.join(URL(quote_url_path(text), encoded=True)).with_user(None)
        else:
            origin = URL(absolute[1]).origin()
            target = URL(f"{origin}/{quote_url_path(absolute[2].removeprefix('/'))}", encoded=True)
        valid = target.scheme in ("http", "https") and bool(target.host) and bool(target.port)
        if valid:
            check_host_name(target.raw_host or "")
    except ValueError:
        raise make_protocol_error(context, f"{current.origin()} redirects to a malformed address") from None
    if not valid:
        raise make_protocol_error(context, f"{current.origin()} redirects to an address that is not HTTP")
    if current.scheme == "https" and target.scheme != "https":
        raise make_protocol_error(
            context, f"{current.origin()} redirects to {target.origin()}, which is not encrypted: not followed"
        )
    return target


def quote_url_path(path: str) -> str:
    """Percent-encode the characters of a path and query that a URL must not contain. Existing escapes are kept."""
    path, mark, query = path.partition("?")
    return _quote(path, _SAFE_IN_PATH) + mark + _quote(query, _SAFE_IN_QUERY)


def _quote(text: str, safe: str) -> str:
    return quote(_LONE_PERCENT.sub("%25", text), safe=safe)
