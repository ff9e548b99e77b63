"""Tests of files that are cut, altered or extended, and of contents that are much larger than their file."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import Awaitable, Iterable, Iterator

import pytest

from streamloader.config import Limits
from streamloader.containers.base import Container, Member
from streamloader.errors import StoreError
from streamloader.testing.containers.binding import (
    ContainerBinding,
    Files,
    make_data,
    make_rng,
    run_with_deadline,
    scan_members,
)
from streamloader.testing.containers.counting import CountingStore
from streamloader.testing.containers.verdict import check_damaged, check_error

__all__ = ["ContainerDamageSuite", "measure_peak_bytes"]

_SAMPLES = 24
_ALL_OR_SAMPLES = [pytest.param(False, id="samples"), pytest.param(True, id="all", marks=pytest.mark.slow)]
_BOMB_BYTES = 32 << 20
_MAX_BOMB_MEMORY_BYTES = 12 << 20
_LOOP_ROUNDS_OF_A_BOMB = 8


class ContainerDamageSuite(ContainerBinding):
    """A damaged file gives right bytes or one typed error, in bounded memory and time."""

    @property
    def small_files(self) -> Files:
        """Members of the containers that are damaged."""
        return self.arrange(
            [
                ("a.txt", b"The first member."),
                ("empty", b""),
                ("ü/b.bin", make_data(700)),
                ("a.txt", b"The first member, again."),
            ]
        )

    def check_variants(self, variants: Iterable[tuple[str, bytes]], files: Files) -> None:
        """Check damaged versions of a container.

        Args:
            variants: Description and bytes of each version.
            files: Members that the container had before the damage.
        """

        async def check() -> None:
            async with CountingStore(self.make_store(Limits())) as store:
                for description, data in variants:
                    async with self.open_container(store, data) as container:
                        try:
                            await check_damaged(self, container, data, files)
                            assert store.open_transfers == 0, "a transfer was left open"
                        except BaseException as error:
                            error.add_note(f"of a container with this damage: {description}")
                            raise

        run_with_deadline(check, self.deadline_s)

    # --- cuts, flips, additions --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("is_full", _ALL_OR_SAMPLES)
    def test_cut_at_every_byte(self, is_full: bool) -> None:
        data = self.build(self.small_files)
        sizes = range(len(data)) if is_full else choose_offsets(len(data))
        self.check_variants(((f"cut at {size}", data[:size]) for size in sizes), self.small_files)

    def test_cut_at_every_block(self) -> None:
        files = [(f"{number}.bin", make_data(1_300 * number)) for number in range(4)]
        data = self.build(files)
        self.check_variants(((f"cut at {size}", data[:size]) for size in range(0, len(data), 512)), files)

    @pytest.mark.parametrize("is_full", _ALL_OR_SAMPLES)
    def test_every_byte_flipped(self, is_full: bool) -> None:
        data = self.build(self.small_files)
        rng = make_rng(5)
        offsets = range(len(data)) if is_full else choose_offsets(len(data))
        flips = [(offset, rng.choice([0xFF, 1 << rng.randrange(8)])) for offset in offsets]
        variants = (
            (f"byte {offset} xor {mask}", data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :])
            for offset, mask in flips
        )
        self.check_variants(variants, self.small_files)

    def test_other_bytes_before_or_after(self) -> None:
        data = self.build(self.small_files)
        additions = [b"\0", b"\n", bytes(512), bytes(10_240), make_rng(6).randbytes(3_000), data]
        variants = [(f"{len(addition)} bytes after it", data + addition) for addition in additions]
        variants += [(f"{len(addition)} bytes before it", addition + data) for addition in additions]
        self.check_variants(variants, self.small_files)

    def test_an_empty_file_is_an_error(self) -> None:
        async def check(container: Container) -> None:
            with pytest.raises(StoreError) as caught:
                await scan_members(container)
            check_error(caught.value, container)
            with pytest.raises(StoreError) as caught:
                [pair async for pair in container.iterate()]
            check_error(caught.value, container)

        self.use(b"", check)

    @pytest.mark.parametrize("filler", [0, 0xFF, ord("P")])
    def test_a_file_of_one_byte_repeated(self, filler: int) -> None:
        variants = [(f"{size} times {filler}", bytes([filler]) * size) for size in (1, 22, 511, 1_024, 300_000)]
        self.check_variants(variants, [])

    # --- bombs -------------------------------------------------------------------------------------------------------

    def test_large_contents_take_little_memory(self) -> None:
        async def check(container: Container) -> None:
            with measure_peak_bytes() as peak:
                members = await scan_members(container)
                sizes = [await _count_bytes(container, member) for member in members]
                skipped = [member.name async for member, _ in container.iterate()]
            assert sizes == [_BOMB_BYTES, 3]
            assert skipped == [member.name for member in members]
            assert peak[0] < _MAX_BOMB_MEMORY_BYTES, f"{peak[0]} bytes of memory were used"

        self.use(self.build([("bomb", bytes(_BOMB_BYTES)), ("z", b"end")]), check)

    def test_the_event_loop_runs_while_large_contents_are_decompressed(self) -> None:
        data = self.build([("bomb", bytes(_BOMB_BYTES)), ("z", b"end")])
        if len(data) > _BOMB_BYTES / 10:
            return  # it is not compressed

        async def check(container: Container) -> None:
            member = (await scan_members(container))[0]
            assert await _count_rounds(_count_bytes(container, member)) >= _LOOP_ROUNDS_OF_A_BOMB
            if self.is_compressed:  # then even bytes that are skipped have to be decompressed
                assert await _count_rounds(_skip_all(container)) >= _LOOP_ROUNDS_OF_A_BOMB

        self.use(data, check)


def choose_offsets(size: int) -> list[int]:
    """Return some offsets in a file: at its start, at its end, and in between."""
    step = max(1, size // _SAMPLES)
    return sorted({0, 1, *range(step, size, step), max(0, size - 2), size - 1})


@contextlib.contextmanager
def measure_peak_bytes() -> Iterator[list[int]]:
    """Measure the memory that a block of code allocates. The peak in bytes is in the list when the block ends."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


async def _count_bytes(container: Container, member: Member) -> int:
    """Stream a member, and return its number of bytes."""
    async with contextlib.aclosing(container.stream(member)) as pieces:
        return sum([len(piece) async for piece in pieces])


async def _skip_all(container: Container) -> int:
    return len([member async for member, _ in container.iterate()])


async def _count_rounds(work: Awaitable[object]) -> int:
    """Return the number of rounds of the event loop that another task runs during some work."""
    rounds = 0

    async def run_rounds() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    counter = asyncio.create_task(run_rounds())
    await work
    counter.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await counter
    return rounds
