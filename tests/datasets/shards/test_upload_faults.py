"""Uploads to real disks and servers that fail: one clear error, nothing that looks whole, and the same call goes on."""

from __future__ import annotations

import os
import subprocess

import pytest
from datasets.shards.upload_data import (
    QUICK,
    Images,
    check_not_taken_for_whole,
    make_folder,
    mount_small_disk,
    read_bucket,
    read_tree,
    upload,
)
from optional_torch import needs_torch
from servers.gateway_thread import run_gateway
from servers.seaweed import FULL, READER, WRONG
from tiers import only_fast

import streamloader as sl
from streamloader.testing.faults.s3 import FaultyS3, S3Fault

pytestmark = needs_torch  # RemoteDataset reads what was written

PAGE = 4096
REQUESTS = 21  # of one upload of `Images()`
LARGE = Images(24, 1 << 20)  # whose first shard is uploaded in two parts
LARGE_ARGUMENTS = {"maxcount": 20}
LARGE_REQUESTS = 18
LOST = (sl.Unreachable, sl.TransferInterrupted)
KINDS = {"cut-request": LOST, "cut-body": LOST, "cut-response": LOST, "quota": sl.StorageFull, "full": sl.StorageFull}
ALL_LABELS = set(range(len(Images())))
LARGE_LABELS = set(range(len(LARGE)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    upload(str(folder))
    return read_tree(folder)


@pytest.fixture(scope="module")
def undisturbed_large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    upload(str(folder), dataset=LARGE, **LARGE_ARGUMENTS)
    return read_tree(folder)


@pytest.fixture
def proxy(seaweed_server):
    with run_gateway(FaultyS3(seaweed_server.endpoint)) as proxy:
        yield proxy


def through(proxy, server):
    return {**server.options(), "endpoint_url": proxy.url, "retry": QUICK}


def check_error(error, address):
    """One error that names the address and what to do."""
    text = str(error)
    assert address in text
    assert text.count("the same call goes on") == 1
    assert error.address.startswith(address)
    assert error.details["dataset"] == address


def catch_full(folder):
    try:
        upload(str(folder))
    except sl.StorageFull as error:
        return error
    return None


def test_a_disk_that_is_full_at_any_moment(tmp_path, undisturbed):
    folder, failures = tmp_path / "disk", 0
    needed = sum(-(-len(content) // PAGE) for content in undisturbed.values())
    mount_small_disk(folder, PAGE)
    try:
        for pages in range(1, needed + 3):
            for file in folder.iterdir():
                file.unlink()
            subprocess.run(["mount", "-o", f"remount,size={pages * PAGE}", folder], check=True)
            error = catch_full(folder)
            if error is not None:
                failures += 1
                assert "free space, or raise the quota" in str(error)
                check_error(error, str(folder))
                if os.listdir(folder):  # nothing, if there was no room for the first file
                    check_not_taken_for_whole(str(folder))
                assert not [name for name in os.listdir(folder) if name.startswith(".")]
            subprocess.run(["mount", "-o", f"remount,size={2 * needed * PAGE}", folder], check=True)
            upload(str(folder))
            assert read_tree(folder) == undisturbed, pages
    finally:
        subprocess.run(["umount", folder], check=True)
    assert failures >= needed - 1


def write_samples(writer, count):
    for number in range(count):
        writer.write({"cls": number})


def test_a_bucket_beyond_its_quota(seaweed_server, undisturbed):
    bucket = seaweed_server.bucket()  # of its own
    address, options = f"s3://{bucket}/set", {**seaweed_server.options(), "retry": QUICK}
    other = f"s3://{bucket}/other"
    seaweed_server.direct(bucket).put("large", os.urandom(2 << 20))
    with sl.ShardWriter(other, maxcount=1, storage_options=options) as writer:
        writer.write({"cls": 1})
        seaweed_server.set_quota(bucket, 1)
        with pytest.raises(sl.StoreError) as caught:
            write_samples(writer, 5)
        check_error(caught.value, other)
    check_not_taken_for_whole(other, options)
    with pytest.raises(sl.ServerBusy, match="see whether the disk or the bucket is full") as caught:
        upload(address, options)  # this server answers 500 InternalError
    check_error(caught.value, address)
    assert read_bucket(seaweed_server, address) == {}
    seaweed_server.set_quota(bucket, None)
    upload(address, options)
    assert read_bucket(seaweed_server, address) == undisturbed


@pytest.mark.parametrize(
    ("number", "kind"),
    only_fast(
        [(number, kind) for kind in KINDS for number in range(REQUESTS)],
        [(3, "cut-body"), (9, "cut-response"), (13, "quota"), (19, "cut-response"), (19, "full"), (20, "cut-request")],
    ),
)
def test_a_server_that_fails_from_one_request_on(proxy, seaweed_server, undisturbed, number, kind):
    address, options = make_folder(seaweed_server), through(proxy, seaweed_server)
    proxy.fault = S3Fault(kind, at=300, skip=number, on="everything")
    with pytest.raises(KINDS[kind]) as caught:
        upload(address, options)
    check_error(caught.value, address)
    assert proxy.fault_count
    if read_bucket(seaweed_server, address):
        check_not_taken_for_whole(address, seaweed_server.options(), whole=[ALL_LABELS] if number >= 19 else None)
    proxy.fault = None
    upload(address, options)
    assert read_bucket(seaweed_server, address) == undisturbed
    assert upload(address, options) == len(ALL_LABELS)
    assert read_bucket(seaweed_server, address) == undisturbed


def test_the_requests_of_an_upload_are_those_that_fail(proxy, seaweed_server, undisturbed):
    address = make_folder(seaweed_server)
    upload(address, through(proxy, seaweed_server))
    assert len(proxy.requests) == REQUESTS
    assert "PUT" in proxy.requests[19] and proxy.requests[19].partition(" HTTP")[0].endswith("/manifest.json")  # noqa: PT018
    assert read_bucket(seaweed_server, address) == undisturbed


@pytest.mark.parametrize(
    ("number", "kind"),
    only_fast(
        [(number, kind) for kind in KINDS for number in range(LARGE_REQUESTS)],
        [(5, "quota"), (6, "cut-body"), (10, "cut-response"), (13, "cut-response")],
    ),
)
def test_a_server_that_fails_between_the_parts_of_a_shard(proxy, seaweed_server, undisturbed_large, number, kind):
    address, options = make_folder(seaweed_server), through(proxy, seaweed_server)
    proxy.fault = S3Fault(kind, at=1 << 20, skip=number, on="everything")
    with pytest.raises(KINDS[kind]) as caught:
        upload(address, options, LARGE, **LARGE_ARGUMENTS)
    check_error(caught.value, address)
    if read_bucket(seaweed_server, address):
        whole = [LARGE_LABELS] if number >= LARGE_REQUESTS - 2 else None
        check_not_taken_for_whole(address, seaweed_server.options(), whole=whole)
    proxy.fault = None
    upload(address, options, LARGE, **LARGE_ARGUMENTS)
    assert read_bucket(seaweed_server, address) == undisturbed_large


@pytest.mark.parametrize("keys", [WRONG, READER], ids=["wrong key", "read-only key"])
def test_keys_that_may_not_write(seaweed_server, undisturbed, keys):
    address = make_folder(seaweed_server)
    bucket, _, folder = address.removeprefix("s3://").partition("/")

    def upload_with(keys):
        client = sl.make_client(seaweed_server.endpoint, keys.access_key_id, keys.secret_access_key, region="us-east-1")
        return sl.upload_cv_dataset(Images(), client, bucket, folder, maxcount=10, seed=3)

    with pytest.raises(sl.AccessDenied, match="check the credentials") as caught:
        upload_with(keys)
    check_error(caught.value, address)
    assert keys.secret_access_key not in str(caught.value)
    assert read_bucket(seaweed_server, address) == {}
    upload_with(FULL)
    assert read_bucket(seaweed_server, address) == undisturbed
    if keys is READER:  # which is enough to see that the data set is complete
        assert upload_with(keys) == len(ALL_LABELS)


def test_an_interrupted_upload_is_continued_by_worker_processes(proxy, seaweed_server, undisturbed):
    address, options = make_folder(seaweed_server), through(proxy, seaweed_server)
    proxy.fault = S3Fault("cut-request", skip=14, on="everything")
    with pytest.raises(LOST):
        upload(address, options, workers=2)
    proxy.fault = None
    upload(address, options, workers=2)
    assert read_bucket(seaweed_server, address) == undisturbed
