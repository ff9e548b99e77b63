"""Local files: links, loops, pipes, changes in place, and killed writers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import streamloader as sl
from streamloader.config import Limits
from streamloader.stores.local import LocalStore, local_path
from streamloader.stores.wrappers import PrefixStore
from streamloader.values import ByteRange

BIG = bytes(range(256)) * (48 << 10)  # 12 MiB: three visits to a thread


def play(use):
    async def run():
        async with asyncio.timeout(60):
            return await use()

    return asyncio.run(run())


@pytest.fixture
def store(tmp_path):
    return PrefixStore(LocalStore("file://"), str(tmp_path))


async def paths(store, prefix="", **options):
    return sorted([info.path async for info in store.list(prefix, **options)])


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///a/b%20c%23.mp4", "/a/b c#.mp4"),
        ("FILE:///a", "/a"),
        ("file://localhost/a", "/a"),
        ("file:///a?b#c", "/a?b#c"),
        ("file:///100%25", "/100%"),
        ("/a%20b", "/a%20b"),
        ("rel", "rel"),
    ],
)
def test_addresses(address, path):
    assert local_path(address) == path


def test_another_machine_is_refused():
    with pytest.raises(sl.ConfigError, match="another machine"):
        local_path("file://server/share/a")


def test_relative_and_home_paths_are_split_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert LocalStore.split("a/../b") == ("file://", f"{tmp_path}/b"[1:])
    assert LocalStore.split("~/b") == ("file://", f"{tmp_path}/home/b"[1:])


def test_links_are_followed(store, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"here")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").symlink_to("real/a")
    (tmp_path / "dangling").symlink_to("none")

    async def look():
        assert await store.read("file") == await store.read("link/a") == b"here"
        assert await paths(store) == ["file", "link/a", "real/a"]
        with pytest.raises(sl.NotFound):
            await store.read("dangling")

    play(look)


def test_a_loop_of_links_is_gone_through_once(store, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"")
    (tmp_path / "a" / "b" / "up").symlink_to("../..")
    (tmp_path / "self").symlink_to("self")
    assert play(lambda: paths(store)) == ["a/b/x"]


def test_too_deep_is_an_error(tmp_path):
    (tmp_path / "/".join("d" * 9)).mkdir(parents=True)
    store = PrefixStore(LocalStore("file://", limits=Limits(depth=5)), str(tmp_path))
    with pytest.raises(sl.LimitExceeded, match="depth"):
        play(lambda: paths(store))


def test_pipes_and_devices_are_refused_and_nobody_waits(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")

    async def look():
        for name in ("pipe", "null"):
            with pytest.raises(sl.StoreError, match="pipe, socket or device"):
                await store.read(name)
            with pytest.raises(sl.StoreError, match="pipe, socket or device"):
                await store.head(name)
        assert await paths(store) == []

    play(look)


def test_a_directory_is_no_file(store, tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(sl.NotFound, match="is a directory"):
        play(lambda: store.read("sub"))
    with pytest.raises(sl.StoreError):
        play(lambda: store.write("sub", b"x"))
    with pytest.raises(sl.StoreError):
        play(lambda: store.delete("sub"))
    assert os.listdir(tmp_path) == ["sub"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(store, tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(sl.AccessDenied):
        play(lambda: store.read("a"))


@pytest.mark.parametrize("change", ["overwritten", "cut off", "grown"])
def test_changed_in_place_while_it_is_read(store, tmp_path, change):
    file = tmp_path / "a"
    file.write_bytes(BIG)
    os.utime(file, (1, 1))

    got = bytearray()

    async def read():
        async for chunk in store.stream("a"):
            if not got:
                if change == "overwritten":
                    file.write_bytes(BIG[::-1])
                else:
                    os.truncate(file, len(BIG) // 2 if change == "cut off" else 2 * len(BIG))
            got.extend(chunk)

    with pytest.raises(sl.ObjectChanged) as caught:
        play(read)
    assert caught.value.offset == len(got)
    assert BIG.startswith(got)


def test_replaced_while_it_is_read_is_read_to_its_end(store, tmp_path):
    (tmp_path / "a").write_bytes(BIG)

    async def read():
        got = b""
        async for chunk in store.stream("a", ByteRange(1)):
            if not got:
                await store.write("a", b"another")
            got += chunk
        assert got == BIG[1:]
        assert await store.read("a") == b"another"

    play(read)


def test_unfinished_files_are_never_listed(store, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    seen = []

    async def pieces():
        yield b"x"
        seen.append((sorted(os.listdir(tmp_path)), await paths(store)))

    play(lambda: store.write("b", pieces()))
    assert len(seen[0][0]) == 2
    assert seen[0][1] == ["a"]
    assert play(lambda: paths(store)) == ["a", "b"]


WRITER = """
import asyncio, sys
import streamloader as sl

async def pieces():
    for _ in range(5):
        yield b"n" * 1_000_000
    print("writing", flush=True)
    await asyncio.Event().wait()

async def main():
    async with sl.open_store(sys.argv[1]) as store:
        await store.write("a", pieces())

asyncio.run(main())
"""


def test_a_writer_that_is_killed_leaves_the_old_one_and_nothing_listed(store, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 2
    assert play(lambda: paths(store)) == ["a"]
    assert play(lambda: store.read("a")) == b"old"
    play(lambda: store.write("a", b"new"))
    assert play(lambda: store.read("a")) == b"new"


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        store = PrefixStore(LocalStore("file://"), str(disk))
        with pytest.raises(sl.StorageFull, match=r"No space left.*free space, or raise the quota") as caught:
            play(lambda: store.write("a", BIG))
        assert caught.value.address == f"{disk}/a"
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_cancelled_open_closes_what_it_opens(store, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    entered, go_on, opened = threading.Event(), threading.Event(), []
    real = os.open

    def slowly(path, *args):
        if path == str(tmp_path / "a"):
            entered.set()
            assert go_on.wait(60)
            opened.append(real(path, *args))
            return opened[0]
        return real(path, *args)

    monkeypatch.setattr(os, "open", slowly)

    async def cancel():
        task = asyncio.create_task(store.read("a"))
        while not entered.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    play(cancel)
    # The check that a test leaves no descriptor behind says the rest.


def test_a_cancelled_write_leaves_no_file(store, tmp_path, monkeypatch):
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    real = os.fsync

    def slowly(fd):
        entered.set()
        assert go_on.wait(60)
        try:
            real(fd)
        finally:
            ended.set()

    monkeypatch.setattr(os, "fsync", slowly)

    async def cancel():
        task = asyncio.create_task(store.write("a", b"x"))
        while not entered.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    play(cancel)
    assert ended.wait(60)
    # It was too late to stop: it is there as a whole, or not at all.
    deadline = 1000
    while deadline and any(name.startswith(".streamloader-new") for name in os.listdir(tmp_path)):
        deadline -= 1
        threading.Event().wait(0.01)
    assert os.listdir(tmp_path) in ([], ["a"])
    if Path(tmp_path / "a").exists():
        assert (tmp_path / "a").read_bytes() == b"x"
