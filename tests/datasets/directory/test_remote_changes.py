"""Directories in stores that others change, damage or replace, and servers that lie."""

from __future__ import annotations

import asyncio
import os
import tempfile

import obstore
import pytest
from datasets.directory.directory_data import (
    contents,
    fill,
    open_directory,
)
from datasets.directory.remote_data import FILES, list_files, make_packs, serve

import streamloader as sl
from streamloader.containers.pack.build import PackBuilder
from streamloader.testing.faults.http import HttpFault
from streamloader.testing.faults.s3 import S3Fault

# --- which packs are up to date --------------------------------------------------------------------------------------


def test_a_directory_that_was_copied_with_its_times(ssh_server, tmp_path):
    """As by rsync: the packs are used, and what was overwritten since is noticed."""
    source = tmp_path / "source"
    fill(source, FILES)
    options = {"storage_options": ssh_server.options(), "load_to_memory": False}
    with open_directory(ssh_server.address(source), **options) as directory:
        assert contents(directory) == FILES
        assert not directory._contents._loose
    path = next(source.glob("*/7.bin"))
    path.write_bytes(FILES["7.bin"][::-1])
    os.utime(path, (2e9, 2e9))
    (source / "subdir_1" / "new").write_bytes(b"new")
    next(source.glob("*/9.bin")).unlink()
    files = FILES | {"7.bin": FILES["7.bin"][::-1], "new": b"new"}
    del files["9.bin"]
    with open_directory(ssh_server.address(source), **options) as directory:
        assert contents(directory) == files
        assert set(directory._contents._loose) == {"7.bin", "new"}
    with open_directory(ssh_server.address(source), **options, check="names") as directory:
        assert bytes(directory.read("7.bin")) == FILES["7.bin"]


def test_files_that_are_newer_than_their_packs(s3, tmp_path, caplog):
    source = tmp_path / "source"
    packs = make_packs(source)
    files = list_files(source)
    s3.put(packs)
    s3.put(files)
    put_late = {name: obstore.head(s3.direct, f"a/dir/{name}")["last_modified"] for name in (*packs, *files)}
    newer = [name for name in files if put_late[name] > put_late[f"{name.partition('/')[0]}.pack"]]
    with s3.open(load_to_memory=False) as directory:
        assert contents(directory) == FILES
        assert len(directory._contents._loose) == len(newer)
    assert ("check='names'" in caplog.text) == bool(newer)
    with s3.open(load_to_memory=False, check="names") as directory:
        assert contents(directory) == FILES
        assert not directory._contents._loose
    s3.put(packs)
    with s3.open(load_to_memory=False) as directory:
        assert not directory._contents._loose


def test_files_of_the_same_time_and_size_are_told_apart_by_their_versions(s3):
    with s3.open(min_subdir_num=1) as directory:
        directory.save("a", b"1")
        directory.save_state()
    s3.put({"subdir_0/a": b"2"})  # in the same second
    with s3.open(load_to_memory=False) as directory:
        assert directory.load("a") == b"2"


def test_packs_without_files_are_served_as_they_are(s3, packs):
    s3.put(packs)
    with s3.open(load_to_memory=False, min_subdir_num=4) as directory:
        assert contents(directory) == FILES
        path = directory.get_path("3.bin")
        assert path == f"{s3.root}/{path.split('/')[-2]}/3.bin"
        assert ".pack!/" in path

        async def read():
            store, _, name = path.rpartition("/")
            async with sl.open_store(store, **s3.options) as container:
                return await container.read(name)

        assert asyncio.run(read()) == FILES["3.bin"]
        for change in (lambda: directory.save("3.bin", b"x"), lambda: directory.remove("3.bin")):
            with pytest.raises(sl.NotSupported, match="only the pack"):
                change()
        directory.save("new", b"n")
        assert [name for name in s3.names() if name.endswith("/new")] == ["subdir_4/new"]
        directory.save_state()
        assert contents(directory) == FILES | {"new": b"n"}
    assert {name: s3.get(name) for name in packs} == packs


def test_members_that_are_no_files_of_a_directory(s3, packs):
    with tempfile.TemporaryFile() as file:
        builder = PackBuilder(file)
        for name in (".hidden", "a/b", "c"):
            builder.add(name, b"1")
        builder.finish()
        file.seek(0)
        s3.put({"photos.pack": file.read()})
    with s3.open(load_to_memory=False) as directory:
        assert directory.get_list_of_files() == ["c"]


# --- changes and damage while it is open -----------------------------------------------------------------------------


def test_a_pack_that_is_replaced_is_opened_again(tmp_path):
    old = make_packs(tmp_path / "old", 1)
    files = {name: content + b"!" for name, content in FILES.items() if name != "5.bin"}
    new = make_packs(tmp_path / "new", 1, files)
    with serve(old) as server, open_directory(f"{server.url}/dir", load_to_memory=False) as directory:
        assert directory.load("3.bin") == FILES["3.bin"]
        server.put("dir/subdir_0.pack", new["subdir_0.pack"])
        assert directory.load("3.bin") == files["3.bin"]
        assert directory.load("5.bin") is None
        server.put("dir/subdir_0.pack", old["subdir_0.pack"])
        assert directory.read_many([*FILES, "?"]) == [*FILES.values(), None]
        assert len(directory) == len(FILES)


def test_another_instance_that_replaces_packs_and_files(remote):
    root, store_options = remote
    options = {"storage_options": store_options, "min_subdir_num": 2}
    with open_directory(root, **options) as writer:
        for name, content in FILES.items():
            writer.save(name, content)
        writer.save_state()
        with open_directory(root, **options, load_to_memory=False) as reader:
            assert contents(reader) == FILES
            for name in list(FILES)[::2]:
                writer.save(name, b"another " + FILES[name])
            writer.remove("1.bin")
            writer.save_state()
            current = {name: bytes(writer.read(name)) for name in writer.get_list_of_files()}
            assert reader.read_many(list(current)) == list(current.values())
            assert reader.load("1.bin") is None
            writer.save("loose", b"1")
            assert reader.load("loose") is None  # it is noticed on the next start


def test_damaged_packs(s3, caplog):
    with s3.open(min_subdir_num=1) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.save_state()
    pack = bytearray(s3.get("subdir_0.pack"))
    pack[pack.index(FILES["20.bin"])] ^= 1
    s3.put({"subdir_0.pack": bytes(pack)})
    with s3.open(load_to_memory=False) as directory:
        assert directory.read("20.bin") == FILES["20.bin"]
        assert contents(directory) == FILES
        assert "The file is read instead" in caplog.text
        directory.save_state()
    with s3.open(load_to_memory=False) as directory:
        assert directory.read_many(["20.bin"]) == [FILES["20.bin"]]
        assert not directory._contents._loose
    s3.put({"subdir_0.pack": bytes(100)})
    with s3.open() as directory:  # the files are in memory, and the pack is still out of date
        directory.save_state()
    pack = s3.get("subdir_0.pack")
    assert len(pack) > 1000
    for damaged in (pack[:-1], pack[:100], b"", pack[:-30] + b"x" + pack[-29:]):
        s3.put({"subdir_0.pack": damaged})
        caplog.clear()
        with s3.open(load_to_memory=False) as directory:
            assert contents(directory) == FILES
            assert "the pack is not used" in caplog.text


@pytest.mark.parametrize("load_to_memory", [False, True])
def test_damaged_packs_without_files(packs, load_to_memory):
    options = {"load_to_memory": load_to_memory}
    damaged = bytearray(packs["subdir_1.pack"])
    name = max(name for name, content in FILES.items() if content and content in damaged)
    damaged[damaged.index(FILES[name])] ^= 1
    with serve(packs | {"subdir_1.pack": bytes(damaged)}) as server:
        address = f"{server.url}/dir"
        with open_directory(address, **options) as directory:
            for read in (directory.read, directory.load, lambda name: directory.read_many([name])):
                with pytest.raises(sl.IntegrityError, match=r"subdir_1\.pack!/") as raised:
                    read(name)
                assert raised.value.address == f"{address}/subdir_1.pack"
            others = [other for other in FILES if other != name]
            assert directory.read_many(others) == [FILES[other] for other in others]
        server.put("dir/subdir_1.pack", packs["subdir_1.pack"][:-5])
        with pytest.raises(sl.CorruptContainer, match=r"subdir_1.pack cannot be used"):
            open_directory(address, **options)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("truncated", sl.StoreError),
        ("range-length", sl.StoreError),
        ("range-moved", sl.ProtocolError),
        ("range-short", sl.ProtocolError),
        ("status", sl.StoreError),
    ],
)
def test_responses_that_lie_or_are_cut(packs, kind, error):
    with serve(packs) as server:
        options = {"storage_options": {"retry": None}, "load_to_memory": False}
        with open_directory(f"{server.url}/dir", **options) as directory:
            server.fault = HttpFault(kind, at=20)
            name = next(name for name in directory.get_list_of_files() if FILES[name])
            for read in (directory.read, lambda name: directory.read_many([name])):
                with pytest.raises(error, match=server.url) as raised:
                    read(name)
                assert raised.value.address.startswith(f"{server.url}/dir/subdir_")
            server.fault = None
            assert directory.read(name) == FILES[name]


def test_a_response_with_other_bytes_is_noticed(s3, proxy, packs):
    s3.put(packs)
    with s3.open(load_to_memory=False) as directory:
        name = next(name for name in directory.get_list_of_files() if FILES[name])
        proxy.fault = S3Fault("flip", at=16)
        with pytest.raises(sl.IntegrityError, match=r"pack!/.*checksum"):
            directory.read(name)
        with pytest.raises(sl.IntegrityError, match=r"pack!/.*checksum"):
            directory.read_many([name])
        proxy.fault = None
        assert directory.read(name) == FILES[name]
