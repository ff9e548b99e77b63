"""Tests of the list of members: names, sizes, order, and the number of requests that it takes."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib

import pytest

from streamloader.config import Limits
from streamloader.containers.base import Container, ContainerSource
from streamloader.errors import LimitExceeded, ObjectChanged
from streamloader.testing.containers.binding import (
    ContainerBinding,
    Files,
    make_data,
    read_member,
    scan_members,
)
from streamloader.testing.containers.counting import CountingStore

__all__ = ["BORDER_SIZES_BYTES", "MemberScanSuite"]

BORDER_SIZES_BYTES = (0, 1, 2, 511, 512, 513, 1_023, 1_024, 1_025, 4_096, 65_535, 65_536, 65_537, 262_145)
_MANY = 2_000
_MAX_REQUESTS_OF_MANY = 16
_LARGE_MEMBER_BYTES = 1 << 20


class MemberScanSuite(ContainerBinding):
    """A scan yields exactly what was written, in its order."""

    def test_scan_returns_names_and_sizes_in_order(self) -> None:
        files = [(f"{number:02}/ü {size}.bin", make_data(size)) for number, size in enumerate(BORDER_SIZES_BYTES)]
        files = self.arrange(files[::2] + files[1::2])  # not in the order of their names

        async def check(container: Container) -> None:
            members = await scan_members(container)
            assert [(member.name, member.size) for member in members] == [(name, len(data)) for name, data in files]
            assert [member.problem for member in members] == [None] * len(files)
            assert len({member.offset for member in members}) == len(files)
            assert sorted(members, key=lambda member: member.offset) == members
            assert await scan_members(container) == members

        self.use(self.build(files), check)

    def test_names_of_all_kinds(self) -> None:
        files = self.arrange([(name, b"of " + name.encode()) for name in (*self.names, *self.long_names)])
        names = [name for name, _ in files]

        async def check(container: Container) -> None:
            members = await scan_members(container)
            assert [(member.name, member.problem) for member in members] == [(name, None) for name in names]
            for member, (name, data) in zip(members, files, strict=True):
                assert await read_member(container, member) == data, name

        self.use(self.build(files), check)

    def test_leading_dots_and_slashes_are_removed(self) -> None:
        async def check(container: Container) -> None:
            members = await scan_members(container)
            assert [(member.name, member.problem) for member in members] == [("a", None), ("b/c", None)]

        self.use(self.build([("./a", b"1"), ("./b/c", b"2")]), check)

    def test_an_empty_container_has_no_members(self) -> None:
        async def check(container: Container) -> None:
            assert await scan_members(container) == []
            assert [pair async for pair in container.iterate()] == []

        self.use(self.build([]), check)

    def test_one_name_twice_is_two_members(self) -> None:
        files = self.arrange([("a", b"first"), ("b", b"other"), ("a", b"second"), ("a", b"")])

        async def check(container: Container) -> None:
            members = await scan_members(container)
            found = [(member.name, await read_member(container, member)) for member in members]
            assert found == files

        self.use(self.build(files), check)

    # --- requests ----------------------------------------------------------------------------------------------------

    def test_many_members_take_few_requests(self) -> None:
        files = self.arrange(make_many_files(_MANY))

        async def check(container: Container, store: CountingStore) -> None:
            members = await scan_members(container)
            assert [member.name for member in members] == [name for name, _ in files]
            assert store.requests <= _MAX_REQUESTS_OF_MANY, f"{store.requests} requests for {_MANY} members"

        self.use_counted(self.build(files), check)

    def test_large_contents_are_skipped(self) -> None:
        if self.is_compressed:
            return
        files = [(f"{number}.bin", make_data(_LARGE_MEMBER_BYTES)) for number in range(8)]

        async def check(container: Container, store: CountingStore) -> None:
            assert len(await scan_members(container)) == len(files)
            assert store.bytes_received < container.source.size / 2, f"{store.bytes_received} bytes were read"
            assert store.requests <= 2 * len(files) + 4

        self.use_counted(self.build(files), check)

    # --- limits, closing, changes ------------------------------------------------------------------------------------

    def test_the_number_of_members_is_limited(self) -> None:
        data = self.build(self.arrange(make_many_files(50)))

        async def scan(container: Container) -> int:
            return len(await scan_members(container))

        async def refuse(container: Container) -> None:
            with pytest.raises(LimitExceeded) as caught:
                await scan_members(container)
            assert container.source.address in str(caught.value)
            assert "listed" in str(caught.value)

        assert self.use(data, scan, limits=Limits(listed=50)) == 50
        self.use(data, refuse, limits=Limits(listed=49))

    def test_a_scan_that_is_closed_early_frees_its_connection(self) -> None:
        files = self.arrange([(f"{number}.bin", make_data(40_000 + number)) for number in range(12)])

        async def check(container: Container, store: CountingStore) -> None:
            members = await scan_members(container)
            for count in (0, 1, 2, 7):
                async with contextlib.aclosing(container.scan()) as scan:
                    for _ in range(count):
                        await anext(scan)
                assert store.open_transfers == 0
                assert await read_member(container, members[count]) == files[count][1]

        self.use_counted(self.build(files), check, limits=Limits(requests=1))

    def test_concurrent_scans_are_equal(self) -> None:
        files = self.arrange(make_many_files(200))

        async def check(container: Container) -> None:
            lists = await asyncio.gather(*(scan_members(container) for _ in range(5)))
            assert [member.name for member in lists[0]] == [name for name, _ in files]
            assert all(one == lists[0] for one in lists)

        self.use(self.build(files), check)

    def test_a_replaced_container_has_changed(self) -> None:
        files = [("a", make_data(3_000)), ("b", make_data(70_000)), ("c", b"end")]
        data, other = self.build(files), self.build([(name, data[::-1]) for name, data in files])

        async def check(container: Container, store: CountingStore) -> None:
            members = await scan_members(container)
            await store.write(self.make_path(), other)
            for member in members:
                with pytest.raises(ObjectChanged):
                    await read_member(container, member)
            with pytest.raises(ObjectChanged):
                await scan_members(container)
            with pytest.raises(ObjectChanged):
                [pair async for pair in container.iterate()]

        self.use_counted(data, check)

    def test_members_can_be_read_by_another_instance(self) -> None:
        files = [(f"{number}.bin", make_data(9_000 + number)) for number in range(6)]

        async def check(container: Container, store: CountingStore) -> None:
            members = await scan_members(container)
            other = self.make_container(ContainerSource(store, container.source.info))
            for member, (_, data) in reversed(list(zip(members, files, strict=True))):
                assert await read_member(other, member) == data

        self.use_counted(self.build(files), check)


def make_many_files(count: int) -> Files:
    """Return small files with different names, sizes and contents."""
    return [(f"folder {number % 7}/{number:06}.txt", b"%d," % number * (number % 50)) for number in range(count)]
