"""One SeaweedFS for all tests of this process."""

from __future__ import annotations

import os

import pytest
from servers.seaweed import Missing, seaweed


@pytest.fixture(scope="session")
def seaweed_server():
    """Give a running S3 server: `.endpoint`, `.bucket()`, `.options(keys)`, `.direct(bucket)`."""
    try:
        context = seaweed()
        server = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    context.__exit__(None, None, None)
