"""OpenSSH servers for all tests of this process."""

from __future__ import annotations

import os

import pytest
from servers.sshd import Missing, sshd


@pytest.fixture(scope="session")
def ssh_server():
    """Give a running OpenSSH server, see `servers.sshd.Sshd`. Leave it running and as it is."""
    yield from _server()


@pytest.fixture(scope="session")
def second_ssh_server():
    """Give another one, with another host key and other data."""
    yield from _server()


@pytest.fixture
def own_ssh_server():
    """Give one that a test may stop, restart and change."""
    yield from _server()


def _server():
    context = sshd()
    try:
        server = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    try:
        yield server
    finally:
        context.__exit__(None, None, None)
