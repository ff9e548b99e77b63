"""Tests of a store's writes and deletes. Read-only stores have to raise NotSupported."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator

import pytest

from streamloader.errors import NotFound, ObjectChanged
from streamloader.stores.base import Store
from streamloader.testing.stores.binding import (
    BIG_OBJECT_BYTES,
    StoreBinding,
    describe_difference,
    iterate_pieces,
    list_objects,
    make_bytes,
    require_listing,
    require_writes,
)
from streamloader.values import ByteRange

__all__ = ["WriteSuite"]


class WriteFailure(Exception):
    """The error of a failing iterator of pieces."""


class WriteSuite(StoreBinding):
    """A write stores the whole object or nothing."""

    def test_writes_bytes(self) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"a memoryview")[2:], b"", b"x" * 100_000):
                    await store.write(path, data)
                    assert not describe_difference(await store.read(path), bytes(data))
                    assert (await store.head(path)).size == len(data)

        self.use(write)

    def test_other_instances_read_what_was_written(self) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> bool:
            if await require_writes(store, path):
                await store.write(path, b"here it is")
            return store.supports_writes

        if self.use(write):
            assert self.use(lambda store: store.read(path)) == b"here it is"

    def test_writes_a_big_object(self) -> None:
        path = self.path(self.name("big.bin"))

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                await store.write(path, make_bytes(BIG_OBJECT_BYTES))
                whole = await store.read(path)
                assert hashlib.sha256(whole).digest() == hashlib.sha256(make_bytes(BIG_OBJECT_BYTES)).digest()

        self.use(write)

    def test_writes_pieces_as_they_come(self) -> None:
        path, data = self.path(self.name("a.bin")), make_bytes(BIG_OBJECT_BYTES)
        cuts = [0, 0, 1, 7, 7, 65_536, 5 << 20, (5 << 20) + 1, BIG_OBJECT_BYTES - 3, BIG_OBJECT_BYTES, BIG_OBJECT_BYTES]
        parts = [data[start:end] for start, end in itertools.pairwise(cuts)]

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                for some in ([], [b""], [b"one"], [b"", b"a", b"", b"b"], parts):
                    await store.write(path, iterate_pieces(*some))
                    assert not describe_difference(await store.read(path), b"".join(some))

        self.use(write)

    def test_replaces_an_object(self) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                for data in (b"x" * 1_000, b"short", b"longer than before" * 100):
                    await store.write(path, data)
                    assert not describe_difference(await store.read(path), data)
                if await require_listing(store, self.name()):
                    assert [info.path for info in await list_objects(store, self.path(self.name()))] == [path]

        self.use(write)

    def test_makes_directories_as_needed(self) -> None:
        paths = [self.path(self.name(name)) for name in ("one/two/three/a.bin", "one/two/b.bin", "one/c.bin")]

        async def write(store: Store) -> None:
            if await require_writes(store, paths[0]):
                for path in paths:
                    await store.write(path, path.encode())
                assert [await store.read(path) for path in paths] == [path.encode() for path in paths]

        self.use(write)

    @pytest.mark.parametrize("before", [b"the old one", None])
    @pytest.mark.parametrize("size", [0, 3, BIG_OBJECT_BYTES])
    def test_a_write_that_fails_changes_nothing(self, before: bytes | None, size: int) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                if before is not None:
                    await store.write(path, before)
                half = (make_bytes(size)[at : at + (1 << 20)] for at in range(0, size, 1 << 20))
                with pytest.raises(WriteFailure):
                    await store.write(path, iterate_pieces(*half, then=WriteFailure("no more")))
                await self._assert_as_before(store, path, before)

        self.use(write)

    @pytest.mark.parametrize("before", [b"the old one", None])
    def test_a_write_that_is_cancelled_changes_nothing(self, before: bytes | None) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> None:
            if not await require_writes(store, path):
                return
            if before is not None:
                await store.write(path, before)
            reached = asyncio.get_running_loop().create_future()

            async def stuck() -> AsyncIterator[bytes]:
                for at in range(0, BIG_OBJECT_BYTES, 1 << 20):
                    yield make_bytes(BIG_OBJECT_BYTES)[at : at + (1 << 20)]
                reached.set_result(None)
                await asyncio.Event().wait()

            task = asyncio.create_task(store.write(path, stuck()))
            await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await self._assert_as_before(store, path, before)

        self.use(write)

    def test_deletes(self) -> None:
        path = self.path(self.name("sub/a.bin"))

        async def delete(store: Store) -> None:
            if not await require_writes(store, path):
                return
            await store.write(path, b"x")
            await store.write(f"{path}2", b"stays")
            await store.delete(path)
            with pytest.raises(NotFound):
                await store.head(path)
            with pytest.raises(NotFound):
                await store.read(path)
            assert await store.read(f"{path}2") == b"stays"
            if await require_listing(store, self.name()):
                assert [info.path for info in await list_objects(store, self.path(self.name()))] == [f"{path}2"]
            await store.write(path, b"again")
            assert await store.read(path) == b"again"

        self.use(delete)

    def test_deleting_a_missing_object_is_no_error(self) -> None:
        path = self.path(self.name("none/none.bin"))

        async def delete(store: Store) -> None:
            if await require_writes(store, path):
                await store.delete(path)
                await store.delete(path)

        self.use(delete)

    def test_many_writes_at_once(self) -> None:
        paths = {self.path(self.name(f"{number}.bin")): make_bytes(1_000 + number) for number in range(64)}

        async def write(store: Store) -> None:
            if await require_writes(store, next(iter(paths))):
                async with asyncio.TaskGroup() as tasks:
                    for path, data in paths.items():
                        tasks.create_task(store.write(path, data))
                assert not describe_difference({path: await store.read(path) for path in paths}, paths)

        self.use(write)

    def test_of_writes_to_one_object_one_wins(self) -> None:
        path = self.path(self.name("a.bin"))

        async def write(store: Store) -> None:
            if await require_writes(store, path):
                async with asyncio.TaskGroup() as tasks:
                    for number in range(1, 17):
                        tasks.create_task(store.write(path, _version(number)))
                assert _version_of(await store.read(path)) in range(1, 17)

        self.use(write)

    def test_readers_never_see_a_mixture(self) -> None:
        # Whether the store or another program replaces an object, a reader gets one version or an error.
        path = self.put("a.bin", _version(1))
        written, ended = 1, 0

        async def rewrite(store: Store) -> None:
            nonlocal written
            for number in range(2, 18):
                before = ended
                while ended == before:  # noqa: ASYNC110 - until one read ends while others are in the middle
                    await asyncio.sleep(0.001)  # a busy loop would starve a server in a thread of this process
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                if store.supports_writes:
                    await store.write(path, _version(number))
                else:
                    await asyncio.to_thread(self.populate, {self.name("a.bin"): _version(number)})
                written = number

        async def read_on(store: Store) -> None:
            nonlocal ended
            while written < 17:
                before = written
                with contextlib.suppress(ObjectChanged):
                    seen = _version_of(await store.read(path))
                    assert seen >= before or path != self.path(self.name("a.bin")), "a read returned an older version"
                ended += 1
                await asyncio.sleep(0)

        async def both(store: Store) -> None:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(4):
                    tasks.create_task(read_on(store))
                tasks.create_task(rewrite(store))
            with contextlib.suppress(ObjectChanged):  # if no reader has met the last version yet
                await store.read(self.path(self.name("a.bin")))
            assert _version_of(await store.read(self.path(self.name("a.bin")))) == 17

        self.use(both)

    def test_a_reader_in_the_middle_is_not_disturbed(self) -> None:
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            got = bytearray()
            try:
                async for part in store.stream(path, ByteRange(1)):
                    if not got:
                        await asyncio.to_thread(self.populate, {self.name("a.bin"): b"another one" * 1_000_000})
                    got += part
                assert hashlib.sha256(got).digest() == hashlib.sha256(data[1:]).digest()
            except ObjectChanged:
                assert not describe_difference(bytes(got), data[1 : 1 + len(got)])

        self.use(read)

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _assert_as_before(self, store: Store, path: str, before: bytes | None) -> None:
        if before is not None:
            assert not describe_difference(await store.read(path), before)
        else:
            with pytest.raises(NotFound):
                await store.head(path)
        if await require_listing(store, self.name()):
            found = [info.path for info in await list_objects(store, self.path(self.name()))]
            assert found == ([path] if before is not None else []), "other objects were left"


def _version(number: int) -> bytes:
    """Return the bytes of a version. Every byte and the size depend on its number."""
    return bytes([number]) * (400_000 + number)


def _version_of(data: bytes) -> int:
    number = data[0]
    assert not describe_difference(data, _version(number)), f"{len(data)} bytes, of the versions {sorted(set(data))}"
    return number
