"""Uploads that are killed at a request or a write: the same call goes on, and nothing else is in the folder then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from datasets.shards.upload_data import Images, check_not_taken_for_whole, make_folder, read_bucket, read_tree, upload
from optional_torch import needs_torch
from servers.gateway_thread import run_gateway
from tiers import only_fast

import streamloader as sl
from streamloader.testing.faults.s3 import FaultyS3, S3Fault

pytestmark = needs_torch  # RemoteDataset reads what was written
REQUESTS = 21  # of one upload of `Images()` to a server
WRITES = 21  # of one upload of `Images()` to a folder, with renames and deletions
OVERWRITES = 34  # of one that replaces `LONGER`
FIRST_SHARD_DELETED = 3  # number of that write: after the claim and the manifest
LONGER = Images(55, content_seed=1)
BEFORE, AFTER = "before", "after"
PROGRAM = """
import sys
from datasets.shards.upload_data import upload
from datasets.shards.killed_upload import kill_at_write

address, options, number, moment, overwrite = eval(sys.argv[1])
if number is not None:
    kill_at_write(number, moment)
upload(address, options, overwrite=overwrite)
"""


class KillingProxy(FaultyS3):
    """Kills a process at one of its requests: before the server gets it, or when it has been completed.

    Args:
        target: Address of the server.
        number: Number of the request.
        moment: BEFORE or AFTER.
    """

    def __init__(self, target, number, moment):
        super().__init__(target)
        self.kill = None
        self._number, self._moment = number, moment

    def _match_fault(self, request):
        if len(self.requests) <= self._number:
            return None
        if len(self.requests) > self._number + 1:
            raise ConnectionError("the process is dead already")
        if self._moment == BEFORE:
            self.kill()
            raise ConnectionError("the process was killed")
        return S3Fault("cut-response", on="everything")

    async def _answer(self, request, fault, *others):
        is_open = await super()._answer(request, fault, *others)
        if fault is not None:
            self.kill()
        return is_open


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, repr(arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def dies(process):
    yield
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    upload(str(folder))
    return read_tree(folder)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("number", "moment"),
    only_fast(
        [(number, moment) for number in range(REQUESTS) for moment in (BEFORE, AFTER)],
        [(3, AFTER), (11, BEFORE), (14, AFTER), (19, AFTER)],
    ),
)
def test_killed_at_a_request(seaweed_server, undisturbed, number, moment):
    address, options = make_folder(seaweed_server), seaweed_server.options()
    with run_gateway(KillingProxy(seaweed_server.endpoint, number, moment)) as proxy:
        process = start(address, {**options, "endpoint_url": proxy.url}, None, None, False)
        proxy.kill = process.kill
        with dies(process):
            pass
    if read_bucket(seaweed_server, address):
        check_not_taken_for_whole(address, options, whole=[set(range(35))] if number >= REQUESTS - 2 else None)
    upload(address, options)
    assert read_bucket(seaweed_server, address) == undisturbed


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("number", "moment"),
    only_fast(
        [(number, moment) for number in range(WRITES) for moment in (BEFORE, AFTER, "half")],
        [(5, "half"), (20, BEFORE)],
    ),
)
def test_killed_at_a_write(tmp_path, undisturbed, number, moment):
    with dies(start(str(tmp_path), None, number, moment, False)):
        pass
    if any(not name.startswith(".") for name in os.listdir(tmp_path)):
        check_not_taken_for_whole(str(tmp_path), whole=[set(range(35))] if number >= WRITES - 2 else None)
    upload(str(tmp_path))
    assert read_tree(tmp_path) == undisturbed


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("number", "moment", "overwrite"),
    only_fast(
        [
            (number, moment, overwrite)
            for number in range(OVERWRITES)
            for moment in (BEFORE, AFTER)
            for overwrite in (True, False)
        ],
        [(4, AFTER, False), (30, AFTER, True)],
    ),
)
def test_killed_while_it_replaces_another_data_set(tmp_path, undisturbed, number, moment, overwrite):
    """Once the first of the other shards is deleted, the same call goes on without `overwrite=True` too."""
    upload(str(tmp_path), dataset=LONGER)
    with dies(start(str(tmp_path), None, number, moment, True)):
        pass
    check_not_taken_for_whole(str(tmp_path), whole=[set(range(55)), set(range(35))])
    if not overwrite and (number, moment == AFTER) < (FIRST_SHARD_DELETED, True):
        with pytest.raises(sl.DatasetExists, match="other settings"):
            upload(str(tmp_path))
        overwrite = True
    upload(str(tmp_path), overwrite=overwrite)
    assert read_tree(tmp_path) == undisturbed


def test_the_numbers_of_requests_and_writes(seaweed_server, tmp_path, undisturbed):
    address = make_folder(seaweed_server)
    with run_gateway(FaultyS3(seaweed_server.endpoint)) as proxy:
        upload(address, {**seaweed_server.options(), "endpoint_url": proxy.url})
        assert len(proxy.requests) == REQUESTS
    assert read_bucket(seaweed_server, address) == undisturbed
    upload(str(tmp_path), dataset=LONGER)
    (tmp_path / "new").mkdir()
    for folder, number, overwrite in ((tmp_path / "new", WRITES, False), (tmp_path, OVERWRITES, True)):
        process = start(str(folder), None, number, BEFORE, overwrite)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
