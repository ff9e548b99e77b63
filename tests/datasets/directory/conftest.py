"""A small file system of its own, which tests can fill or make read-only, and empty roots in stores."""

from __future__ import annotations

import os
import subprocess

import pytest
from datasets.directory.remote_data import S3Root, make_packs
from servers.gateway_thread import run_gateway

from streamloader.testing.faults.s3 import FaultyS3


@pytest.fixture
def disk(tmp_path):
    """The folder of a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def s3(seaweed_server):
    """An empty folder in a bucket."""
    return S3Root(seaweed_server)


@pytest.fixture
def proxy(s3):
    """A proxy in front of the server, which counts requests; `s3` uses it."""
    with run_gateway(FaultyS3(s3.server.endpoint)) as proxy:
        s3.options = {**s3.options, "endpoint_url": proxy.url}
        yield proxy


@pytest.fixture(params=["memory", "s3", "ssh"])
def remote(request, tmp_path, seaweed_server, ssh_server):
    """Address of an empty root, and the options of its store."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}/dir", {}
    if request.param == "s3":
        root = S3Root(seaweed_server)
        return root.root, root.options
    return ssh_server.address(tmp_path / "root"), ssh_server.options()


@pytest.fixture
def packs(tmp_path):
    """The packs of a directory with FILES."""
    return make_packs(tmp_path / "source")
