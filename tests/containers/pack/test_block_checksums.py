"""The checksums of blocks in the metadata of packs."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import pytest
from containers.pack_files import PackFile, build_pack

from streamloader.containers.pack.block_checksums import BLOCK_ROWS, MAX_BLOCK_BYTES
from streamloader.containers.pack.build import PackBuilder
from streamloader.containers.pack.mapped import MappedPack

KEY = "block_checksums"


def build(sizes, **options):
    """Return a pack of members with these sizes, and their contents."""
    contents = [bytes([row % 251]) * size for row, size in enumerate(sizes)]
    file = io.BytesIO()
    builder = PackBuilder(file, **options)
    for row, content in enumerate(contents):
        builder.add(f"{row:06}", content)
    builder.finish()
    return MappedPack.from_bytes(file.getvalue()), contents


@pytest.mark.parametrize("count", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS])
def test_each_block_has_the_checksum_of_its_stored_bytes(count):
    pack, contents = build([row % 7 for row in range(1, count + 1)])
    blocks = [contents[start : start + BLOCK_ROWS] for start in range(0, count, BLOCK_ROWS)]
    assert list(pack.index.block_checksums) == [zlib.crc32(b"".join(block)) for block in blocks]


def test_large_blocks_have_none():
    sizes = [1] * BLOCK_ROWS + [MAX_BLOCK_BYTES, *[1] * (BLOCK_ROWS - 1)] + [MAX_BLOCK_BYTES]
    pack, contents = build(sizes)
    first, second, third = pack.index.block_checksums
    assert first == zlib.crc32(b"".join(contents[:BLOCK_ROWS]))
    assert second == 0
    assert third == zlib.crc32(contents[-1])
    assert build([MAX_BLOCK_BYTES + 1] * 3)[0].index.block_checksums is None


def test_metadata_of_the_user_are_kept_and_those_of_another_pack_are_not():
    pack, contents = build([3, 4], metadata={"a": 1, KEY: "AAAAAA=="})
    assert pack.index.metadata == {"a": 1}
    assert list(pack.index.block_checksums) == [zlib.crc32(b"".join(contents))]
    assert build([0, 0], metadata={KEY: "AAAAAA=="})[0].index.block_checksums is None


def test_metadata_without_room_for_them_are_written_without():
    text = "x" * ((1 << 20) - len('{"a":""}'))
    pack, _ = build([1], metadata={"a": text})
    assert pack.index.metadata == {"a": text}
    assert pack.index.block_checksums is None


@pytest.mark.parametrize("value", [None, 1, [1], "", "no base64", "AAAA", "AAAAAAAAAAA="])
def test_values_of_another_form_are_ignored(value):
    pack = MappedPack.from_bytes(build_pack([("a", b"content")], metadata=json.dumps({KEY: value}).encode()))
    assert pack.index.block_checksums is None
    assert bytes(pack.read(0)) == b"content"


def test_compressed_members_have_none():
    text = base64.b64encode(struct.pack("<I", 1)).decode()
    pack = PackFile([("a", b"content")], 1, metadata=json.dumps({KEY: text}).encode()).build()
    assert MappedPack.from_bytes(pack).index.block_checksums is None
