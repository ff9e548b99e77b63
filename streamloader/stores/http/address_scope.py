"""Restrict redirects to addresses that the redirecting server could reach itself.

A program inside a network reaches addresses that the outside does not: other machines there, services of this machine,
the metadata service of a cloud. A server must not be able to make the program read from those addresses by a redirect,
and neither must a host name that another party wrote into a manifest. A redirect may therefore lead at most to the
scope of the servers before it:

==========================  =======================================
server                      addresses that it may redirect to
==========================  =======================================
at a public address         public
in a private network        public and private
on this machine             public, private and loopback
==========================  =======================================

No redirect may lead to link-local (where metadata services are), multicast, unspecified or reserved addresses. The
check applies to the address of the connection, so a name whose address changes between two look-ups cannot bypass it.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from typing_extensions import override

__all__ = ["AddressScope", "ForbiddenAddress", "ScopedResolver", "allowed_redirect_scope", "classify_address"]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122: "this host", which is loopback in practice


class AddressScope(enum.IntEnum):
    """Scope of an address. A larger value is closer to this machine."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    SPECIAL = 3  # link-local, multicast, unspecified, reserved


class ForbiddenAddress(OSError):
    """A host name resolves to an address outside the allowed scope."""


def classify_address(address: str) -> AddressScope:
    """Return the scope of a numeric address. An IPv6 address that embeds an IPv4 address has the scope of that one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if embedded is not None:
            return classify_address(str(embedded))
        if ip.is_site_local:
            return AddressScope.PRIVATE
    elif ip in _THIS_NETWORK:
        return AddressScope.SPECIAL
    if ip.is_loopback:
        return AddressScope.LOOPBACK
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return AddressScope.SPECIAL
    return AddressScope.PUBLIC if ip.is_global else AddressScope.PRIVATE


def allowed_redirect_scope(sender: AddressScope) -> AddressScope:
    """Return the largest scope that a server in the scope `sender` may redirect to."""
    return AddressScope.PRIVATE if sender is AddressScope.SPECIAL else sender


class ScopedResolver(AbstractResolver):
    """Resolve host names, and refuse addresses outside the allowed scope.

    Args:
        allowed: Largest scope allowed. All smaller ones are allowed, too.
        seen_scopes: Dictionary that the resolver fills: host name -> smallest scope that the name has resolved to.
    """

    def __init__(self, allowed: AddressScope, seen_scopes: dict[str, AddressScope]) -> None:
        self._allowed = allowed
        self._seen_scopes = seen_scopes
        self._resolver = ThreadedResolver()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host name.

        Raises:
            ForbiddenAddress: If one of the addresses is outside the allowed scope.
            OSError: If the name does not exist.
        """
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            self.check(result["host"], host)
        return results

    def check(self, address: str, host: str) -> None:
        """Check one numeric address, and record the scope of `host`.

        Raises:
            ForbiddenAddress: If the address is outside the allowed scope, or is malformed.
        """
        try:
            scope = classify_address(address)
        except ValueError:  # forms such as 127.1 or 2130706433, which each system interprets in its own way
            raise ForbiddenAddress(f"{host} is numeric, but not an address in its usual form") from None
        self._seen_scopes[host] = min(scope, self._seen_scopes.get(host, scope))
        if scope > self._allowed:
            name = scope.name.lower().replace("special", "link-local")
            raise ForbiddenAddress(f"{host} is {address}, a {name} address")

    @override
    async def close(self) -> None:
        """Do nothing: the resolver keeps no connections."""
