"""The frame index of a chunk is refused by what it declares, before it is decompressed."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from streamloader.common.inflate import inflate
from streamloader.errors import CorruptStream
from streamloader.media.chunks.format import ChunkIndex
from streamloader.media.chunks.scan import SourceScan


def make_bomb(packets, keys=1, frames=1):
    """Return an index of zeros, with a valid checksum: about a thousandth of what it declares."""
    deflater = zlib.compressobj(1)
    total, zeros, parts = 8 * (4 * packets + 2 * keys + 2 * frames), bytes(1 << 20), []
    while total:
        count = min(total, len(zeros))
        parts.append(deflater.compress(memoryview(zeros)[:count]))
        total -= count
    rest = struct.pack("<IIIq", packets, keys, frames, 1) + b"".join(parts) + deflater.flush()
    return b"SLX1" + struct.pack("<I", zlib.crc32(rest)) + rest


def make_index(frames=10, bytes_each=50):
    numbers = np.arange(frames, dtype=np.int64)
    return ChunkIndex(
        100 + numbers * bytes_each, np.full(frames, bytes_each, np.int64), np.zeros(frames, bool), numbers[:1],
        numbers[:1], numbers, numbers, frames, numbers,
    )  # fmt: skip


def test_an_index_is_that_of_its_chunk():
    encoded = make_index().encode()
    assert len(ChunkIndex.decode(encoded, frames=10, chunk_bytes=600)) == 10
    with pytest.raises(CorruptStream, match="it has 10 frames, the catalog says 11"):
        ChunkIndex.decode(encoded, frames=11, chunk_bytes=600)
    with pytest.raises(CorruptStream, match="contradicts itself"):  # the last packet ends at byte 600
        ChunkIndex.decode(encoded, frames=10, chunk_bytes=599)
    with pytest.raises(CorruptStream, match="10 packets, more than"):
        ChunkIndex.decode(encoded, frames=10, chunk_bytes=9)


@pytest.mark.parametrize("packets", [1 << 19, 1 << 21])
def test_more_packets_than_stored_bytes_are_refused(packets):
    bomb = make_bomb(packets)
    assert len(bomb) < packets // 6
    with pytest.raises(CorruptStream, match="more than its"):
        ChunkIndex.decode(bomb)


def test_a_packet_of_gigabytes_is_refused():
    with pytest.raises(CorruptStream, match="contradicts itself"):
        ChunkIndex.decode(make_index(bytes_each=2 << 30).encode())


READER = """
import resource, sys
from streamloader.errors import CorruptStream
from streamloader.media.chunks.format import ChunkIndex

bomb = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for declared in ({}, {"frames": 1, "chunk_bytes": 1 << 40}, {"frames": 1, "chunk_bytes": 1000}):
    try:
        ChunkIndex.decode(bomb, **declared)
    except CorruptStream:
        continue
    sys.exit("it was accepted")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_small_index_does_not_become_large(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(make_bomb(16 << 20))  # 512 MiB of zeros
    assert path.stat().st_size < 4 << 20
    found = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, timeout=100, check=True
    )
    assert int(found.stdout) < 32 << 10  # KiB


def test_data_are_inflated_up_to_the_declared_size():
    data = zlib.compress(bytes(1000))
    assert inflate(data, 1000) == bytes(1000)
    for damaged, limit in ((data, 999), (data[:-1], 1000), (data + b"x", 1000), (b"not zlib", 1000), (b"", 1000)):
        with pytest.raises(ValueError, match=r"decompresses|incomplete|not valid"):
            inflate(damaged, limit)


def test_a_plan_is_inflated_up_to_a_limit(monkeypatch):
    monkeypatch.setattr("streamloader.media.chunks.scan._MAX_COLUMN_BYTES", 8 * 10)
    columns = {"pts": np.arange(11), "packet": np.arange(2), "times": np.arange(2), "keys": np.zeros(6)}
    scan = SourceScan(
        columns["pts"], 1, 11, columns["packet"], columns["times"], np.zeros((0, 6)), np.zeros(0)
    )  # fmt: skip
    with pytest.raises(CorruptStream, match="more than the declared 80 bytes"):
        SourceScan.from_json(scan.to_json())
