"""Fixtures for OpenSSH servers."""

from __future__ import annotations

import contextlib
import os

import pytest
from servers.sshd import Missing, sshd


@pytest.fixture(scope="session")
def ssh_server():
    """Provide a running OpenSSH server (`servers.sshd.Sshd`), shared by all tests, which must not stop or change it."""
    with started() as server:
        yield server


@pytest.fixture(scope="session")
def second_ssh_server():
    """Provide another shared server, with a different host key and different data."""
    with started() as server:
        yield server


@pytest.fixture
def own_ssh_server():
    """Provide a server that the test may stop, restart and change."""
    with started() as server:
        yield server


@contextlib.contextmanager
def started(**options):
    """Start a server (see `servers.sshd.sshd`). If that is not possible, skip the test, or fail it in CI."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(sshd(**options))
        except Missing as missing:
            if os.environ.get("CI"):
                pytest.fail(str(missing))
            pytest.skip(str(missing))
        yield server
