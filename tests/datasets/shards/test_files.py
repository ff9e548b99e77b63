"""The files that describe a data set: what was packed is parsed, and anything else is one typed error."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib

import numpy as np
import pytest
from datasets.shards.shard_files import make_samples, write_shards
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError, CorruptShard, DatasetError, DatasetNotFound, index_shards
from streamloader.containers.base import describe_unsafe_name
from streamloader.datasets.shards.index import IndexBuilder, ShardIndex, digest_index
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.manifest import Manifest, ShardInfo
from streamloader.datasets.shards.naming import check_field, check_key, join_member_name, split_member_name

KEYS = st.text(min_size=1).filter(lambda key: describe_unsafe_name(key) is None)
ARRAYS = ("first_members", "member_fields", "starts", "sizes", "checksums", "frames")


def build(samples, compression=None, checksums=True):
    builder, position = IndexBuilder("shard"), 0
    for key, fields in samples:
        for field, size in fields.items():
            builder.add(key, field, position + 512, size, zlib.crc32(field.encode()) if checksums else None)
            position += 512 + -(-size // 512) * 512
    size = position + 1024
    frames = [(0, 0), (size // 2, size // 2 + 1)] if compression else None
    return builder.build("a.tar", size, compression=compression, frames=frames, settings={"seed": 1})


def is_equal(one, other):
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS if name != "checksums")
        and (one.checksums is None) == (other.checksums is None)
        and (one.checksums is None or np.array_equal(one.checksums, other.checksums))
        and list(one.keys) == list(other.keys)
        and (one.shard, one.size, one.data_size, one.fields, one.compression, one.settings)
        == (other.shard, other.size, other.data_size, other.fields, other.compression, other.settings)
    )


@given(
    st.lists(
        st.tuples(KEYS, st.dictionaries(st.sampled_from(["a", "b.c", "ü"]), st.integers(0, 1 << 40), min_size=1)),
        unique_by=lambda sample: sample[0],
    ),
    st.sampled_from([None, "gzip", "zstd"]),
    st.booleans(),
)
def test_an_index_that_was_packed_is_parsed(samples, compression, checksums):
    index = build(samples, compression, checksums)
    parsed = ShardIndex.parse(index.pack(), "x")
    assert is_equal(parsed, index)
    assert parsed.pack() == index.pack()
    assert len(parsed) == len(samples)


def test_every_flipped_or_missing_byte_of_an_index_is_noticed():
    data = build([(f"{n}", {"jpg": n * 7, "cls": 1}) for n in range(30)]).pack()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(CorruptShard):
            ShardIndex.parse(bytes(flipped), "x")
        with pytest.raises(CorruptShard):
            ShardIndex.parse(data[:position], "x")


def forge(data, change):
    """An index with another header, and the checksum that belongs to it."""
    size = int.from_bytes(data[12:16], "little")
    header = json.loads(data[16 : 16 + size])
    change(header)
    packed = json.dumps(header).encode()
    forged = data[:12] + len(packed).to_bytes(4, "little") + packed + data[16 + size : -4]
    return forged + zlib.crc32(forged).to_bytes(4, "little")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(size=-1),
        lambda header: header.update(size=10),
        lambda header: header.update(data_size=1 << 70),
        lambda header: header.update(fields=["jpg"]),
        lambda header: header.update(fields=[1, 2]),
        lambda header: header.update(compression="lzma"),
        lambda header: header.update(compression="gzip"),
        lambda header: header.update(checksums=False),
        lambda header: header.update(columns={}),
        lambda header: header["columns"].update(sizes=["<i8", 1 << 40]),
        lambda header: header["columns"].update(sizes=["<i8", 1 << 62]),
        lambda header: header["columns"].update(sizes=["|O", 60]),
        lambda header: header["columns"].update(keys=["|u1", -1]),
        lambda header: header["columns"].update(members=["|u1", 0]),
        lambda header: header.clear(),
    ],
)
def test_an_index_with_a_forged_header_takes_no_memory(change):
    data = build([(f"{n}", {"jpg": n * 7, "cls": 1}) for n in range(30)]).pack()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptShard):
            ShardIndex.parse(forge(data, change), "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_index_or_an_error(data):
    for packed in (data, b"SLSHARDX" + data):
        with pytest.raises(CorruptShard):
            ShardIndex.parse(packed, "x")


def test_members_that_cannot_be_are_refused():
    builder = IndexBuilder("x")
    builder.add("a", "jpg", 512, 600, None)
    builder.add("b", "jpg", 1024, 5, None)
    with pytest.raises(ConfigError, match="overlap"):
        builder.build("x", 5000)
    builder = IndexBuilder("x")
    builder.add("a", "jpg", 512, 600, None)
    with pytest.raises(ConfigError, match="behind the end"):
        builder.build("x", 1000)


def test_a_manifest_that_was_packed_is_parsed():
    infos = tuple(ShardInfo(f"{n:05}.tar", n, n * 1000, n * 1000, digest_index(b"%d" % n)) for n in range(20))
    manifest = Manifest(infos, {"seed": 3})
    data = manifest.pack()
    assert Manifest.parse(data, "x") == manifest
    document = json.loads(data)
    assert (document["format"], document["samples"]) == ("streamloader-shards", 190)


def test_every_cut_or_changed_manifest_is_noticed():
    infos = [ShardInfo(f"{n:05}.tar", n, n * 1000, n * 1000, digest_index(b"%d" % n)) for n in range(3)]
    manifest = Manifest(infos, {"seed": 3})
    data = manifest.pack()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 7
        for wrong in (bytes(changed), data[:position]):
            try:
                parsed = Manifest.parse(wrong, "x")
            except DatasetError:
                continue
            assert list(parsed.shards) == infos, position  # a blank, or the case of a hexadecimal digit


@pytest.mark.parametrize(
    "name", ["../a.tar", "/a.tar", "a/b.tar", "..", "", "s3://b/a.tar", "a\0.tar", "a\n.tar", "x" * 300]
)
def test_a_manifest_names_only_files_in_its_folder(name):
    manifest = Manifest([ShardInfo(name, 1, 1, 1, digest_index(b""))], {})
    with pytest.raises(ConfigError, match="must be a name within the folder"):
        manifest.pack()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d/e/a.left.JPG", ("d/e/a", "left.jpg")),
        ("d.x/a.jpg", ("d.x/a", "jpg")),
        ("a.", ("a", "")),
        (".a.jpg", None),
        ("d/.a.jpg", None),
        ("a", None),
        ("__x__/a.jpg", None),
        ("__x__", None),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name, expected):
    assert split_member_name(name) == expected


@given(st.text(min_size=1, max_size=20), st.sampled_from(["jpg", "a.b", "x-1"]))
def test_keys_that_may_be_written_are_read(key, field):
    try:
        check_key(key)
    except ConfigError:
        return
    assert split_member_name(join_member_name(key, check_field(field))) == (key, field)


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(DatasetNotFound):
        open_shard_set(f"{tmp_path}")
    with pytest.raises(DatasetNotFound):
        open_shard_set(f"{tmp_path}/none")
    with pytest.raises(DatasetNotFound):
        open_shard_set(f"{tmp_path}/*.tar")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ConfigError, match="no shard"):
        open_shard_set(f"{tmp_path}/*.zip")


def test_indexing_a_folder_of_another_writer(tmp_path):
    names = write_shards(f"{tmp_path}", make_samples(50), samples_per_shard=20, index=False, manifest=False)
    before = open_shard_set(f"{tmp_path}")
    assert before.index(0).checksums is None
    assert index_shards(f"{tmp_path}") == len(names)
    after = open_shard_set(f"{tmp_path}")
    assert after.digest == before.digest
    assert after.index(0).checksums is not None
    assert after.counts.tolist() == [20, 20, 10]
    (tmp_path / f"{names[1]}.index").unlink()
    (tmp_path / "manifest.json").unlink()
    assert index_shards(f"{tmp_path}") == len(names)  # what was interrupted goes on
    with pytest.raises(ConfigError, match="folder"):
        index_shards(f"{tmp_path}/*.tar")


def test_headers_are_read_once(tmp_path):
    name = write_shards(f"{tmp_path}", make_samples(50), samples_per_shard=50, index=False, manifest=False)[0]
    first = open_shard_set(f"{tmp_path}/*.tar")
    content = (tmp_path / name).read_bytes()
    status = (tmp_path / name).stat()
    with open(tmp_path / name, "r+b") as file:  # in place, so that only its contents say that it is another one
        file.write(b"x" * len(content))
    os.utime(tmp_path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = open_shard_set(f"{tmp_path}/*.tar")
    assert second.digest == first.digest
    assert list(second.index(0).keys) == list(first.index(0).keys)
