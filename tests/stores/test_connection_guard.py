"""Connections of libraries are watched, and refused if they lead from a public address into the user's network."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading

import pytest

from streamloader.stores.connection_guard import ConnectionGuard
from streamloader.stores.http.address_scope import AddressScope, ForbiddenAddress
from streamloader.testing.faults.redirects import override_address_scopes

SCOPES = {
    "127.0.0.2": AddressScope.PUBLIC,
    "127.0.0.3": AddressScope.PUBLIC,
    "127.0.0.4": AddressScope.PRIVATE,
    "127.0.0.5": AddressScope.SPECIAL,
    "127.0.0.6": AddressScope.SPECIAL,
}


@pytest.fixture(autouse=True)
def scopes():
    with override_address_scopes(SCOPES):
        yield


@pytest.fixture
def listener():
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


def connect(address, port):
    with socket.socket() as client:
        client.connect((address, port))


@pytest.mark.parametrize(
    ("first", "allowed"),
    [
        ("127.0.0.2", {"127.0.0.2", "127.0.0.3"}),
        ("127.0.0.4", {"127.0.0.2", "127.0.0.3", "127.0.0.4"}),
        ("127.0.0.1", {"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}),
        ("127.0.0.5", {"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}),
    ],
)
def test_the_first_address_limits_the_later_ones(listener, first, allowed):
    guard = ConnectionGuard()
    with guard.watch():
        connect(first, listener)
    guard = pickle.loads(pickle.dumps(guard))
    for address in ("127.0.0.1", *SCOPES):
        with guard.watch() as call:
            if address in allowed:
                connect(address, listener)
                assert call.refusal is None
            else:
                with pytest.raises(ForbiddenAddress, match=address):
                    connect(address, listener)
                assert call.refusal is not None


def test_names_and_other_ways_to_connect_are_checked_too(listener):
    guard = ConnectionGuard()
    with guard.watch():
        connect("127.0.0.2", listener)
        with pytest.raises(ForbiddenAddress):
            connect("localhost", listener)
        with pytest.raises(ForbiddenAddress), socket.socket() as client:
            client.connect_ex(("127.0.0.1", listener))
        with pytest.raises(ForbiddenAddress):
            socket.create_connection(("127.0.0.1", listener))
        with pytest.raises(ForbiddenAddress):
            asyncio.run(asyncio.open_connection("127.0.0.1", listener))


def test_other_code_is_not_watched(listener):
    guard = ConnectionGuard()
    with guard.watch():
        connect("127.0.0.2", listener)
        other = threading.Thread(target=connect, args=("127.0.0.1", listener))
        other.start()
        other.join()
    connect("127.0.0.1", listener)
    with pytest.raises(ForbiddenAddress), guard.watch():
        connect("127.0.0.1", listener)
