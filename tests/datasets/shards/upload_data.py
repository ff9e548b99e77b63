"""What the tests of uploads write, complete listings of what is there afterwards, and what readers make of it."""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
from pathlib import Path

import obstore
import pytest

import streamloader as sl

MAX_COUNT = 10
SEED = 3
QUICK = sl.Retry(attempts=2, deadline=30, first_wait=0.001, longest_wait=0.01, jitter=0.001)


class Images:
    """A map-style data set of (bytes of an image, label)."""

    def __init__(self, count=35, image_bytes=700, content_seed=0):
        self.count, self.image_bytes, self.content_seed = count, image_bytes, content_seed

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        content = random.Random(self.content_seed * 10_000 + number).randbytes(self.image_bytes)
        return b"\x89PNG\r\n\x1a\n" + content, number


def upload(address, options=None, dataset=None, **arguments):
    """Upload a data set with the same arguments each time."""
    arguments = {"maxcount": MAX_COUNT, "seed": SEED, **arguments}
    return sl.upload_cv_dataset(dataset or Images(), address=address, storage_options=options, **arguments)


def read_tree(folder):
    """Name -> content of all files in a folder, also hidden ones and those in subfolders."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def read_bucket(server, address):
    """Name -> content of all objects below the address of a folder."""
    bucket, _, folder = address.removeprefix("s3://").partition("/")
    store = server.direct(bucket)
    keys = [meta["path"] for page in obstore.list(store, f"{folder}/") for meta in page]
    return {key.removeprefix(f"{folder}/"): bytes(obstore.get(store, key).bytes()) for key in keys}


@functools.cache
def _make_bucket(server):
    return server.bucket()


def make_folder(server):
    """Return the address of an empty folder. All are in one bucket: the server has room for about a hundred buckets."""
    return f"s3://{_make_bucket(server)}/set-{next(_folders)}"


_folders = itertools.count()


def check_not_taken_for_whole(address, options=None, whole=None):
    """Check that readers refuse what is there; or, if it is as good as complete, that they read all of it.

    Args:
        address: Address of the folder.
        options: Options of its store.
        whole: Labels of the data sets that may be there as a whole, each a set. None if none may be.
    """
    try:
        dataset = sl.RemoteDataset(address, shuffle=False, storage_options=options)
    except sl.DatasetIncomplete:
        return
    assert whole is not None, "a part was taken for the whole"
    assert {sample["cls"] for sample in dataset.decode("bytes").decode()} in whole


def mount_small_disk(folder, size):
    """Mount a file system in memory, or skip the test if that is impossible."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
