"""Manifests: a plain JSON round trip, and one typed error for what is damaged, too new or leaves the folder."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader import ConfigError, DatasetError
from streamloader.datasets.shards import manifest as manifest_module
from streamloader.datasets.shards.manifest import Manifest, ShardInfo

DIGEST = "0123456789abcdef" * 2


def make_infos(count):
    return tuple(ShardInfo(f"{number:05}.tar", number, 1024 * number, 1024 * number, DIGEST) for number in range(count))


def parse(data):
    return Manifest.parse(data, "folder/manifest.json")


def change(**entries):
    """Return a manifest with other entries, and the checksum that belongs to them."""
    document = json.loads(Manifest(make_infos(3), {"seed": 1}).pack())
    del document["crc32"]
    for name, value in entries.items():
        if name in document["shards"]:
            document["shards"][name] = value
        else:
            document[name] = value
    document["crc32"] = manifest_module._checksum(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_manifest_is_read_as_it_was_written(count):
    manifest = Manifest(make_infos(count), {"seed": 7, "of": [None, "ü", 1.5]})
    assert parse(manifest.pack()) == manifest


def test_the_file_is_plain_json():
    document = json.loads(Manifest(make_infos(2), {"seed": 7}).pack())
    assert {name: value for name, value in document.items() if name != "crc32"} == {
        "format": "streamloader-shards",
        "version": 1,
        "samples": 1,
        "shards": {
            "names": ["00000.tar", "00001.tar"], "samples": [0, 1], "bytes": [0, 1024], "data_bytes": [0, 1024],
            "index_digests": [DIGEST, DIGEST],
        },
        "settings": {"seed": 7},
    }  # fmt: skip


def test_ten_thousand_shards_are_parsed():
    data = Manifest(make_infos(10_000), {}).pack()
    assert len(parse(data).shards) == 10_000


def test_every_flipped_bit_is_found():
    manifest = Manifest(make_infos(3), {"seed": 1})
    data = manifest.pack()
    for position in range(len(data)):
        for bit in range(8):
            damaged = data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
            try:
                assert parse(damaged) == manifest  # a white space became another one
            except DatasetError as error:
                assert error.address == "folder/manifest.json"  # noqa: PT017 - either is correct


def test_a_manifest_that_is_cut_is_refused():
    data = Manifest(make_infos(3), {}).pack()
    for end in range(len(data) - 2):
        with pytest.raises(DatasetError, match="streamloader index-shards"):
            parse(data[:end])


@given(st.binary(max_size=50))
def test_other_files_are_refused(data):
    with pytest.raises(DatasetError):
        parse(data)


@pytest.mark.parametrize(
    "data",
    [b"null", b"[]", b"{}", b'{"format": "streamloader-shards"}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000,
     b'{"format": "streamloader-shards", "version": NaN}'],
)  # fmt: skip
def test_other_json_is_refused(data):
    with pytest.raises(DatasetError):
        parse(data)


def test_json_that_is_nested_too_deeply_to_be_checked_is_refused():
    for depth in (100, 400, 900, 990, 1000, 5000, 50_000):
        data = change().replace(b'"seed": 1', b'"seed": ' + b"[" * depth + b"]" * depth)
        with pytest.raises(DatasetError):
            parse(data)


def test_a_newer_version_is_refused():
    with pytest.raises(DatasetError, match="version 2, and this streamloader reads version 1"):
        parse(change(version=2))


def test_a_manifest_that_is_too_large_is_refused(monkeypatch):
    data = change()
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", len(data) - 1)
    with pytest.raises(DatasetError, match="more than"):
        parse(data)


BAD_NAMES = [
    "../00001.tar", "a/00001.tar", "/etc/00001.tar", "..", ".", "", "a.txt", "manifest.json", "a.tar?x=.tar",
    "%2e%2e%2fa.tar", "a#.tar", "a\\b.tar", "a\n.tar", "\ud800.tar", "x" * 300 + ".tar", "s3://b/a.tar", "a.tar.zip",
    7, None, ["a.tar"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not_those_of_shards_in_the_folder_are_refused(name):
    with pytest.raises(DatasetError, match="must be a name within the folder"):
        parse(change(names=["00000.tar", name, "00002.tar"]))


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if isinstance(name, str)])
def test_such_names_are_not_written(name):
    with pytest.raises(ConfigError, match="must be a name within the folder"):
        Manifest((ShardInfo(name, 1, 1024, 1024, DIGEST),), {}).pack()


@pytest.mark.parametrize("name", ["train 1.tar", "ü.tar.gz", "2024-01-01T00:00.TAR", "a!b.tgz", "[1]{2}.tar.zst"])
def test_names_with_other_characters_are_kept(name):
    assert parse(change(names=[name, "1.tar", "2.tar"])).shards[0].name == name


@pytest.mark.parametrize(
    "entries",
    [
        {"names": ["a.tar", "a.tar", "b.tar"]}, {"names": ["a.tar"]}, {"names": {}}, {"samples": [0, 1]},
        {"samples": 5}, {"bytes": [0, -1, 0]}, {"bytes": [0, 1.0, 0]}, {"bytes": [0, True, 0]},
        {"bytes": [0, 1 << 63, 0]}, {"data_bytes": [0, None, 0]}, {"index_digests": ["", "", ""]},
        {"index_digests": [DIGEST, DIGEST, DIGEST.upper()]}, {"index_digests": [DIGEST, DIGEST, 7]},
        {"settings": []}, {"settings": None}, {"shards": []}, {"shards": {}},
    ],
)  # fmt: skip
def test_impossible_entries_are_refused(entries):
    with pytest.raises(DatasetError):
        parse(change(**entries))


def test_more_samples_than_fit_into_a_shard_are_refused():
    shards = {"names": ["a.tar"], "samples": [5], "bytes": [1024], "data_bytes": [1024], "index_digests": [DIGEST]}
    with pytest.raises(DatasetError, match=r"more samples in 'a\.tar' than fit into it"):
        parse(change(shards=shards))
    shards |= {"samples": [1 << 50], "data_bytes": [1 << 60]}
    with pytest.raises(DatasetError, match="more than"):
        parse(change(shards=shards))
