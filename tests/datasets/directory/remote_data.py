"""Shared by tests of directories in stores: what these contain, and how other programs see it."""

from __future__ import annotations

import random
from pathlib import Path

import obstore
from datasets.directory.directory_data import fill, open_directory
from servers.gateway_thread import run_gateway

from streamloader.testing.faults.http import HttpServer

FILES = {f"{number}.bin": random.Random(number).randbytes(number * 61) for number in range(30)}


class S3Root:
    """A folder in a bucket, and the bucket as another program sees it."""

    def __init__(self, server):
        self.server = server
        self.bucket = server.bucket()
        self.direct = server.direct(self.bucket)
        self.root = f"s3://{self.bucket}/a/dir"
        self.options = server.options()

    def open(self, **options):
        return open_directory(self.root, storage_options=self.options, **options)

    def names(self):
        listed = [entry["path"] for page in self.direct.list("a/dir") for entry in page]
        return sorted(path.removeprefix("a/dir/") for path in listed)

    def put(self, objects):
        for name, data in objects.items():
            obstore.put(self.direct, f"a/dir/{name}", data, use_multipart=False)

    def get(self, name):
        return obstore.get(self.direct, f"a/dir/{name}").bytes().to_bytes()

    def delete(self, name):
        obstore.delete(self.direct, f"a/dir/{name}")


def make_packs(root, count=4, files=None, **options):
    """Write a local directory with packs, and return the bytes of these by name."""
    fill(root, FILES if files is None else files, min_subdir_num=count, **options)
    return {path.name: path.read_bytes() for path in sorted(Path(root).glob("*.pack"))}


def list_files(root):
    """Return the content of each file of a local directory by its path."""
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in Path(root).glob("*/[!.]*")}


def serve(objects):
    """Serve objects in the folder "dir" of a web server that counts requests."""
    return run_gateway(HttpServer({f"dir/{name}": data for name, data in objects.items()}))


def count_gets(proxy):
    """Return the numbers of listings and of reads of objects since the last call."""
    requests, proxy.requests[:] = list(proxy.requests), []
    listings = sum("list-type=" in line for line in requests)
    return listings, sum(line.startswith("GET") for line in requests) - listings
