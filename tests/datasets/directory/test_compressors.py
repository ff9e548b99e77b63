"""Compressors: exact bytes, bounded memory, and one typed error for damage."""

from __future__ import annotations

import os
import pickle
import zlib

import pytest
from backports import zstd

import streamloader as sl

COMPRESSORS = [sl.ZlibCompressor(), sl.ZlibCompressor(level=0), sl.ZstdCompressor(), sl.ZstdCompressor(level=-5)]
CONTENTS = [b"", b"a", bytes(100_000), os.urandom(100_000), b"the same words " * 1000]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_every_content_comes_back(compressor, content):
    compressed = compressor.compress(memoryview(content))
    assert isinstance(compressed, bytes)
    assert compressor.decompress(compressed) == compressor.decompress(memoryview(compressed)) == content
    assert compressor.decompress(compressed, max_bytes=len(content)) == content


def test_formats_are_the_usual_ones():
    content = CONTENTS[-1]
    assert zlib.decompress(sl.ZlibCompressor(9).compress(content)) == content
    frame = sl.ZstdCompressor(19).compress(content)
    assert zstd.decompress(frame) == content
    assert zstd.get_frame_info(frame).decompressed_size == len(content)
    assert (sl.ZlibCompressor().method, sl.ZstdCompressor().method) == (1, 2)


@pytest.mark.parametrize("compressor", [sl.ZlibCompressor(), sl.ZstdCompressor()], ids=repr)
def test_damage_is_one_typed_error(compressor):
    compressed = compressor.compress(CONTENTS[-1])
    for damaged in (b"", b"x", compressed[:-1], compressed + b"\0", compressed[::-1], compressed[:9] + b"\xff" * 9):
        with pytest.raises(sl.CorruptContainer):
            compressor.decompress(damaged)


@pytest.mark.parametrize("compressor", [sl.ZlibCompressor(), sl.ZstdCompressor()], ids=repr)
def test_bombs_are_bounded(compressor, monkeypatch):
    bomb = compressor.compress(bytes(8 << 20))
    with pytest.raises(sl.LimitExceeded, match="more than 1000"):
        compressor.decompress(bomb, max_bytes=1000)
    small = sl.Limits(expansion_bytes=1 << 20, expansion_ratio=10)
    monkeypatch.setattr("streamloader.datasets.directory.compressors.Limits", lambda: small)
    with pytest.raises(sl.LimitExceeded, match="expand"):
        compressor.decompress(bomb)


def test_levels_are_checked():
    for make in (
        lambda: sl.ZlibCompressor(10),
        lambda: sl.ZlibCompressor(-1),
        lambda: sl.ZlibCompressor(True),
        lambda: sl.ZstdCompressor(23),
        lambda: sl.ZstdCompressor("3"),
    ):
        with pytest.raises(sl.ConfigError, match="must be a whole number from"):
            make()


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_compressors_can_be_pickled(compressor):
    assert pickle.loads(pickle.dumps(compressor)) == compressor
