"""Tests of one pass over a container, in which members arrive with their bytes."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator

import pytest

from streamloader.config import Limits
from streamloader.containers.base import Container
from streamloader.errors import ObjectChanged, StreamloaderError
from streamloader.testing.containers.binding import ContainerBinding, make_data, make_rng, read_member, scan_members
from streamloader.testing.containers.counting import CountingStore, StallingStore
from streamloader.testing.containers.scans import BORDER_SIZES_BYTES, make_many_files
from streamloader.testing.stores.binding import describe_difference

__all__ = ["MemberPassSuite"]

_MAX_REQUESTS_OF_A_PASS = 8
_STALL_BYTES = 5 << 20  # more than is read ahead


class MemberPassSuite(ContainerBinding):
    """A pass yields what a scan yields, with the right bytes, whether they are read or not."""

    def test_a_pass_equals_scan_and_stream(self) -> None:
        files = [(f"{size}.bin", make_data(size)) for size in BORDER_SIZES_BYTES]
        files += [("same", b"1"), ("same", b"2"), ("large.bin", make_data(2_500_000))]
        files = self.arrange(files)

        async def check(container: Container) -> None:
            found = [(member, await _join(pieces)) async for member, pieces in container.iterate()]
            assert [member.name for member, _ in found] == [name for name, _ in files]
            assert not describe_difference([data for _, data in found], [data for _, data in files])
            members = await scan_members(container)
            assert [(member.name, member.size, member.problem) for member, _ in found] == [
                (member.name, member.size, member.problem) for member in members
            ]

        self.use(self.build(files), check)

    def test_members_of_a_pass_can_be_read_later(self) -> None:
        files = [(f"{number}.bin", make_data(3_000 * number)) for number in range(8)]

        async def check(container: Container) -> None:
            members = [member async for member, _ in container.iterate()]
            for member, (_, data) in zip(members, files, strict=True):
                assert await read_member(container, member) == data

        self.use(self.build(files), check)

    def test_members_can_be_skipped(self) -> None:
        files = self.arrange([(f"{number}.bin", make_data(200_000 - 7_000 * number)) for number in range(20)])
        rng = make_rng(3)

        async def check(container: Container) -> None:
            for share in (0.0, 0.5):
                index = 0
                async for member, pieces in container.iterate():
                    name, data = files[index]
                    assert (member.name, member.size) == (name, len(data))
                    if rng.random() < share:
                        assert not describe_difference(await _join(pieces), data)
                    index += 1
                assert index == len(files)

        self.use(self.build(files), check)

    def test_members_can_be_read_in_part(self) -> None:
        files = [(f"{number}.bin", make_data(1_500_000 if number % 3 == 0 else number)) for number in range(9)]

        async def check(container: Container) -> None:
            index = 0
            async for _, pieces in container.iterate():
                piece = await anext(pieces, b"")
                assert files[index][1].startswith(piece)
                assert piece or not files[index][1]
                index += 1
            assert index == len(files)

        self.use(self.build(files), check)

    def test_bytes_of_an_earlier_member_are_gone(self) -> None:
        files = [(f"{number}.bin", make_data(3_000_000, number)) for number in range(3)]

        async def check(container: Container) -> None:
            unfinished: AsyncGenerator[bytes, None] | None = None
            async for member, pieces in container.iterate():
                if unfinished is not None:
                    with pytest.raises(StreamloaderError):  # an end would look like a short member
                        await anext(unfinished)
                is_whole = len(await anext(pieces)) == member.size
                unfinished = None if is_whole else pieces

        self.use(self.build(files), check)

    # --- requests ----------------------------------------------------------------------------------------------------

    def test_a_pass_takes_few_requests(self) -> None:
        files = self.arrange(make_many_files(2_000))

        async def check(container: Container, store: CountingStore) -> None:
            found = [(member.name, await _join(pieces)) async for member, pieces in container.iterate()]
            assert not describe_difference(found, files)
            assert store.requests <= _MAX_REQUESTS_OF_A_PASS, f"{store.requests} requests for {len(files)} members"

        self.use_counted(self.build(files), check)

    def test_members_arrive_before_the_rest(self) -> None:
        large = make_rng(4).randbytes(2 * _STALL_BYTES)

        async def check(container: Container, store: CountingStore) -> None:
            assert isinstance(store, StallingStore)
            async with contextlib.aclosing(container.iterate()) as members:
                member, pieces = await anext(members)
                assert (member.name, await _join(pieces)) == ("first", b"one")
                member, pieces = await anext(members)
                piece = await anext(pieces)
                store.released.set()
                assert not describe_difference(piece + await _join(pieces), large)
                assert (await anext(members))[0].name == "last"

        data = self.build([("first", b"one"), ("large", large), ("last", b"three")])
        self.use_counted(data, check, wrap=functools.partial(StallingStore, offset=_STALL_BYTES))

    # --- closing -----------------------------------------------------------------------------------------------------

    def test_a_pass_that_is_closed_early_frees_its_connection(self) -> None:
        files = [(f"{number}.bin", make_data(300_000)) for number in range(6)]

        async def check(container: Container, store: CountingStore) -> None:
            small = (await scan_members(container))[-1]
            for count, are_bytes_read in [(0, False), (1, False), (1, True), (4, False), (4, True)]:
                async with contextlib.aclosing(container.iterate()) as members:
                    for _ in range(count):
                        _, pieces = await anext(members)
                        if are_bytes_read:
                            await anext(pieces)
                assert store.open_transfers == 0
                assert not describe_difference(await read_member(container, small), files[-1][1])

        self.use_counted(self.build(files), check, limits=Limits(requests=1))

    def test_bytes_are_gone_when_the_pass_is_closed(self) -> None:
        async def check(container: Container) -> None:
            async with contextlib.aclosing(container.iterate()) as members:
                _, pieces = await anext(members)
            with pytest.raises(StreamloaderError):
                await _join(pieces)

        self.use(self.build([("a", b"0123456789"), ("b", b"abc")]), check)

    def test_a_failure_of_the_caller_ends_the_pass(self) -> None:
        files = [(f"{number}.bin", make_data(300_000)) for number in range(3)]

        async def check(container: Container, store: CountingStore) -> None:
            with pytest.raises(ZeroDivisionError):
                await _fail_in_the_middle(container)
            assert store.open_transfers == 0

        self.use_counted(self.build(files), check)

    @pytest.mark.parametrize("limits", [Limits(), Limits(requests=1)], ids=["usual", "tight"])
    def test_concurrent_passes_are_independent(self, limits: Limits) -> None:
        sizes = [1_200_000 if number == 3 else 20_000 + number for number in range(12)]
        files = self.arrange([(f"{number}.bin", make_data(size)) for number, size in enumerate(sizes)])

        async def read_all(container: Container) -> list[bytes]:
            return [await _join(pieces) async for _, pieces in container.iterate()]

        async def check(container: Container) -> None:
            for found in await asyncio.gather(*(read_all(container) for _ in range(4))):
                assert not describe_difference(found, [data for _, data in files])

        self.use(self.build(files), check, limits=limits)

    def test_a_container_that_is_replaced_during_a_pass(self) -> None:
        files = [(f"{number}.bin", make_data(3_000_000, number)) for number in range(3)]
        other = self.build([(name, data[::-1]) for name, data in files])

        async def check(container: Container, store: CountingStore) -> None:
            found: list[bytes] = []
            with contextlib.suppress(ObjectChanged):
                async with contextlib.aclosing(container.iterate()) as members:
                    async for _, pieces in members:
                        found.append(await _join(pieces))
                        await store.write(self.make_path(), other)
            assert 1 <= len(found) <= len(files)
            assert not describe_difference(found, [data for _, data in files[: len(found)]])

        self.use_counted(self.build(files), check)


async def _join(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _fail_in_the_middle(container: Container) -> None:
    async with contextlib.aclosing(container.iterate()) as members:
        async for _, pieces in members:
            await anext(pieces)
            raise ZeroDivisionError
