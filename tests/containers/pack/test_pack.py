"""Packs in stores: requests, passes, parts of members, and what datasets see of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import struct

import pytest
from containers.pack_files import ZLIB, ZSTD, PackFile, build_pack
from made_clips import make_clip
from zip_data import RecordingStore, play

import streamloader as sl
from streamloader.containers.base import ContainerSource
from streamloader.containers.pack.build import write_pack
from streamloader.containers.pack.container import PackContainer
from streamloader.errors import ClosedError, CorruptContainer, IntegrityError, ObjectChanged
from streamloader.stores.memory import MemoryStore
from streamloader.testing.containers.binding import read_member, scan_members
from streamloader.testing.containers.counting import CountingStore

NOISE = random.Random(7).randbytes(700_000)
TEXT = b"".join(b"line %d of a long text\n" % number for number in range(40_000))
MEMBERS = [("d/short", b"a few bytes"), ("d/text", TEXT[:70_000]), ("empty", b""), ("noise", NOISE), ("text", TEXT)]
METHODS = pytest.mark.parametrize("method", [None, ZLIB, ZSTD])


def use(data, function):
    """Call a coroutine function with the container of a pack and its store, which records the requests."""

    async def call():
        async with RecordingStore("memory://pack") as store:
            await store.write("a.pack", data)
            try:
                return await function(PackContainer(ContainerSource(store, await store.head("a.pack"))), store)
            finally:
                await store.delete("a.pack")

    return play(call())


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "requests"), [(0, 1), (500, 1), (5_000, 2)])
def test_the_list_of_members_takes_one_request_or_two(count, requests):
    files = [(f"{number:06}", b"%d" % number) for number in range(count)]
    data = build_pack(files)

    async def check(container, store):
        assert [member.name for member in await scan_members(container)] == [name for name, _ in files]
        assert len(store.spans) == requests
        index_offset, index_size = struct.unpack_from("<QQ", data, len(data) - 56)
        assert store.spans[0] == (max(0, len(data) - 65_536), len(data))
        assert store.spans[1:] in ([], [(index_offset, index_offset + index_size)])

    use(data, check)


@METHODS
def test_a_member_takes_one_request_for_exactly_its_bytes(method):
    pack = PackFile(MEMBERS, method)

    async def check(container, store):
        for row, member in enumerate(await scan_members(container)):
            store.spans.clear()
            assert await read_member(container, member) == MEMBERS[row][1]
            spans = [(pack.starts[row], pack.starts[row + 1])]
            assert store.spans == (spans if pack.stored[row] else [])

    use(pack.build(), check)


@METHODS
def test_a_pass_is_one_stream_from_the_start(method):
    data = build_pack(MEMBERS, method)

    async def check(container, store):
        found = [
            (member.name, b"".join([piece async for piece in pieces])) async for member, pieces in container.iterate()
        ]
        assert found == MEMBERS
        index_offset = struct.unpack_from("<Q", data, len(data) - 56)[0]
        assert store.spans == [(max(0, len(data) - 65_536), len(data)), (0, index_offset)]

    use(data, check)


def test_large_members_that_are_not_read_are_not_received():
    large = bytes(6 << 20)
    data = build_pack([("a", b"first"), *((f"b{number}", large) for number in range(8)), ("c", b"last")])

    async def check(container, store):
        found = [(member.name, await anext(pieces) if member.size < 10 else b"")
                 async for member, pieces in container.iterate()]  # fmt: skip
        assert found == [("a", b"first"), *((f"b{number}", b"") for number in range(8)), ("c", b"last")]
        assert len(store.spans) == 3
        counting = CountingStore(store)
        counted = PackContainer(ContainerSource(counting, container.source.info))
        assert [member.name async for member, _ in counted.iterate()] == [name for name, _ in found]
        assert counting.bytes_received < 8 << 20

    use(data, check)


# --- bytes ------------------------------------------------------------------------------------------------------------


@METHODS
def test_any_part_of_a_member(method):
    rng = random.Random(3)

    async def check(container, store):
        for member, (_, data) in zip(await scan_members(container), MEMBERS, strict=True):
            for _ in range(8):
                start = rng.randint(0, len(data))
                end = rng.choice([len(data), rng.randint(start, len(data)), min(len(data), start + 5)])
                assert await read_member(container, member, start, end) == data[start:end]

    use(build_pack(MEMBERS, method), check)


@METHODS
def test_successive_parts_verify_the_checksum(method):
    pack = PackFile(MEMBERS, method)
    pack.checksums[3] ^= 1

    async def check(container, store):
        member = (await scan_members(container))[3]
        borders = [0, 5, 300_000, 300_000, 699_999]
        for start, end in itertools.pairwise(borders):
            assert await read_member(container, member, start, end) == NOISE[start:end]
        with pytest.raises(IntegrityError) as caught:
            await read_member(container, member, 699_999)
        assert caught.value.offset == pack.starts[3]
        assert await read_member(container, member, 699_998) == NOISE[-2:]  # the checksum of what precedes is unknown

    use(pack.build(), check)


async def collect(pieces, sizes):
    async for piece in pieces:
        sizes.append(len(piece))


@METHODS
@pytest.mark.parametrize("row", range(len(MEMBERS)))
def test_wrong_bytes_never_arrive_whole(method, row):
    pack = PackFile(MEMBERS, method)
    pack.checksums[row] ^= 1

    async def check(container, store):
        received, pieces = [], container.stream((await scan_members(container))[row])
        with pytest.raises(IntegrityError):
            await collect(pieces, received)
        assert sum(received) < max(1, len(MEMBERS[row][1]))
        found = []
        async for member, pieces in container.iterate():
            with contextlib.suppress(IntegrityError):
                found.append((member.name, b"".join([piece async for piece in pieces])))
        assert found == [*MEMBERS[:row], *MEMBERS[row + 1 :]]

    use(pack.build(), check)


def test_properties_of_members():
    pack = PackFile(MEMBERS, ZLIB)
    pack.modified = [0, 1_700_000_000_500_000_000, -1_000_000_000, 1, 0]

    async def check(container, store):
        members = await scan_members(container)
        assert [member.modified for member in members] == [None, 1_700_000_000.5, -1.0, 1e-9, None]
        assert [member.checksum for member in members] == pack.checksums
        assert [member.stored_size for member in members] == list(map(len, pack.stored))
        assert [member.data for member in members] == pack.starts[:-1]

    use(pack.build(), check)


# --- passes -----------------------------------------------------------------------------------------------------------


def test_a_cancelled_pass_does_not_pretend_that_the_pack_is_cut():
    class Stalling(CountingStore):
        async def stream(self, path, span=None, **options):
            async with contextlib.aclosing(super().stream(path, span, **options)) as pieces:
                async for piece in pieces:
                    yield piece
                    await asyncio.Event().wait()

    async def check(container, store):
        stalling = Stalling(store)
        stalled = PackContainer(ContainerSource(stalling, container.source.info))
        async with contextlib.aclosing(stalled.iterate()) as members:
            async for _, pieces in members:
                task = asyncio.create_task(anext(pieces))
                for _ in range(20):
                    await asyncio.sleep(0)
                if not task.done():
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    break
                task.result()
            _, pieces = await anext(members)
            with pytest.raises(ClosedError, match="cancellation"):
                await anext(pieces)

    files = [(f"{number:04}", NOISE) for number in range(12)]
    use(build_pack(files), check)


def test_a_pass_over_a_pack_that_is_replaced_fails_for_each_member():
    async def check(container, store):
        errors = []
        async for member, pieces in container.iterate():
            if member.name == "0000":
                await store.write("a.pack", build_pack(MEMBERS))  # nothing is transferred yet but the header
                continue
            with pytest.raises(ObjectChanged) as caught:
                await collect(pieces, [])
            errors.append(caught.value)
        assert len(errors) == 2

    use(build_pack([(f"{number:04}", bytes(9 << 20)) for number in range(3)]), check)


def test_a_pack_that_gets_shorter_is_an_error():
    class Cut(MemoryStore):
        async def stream(self, path, span=None, **options):
            async with contextlib.aclosing(super().stream(path, span, **options)) as pieces:
                async for piece in pieces:
                    yield piece[: 100 if span.start == 0 else None]
                    return

    async def check(container, store):
        async with Cut(store.url) as cut:
            broken = PackContainer(ContainerSource(cut, container.source.info))
            with pytest.raises(CorruptContainer, match="cut"):
                [[piece async for piece in pieces] async for _, pieces in broken.iterate()]

    use(build_pack(MEMBERS), check)


# --- datasets ---------------------------------------------------------------------------------------------------------


def play_texts(address):
    with sl.MultiStreamer(sl.TextStreams(address), 2, 4) as loader:
        return [batch.numpy()["data"].tobytes() for batch in loader]


def test_a_folder_of_packs_is_the_folder(tmp_path):
    for number in range(3):
        (tmp_path / f"subdir_{number}").mkdir()
        files = [(f"{number}{index:03}.txt", b"text %d of %d" % (index, number), 0) for index in range(20)]
        for name, data, _ in files:
            (tmp_path / f"subdir_{number}" / name).write_bytes(data)
        write_pack(tmp_path / f"subdir_{number}.pack", files)
    assert play_texts(f"{tmp_path}/*.pack!/*.txt") == play_texts(f"{tmp_path}/subdir_*/*.txt")
    assert play_texts(f"{tmp_path}/subdir_1.pack!") == play_texts(f"{tmp_path}/subdir_1")


def test_videos_of_a_pack_are_the_videos(tmp_path):
    make_clip(tmp_path / "clip.mp4", frames=19, gop=6)
    write_pack(tmp_path / "x.pack", [("v/clip.mp4", (tmp_path / "clip.mp4").read_bytes(), 0)])

    def play_videos(address):
        with sl.MultiStreamer(sl.VideoStreams(address), 2, 4) as loader:
            return [batch.numpy()["data"].tobytes() for batch in loader]

    assert play_videos(f"{tmp_path}/x.pack!/**/*.mp4") == play_videos(str(tmp_path / "clip.mp4"))


def test_a_pack_is_opened_as_a_store(tmp_path):
    write_pack(tmp_path / "x.pack", [(name, data, 1_700_000_000_000_000_000) for name, data in MEMBERS])

    async def check():
        async with sl.open_container(str(tmp_path / "x.pack")) as store:
            assert [info.path async for info in store.list("d")] == ["d/short", "d/text"]
            info = await store.head("text")
            assert (info.size, info.modified) == (len(TEXT), 1_700_000_000.0)
            assert await store.read("text") == TEXT
            async with contextlib.aclosing(store.iterate()) as pairs:
                found = [(info.path, b"".join([piece async for piece in pieces])) async for info, pieces in pairs]
            assert found == MEMBERS

    play(check())
