"""Schemes that only fsspec supports."""

from __future__ import annotations

import asyncio
import sys
import zipfile

import pytest
from canaries import canary
from faults.s3_server import PlainS3

from streamloader.errors import AccessDenied, ConfigError, MissingDependency, NotFound, ObjectChanged, Unreachable
from streamloader.stores.fsspec import FsspecStore
from streamloader.stores.registry import open_store, split_address
from streamloader.values import ByteRange


def test_a_scheme_that_nobody_knows():
    with pytest.raises(ConfigError, match=r"no store serves nosuch://.*ftp.*pip install"):
        open_store("nosuch://host/path")


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbprotocol", None)
    monkeypatch.setitem(sys.modules, "smbclient", None)
    with pytest.raises(MissingDependency, match="smbprotocol"):
        open_store("smb://host/share")


def test_fsspec_itself_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependency, match=r"streamloader\[fsspec\]"):
        open_store("ftp://host/path")


def test_addresses_are_split():
    assert split_address("ftp://u@host:21/a/b c#1") == ("ftp://u@host:21", "a/b c#1")
    assert split_address("hf://datasets/user/repo/a.txt") == ("hf://", "datasets/user/repo/a.txt")


def test_hugging_face_is_known():
    store = FsspecStore("hf://", token=canary("fsspec-password"))
    assert store._load_filesystem_class().__name__ == "HfFileSystem"
    assert store.address("datasets/u/r/a") == "hf://datasets/u/r/a"
    assert canary("fsspec-password") not in f"{store!r} {store.identity}"


def test_options_that_it_does_not_take():
    async def read():
        async with open_store("reference://", retry=None) as store:
            with pytest.raises(ConfigError, match="does not take these options"):
                await store.read("a")

    asyncio.run(read())


def test_nobody_listens():
    async def read():
        async with open_store("ftp://127.0.0.1:1", retry=None) as store:
            with pytest.raises(Unreachable):
                await store.read("a")

    asyncio.run(read())


# fsspec leaves the socket of a refused login to the collector, which may reach it before the file system's finalizer.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_wrong_password(tmp_path):
    from servers.ftpd import USER, Missing, ftpd

    async def read(port):
        options = {"username": USER, "password": canary("ssh-wrong-password")}
        async with open_store(f"ftp://127.0.0.1:{port}", retry=None, **options) as store:
            with pytest.raises(AccessDenied):
                await store.read("a")

    try:
        with ftpd(tmp_path) as port:
            asyncio.run(read(port))
    except Missing as missing:
        pytest.skip(str(missing))


def test_members_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("dir/a.txt", b"hello world")
        archive.writestr("dir/b.txt", b"")

    async def read():
        async with FsspecStore("zip://", fo=str(tmp_path / "a.zip")) as store:
            assert [info.path async for info in store.list("dir")] == ["dir/a.txt", "dir/b.txt"]
            assert await store.read("dir/a.txt") == b"hello world"
            assert await store.read("dir/a.txt", ByteRange(6, 11)) == b"world"
            assert await store.read("dir/b.txt") == b""
            with pytest.raises(NotFound):
                await store.read("dir/c.txt")

    asyncio.run(read())


def test_asynchronous_file_systems_are_awaited():
    data = bytes(range(256)) * 50_000

    async def read():
        async with PlainS3({"a.bin": data, "b.bin": b"x"}) as server:  # noqa: SIM117 - its address is needed
            async with FsspecStore(server.url) as store:
                info = await store.head("bucket/a.bin")
                assert info.size == len(data)
                spans = [ByteRange(at, at + 1_000 + at % 7) for at in range(0, 1_000_000, 50_000)]
                found = await asyncio.gather(*(store.read("bucket/a.bin", span) for span in spans))
                assert found == [data[span.start : span.end] for span in spans]
                assert await store.read("bucket/a.bin", version=info.version) == data
                with pytest.raises(NotFound):
                    await store.read("bucket/none")
                server.objects["a.bin"] = data[::-1]
                with pytest.raises(ObjectChanged):
                    await store.read("bucket/a.bin", ByteRange(0, 5), version=info.version)

    asyncio.run(read())
