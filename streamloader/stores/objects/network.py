"""Restrict the servers that obstore connects to.

obstore's HTTP client follows redirects to any address, has no setting against it, and takes along every header except
Authorization: the session token too. It resolves names by itself, on its own threads. Its proxy settings, however,
decide about each connection, so that they serve as a fence:

- For ``https://`` servers, the proxy is an address where nothing can listen, and the server itself is exempt from it. A
  redirect to another host ends there. Subdomains and other ports of the server are exempt as well: their certificate
  proves that they belong to it, and a service inside the user's network has none for such a name.
- For ``http://`` servers, the proxy is the server itself, under the address that its name had at first. HTTP servers
  accept requests in the form for proxies (RFC 9112, section 3.2.2). Whatever a redirect or a name server says, all
  requests go to that address and port.
- A proxy of the user's environment receives all requests, those after redirects too, and decides.

The servers that obstore requests credentials from are exempt; that includes the metadata service of a cloud only if the
environment names it.
"""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from streamloader.errors import Unreachable, UntrustedHost
from streamloader.stores.addresses import is_numeric_host
from streamloader.stores.environment import find_proxy

if TYPE_CHECKING:
    from streamloader.stores.http.address_scope import PinnedHosts

__all__ = ["FENCE", "find_server_address", "restrict_connections"]

FENCE: Final = "127.0.0.1:0"
"""Proxy for connections that are not allowed. No program can listen on port 0."""
_PROBE_TIMEOUT_S: Final = 2.0


async def find_server_address(endpoint: str, pinned_hosts: PinnedHosts, address: str) -> str | None:
    """Return the numeric address of an ``http://`` server, or None if obstore may resolve its name.

    Args:
        endpoint: Address of the server.
        pinned_hosts: Scopes of the first addresses that the name resolved to. The scope is added if it is missing.
        address: Address of the bucket, for messages.

    Raises:
        UntrustedHost: If the name had a public address before, and has one inside now.
        Unreachable: If the name does not resolve.
    """
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme != "http" or find_proxy(endpoint) is not None:
        return None
    if is_numeric_host(host):
        return host
    candidates = await _resolve(host, parts.port or 80, pinned_hosts, address)
    if len(candidates) > 1:  # such as ::1 and 127.0.0.1, with a server on one of them only
        for candidate in candidates:
            if await _accepts_connections(candidate, parts.port or 80):
                return candidate
    return candidates[0]


def restrict_connections(endpoint: str, server_address: str | None, other_hosts: Iterable[str]) -> dict[str, str]:
    """Return client options with which obstore connects to the named servers only.

    Args:
        endpoint: Address of the server.
        server_address: Result of :func:`find_server_address`.
        other_hosts: Hosts from which obstore requests credentials.
    """
    parts = urlsplit(endpoint)
    exempt = [host for host in other_hosts if host]
    proxy = find_proxy(endpoint)
    if proxy is not None:
        return _make_options(proxy, [host for host in exempt if urllib.request.proxy_bypass(host)])
    if server_address is not None:
        host = f"[{server_address}]" if ":" in server_address else server_address
        return _make_options(f"http://{host}:{parts.port or 80}", exempt)
    return _make_options(f"http://{FENCE}", [parts.hostname or "", *exempt])


def _make_options(proxy: str, exempt: Iterable[str]) -> dict[str, str]:
    excludes = ",".join(dict.fromkeys(exempt))
    return {"proxy_url": proxy, "proxy_excludes": excludes} if excludes else {"proxy_url": proxy}


async def _resolve(host: str, port: int, pinned_hosts: PinnedHosts, address: str) -> list[str]:
    """Return the addresses of a name, without those that the first ones forbid."""
    # Imported here, because aiohttp is not needed for the servers of the clouds.
    from streamloader.stores.http.address_scope import AddressScope, ForbiddenAddress, ScopedResolver
    from streamloader.stores.http.client import describe_forbidden

    pinned_hosts.setdefault(host, None)
    try:
        results = await ScopedResolver(AddressScope.SPECIAL, {}, pinned_hosts).resolve(host, port)
    except ForbiddenAddress as error:
        raise UntrustedHost(f"{address}: {describe_forbidden(error)}", address=address) from None
    except OSError as error:
        raise Unreachable(f"{address}: the server's name cannot be resolved", address=address) from error
    return [result["host"] for result in results]


async def _accepts_connections(address: str, port: int) -> bool:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await loop.sock_connect(probe, (address, port))
        except (OSError, TimeoutError):
            return False
    return True
