"""Scopes of addresses, and what the resolver allows."""

from __future__ import annotations

import asyncio

import pytest

from streamloader.stores.http.address_scope import (
    AddressScope,
    ForbiddenAddress,
    ScopedResolver,
    allowed_redirect_scope,
    classify_address,
)
from streamloader.testing.faults.dns import override_host_names

PUBLIC, PRIVATE, LOOPBACK, SPECIAL = AddressScope

SCOPES = {
    "8.8.8.8": PUBLIC,
    "172.15.255.255": PUBLIC,
    "172.32.0.1": PUBLIC,
    "2606:4700::1111": PUBLIC,
    "10.1.2.3": PRIVATE,
    "172.16.0.1": PRIVATE,
    "172.31.255.255": PRIVATE,
    "192.168.1.1": PRIVATE,
    "100.64.0.1": PRIVATE,  # shared by the customers of a provider
    "100.100.100.200": PRIVATE,
    "198.18.0.1": PRIVATE,
    "fd00::1": PRIVATE,
    "fec0::1": PRIVATE,
    "127.0.0.1": LOOPBACK,
    "127.8.8.8": LOOPBACK,
    "::1": LOOPBACK,
    "169.254.169.254": SPECIAL,
    "fe80::1": SPECIAL,
    "fe80::1%2": SPECIAL,
    "0.0.0.0": SPECIAL,
    "0.1.2.3": SPECIAL,
    "::": SPECIAL,
    "224.0.0.1": SPECIAL,
    "ff02::1": SPECIAL,
    "255.255.255.255": SPECIAL,
    "240.0.0.1": SPECIAL,
    # IPv4 in disguise
    "::ffff:127.0.0.1": LOOPBACK,
    "::ffff:10.0.0.1": PRIVATE,
    "::ffff:169.254.169.254": SPECIAL,
    "::ffff:8.8.8.8": PUBLIC,
    "64:ff9b::7f00:1": LOOPBACK,
    "64:ff9b::808:808": PUBLIC,
    "2002:7f00:1::": LOOPBACK,
    "2002:a00:1::": PRIVATE,
}


@pytest.mark.parametrize("address", SCOPES)
def test_scopes_of_addresses(address):
    assert classify_address(address) is SCOPES[address]


def test_redirects_lead_to_the_scope_of_their_server_at_most():
    for sender in AddressScope:
        assert allowed_redirect_scope(sender) <= min(sender, LOOPBACK)
    assert allowed_redirect_scope(PUBLIC) is PUBLIC
    assert allowed_redirect_scope(LOOPBACK) is LOOPBACK
    assert allowed_redirect_scope(SPECIAL) is PRIVATE  # other machines of the same cable, not services of this one


@pytest.mark.parametrize("allowed", AddressScope)
def test_the_resolver_allows_smaller_scopes(allowed):
    async def look_up(name):
        return [result["host"] for result in await ScopedResolver(allowed, {}).resolve(name, 80)]

    with override_host_names(
        {f"{scope.name}.test": [address] for address, scope in SCOPES.items() if ":" not in address}
    ):
        for scope in AddressScope:
            if scope <= allowed:
                assert classify_address(asyncio.run(look_up(f"{scope.name}.test"))[0]) is scope
            else:
                with pytest.raises(ForbiddenAddress, match=rf"{scope.name}\.test is \d"):
                    asyncio.run(look_up(f"{scope.name}.test"))


def test_the_resolver_records_the_smallest_scope():
    seen = {}

    async def look_up():
        for _ in range(3):
            await ScopedResolver(SPECIAL, seen).resolve("a.test", 80)

    with override_host_names({"a.test": ["127.0.0.1", "8.8.8.8", "10.0.0.1"]}):
        asyncio.run(look_up())
    assert seen == {"a.test": PUBLIC}
