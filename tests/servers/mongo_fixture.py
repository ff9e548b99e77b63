"""The servers of MongoDB's protocol, each started once for all tests of this process."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from servers.mongo import Missing, mongo, names


@pytest.fixture(scope="session")
def motor_threads():
    """Start the threads that motor shares among all clients, until the process ends: they are no leak of a test."""
    from motor.frameworks.asyncio import _EXECUTOR  # motor offers no other way to name them

    all_here = threading.Barrier(_EXECUTOR._max_workers + 1)
    waits = [_EXECUTOR.submit(all_here.wait, 60) for _ in range(_EXECUTOR._max_workers)]
    all_here.wait(60)
    for wait in waits:
        wait.result()


@pytest.fixture(scope="session", params=names())
def mongo_server(request, motor_threads):
    """Give a running server: `.url(database)`, `.direct`."""
    with had(request.param) as server:
        assert server.direct  # its threads are here before the first test
        yield server


@contextlib.contextmanager
def had(name):
    """Start a server of this kind; skip the test if there is none here, and in CI let it fail."""
    context = mongo(name)
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
