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
    "198.18.0.1": PRIVATE,
    "fd00::1": PRIVATE,
    "fec0::1": PRIVATE,
    "127.0.0.1": LOOPBACK,
    "127.8.8.8": LOOPBACK,
    "::1": LOOPBACK,
    "169.254.169.254": SPECIAL,
    "fe80::1": SPECIAL,
    "fe80::1%2": SPECIAL,
    # Services of clouds for their machines, and the networks that these are in.
    "100.64.0.1": SPECIAL,  # shared by the customers of a provider
    "100.100.100.200": SPECIAL,
    "100.127.255.255": SPECIAL,
    "168.63.129.16": SPECIAL,
    "192.0.0.1": SPECIAL,
    "192.0.0.192": SPECIAL,
    "192.0.0.255": SPECIAL,
    "fd00:42::42": SPECIAL,
    "fd00:c1::a9fe:a9fe": SPECIAL,
    "fd00:ec2::23": SPECIAL,
    "fd00:ec2::254": SPECIAL,
    "fd20:ce::254": SPECIAL,
    "100.63.255.255": PUBLIC,
    "100.128.0.1": PUBLIC,
    "168.63.129.17": PUBLIC,
    "192.0.1.1": PUBLIC,
    "fd00:ec3::254": PRIVATE,
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
    "2002:a83f:8110::1": SPECIAL,
    "::ffff:168.63.129.16": SPECIAL,
    "64:ff9b::a83f:8110": SPECIAL,
    "64:ff9b:1::808:808": PRIVATE,  # a network's own translator
    "64:ff9b:1::7f00:1": LOOPBACK,
    "64:ff9b:1::c000:c0": SPECIAL,
    "::7f00:1": SPECIAL,
    "::ffff:0:7f00:1": SPECIAL,
    "2606:4700::5efe:7f00:1": LOOPBACK,  # ISATAP
    "2606:4700::200:5efe:a9fe:a9fe": SPECIAL,
    "2606:4700::5efe:808:808": PUBLIC,
    "2001:0:808:808::f7f7:f7f7": PUBLIC,  # Teredo; the client is 8.8.8.8
    "2001:0:808:808::80ff:fffe": LOOPBACK,
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


def look_up_all(answers, pinned_hosts, allowed=SPECIAL):
    """Resolve a name once for each answer. Return the addresses, or the error."""

    async def look_up():
        resolver = ScopedResolver(allowed, {}, pinned_hosts)
        try:
            return [result["host"] for result in await resolver.resolve("a.test", 80)]
        except ForbiddenAddress as error:
            return error.pinned

    outcomes = []
    for answer in answers:
        with override_host_names({"a.test": [answer]}):
            outcomes.append(asyncio.run(look_up()))
    return outcomes


@pytest.mark.parametrize("first", ["8.8.8.8", "10.0.0.1", "127.0.0.1", "169.254.0.1"])
@pytest.mark.parametrize("later", ["8.8.4.4", "10.0.0.2", "127.0.0.2", "169.254.0.2"])
def test_the_first_address_of_a_named_host_decides_about_later_ones(first, later):
    pinned_hosts = {"a.test": None}
    outcomes = look_up_all([first, later, first], pinned_hosts)
    before, after = classify_address(first), classify_address(later)
    allowed = after <= before and (before, after) != (SPECIAL, LOOPBACK)
    assert outcomes == [[first], [later] if allowed else before, [first]]
    assert pinned_hosts == {"a.test": before}


def test_other_hosts_are_not_pinned():
    assert look_up_all(["8.8.8.8", "127.0.0.1"], {"b.test": None}) == [["8.8.8.8"], ["127.0.0.1"]]


@pytest.mark.parametrize("inner", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "168.63.129.16"])
def test_only_the_most_public_addresses_of_an_answer_are_used(inner, monkeypatch):
    # Otherwise a client that cannot connect to the first address would try the second one.
    async def look_up(self, host, port, family):
        return [{"host": address} for address in (inner, "8.8.8.8", inner)]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", look_up)
    pinned_hosts = {"a.test": None}

    async def resolve(allowed):
        return [result["host"] for result in await ScopedResolver(allowed, {}, pinned_hosts).resolve("a.test", 80)]

    assert asyncio.run(resolve(SPECIAL)) == ["8.8.8.8"]
    assert pinned_hosts == {"a.test": PUBLIC}
