"""Listings over SFTP have a total: folders without end, links that multiply, names without end."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from pathlib import Path

import asyncssh
import pytest

from streamloader.config import Limits
from streamloader.errors import LimitExceeded, ProtocolError
from streamloader.stores.ssh.store import SshStore
from streamloader.testing.faults import ssh as faulty_ssh
from streamloader.testing.faults.ssh import FaultySsh

LEVELS = 1_100


def paths(store, prefix, most=None):
    async def collect():
        found = []
        async with store:
            async for info in store.list(prefix):
                found.append(info.path)
                if len(found) == most:
                    break
        return sorted(found)

    return asyncio.run(collect())


def store_of(server, **limits):
    return SshStore(server.url, **server.options(), limits=Limits(**limits))


def test_links_that_multiply_end(ssh_server):
    root = ssh_server.data / "multiplied"
    for level in range(30):
        (root / f"{level}").mkdir(parents=True)
        (root / f"{level}/a").symlink_to(f"../{level + 1}")
        (root / f"{level}/b").symlink_to(f"../{level + 1}")
    (root / "30").mkdir()
    (root / "30/x").touch()
    with pytest.raises(LimitExceeded, match="shared_directories"):
        paths(store_of(ssh_server, shared_directories=200), f"{str(root)[1:]}/0")
    assert len(paths(store_of(ssh_server), f"{str(root)[1:]}/26")) == 16


@pytest.mark.slow  # eleven hundred folders, one after the other; the store suite has a hundred
def test_very_deep_folders_are_an_error_or_listed(ssh_server):
    root = folder = str(ssh_server.data / "deep")
    os.mkdir(root)
    try:
        for _ in range(LEVELS):
            folder = f"{folder}/d"
            os.mkdir(folder)
        Path(f"{folder}/x").touch()
        with pytest.raises(LimitExceeded, match="depth"):
            paths(store_of(ssh_server), root[1:])
        assert paths(store_of(ssh_server, depth=2_000), root[1:]) == [f"{root[1:]}/{'d/' * LEVELS}x"]
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # shutil.rmtree calls itself for each level


class EndlessServer(faulty_ssh._FaultySftpServer):
    """Every folder has names without end: files, folders, or what no listing shows."""

    kind = "files"

    def stat(self, path):
        return asyncssh.SFTPAttrs(permissions=0o040755, size=0, uid=0, gid=0, atime=0, mtime=0)

    def lstat(self, path):
        return self.stat(path)

    def realpath(self, path):
        return path

    async def scandir(self, path):
        mode = {"files": 0o100644, "folders": 0o040755, "sockets": 0o140755}[self.kind]
        number = 0
        while True:
            number += 1
            attrs = asyncssh.SFTPAttrs(permissions=mode, size=1, uid=0, gid=0, atime=0, mtime=0)
            yield asyncssh.SFTPName(b"%0200d" % number, attrs=attrs)


@pytest.mark.parametrize("kind", ["files", "folders", "sockets"])
@pytest.mark.parametrize("limits", [{"listed": 1_000}, {"listing_bytes": 100_000}], ids=["listed", "listing_bytes"])
def test_names_without_end_are_an_error(monkeypatch, kind, limits):
    monkeypatch.setattr(faulty_ssh, "_FaultySftpServer", EndlessServer)
    monkeypatch.setattr(EndlessServer, "kind", kind)

    async def main():
        async with (
            FaultySsh({}) as server,
            SshStore(server.url, **server.options(), limits=Limits(**limits)) as store,
        ):
            return [info async for info in store.list("folder")]

    with pytest.raises(LimitExceeded, match="|".join(limits)):
        asyncio.run(main())


@pytest.mark.parametrize("wanted", [False, True])
def test_a_server_cannot_demand_compression(monkeypatch, tmp_path, wanted):
    # asyncssh inflates each packet without a limit.
    listen = functools.partial(asyncssh.listen, compression_algs=["zlib@openssh.com"])
    monkeypatch.setattr(asyncssh, "listen", listen)
    config = tmp_path / "config"
    config.write_text("Compression yes\n")

    async def main():
        async with FaultySsh({"a": b"data"}) as server:
            options = {**server.options(), **({"config": str(config)} if wanted else {})}
            async with SshStore(server.url, **options) as store:
                return await store.read("a")

    if wanted:
        assert asyncio.run(main()) == b"data"
    else:
        with pytest.raises(ProtocolError, match="compression"):
            asyncio.run(main())
