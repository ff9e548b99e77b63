"""Fixture for one SeaweedFS per test process."""

from __future__ import annotations

import os

import pytest
from servers.seaweed import Missing, seaweed


@pytest.fixture(scope="session")
def seaweed_server():
    """Provide a running S3 server, with `.endpoint`, `.bucket()`, `.options(keys)` and `.direct(bucket)`."""
    try:
        context = seaweed()
        server = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    context.__exit__(None, None, None)
