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

No redirect may lead to link-local, multicast, unspecified or reserved addresses, nor to the networks where clouds keep
the services of their machines (metadata with credentials, the host's agent), even if these count as public or private
elsewhere: 100.64.0.0/10, 168.63.129.16, 192.0.0.0/24, fd00:ec2::/32 and others. An IPv6 address that embeds an IPv4
address is at least as far inside as that one.

The check applies to the address of the connection, so a name whose address changes between two look-ups cannot bypass
it. The name of the server itself, which the user wrote, may have any address, but its first one decides about later
ones (:data:`PinnedHosts`): a name that was public is refused when it becomes private, loopback or link-local (DNS
rebinding), and of several addresses in one answer only the most public ones are used.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from typing import Final, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from typing_extensions import override

__all__ = [
    "AddressScope",
    "ForbiddenAddress",
    "PinnedHosts",
    "ScopedResolver",
    "allowed_redirect_scope",
    "classify_address",
]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64: Final = ipaddress.ip_network("64:ff9b:1::/48")  # RFC 8215
_ISATAP_IDS: Final = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: these 32 bits, then an IPv4 address
_SPECIAL_NETWORKS: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # RFC 1122: "this host", which is loopback in practice
        "100.64.0.0/10",  # shared by the customers of a provider; Alibaba: 100.100.100.200
        "168.63.129.16/32",  # Azure: the agent of the host
        "192.0.0.0/24",  # IETF protocol assignments; Oracle: 192.0.0.192
        "fd00:42::/32",  # Scaleway: fd00:42::42
        "fd00:c1::/32",  # Oracle: fd00:c1::a9fe:a9fe
        "fd00:ec2::/32",  # Amazon: fd00:ec2::254 and others
        "fd20:ce::/32",  # Google: fd20:ce::254
    )
)


class AddressScope(enum.IntEnum):
    """Scope of an address. A larger value is closer to this machine."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    SPECIAL = 3  # link-local, multicast, unspecified, reserved, services of clouds


PinnedHosts: TypeAlias = "dict[str, AddressScope | None]"
"""Hosts that the user named -> scope of their first addresses. None if they were not resolved yet."""


class ForbiddenAddress(OSError):
    """A host name resolves to an address outside the allowed scope.

    Args:
        text: Description of the address.
        pinned: Scope of the addresses that the same name had before, if these forbid it. Defaults to None.

    Attributes:
        pinned: Scope of the addresses before, or None.
    """

    def __init__(self, text: str, pinned: AddressScope | None = None) -> None:
        super().__init__(text)
        self.pinned = pinned


def classify_address(address: str) -> AddressScope:
    """Return the scope of a numeric address. An IPv6 address that embeds an IPv4 address has the scope of that one."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _SPECIAL_NETWORKS):
        return AddressScope.SPECIAL
    if isinstance(ip, ipaddress.IPv6Address):
        last_bits = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is not None or ip in _NAT64:
            return classify_address(str(embedded or last_bits))
        if ip in _LOCAL_NAT64:
            return max(AddressScope.PRIVATE, classify_address(str(last_bits)))
        if (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP_IDS:
            return max(_classify_plain(ip), classify_address(str(last_bits)))
    return _classify_plain(ip)


def _classify_plain(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> AddressScope:
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return AddressScope.PRIVATE
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
        pinned_hosts: Hosts whose first addresses decide about later ones; the resolver adds the scopes. Defaults to
            none.
    """

    def __init__(
        self, allowed: AddressScope, seen_scopes: dict[str, AddressScope], pinned_hosts: PinnedHosts | None = None
    ) -> None:
        self._allowed = allowed
        self._seen_scopes = seen_scopes
        self._pinned_hosts: PinnedHosts = {} if pinned_hosts is None else pinned_hosts
        self._resolver = ThreadedResolver()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host name that are within the allowed scope.

        Raises:
            ForbiddenAddress: If none of the addresses is.
            OSError: If the name does not exist.
        """
        results = await self._resolver.resolve(host, port, family)
        # The first look-up of a pinned host sets the scope of all later ones.
        if results and host in self._pinned_hosts and self._pinned_hosts[host] is None:
            self._pinned_hosts[host] = min(_classify(result["host"], host) for result in results)
        allowed: list[ResolveResult] = []
        refusal: ForbiddenAddress | None = None
        for result in results:
            try:
                self.check(result["host"], host)
            except ForbiddenAddress as error:
                refusal = error
            else:
                allowed.append(result)
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    def check(self, address: str, host: str) -> None:
        """Check one numeric address, and record the scope of `host`.

        Raises:
            ForbiddenAddress: If the address is outside the allowed scope, or is malformed.
        """
        scope = _classify(address, host)
        self._seen_scopes[host] = min(scope, self._seen_scopes.get(host, scope))
        if scope > self._allowed:
            raise ForbiddenAddress(f"{host} is {address}, a {_describe(scope)} address")
        pinned = self._pinned_hosts.get(host)
        # A link-local name may stay one, or become private or public, but not loopback.
        moves_to_loopback = pinned is AddressScope.SPECIAL and scope is AddressScope.LOOPBACK
        if pinned is not None and (scope > pinned or moves_to_loopback):
            raise ForbiddenAddress(f"{host} is {address}, a {_describe(scope)} address", pinned)

    @override
    async def close(self) -> None:
        """Do nothing: the resolver keeps no connections."""


def _describe(scope: AddressScope) -> str:
    return scope.name.lower().replace("special", "link-local or reserved")


def _classify(address: str, host: str) -> AddressScope:
    try:
        return classify_address(address)
    except ValueError:  # forms such as 127.1 or 2130706433, which each system interprets in its own way
        raise ForbiddenAddress(f"{host} is numeric, but not an address in its usual form") from None
