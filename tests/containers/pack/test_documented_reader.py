"""The reader in docs/pack-format.md reads real packs."""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path

import pytest
from containers.pack_files import ZLIB, build_pack

from streamloader.containers.pack.build import PackBuilder

DOCUMENT = Path(__file__).parents[3] / "docs" / "pack-format.md"
FILES = [
    ("a/empty", b""),
    ("a/zeros", bytes(100_000)),
    ("b", b"The second to last."),
    ("\u00e4\udcff", b"Not only UTF-8."),
]


class Deflated:
    method = 1

    def compress(self, data):
        return zlib.compress(data)

    def decompress(self, data):
        return zlib.decompress(data)


@pytest.fixture(scope="module")
def read_pack():
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    namespace = {}
    exec(code, namespace)
    return namespace["read_pack"]


def build(compressor=None):
    file = io.BytesIO()
    builder = PackBuilder(file, compressor=compressor, metadata={"directory_modified": 7})
    for name, data in FILES:
        builder.add(name, data, modified=1)
    builder.finish()
    return file.getvalue()


def test_it_reads_what_the_builder_writes(read_pack):
    assert list(read_pack(build())) == FILES
    assert list(read_pack(build(Deflated()))) == FILES


def test_it_reads_what_the_tests_write(read_pack):
    for method in (None, ZLIB):
        for width in (4, 8):
            assert list(read_pack(build_pack(FILES, method, width=width))) == FILES
    assert list(read_pack(build_pack([]))) == []


def test_the_document_states_how_a_pack_is_written():
    # What another program writes from the document is what the builder writes, byte for byte.
    file = io.BytesIO()
    builder = PackBuilder(file)
    for name, data in FILES:
        builder.add(name, data)
    builder.finish()
    assert file.getvalue() == build_pack(FILES)


@pytest.mark.parametrize("offset", [0, 8, 20, -200, -60, -1])
def test_it_notices_damage(read_pack, offset):
    data = bytearray(build_pack(FILES[1:]))
    data[offset] ^= 1
    with pytest.raises(ValueError):  # noqa: PT011 - any of its errors
        list(read_pack(bytes(data)))
