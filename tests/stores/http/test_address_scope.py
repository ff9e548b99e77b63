"""Which addresses are near, and what a guard lets through."""

from __future__ import annotations

import asyncio

import pytest

from streamloader.stores.http.address_scope import Guard, Reach, TooNear, may_send_to, reach_of
from streamloader.testing.faults.dns import host_names

PUBLIC, PRIVATE, LOOPBACK, SPECIAL = Reach

NEAR = {
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


@pytest.mark.parametrize("address", NEAR)
def test_how_near_an_address_is(address):
    assert reach_of(address) is NEAR[address]


def test_nobody_sends_nearer_than_he_is():
    for sender in Reach:
        assert may_send_to(sender) <= min(sender, LOOPBACK)
    assert may_send_to(PUBLIC) is PUBLIC
    assert may_send_to(LOOPBACK) is LOOPBACK
    assert may_send_to(SPECIAL) is PRIVATE  # other machines of the same cable, not services of this one


@pytest.mark.parametrize("allowed", Reach)
def test_a_guard_lets_through_what_is_far_enough(allowed):
    async def look_up(name):
        return [found["host"] for found in await Guard(allowed, {}).resolve(name, 80)]

    with host_names({f"{reach.name}.test": [address] for address, reach in NEAR.items() if ":" not in address}):
        for reach in Reach:
            if reach <= allowed:
                assert reach_of(asyncio.run(look_up(f"{reach.name}.test"))[0]) is reach
            else:
                with pytest.raises(TooNear, match=rf"{reach.name}\.test is \d"):
                    asyncio.run(look_up(f"{reach.name}.test"))


def test_a_guard_remembers_the_farthest():
    known = {}

    async def look_up():
        for _ in range(3):
            await Guard(SPECIAL, known).resolve("a.test", 80)

    with host_names({"a.test": ["127.0.0.1", "8.8.8.8", "10.0.0.1"]}):
        asyncio.run(look_up())
    assert known == {"a.test": PUBLIC}
