"""Any range of compressed data is decompressed right, or with one typed error, in bounded pieces."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import random
import struct
import sys
import tracemalloc
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamloader.config import Limits
from streamloader.containers import compression
from streamloader.containers.base import ContainerSource
from streamloader.containers.compression import CompressedRange
from streamloader.errors import CorruptContainer, LimitExceeded, MissingDependency, ObjectChanged, TransferInterrupted
from streamloader.stores.memory import MemoryStore

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

METHODS = ["gzip", "zstd", "deflate"]
PIECE_BYTES = 256 << 10
MIB = 1 << 20
BEFORE, AFTER = b"before \x1f\x8b", b"after \x28\xb5"  # other contents of the container
# Small enough that inputs of a few hundred bytes take many slices, requests and restart points.
TINY = {
    "_PIECE_BYTES": 19,
    "_FIRST_SLICE_BYTES": 5,
    "_MIN_SLICE_BYTES": 2,
    "_MAX_SLICE_BYTES": 9,
    "_READ_BYTES": 11,
    "_POINT_INTERVAL_BYTES": 16,
    "_MAX_POINTS": 5,
}

# --- making compressed data ------------------------------------------------------------------------------------------


def make_gzip(data, level=6, name=b"", *, header_crc=False):
    """Return one member, with the optional parts of its header (RFC 1952, section 2.3)."""
    raw = make_deflate(data, level)
    header = struct.pack("<4BIBB", 0x1F, 0x8B, 8, 2 * header_crc + 8 * bool(name), 1_700_000_000, 0, 255)
    header += name + b"\0" * bool(name)
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) * header_crc
    return header + raw + struct.pack("<II", zlib.crc32(data), len(data))


def make_deflate(data, level=6, strategy=zlib.Z_DEFAULT_STRATEGY):
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
    return compressor.compress(data) + compressor.flush()


def make_zstd(data, level=3, *, checksum=True, sized=True):
    options = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: int(checksum),
    }
    compressor = zstd.ZstdCompressor(options=options)
    if sized:
        compressor.set_pledged_input_size(len(data))
    return compressor.compress(data) + compressor.flush()


def make_skippable(data, number=0):
    """Return a skippable frame (RFC 8878, section 3.1.2)."""
    return struct.pack("<II", 0x184D2A50 + number, len(data)) + data


def make_digits(size):
    """Return random hexadecimal digits: half is left of them when they are compressed."""
    return random.Random(3).randbytes(size // 2).hex().encode()


MAKERS = {"gzip": make_gzip, "zstd": make_zstd, "deflate": make_deflate}
CONTENTS = st.binary(max_size=150) | st.builds(
    lambda unit, times: unit * times, st.binary(min_size=1, max_size=9), st.integers(0, 60)
)
STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE]


@st.composite
def compressed(draw):
    """Return method, decompressed and compressed bytes."""
    method = draw(st.sampled_from(METHODS))
    contents = draw(st.lists(CONTENTS, min_size=1, max_size=1 if method == "deflate" else 5))
    members = []
    for content in contents:
        if method == "gzip":
            name = draw(st.sampled_from([b"", b"a name"]))
            members.append(make_gzip(content, draw(st.sampled_from([0, 1, 9])), name, header_crc=draw(st.booleans())))
        elif method == "deflate":
            members.append(make_deflate(content, draw(st.sampled_from([0, 1, 9])), draw(st.sampled_from(STRATEGIES))))
        else:
            members.extend(map(make_skippable, draw(st.lists(st.binary(max_size=12), max_size=1))))
            members.append(make_zstd(content, 3, checksum=draw(st.booleans()), sized=draw(st.booleans())))
    padding = bytes(draw(st.integers(0, 30))) if method == "gzip" else b""
    return method, b"".join(contents), b"".join(members) + padding


# --- reading it ------------------------------------------------------------------------------------------------------


class CountingSource(ContainerSource):
    """Counts the bytes that it delivers, and loses its connection where it is requested to."""

    delivered = 0
    fails_after = None

    async def read(self, start, end):
        data = await super().read(start, end)
        self._count(data)
        return data

    async def stream(self, start, end):
        async with contextlib.aclosing(super().stream(start, end)) as pieces:
            async for piece in pieces:
                self._count(piece)
                yield piece

    def _count(self, piece):
        self.delivered += len(piece)
        if self.fails_after is not None and self.delivered > self.fails_after:
            self.fails_after = None
            raise TransferInterrupted("the connection was lost", address=self.address)


async def open_source(data, limits=None):
    store = MemoryStore("memory://compression", limits=limits)
    await store.write("x", BEFORE + data + AFTER)
    return CountingSource(store, await store.head("x"))


async def open_range(method, data, limits=None):
    return CompressedRange(await open_source(data, limits), method, len(BEFORE), len(BEFORE) + len(data))


async def read(range_, start=0, end=None):
    received = []
    async for piece in range_.stream(start, end):
        assert 0 < len(piece) <= PIECE_BYTES
        received.append(piece)
    return b"".join(received)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def read_all(method, data, limits=None):
    async def main():
        return await read(await open_range(method, data, limits))

    return run(main())


def try_each(method, inputs):
    """Return the bytes of each input, or None where they are refused. No other error is allowed."""

    async def try_one(data):
        range_ = await open_range(method, data)
        with contextlib.suppress(CorruptContainer):
            return await read(range_)

    async def main():
        return [await try_one(data) for data in inputs]

    return run(main())


def try_reading(method, data):
    (received,) = try_each(method, [data])
    return received


@pytest.fixture
def tiny(monkeypatch):
    for name, value in TINY.items():
        monkeypatch.setattr(compression, name, value)


@contextlib.contextmanager
def tiny_sizes():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(compression, name, value)
        yield


# --- right bytes -----------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(compressed(), st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=8), st.booleans())
def test_all_ranges_are_right(case, ranges, is_tiny):
    method, expected, data = case

    async def main():
        range_ = await open_range(method, data)
        for first, last in ranges:
            start = int(first * len(expected))
            end = None if last is None else int(last * len(expected))
            assert await read(range_, start, end) == expected[start:end]
        assert await read(range_) == expected
        assert await read(range_, len(expected)) == b""

    with tiny_sizes() if is_tiny else contextlib.nullcontext():
        run(main())


@settings(max_examples=50)
@given(compressed(), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=30))
def test_many_readers_share_one_object(case, readers):
    """Each stops after a few pieces and goes on with another read, until the end, and waits after every piece."""
    method, expected, data = case

    async def use(range_, first, max_pieces):
        position = start = int(first * len(expected))
        while position < len(expected):
            async with contextlib.aclosing(range_.stream(position)) as pieces:
                for _ in range(max_pieces):
                    piece = await anext(pieces, b"")
                    assert piece == expected[position : position + len(piece)]
                    position += len(piece)
                    await asyncio.sleep(0)
        assert position == len(expected), start

    async def main():
        range_ = await open_range(method, data)
        await asyncio.gather(*(use(range_, *reader) for reader in readers))

    with tiny_sizes():
        run(main())


@pytest.mark.parametrize("method", METHODS)
def test_output_is_fetched_after_all_input_was_used(method, tiny):
    """The last byte of a stream can stand for more than a piece."""
    sizes = range(0, 1100, 13)
    assert try_each(method, [MAKERS[method](bytes(size)) for size in sizes]) == [bytes(size) for size in sizes]


@pytest.mark.parametrize("method", METHODS)
def test_no_range_without_bytes_is_read(method):
    async def main():
        range_ = await open_range(method, b"damaged")
        assert await read(range_, 5, 5) == await read(range_, 5, 3) == b""

    run(main())


@pytest.mark.parametrize("method", METHODS)
def test_ranges_beyond_the_end_are_refused(method):
    expected = b"some text"

    async def main():
        range_ = await open_range(method, MAKERS[method](expected))
        for start, end in [(0, 10), (9, 10), (10, None), (10, 11), (1000, 2000)]:
            with pytest.raises(CorruptContainer, match="only 9 bytes, and"):
                await read(range_, start, end)
        assert await read(range_) == expected

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_large_data_is_right_at_random_offsets(method):
    """Restart points are thinned out several times, and still lie where they say."""
    expected = make_digits(24 * MIB)
    parts = [expected] if method == "deflate" else [expected[: 5 * MIB], expected[5 * MIB :]]

    async def main():
        range_ = await open_range(method, b"".join(MAKERS[method](part, 1) for part in parts))
        assert await read(range_) == expected
        for _ in range(100):
            start = generator.randrange(len(expected))
            end = generator.choice([None, min(len(expected), start + generator.randrange(MIB))])
            assert await read(range_, start, end) == expected[start:end]

    generator = random.Random(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_MAX_POINTS", 6)
        run(main())


# --- damage ----------------------------------------------------------------------------------------------------------

SMALL = {
    "gzip": [make_gzip(b"first " * 9, name=b"n"), make_gzip(b""), make_gzip(b"last member", 0, header_crc=True)],
    "zstd": [make_zstd(b"first " * 9), make_skippable(b"skip"), make_zstd(b""), make_zstd(b"last", sized=False)],
    "deflate": [make_deflate(b"the only one " * 9)],
}
WHOLE = {"gzip": b"first " * 9 + b"last member", "zstd": b"first " * 9 + b"last", "deflate": b"the only one " * 9}


@pytest.mark.parametrize("method", METHODS)
def test_every_cut_is_refused(method):
    """A cut between two members leaves a complete file of fewer members, which no format can tell from a whole one."""
    data = b"".join(SMALL[method])
    between = set(itertools.accumulate(map(len, SMALL[method])))
    for size, received in enumerate(try_each(method, [data[:size] for size in range(len(data))])):
        if size in between:
            assert WHOLE[method].startswith(received)
        else:
            assert received is None, size
    assert try_reading(method, data) == WHOLE[method]


@pytest.mark.parametrize("method", ["gzip", "zstd"])  # raw deflate has no checksum: zip files have one beside it
def test_every_flipped_bit_leaves_right_bytes_or_an_error(method):
    data = b"".join(SMALL[method])

    def flip(bit):
        mutant = bytearray(data)
        mutant[bit // 8] ^= 1 << bit % 8
        return bytes(mutant)

    received = try_each(method, map(flip, range(8 * len(data))))
    assert {*received} == {None, WHOLE[method]}
    assert received.count(None) > 4 * len(data)


@settings(max_examples=100)
@given(compressed(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
def test_damaged_data_is_read_as_the_library_reads_it(case, changes):
    method, _, data = case
    mutant = bytearray(data)
    for position, value in changes:
        mutant[int(position * len(data))] = value
    mutant = bytes(mutant)
    received = try_reading(method, mutant)
    if received is not None:
        libraries = {"gzip": gzip.decompress, "zstd": zstd.decompress, "deflate": lambda d: zlib.decompress(d, -15)}
        assert received == libraries[method](mutant)


@settings(max_examples=50)
@given(compressed(), st.floats(0, 1, exclude_max=True), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_failed_reads_leave_no_trace(case, position, starts):
    """Whatever was read before, a read of damaged data has the result that it has in a new object."""
    method, expected, data = case
    mutant = bytearray(data)
    mutant[int(position * len(data))] ^= 0x55

    async def try_range(range_, start):
        with contextlib.suppress(CorruptContainer):
            return await read(range_, start)

    async def main():
        range_ = await open_range(method, bytes(mutant))
        for start in [int(start * len(expected)) for start in starts]:
            new = CompressedRange(range_._source, method, len(BEFORE), len(BEFORE) + len(mutant))
            assert await try_range(range_, start) == await try_range(new, start)

    with tiny_sizes():
        run(main())


@given(st.sampled_from(METHODS), st.binary(max_size=200))
@example("gzip", b"")
@example("zstd", b"")
@example("deflate", b"")
@example("zstd", make_skippable(b"")[:-1])
def test_other_data_is_refused_with_one_error(method, data):
    if (received := try_reading(method, data)) is not None:
        assert method == "deflate"  # any bytes may be deflate
        assert received == zlib.decompress(data, -15)


@settings(max_examples=50)
@given(compressed(), st.binary(min_size=1, max_size=40))
def test_whatever_follows_is_refused(case, other):
    method, expected, data = case
    if method == "deflate" or other.strip(b"\0"):
        assert try_reading(method, data + other) is None
    else:
        assert try_reading(method, data + other) == (expected if method == "gzip" else None)


def test_zeros_follow_gzip_members_only_at_the_end():
    """gzip(1): "trailing zeros ignored", but a member after them is not found."""
    member = make_gzip(b"x" * 10)
    for size in (1, 511, 70_000):
        assert try_reading("gzip", member + member + bytes(size)) == b"x" * 20
        assert try_reading("gzip", member + bytes(size) + member) is None
        assert try_reading("gzip", member + bytes(size) + b"\1") is None
        for data in (bytes(size) + member, bytes(size)):
            with pytest.raises(CorruptContainer, match="it is no gzip data"):
                read_all("gzip", data)


def test_a_second_deflate_stream_is_refused():
    data = make_deflate(b"x" * 10)
    with pytest.raises(CorruptContainer, match="something else follows its deflate data"):
        read_all("deflate", data + data)


@pytest.mark.parametrize("field", ["checksum", "size"])
def test_the_checksum_is_verified_by_each_pass_that_reaches_the_end(field):
    """Also by one that begins at a restart point, far behind the beginning."""
    expected = make_digits(6 * MIB)
    data = bytearray(make_gzip(expected, 1))
    data[-8 if field == "checksum" else -4] ^= 1

    async def main():
        source = await open_source(bytes(data))
        range_ = CompressedRange(source, "gzip", len(BEFORE), len(BEFORE) + len(data))
        assert await read(range_, 0, len(expected) - 1) == expected[:-1]  # the trailer is not reached
        for start in (len(expected), len(expected) - 10, 2 * MIB, 0):
            source.delivered = 0
            with pytest.raises(CorruptContainer, match=r"data check|length check"):
                await read(range_, start)
            assert source.delivered < len(data) * (len(expected) - start + 2 * MIB) / len(expected)
            assert range_._idle == []  # no read goes on with the decoder of a failed one

    run(main())


def test_offsets_of_errors_count_bytes_of_the_container():
    first, second = make_gzip(make_digits(MIB)), make_gzip(b"x" * 100)

    async def main(data):
        with pytest.raises(CorruptContainer) as caught:
            await read(await open_range("gzip", data))
        return caught.value.offset - len(BEFORE)

    assert run(main(first + b"other")) == len(first)
    assert run(main(first + second[:-1])) == len(first) + len(second) - 1  # where it was cut
    assert run(main(first + second[:-8] + bytes(8))) == len(first)  # where the damaged piece begins


def test_windows_larger_than_128_mib_are_refused():
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    data = compressor.compress(b"x" * 100) + compressor.flush()
    with pytest.raises(CorruptContainer, match="too much memory"):
        read_all("zstd", data)


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_bombs_are_refused_in_bounded_memory(method):
    limits = Limits(expansion_bytes=MIB, expansion_ratio=100)
    data = MAKERS[method](bytes(64 * MIB), 1)

    async def main():
        range_ = await open_range(method, data, limits)
        received = 0

        async def count():
            nonlocal received
            async for piece in range_.stream(0):
                assert len(piece) <= PIECE_BYTES
                received += len(piece)

        with pytest.raises(LimitExceeded, match=r"Limits\(expansion_ratio=\.\.\.\)"):
            await count()
        with pytest.raises(LimitExceeded):
            await read(range_, 50 * MIB, 50 * MIB + 1)
        assert range_._idle == []  # no read goes on with the decoder of a failed one
        return received

    tracemalloc.start()
    received = run(main())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert MIB - PIECE_BYTES <= received <= max(MIB, 100 * len(data))
    assert peak < 3 * MIB


@pytest.mark.parametrize("method", METHODS)
def test_honest_data_passes_the_limits(method):
    """A first amount of anything; texts; and what its user trusts."""
    zeros = bytes(4 * MIB)
    data = MAKERS[method](zeros, 1)
    assert read_all(method, data) == zeros
    assert read_all(method, data, Limits(expansion_bytes=4 * MIB, expansion_ratio=1)) == zeros
    assert read_all(method, data, Limits(expansion_bytes=MIB, expansion_ratio=10**6)) == zeros
    digits = make_digits(MIB)
    assert read_all(method, MAKERS[method](digits, 1), Limits(expansion_bytes=0, expansion_ratio=3)) == digits


@pytest.mark.parametrize(
    ("method", "data"),
    [("gzip", make_gzip(bytes(16 * MIB))), ("zstd", make_zstd(b"") * 2000), ("gzip", make_gzip(b"") * 2000)],
    ids=["much output", "empty frames", "empty members"],
)
def test_other_tasks_run_between_slices(method, data):
    """A consumer that never waits itself leaves the loop to others after each 512 KiB, or 128 calls without output."""

    async def main():
        async def count_turns():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turns = 0
        range_ = await open_range(method, data)
        counter = asyncio.create_task(count_turns())
        await read(range_)
        counter.cancel()
        await asyncio.wait([counter])
        return turns

    assert run(main()) >= 2000 // 128


def test_the_number_of_restart_points_is_bounded(tiny):
    expected = make_digits(20_000)

    async def main():
        range_ = await open_range("gzip", make_gzip(expected))
        assert await read(range_) == expected
        positions = [point.produced for point in range_._points._points]
        assert positions[0] == 0
        assert 3 <= len(positions) <= 5
        steps = [second - first for first, second in itertools.pairwise(positions)]
        assert max(steps) < 2.5 * min(steps)  # they still cover all of it
        assert positions[-1] > 10_000
        for _ in range(50):
            start = generator.randrange(20_000)
            assert await read(range_, start, start + 10) == expected[start : start + 10]

    generator = random.Random(5)
    run(main())


def test_the_number_of_idle_decoders_is_bounded(tiny):
    expected = make_digits(1000)

    async def main():
        range_ = await open_range("zstd", make_zstd(expected))
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                pieces = await stack.enter_async_context(contextlib.aclosing(range_.stream(0)))
                assert await anext(pieces) == expected[:19]
        assert len(range_._idle) == 4

    run(main())


# --- restart points --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_reads_begin_at_restart_points(method):
    """After one pass, 16 reads of 1 KiB cost much less than passes: they are counted in compressed bytes."""
    expected = make_digits(8 * MIB)
    parts = [expected[start : start + MIB] for start in range(0, 8 * MIB, MIB)] if method == "zstd" else [expected]
    data = b"".join(MAKERS[method](part, 1) for part in parts)

    async def main():
        source = await open_source(data)
        range_ = CompressedRange(source, method, len(BEFORE), len(BEFORE) + len(data))
        assert await read(range_) == expected
        assert source.delivered == len(data)
        for start in range(8 * MIB - 1024, 0, -MIB // 2):
            source.delivered = 0
            assert await read(range_, start, start + 1024) == expected[start : start + 1024]
            assert source.delivered < len(data) // 8 + 256 * 1024

    run(main())


@pytest.mark.parametrize("method", METHODS)
def test_successive_reads_cost_one_pass(method):
    """Also if there are no restart points: in one frame of zstd. Two readers take turns."""
    expected = make_digits(8 * MIB)
    data = MAKERS[method](expected, 1)
    step = MIB // 2

    async def main():
        source = await open_source(data)
        range_ = CompressedRange(source, method, len(BEFORE), len(BEFORE) + len(data))
        for start in range(0, 4 * MIB, step):
            for position in (start, 4 * MIB + start):
                assert await read(range_, position, position + step) == expected[position : position + step]
        assert await read(range_, 8 * MIB) == b""
        return source.delivered

    passes = run(main()) / len(data)
    assert passes < 2.1  # each of the two readers had to reach its beginning


def test_abandoned_and_failed_reads_leave_the_object_usable():
    expected = make_digits(4 * MIB)
    data = make_gzip(expected, 1)

    async def main():
        source = await open_source(data)
        range_ = CompressedRange(source, "gzip", len(BEFORE), len(BEFORE) + len(data))
        for fails_after in range(0, len(data), len(data) // 20):
            source.delivered, source.fails_after = 0, fails_after
            with pytest.raises(TransferInterrupted):
                await read(range_, 0)
            async with contextlib.aclosing(range_.stream(100_000)) as pieces:
                first = await anext(pieces)
            assert first == expected[100_000 : 100_000 + len(first)]
            position = 100_000 + len(first)
            assert await read(range_, position, position + 10_000) == expected[position : position + 10_000]
        assert await read(range_) == expected

    run(main())


def test_a_replaced_object_is_noticed():
    async def main():
        range_ = await open_range("gzip", make_gzip(b"old"))
        assert await read(range_) == b"old"
        await open_range("gzip", make_gzip(b"new"))
        with pytest.raises(ObjectChanged):
            await read(range_)

    run(main())


def test_zstd_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "compression" if sys.version_info >= (3, 14) else "backports", None)
    with pytest.raises(MissingDependency, match=r"streamloader\[zstd\]"):
        read_all("zstd", make_zstd(b"x"))
