"""Which addresses a server may send us to.

A program on the inside of a network reaches what the outside does not: other machines there, services of this machine,
the metadata service of a cloud. A server must not be able to make it read from those by a redirect, nor may a name do
so that somebody else wrote into a manifest. Hence each redirect leads at most as near as the servers before it are:

========================  =======================================
a server that is          may send us to
========================  =======================================
public                    public addresses
in a private network      public and private addresses
on this machine           public, private and loopback addresses
========================  =======================================

and none leads to link-local (where metadata services are), multicast, unspecified or reserved addresses. What counts is
the address that the connection is made to, so a name whose address changes from one look-up to the next gains nothing.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

__all__ = ["Guard", "Reach", "TooNear", "may_send_to", "reach_of"]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122: "this host", which is loopback in practice


class Reach(enum.IntEnum):
    """How near an address is, from far to near."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    SPECIAL = 3  # link-local, multicast, unspecified, reserved


class TooNear(OSError):
    """A name leads to an address that is nearer than allowed."""


def reach_of(address: str) -> Reach:
    """Return how near a numeric IPv4 or IPv6 address is. IPv4 addresses in IPv6 ones count as what they stand for."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return reach_of(str(inner))
        if ip.is_site_local:
            return Reach.PRIVATE
    elif ip in _THIS_NETWORK:
        return Reach.SPECIAL
    if ip.is_loopback:
        return Reach.LOOPBACK
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return Reach.SPECIAL
    return Reach.PUBLIC if ip.is_global else Reach.PRIVATE


def may_send_to(sender: Reach) -> Reach:
    """Return the nearest addresses that a server may redirect to."""
    return Reach.PRIVATE if sender is Reach.SPECIAL else sender


class Guard(AbstractResolver):
    """Resolves names for connections that may go to `allowed` and farther.

    Args:
        allowed: the nearest.
        known: is filled in: name -> the farthest address it ever had.
    """

    def __init__(self, allowed: Reach, known: dict[str, Reach]) -> None:
        self._allowed = allowed
        self._known = known
        self._names = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            TooNear: one of them is nearer than allowed.
            OSError: there is no such name.
        """
        found = await self._names.resolve(host, port, family)
        for each in found:
            self.check(each["host"], host)
        return found

    def check(self, address: str, host: str) -> None:
        """Check one numeric address, and remember how near `host` is.

        Raises:
            TooNear: it is nearer than allowed, or no address.
        """
        try:
            reach = reach_of(address)
        except ValueError:  # 127.1, 2130706433: what the system makes of it is not for us to guess
            raise TooNear(f"{host} is a number, but no address in its usual form") from None
        self._known[host] = min(reach, self._known.get(host, reach))
        if reach > self._allowed:
            raise TooNear(f"{host} is {address}, a {reach.name.lower().replace('special', 'link-local')} address")

    async def close(self) -> None:
        """There is nothing to close."""
