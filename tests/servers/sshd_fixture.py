"""OpenSSH servers for all tests of this process."""

from __future__ import annotations

import contextlib
import os

import pytest
from servers.sshd import Missing, sshd


@pytest.fixture(scope="session")
def ssh_server():
    """Give a running OpenSSH server, see `servers.sshd.Sshd`. Leave it running and as it is."""
    with started() as server:
        yield server


@pytest.fixture(scope="session")
def second_ssh_server():
    """Give another one, with another host key and other data."""
    with started() as server:
        yield server


@pytest.fixture
def own_ssh_server():
    """Give one that a test may stop, restart and change."""
    with started() as server:
        yield server


@contextlib.contextmanager
def started(**options):
    """Start a server (see `servers.sshd.sshd`), or say why there is none."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(sshd(**options))
        except Missing as missing:
            if os.environ.get("CI"):
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        yield server
