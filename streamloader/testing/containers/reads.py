"""Tests of the bytes of members: spans, pieces, concurrent readers and closing."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib

import pytest

from streamloader.config import Limits
from streamloader.containers.base import Container, Member
from streamloader.errors import ConfigError, RangeNotSatisfiable
from streamloader.testing.containers.binding import ContainerBinding, make_data, make_rng, read_member, scan_members
from streamloader.testing.containers.counting import CountingStore
from streamloader.testing.containers.scans import BORDER_SIZES_BYTES
from streamloader.testing.stores.binding import describe_difference

__all__ = ["MemberReadSuite"]

MAX_PIECE_BYTES = 8 << 20
_LARGE_MEMBER_BYTES = 3_000_001
_READERS = 32
_REQUESTS_OF_A_SMALL_READ = 2


class MemberReadSuite(ContainerBinding):
    """A read returns exactly the requested bytes of a member."""

    def test_reads_members_of_all_sizes(self) -> None:
        sizes = (*BORDER_SIZES_BYTES, _LARGE_MEMBER_BYTES)
        files = self.arrange([(f"{size}.bin", make_data(size)) for size in sizes])

        async def check(container: Container) -> None:
            for member, (name, data) in zip(await scan_members(container), files, strict=True):
                assert not describe_difference(await read_member(container, member), data), name

        self.use(self.build(files), check)

    def test_reads_every_span_of_a_small_member(self) -> None:
        files = [("0", b"x" * 100), ("a", b"0123456789"), ("empty", b""), ("z", b"y" * 100)]

        async def check(container: Container) -> None:
            members = await scan_members(container)
            for member, (name, data) in zip(members[1:3], files[1:3], strict=True):
                for start in range(len(data) + 1):
                    assert await read_member(container, member, start) == data[start:], (name, start)
                    for end in range(start, len(data) + 1):
                        assert await read_member(container, member, start, end) == data[start:end], (name, start, end)

        self.use(self.build(files), check)

    def test_reads_random_spans_of_a_large_member(self) -> None:
        data = make_data(_LARGE_MEMBER_BYTES)
        rng = make_rng(1)
        spans = [(start, rng.randint(start, len(data))) for start in [rng.randrange(len(data)) for _ in range(6)]]
        spans += [
            (start, min(len(data), start + rng.randrange(2_000))) for start in rng.choices(range(len(data)), k=12)
        ]
        spans += [
            (0, 1),
            (len(data) - 1, len(data)),
            (65_535, 65_537),
            (1 << 20, (1 << 20) + 1),
            (len(data), len(data)),
        ]

        async def check(container: Container) -> None:
            member = (await scan_members(container))[1]
            for start, end in spans:
                found = await read_member(container, member, start, end)
                assert not describe_difference(found, data[start:end]), (start, end)

        self.use(self.build([("a", b"before"), ("large.bin", data), ("z", b"after")]), check)

    def test_spans_past_the_end_are_refused(self) -> None:
        async def check(container: Container) -> None:
            member = (await scan_members(container))[0]
            for start, end in ((0, 11), (10, 11), (11, 11), (11, None), (1 << 40, (1 << 40) + 1)):
                with pytest.raises(RangeNotSatisfiable) as caught:
                    await read_member(container, member, start, end)
                assert "a.bin" in str(caught.value)
            for start, end in ((5, 4), (-1, 3)):
                with pytest.raises(ConfigError):
                    await read_member(container, member, start, end)
            assert await read_member(container, member) == b"0123456789"

        self.use(self.build([("a.bin", b"0123456789"), ("b.bin", b"abcdefghij")]), check)

    def test_pieces_are_small(self) -> None:
        data = bytes(20 << 20)

        async def check(container: Container) -> None:
            member = (await scan_members(container))[0]
            sizes = [len(piece) async for piece in container.stream(member)]
            assert sum(sizes) == len(data)
            assert 0 < min(sizes) <= max(sizes) <= MAX_PIECE_BYTES

        self.use(self.build([("a.bin", data)]), check)

    def test_a_small_read_takes_few_requests(self) -> None:
        if self.is_compressed:
            return
        files = self.arrange([(f"{number}.bin", make_data(3_000 + number)) for number in range(100)])

        async def check(container: Container, store: CountingStore) -> None:
            for number, member in enumerate(await scan_members(container)):
                store.reset()
                assert await read_member(container, member) == files[number][1]
                assert store.requests <= _REQUESTS_OF_A_SMALL_READ
                assert store.bytes_received <= 16_384

        self.use_counted(self.build(files), check)

    # --- concurrency -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("limits", [Limits(), Limits(requests=2)], ids=["usual", "tight"])
    def test_many_concurrent_readers(self, limits: Limits) -> None:
        files = self.arrange([(f"{number}.bin", make_data(30_000 * number + 1)) for number in range(16)])
        rng = make_rng(2)

        async def check(container: Container) -> None:
            members = await scan_members(container)

            async def read_spans(number: int) -> None:
                data = files[number % len(files)][1]
                for _ in range(2):
                    start = rng.randrange(len(data))
                    end = rng.choice([len(data), rng.randint(start, len(data))])
                    found = await read_member(container, members[number % len(files)], start, end)
                    assert not describe_difference(found, data[start:end])

            await asyncio.gather(*(read_spans(number) for number in range(_READERS)), scan_members(container))

        self.use(self.build(files), check, limits=limits)

    def test_interleaved_streams_are_independent(self) -> None:
        files = [("a.bin", make_data(400_000, 1)), ("b.bin", make_data(400_000, 2))]

        async def check(container: Container) -> None:
            members = await scan_members(container)
            streams = [container.stream(member, start) for member in members for start in (0, 100_000)]
            found = [b""] * len(streams)
            pending = set(range(len(streams)))
            while pending:
                for index in sorted(pending):
                    piece = await anext(streams[index], None)
                    if piece is None:
                        pending.remove(index)
                    else:
                        found[index] += piece
            wanted = [data[start:] for _, data in files for start in (0, 100_000)]
            assert not describe_difference(found, wanted)

        self.use(self.build(files), check)

    # --- closing -----------------------------------------------------------------------------------------------------

    def test_a_stream_that_is_closed_early_frees_its_connection(self) -> None:
        data = make_data(_LARGE_MEMBER_BYTES)

        async def check(container: Container, store: CountingStore) -> None:
            large, small = await scan_members(container)
            for count in (0, 1, 2):
                async with contextlib.aclosing(container.stream(large)) as pieces:
                    for _ in range(count):
                        await anext(pieces, None)
                assert store.open_transfers == 0
                assert await read_member(container, small) == b"after"
            assert not describe_difference(await read_member(container, large), data)

        self.use_counted(self.build([("large.bin", data), ("z", b"after")]), check, limits=Limits(requests=1))

    def test_a_read_that_is_cancelled_disturbs_nothing(self) -> None:
        data = make_data(300_000)

        async def check(container: Container, store: CountingStore) -> None:
            members = await scan_members(container)
            for waits in (*range(8), 12, 20, 40):
                await _cancel_after(waits, container, members[0])
                assert store.open_transfers == 0
            for member in members:
                assert not describe_difference(await read_member(container, member), data)

        self.use_counted(self.build([("a", data), ("b", data)]), check, limits=Limits(requests=1))


async def _cancel_after(waits: int, container: Container, member: Member) -> None:
    """Start to read a member, and cancel it after some rounds of the event loop."""
    task = asyncio.create_task(read_member(container, member))
    for _ in range(waits):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
