"""The index of packs: lookups, names, and the columns over its bytes."""

from __future__ import annotations

import itertools
import random
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from containers.pack_files import PackFile, build_pack

from streamloader.containers.pack.format import (
    FOOTER_BYTES,
    MalformedPack,
    PackIndex,
    check_header,
    describe_class,
    describe_invalid_name,
    encode_name,
    parse_footer,
    round_up,
)


def open_index(names, content=b""):
    files = [(name, content) for name in sorted(names, key=encode_name)]
    data = build_pack(files)
    footer = parse_footer(data[-FOOTER_BYTES:], len(data))
    return PackIndex(data, footer, footer.index_offset), [name for name, _ in files]


def check_lookups(names, absent):
    index, names = open_index(names)
    index.check_names()
    assert len(index) == len(names)
    assert list(index.names()) == names
    assert [index.name(row) for row in range(len(names))] == names
    assert [index.find(name) for name in names] == list(range(len(names)))
    assert [index.find(name) for name in absent] == [None] * len(absent)
    return index


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 4_096, 4_097, 20_000])
def test_names_are_found(count):
    names = [f"folder {number % 7}/{number:06}.png" for number in range(count)]
    check_lookups(names, ["", "folder 0", "folder 1/000000.png", "~", "folder 0/000000.pn", "a" * 5_000])


def test_names_of_all_kinds_are_found():
    names = ["a", "Größe", "日本語/動画 001.mp4", "\udcff", "\udcc3x", "é\udcff", "line\nfeed", "y" * 4_096, "C:\\x"]
    check_lookups(names, ["\ud800", "é", "\udcfe", "日本語", "\0"])


def test_names_that_are_not_ascii_are_listed_across_blocks():
    check_lookups([f"{'ü' if number % 5_000 == 4_999 else 'u'}{number:05}" for number in range(9_000)], ["ü"])


def test_names_with_equal_hashes_are_found():
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    check_lookups(["plumless", "other"], ["buckeroo"])
    check_lookups(["plumless", "buckeroo"], ["other"])


def make_colliding_names(count):
    """Return names whose hashes begin with the same 10 bits."""
    numbers = (f"{number}.png" for number in itertools.count())
    return list(itertools.islice((name for name in numbers if zlib.crc32(name.encode()) >> 22 == 5), count))


@pytest.mark.parametrize("count", [60, 300])
def test_names_that_are_made_to_collide_are_found(count):
    names = make_colliding_names(count + 3)
    index = check_lookups(names[:count], [*names[count:], "", "~", "\ud800"])
    for name in names:  # none of them needs as many comparisons as there are names
        assert count_lines(index.find, name) <= 3 * 64 + 10


def count_lines(function, argument):
    """Return how many lines a call runs: three for each comparison."""
    lines = 0

    def trace(frame, event, value):
        nonlocal lines
        lines += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        function(argument)
    finally:
        sys.settrace(previous)
    return lines


def test_usual_names_do_not_collide():
    numbers = range(100_000)
    for pattern in ("{:06}.png", "{}.jpg", "img_{:08}.txt", "{0:x}", "train/{0:05}/{0}.npy"):
        hashes = np.array([zlib.crc32(pattern.format(number).encode()) for number in numbers], np.uint32)
        homes = np.sort(hashes >> 14).astype(np.int64)
        displaced = np.maximum.accumulate(homes - np.arange(len(homes))) + np.arange(len(homes)) - homes
        assert displaced.max() < 64, pattern


def test_columns_are_views_of_the_bytes():
    data = np.frombuffer(build_pack([("a", b"1"), ("b", b"22")]), np.uint8)
    view = memoryview(data)
    footer = parse_footer(view[-FOOTER_BYTES:], len(view))
    index = PackIndex(view, footer, footer.index_offset)
    columns = [index.starts, index.modified, index.hashes, index.checksums, index.name_ends]
    assert all(np.shares_memory(column, data) for column in columns)
    assert all(column.flags.aligned and not column.flags.writeable for column in columns)
    assert index.starts.tolist() == [16, 17, 19]
    assert index.sizes is None
    assert index.methods is None


def test_an_index_takes_little_memory():
    names = [f"{number:06}.png" for number in range(50_000)]
    data = build_pack([(name, b"") for name in names])
    footer = parse_footer(data[-FOOTER_BYTES:], len(data))
    tracemalloc.start()
    try:
        index = PackIndex(data, footer, footer.index_offset)
        opened = tracemalloc.get_traced_memory()[0]
        assert index.find(names[77]) == 77
        found = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert opened < 20_000
    assert found < 24 * len(names)


def test_rows_that_do_not_exist_are_errors():
    index, _ = open_index(["a", "b"])
    for row in (-1, 2, 1 << 40):
        with pytest.raises(IndexError):
            index.name(row)
    with pytest.raises(AttributeError):
        index.missing  # noqa: B018


def test_metadata_are_read_only():
    data = PackFile([("a", b"")], metadata=b'{"directory_modified": 5, "own": ["x"]}').build()
    footer = parse_footer(data[-FOOTER_BYTES:], len(data))
    index = PackIndex(data, footer, footer.index_offset)
    assert index.metadata == {"directory_modified": 5, "own": ["x"]}
    with pytest.raises(TypeError):
        index.metadata["directory_modified"] = 6


def test_segments_are_checked_as_each_name_alone():
    # The check of all names at once finds what the check of one name finds.
    rng = random.Random(5)
    for _ in range(3_000):
        names = ["".join(rng.choices("./ab", k=rng.randint(1, 6))).encode() for _ in range(rng.randint(1, 3))]
        pack = PackFile([(name, b"") for name in names])
        data = pack.build()
        footer = parse_footer(data[-FOOTER_BYTES:], len(data))
        expected = next(filter(None, map(describe_invalid_name, names)), None)
        if expected is None:
            PackIndex(data, footer, footer.index_offset)
        else:
            with pytest.raises(MalformedPack, match="name"):
                PackIndex(data, footer, footer.index_offset)


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", "begins"), (b"PK\3\4" * 4, "begins"), (b"\x89SLPACK\n\2\0\0\0\0\0\0\0", "later version")],
)
def test_headers_are_checked(data, text):
    with pytest.raises(MalformedPack, match=text):
        check_header(data)


def test_small_helpers():
    assert [round_up(size) for size in (0, 1, 7, 8, 9)] == [0, 8, 8, 8, 16]
    assert describe_class(zlib.compressobj()) == "zlib.Compress"
    assert describe_class(random.Random(1)) == "random.Random"
