"""One js-ipfs for all tests of this process."""

from __future__ import annotations

import os

import pytest
from servers.jsipfs import Missing, jsipfs


@pytest.fixture(scope="session")
def jsipfs_node():
    """Give a running IPFS node: `.rpc`, `.gateway`, `.add(files)`, `.put(block, codec)`."""
    context = jsipfs()
    try:
        node = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield node
    context.__exit__(None, None, None)
