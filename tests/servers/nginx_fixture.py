"""Fixture for one nginx per test process."""

from __future__ import annotations

import os

import pytest
from canaries import canary
from servers.nginx import Missing, nginx

USER = "reader"


@pytest.fixture(scope="session")
def nginx_server():
    """Provide a running nginx, with `.url` and `.put(files)`. /private needs the user USER and a canary as password."""
    context = nginx(user=USER, password=canary("http-password"))
    try:
        server = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    context.__exit__(None, None, None)
