"""A container as a store: what it reads once, what it notices, and what it leaves out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import pickle
import tarfile
import zipfile

import pytest

import streamloader as sl
from streamloader.stores.memory import MemoryStore

CONTENTS = {"a.txt": b"alpha", "b/c.txt": b"beta" * 50_000, "empty": b""}


def make_tar(contents, *others):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for info in others:
            tar.addfile(info)
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_zip(contents):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()


def run(use):
    return asyncio.run(asyncio.wait_for(use(), 60))


def symbolic_link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


class CountingStore(MemoryStore):
    """Counts its requests."""

    requests = 0

    async def _head(self, path):
        self.requests += 1
        return await super()._head(path)

    def _get(self, path, span, version):
        self.requests += 1
        return super()._get(path, span, version)


@pytest.fixture(autouse=True)
def _scheme(monkeypatch):
    from streamloader.stores import registry

    monkeypatch.setitem(registry._STORE_CLASSES, "counting", f"{__name__}:CountingStore")


@contextlib.asynccontextmanager
async def opened(name, data):
    async with sl.open_store("memory://containers", retry=None) as outer:
        await outer.write(name, data)
    async with sl.open_container(f"memory://containers/{name}", retry=None) as store:
        yield store


@pytest.mark.parametrize(("name", "make"), [("x.tar", make_tar), ("x.zip", make_zip)])
def test_members_are_objects(name, make):
    async def use():
        async with opened(name, make(CONTENTS)) as store:
            assert store.url == f"memory://containers/{name}!"
            infos = {info.path: info async for info in store.list()}
            assert {path: info.size for path, info in infos.items()} == {k: len(v) for k, v in CONTENTS.items()}
            for path, data in CONTENTS.items():
                assert await store.head(path) == infos[path]
                assert await store.read(path) == data
            assert await store.read("b/c.txt", sl.ByteRange(3, 70_001)) == CONTENTS["b/c.txt"][3:70_001]
            assert await store.read("b/c.txt", sl.ByteRange(-7)) == CONTENTS["b/c.txt"][-7:]
            assert [info.path async for info in store.list(recursive=False)] == ["a.txt", "b/", "empty"]
            with pytest.raises(sl.RangeNotSatisfiable):
                await store.read("a.txt", sl.ByteRange(0, 6))
            with pytest.raises(sl.NotFound, match=r"!/b is a directory"):
                await store.read("b")
            with pytest.raises(sl.NotFound, match=r"!/nowhere is not in the container"):
                await store.head("nowhere")
            with pytest.raises(sl.NotSupported, match="read-only"):
                await store.write("a.txt", b"x")
            with pytest.raises(sl.NotSupported, match="read-only"):
                await store.delete("a.txt")

    run(use)


@pytest.mark.parametrize(("name", "make"), [("y.tar", make_tar), ("y.zip", make_zip)])
def test_members_come_one_by_one_in_one_pass(name, make):
    async def use():
        async with opened(name, make(CONTENTS)) as store:
            got = {}
            async with contextlib.aclosing(store.iterate()) as members:
                async for info, pieces in members:
                    assert info.size == len(CONTENTS[info.path])
                    if info.path != "b/c.txt":  # what is not read is skipped
                        got[info.path] = b"".join([piece async for piece in pieces])
            assert got == {path: data for path, data in CONTENTS.items() if path != "b/c.txt"}

    run(use)


def test_the_list_of_members_is_read_once():
    async def use():
        store = CountingStore("counting://once")
        await store.write("x.tar", make_tar({f"{number:04}": b"x" * number for number in range(300)}))
        async with sl.open_container("counting://once/x.tar", retry=None) as container:
            inner = container.inner
            await asyncio.gather(*(container.head(f"{number:04}") for number in range(300)))
            opening = inner.requests
            assert opening <= 5  # one for the version, and few blocks
            await asyncio.gather(*(container.read(f"{number:04}") for number in range(1, 300)))
            assert inner.requests == opening + 299

    run(use)


def test_a_replaced_container_is_noticed_and_then_read_again(monkeypatch):
    async def use():
        async with opened("z.tar", make_tar(CONTENTS)) as store:
            info = await store.head("a.txt")
            await store.inner.write("z.tar", make_tar({"a.txt": b"other", "new": b"1"}))
            with pytest.raises(sl.ObjectChanged):
                await store.read("a.txt", version=info.version)
            with pytest.raises(sl.ObjectChanged):  # the new list of members is known now
                await store.read("a.txt", version=info.version)
            assert [found.path async for found in store.list()] == ["a.txt", "new"]
            assert await store.read("a.txt") == b"other"
            await store.inner.write("z.tar", make_tar({"last": b"2"}))
            assert [found.path async for found in store.list()] == ["last"]
            monkeypatch.setattr("streamloader.containers.store._REVALIDATION_INTERVAL_S", 0.0)
            await store.inner.write("z.tar", make_tar({"very last": b"3"}))
            assert (await store.head("very last")).size == 1

    run(use)


def test_readers_of_a_replaced_container_go_on_with_the_new_one():
    # None of them takes the new list of members from the others, or keeps the old one.
    async def use():
        async with opened("busy.tar", make_tar({"a": b"0"})) as store:
            changes = 0

            async def read_until(last):
                nonlocal changes
                while True:
                    try:
                        if await store.read("a") == last:
                            return
                    except sl.ObjectChanged:
                        changes += 1
                    await asyncio.sleep(0)  # a store in memory never waits

            for number in range(1, 20):
                value = str(number).encode()
                readers = [asyncio.create_task(read_until(value)) for _ in range(8)]
                await asyncio.sleep(0)
                await store.inner.write("busy.tar", make_tar({"a": value}))
                await asyncio.gather(*readers)
            assert changes <= 19 * 8 * 2

    run(use)


def test_a_damaged_container_is_read_once_for_all_who_wait():
    async def use():
        store = CountingStore("counting://damaged")
        await store.write("x.tar", make_tar(CONTENTS)[:1000])
        async with sl.open_container("counting://damaged/x.tar", retry=None) as container:
            results = await asyncio.gather(*(container.head("a.txt") for _ in range(50)), return_exceptions=True)
            assert {type(result) for result in results} == {sl.CorruptContainer}
            assert container.inner.requests <= 5
            with pytest.raises(sl.CorruptContainer):  # and again for those who come later: it may be repaired
                await container.head("a.txt")

    run(use)


def test_members_that_are_no_files_are_left_out_with_one_warning(caplog):
    async def use():
        tar = make_tar(CONTENTS, symbolic_link("link", "/etc/passwd"), symbolic_link("b/link", "../a.txt"))
        async with opened("links.tar", tar) as store:
            for _ in range(2):
                assert [info.path async for info in store.list()] == sorted(CONTENTS)
            with pytest.raises(sl.NotSupported, match=r"links\.tar!/link: it is a symbolic link") as caught:
                await store.read("link")
            assert caught.value.offset == 0
            assert await store.read("a.txt") == b"alpha"

    with caplog.at_level(logging.WARNING, "streamloader"):
        run(use)
    assert len(caplog.records) == 1
    assert "2 of 5 members are not ordinary files" in caplog.text


def test_damage_names_the_container_and_the_offset():
    async def use():
        tar = make_tar(CONTENTS)
        async with opened("cut.tar", tar[:1000]) as store:
            with pytest.raises(sl.CorruptContainer, match=r"cut\.tar, byte \d+") as caught:
                await store.head("a.txt")
            assert caught.value.address == "memory://containers/cut.tar"
            assert caught.value.offset is not None

    run(use)


def test_names_that_are_no_containers_are_refused():
    for address in ("memory://x/a.txt", "memory://x/a.tar.bz2", "memory://x"):
        with pytest.raises(sl.ConfigError):
            sl.open_container(address)
    with pytest.raises(sl.ConfigError, match="takes no such option"):
        sl.open_store("memory://x/a.tar!", nonsense=1)


def test_limits_and_directories_of_containers():
    async def use():
        tar = make_tar({f"d/{number}": b"" for number in range(20)})
        async with sl.open_store("memory://limits") as outer:
            await outer.write("x.tar", tar)
        async with sl.open_store("memory://limits/x.tar!", limits=sl.Limits(listed=10)) as store:
            with pytest.raises(sl.LimitExceeded, match=r"x\.tar!?: the listing has more than 10 entries"):
                await store.head("d/1")
        async with sl.open_store("memory://limits/x.tar!/d") as store:
            assert len([info async for info in store.list()]) == 20
            assert await store.read("7") == b""
            with pytest.raises(sl.ConfigError):
                await store.read("../x")

    run(use)


def test_a_container_travels_to_another_process_and_event_loop(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(make_tar(CONTENTS))
    store = sl.open_container(str(path))

    async def read(store):
        return await store.read("a.txt")

    try:
        assert asyncio.run(read(store)) == b"alpha"
        assert asyncio.run(read(store)) == b"alpha"
        assert asyncio.run(read(pickle.loads(pickle.dumps(store)))) == b"alpha"
        pid = os.fork()
        if not pid:
            os._exit(0 if asyncio.run(read(store)) == b"alpha" else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        asyncio.run(store.aclose())
    with pytest.raises(sl.ClosedError):
        asyncio.run(read(store))
