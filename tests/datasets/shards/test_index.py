"""Index files of shards: an exact round trip, and one typed error for every damaged or impossible one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from datasets.shards.index_data import BLOCK, build_small, list_members, make_index
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError, CorruptShard
from streamloader.datasets.shards.index import IndexBuilder, ShardIndex, digest_index
from streamloader.stream_table import StringColumn

HEAD = struct.Struct("<8sII")


def parse(data):
    return ShardIndex.parse(data, "folder/00000.tar.index")


def assert_equal(first, second):
    for field in dataclasses.fields(ShardIndex):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            assert ours.tolist() == theirs.tolist(), field.name
        elif isinstance(ours, StringColumn):
            assert list(ours) == list(theirs)
        else:
            assert ours == theirs, field.name


# --- what is stored --------------------------------------------------------------------------------------------------


def test_members_of_a_sample_are_neighbours_with_the_same_key():
    builder = IndexBuilder("a.tar")
    for number, (key, field) in enumerate([("a", "jpg"), ("a", "cls"), ("b", "cls"), ("a", "cls")]):
        builder.add(key, field, BLOCK + 2 * BLOCK * number, 10, number)
    index = builder.build("a.tar", 16 * BLOCK)
    assert list(index.keys) == ["a", "b", "a"]
    assert index.first_members.tolist() == [0, 2, 3, 4]
    assert [index.fields[number] for number in index.member_fields] == ["jpg", "cls", "cls", "cls"]
    assert index.describe_member(1) == ("b.cls", 5 * BLOCK)
    assert index.describe_member(0, "cls") == ("a.cls", 3 * BLOCK)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("has_checksums", [True, False])
@pytest.mark.parametrize("samples", [0, 1, 7])
def test_an_index_is_read_as_it_was_written(compression, has_checksums, samples):
    index = build_small(samples, compression=compression, has_checksums=has_checksums)
    data = index.pack()
    assert_equal(parse(data), index)
    assert parse(data).pack() == data


@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), st.integers(0, 1 << 33), st.integers(0, 3)), max_size=30))
def test_any_members_are_read_as_they_were_written(members):
    builder, start = IndexBuilder("a.tar"), 0
    for number, (text, size, field) in enumerate(members):
        start += BLOCK
        builder.add(f"{number}{text}".replace("/", "-").replace("\0", "-"), f"f{field}", start, size, number)
        start += -(-size // BLOCK) * BLOCK
    index = builder.build("a.tar", start + 2 * BLOCK, settings={"seed": 3, "of": ["ü", None]})
    assert_equal(parse(index.pack()), index)


def test_keys_that_are_not_utf8_are_kept():
    index = make_index(keys=("\udcff",), starts=(BLOCK,), sizes=(1,), members=(1,), fields=(0,))
    assert list(parse(index.pack()).keys) == ["\udcff"]


def test_the_digest_differs_for_files_that_end_with_their_own_checksum():
    first, second = build_small(3).pack(), build_small(3, size=3).pack()
    assert zlib.crc32(first) == zlib.crc32(second), "which is why a CRC-32 is no digest of such files"
    assert digest_index(first) != digest_index(second)


def test_a_large_index_takes_few_bytes_for_each_sample():
    index = build_small(50_000, size=3000)
    data = index.pack()
    assert len(data) < 16 * 50_000
    assert parse(data).memory_bytes < 90 * 50_000


# --- what a builder refuses ------------------------------------------------------------------------------------------


def test_a_field_that_occurs_twice_is_named():
    builder = IndexBuilder("s3://b/a.tar")
    builder.add("k", "jpg", BLOCK, 1, None)
    with pytest.raises(CorruptShard, match=r"a\.tar, byte 1536: the sample 'k' has two members 'jpg'") as caught:
        builder.add("k", "jpg", 3 * BLOCK, 1, None)
    assert caught.value.offset == 3 * BLOCK
    assert caught.value.details == {"shard": "s3://b/a.tar", "member": "k.jpg"}


def test_too_many_fields_are_refused():
    builder = IndexBuilder("a.tar")
    for number in range(1 << 16):
        builder.add(f"{number}", f"{number}.jpg", BLOCK * (1 + 2 * number), 1, None)
    with pytest.raises(CorruptShard, match="more than 65,536 fields"):
        builder.add("a", "65536.jpg", BLOCK << 18, 1, None)
    assert len(builder.build("a.tar", BLOCK << 18).fields) == 1 << 16


def test_members_that_do_not_fit_into_the_shard_are_refused():
    builder = IndexBuilder("a.tar")
    builder.add("k", "jpg", BLOCK, 100, None)
    with pytest.raises(ConfigError, match="behind the end"):
        builder.build("a.tar", BLOCK + 99)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_flipped_bit_is_found(compression):
    data = build_small(3, compression=compression).pack()
    for position in range(len(data)):
        for bit in (1, 16, 128):
            with pytest.raises(CorruptShard):
                parse(data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :])


def test_an_index_that_is_cut_or_longer_is_refused():
    data = build_small(3).pack()
    for end in range(len(data)):
        with pytest.raises(CorruptShard, match="streamloader index-shards") as caught:
            parse(data[:end])
        assert caught.value.address == "folder/00000.tar.index"
    with pytest.raises(CorruptShard):
        parse(data + b"\0")


def test_another_version_is_refused():
    data = seal(HEAD.pack(b"SLSHARDX", 2, 0))
    with pytest.raises(CorruptShard, match="version 2, and this streamloader reads version 1"):
        parse(data)


@given(st.binary(max_size=200))
def test_other_files_are_refused(data):
    with pytest.raises(CorruptShard):
        parse(data)
    with pytest.raises(CorruptShard):
        parse(seal(HEAD.pack(b"SLSHARDX", 1, min(len(data), 50)) + data))


# --- files that were made to do harm: their checksum is right --------------------------------------------------------


def seal(data):
    return data + struct.pack("<I", zlib.crc32(data))


def take_apart(index):
    """Return the header and the columns of an index file."""
    data = index.pack()
    size = HEAD.unpack_from(data)[2]
    return json.loads(data[HEAD.size : HEAD.size + size]), zlib.decompress(data[HEAD.size + size : -4])


def put_together(header, body, level=1):
    head = (header if isinstance(header, str) else json.dumps(header)).encode()
    return seal(HEAD.pack(b"SLSHARDX", 1, len(head)) + head + zlib.compress(body, level))


def test_the_taken_apart_file_is_a_valid_one():
    assert len(parse(put_together(*take_apart(build_small(3))))) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"shard": ""}, {"shard": 7}, {"size": -1}, {"size": 1 << 62}, {"size": True}, {"size": 100}, {"data_size": "1"},
        {"data_size": 1 << 20}, {"fields": ["jpg"]}, {"fields": ["jpg", "jpg"]}, {"fields": ["jpg", "a/b"]},
        {"fields": ["jpg", "__key__"]}, {"fields": ["jpg", 7]}, {"fields": {}},
        {"compression": "bzip2"}, {"compression": "gzip"}, {"compression": ["gzip"]}, {"checksums": False},
        {"checksums": 1}, {"settings": []}, {"columns": {}}, {"columns": []},
    ],
)  # fmt: skip
def test_impossible_headers_are_refused(change):
    header, body = take_apart(build_small(3))
    with pytest.raises(CorruptShard):
        parse(put_together(header | change, body))


@pytest.mark.parametrize("name", ["shard", "size", "data_size", "fields", "compression", "settings", "columns"])
def test_headers_without_an_entry_are_refused(name):
    header, body = take_apart(build_small(3, compression="gzip"))
    del header[name]
    with pytest.raises(CorruptShard):
        parse(put_together(header, body))


@pytest.mark.parametrize(
    "column",
    [
        ["<u1"], ["<u1", -1], ["<u1", 1 << 70], ["<u1", 1 << 40], ["<i8", 3], ["O", 3], ["<f4", 3], ["|u1", "3"], "<u1",
        [["<u1"], 3], None,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["members", "fields", "keys", "checksums", "key_sizes"])
def test_impossible_columns_are_refused(name, column):
    header, body = take_apart(build_small(3))
    header["columns"][name] = column
    with pytest.raises(CorruptShard):
        parse(put_together(header, body))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"size": ' + "9" * 10_000 + "}", "nonsense", "[]", "NaN", '"\ud800"'])
def test_headers_that_are_no_object_are_refused(text):
    with pytest.raises(CorruptShard):
        parse(put_together(text.encode("utf-8", "replace").decode(), b""))


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": (BLOCK, 2 * BLOCK, 5 * BLOCK)},  # no block for a header in between
        {"starts": (BLOCK, BLOCK, 5 * BLOCK)},
        {"starts": (3 * BLOCK, BLOCK, 5 * BLOCK)},
        {"starts": (BLOCK, 3 * BLOCK + 1, 5 * BLOCK)},
        {"starts": (0, 3 * BLOCK, 5 * BLOCK)},
        {"sizes": (1, 1, 40 * BLOCK)},
        {"sizes": (1, 3 * BLOCK, 1)},
        {"sizes": (1, 1, (1 << 63) - 1)},
        {"starts": ((1 << 63) - 3 * BLOCK, (1 << 63) - 2 * BLOCK, (1 << 63) - BLOCK)},
        {"fields": (0, 2, 0)},
        {"fields": (0, 0, 1)},  # twice in the first sample
        {"members": (2, 2)},
        {"members": (3, 0)},
        {"members": (2, 1, 1), "keys": ("a", "b", "c")},
        {"keys": ("a", "")},
        {"keys": ("a", "../x")},
        {"keys": ("a", "/etc/passwd")},
        {"keys": ("x/..", "b")},
        {"keys": ("a\0", "b")},
        {"keys": ("a", "x" * 5000)},
    ],
)
def test_impossible_members_are_refused(wrong):
    correct = {"keys": ("a", "b"), "starts": (BLOCK, 3 * BLOCK, 5 * BLOCK), "sizes": (1, 512, 0), "members": (2, 1),
               "fields": (0, 1, 0)}  # fmt: skip
    assert len(parse(make_index(**correct).pack())) == 2
    index = make_index(**correct | wrong)
    with pytest.raises(CorruptShard):
        parse(index.pack())


def test_one_member_that_overflows_is_refused():
    huge = (1 << 63) - BLOCK
    with pytest.raises(CorruptShard):
        parse(make_index(keys=("a",), starts=(huge,), sizes=(huge,), members=(1,), fields=(0,)).pack())


def test_samples_of_unlike_fields_may_not_repeat_one():
    index = make_index(
        keys=("a", "b"), starts=(BLOCK, 3 * BLOCK, 5 * BLOCK, 7 * BLOCK, 9 * BLOCK), sizes=(1,) * 5, members=(2, 3),
        fields=(0, 1, 1, 0, 1),
    )  # fmt: skip
    with pytest.raises(CorruptShard, match="two members of the same field"):
        parse(index.pack())


def test_a_key_may_not_begin_within_a_character():
    index = make_index(keys=("aé", "b"), starts=(BLOCK, 3 * BLOCK), sizes=(1, 1), members=(1, 1), fields=(0, 0))
    header, body = take_apart(index)
    changed = body.replace(bytes([3, 1]) + "aéb".encode(), bytes([2, 2]) + "aéb".encode())
    assert changed != body
    with pytest.raises(CorruptShard, match="no text"):
        parse(put_together(header, changed))


@pytest.mark.parametrize(
    "frames", [(), ((1, 0),), ((0, 0), (0, 512)), ((0, 0), (99, 0)), ((0, 0), (100_000, 512)), ((0, 0), (9, 1 << 30))]
)
def test_impossible_frames_are_refused(frames):
    index = dataclasses.replace(build_small(3, compression="gzip"), frames=np.array(frames, np.int64).reshape(-1, 2))
    with pytest.raises(CorruptShard):
        parse(index.pack())


def test_a_compressed_shard_that_would_fill_the_memory_is_refused():
    index = dataclasses.replace(build_small(3, compression="zstd"), data_size=1 << 45)
    with pytest.raises(CorruptShard, match="expands too much"):
        parse(index.pack())


def test_a_bomb_takes_no_memory():
    header, _ = take_apart(build_small(3))
    header["columns"]["gaps"] = ["<i8", 4 << 20]
    data = put_together(header, bytes(32 << 20), 9)
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(CorruptShard, match="expand too much"):
            parse(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@given(st.data())
def test_any_change_of_the_columns_is_refused_or_describes_possible_members(data):
    index = build_small(4, compression=data.draw(st.sampled_from([None, "gzip"])))
    header, body = take_apart(index)
    position = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[position] = data.draw(st.integers(0, 255))
    try:
        parsed = parse(put_together(header, bytes(changed)))
    except CorruptShard:
        return
    members = list_members(parsed)
    assert len(members) == 8
    assert all(0 < start <= start + size <= parsed.data_size for *_, start, size in members)
    assert all(first + size <= start for (*_, first, size), (*_, start, _) in itertools.pairwise(members))
