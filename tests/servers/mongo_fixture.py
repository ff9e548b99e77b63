"""Fixtures for servers with MongoDB's protocol, each started once per test process."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from servers.mongo import Missing, mongo, names


@pytest.fixture(scope="session")
def motor_threads():
    """Start the threads that all motor clients share. They live until the process ends and are not leaked by a test."""
    from motor.frameworks.asyncio import _EXECUTOR  # motor has no public access to them

    all_started = threading.Barrier(_EXECUTOR._max_workers + 1)
    waits = [_EXECUTOR.submit(all_started.wait, 60) for _ in range(_EXECUTOR._max_workers)]
    all_started.wait(60)
    for wait in waits:
        wait.result()


@pytest.fixture(scope="session", params=names())
def mongo_server(request, motor_threads):
    """Provide a running server, with `.url(database)` and `.direct`."""
    with run_mongo_server(request.param) as server:
        assert server.direct  # starts its threads before the first test
        yield server


@contextlib.contextmanager
def run_mongo_server(name):
    """Start a server. If that is not possible, skip the test, or fail it in CI."""
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
