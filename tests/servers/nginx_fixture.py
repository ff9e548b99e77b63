"""One nginx for all tests of this process."""

from __future__ import annotations

import os

import pytest
from canaries import canary
from servers.nginx import Missing, nginx

USER = "reader"


@pytest.fixture(scope="session")
def nginx_server():
    """Give a running nginx: `.url`, `.put(files)`; for /private the user is USER, the password a canary."""
    context = nginx(user=USER, password=canary("http-password"))
    try:
        server = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    context.__exit__(None, None, None)
