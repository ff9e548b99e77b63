"""The frame index of a chunk, and the coding of its packets, as a catalog stores them."""

import json

import numpy as np
import pytest

from streamloader.errors import CorruptStream
from streamloader.media.chunks.format import ChunkIndex, Coding


def some_index(packets=50, frames=40, *, seed=0, crc=True):
    random = np.random.default_rng(seed)
    size = random.integers(1, 1 << 20, packets)
    offset = np.cumsum(size + random.integers(0, 99, packets)) - size
    keys = np.sort(random.choice(np.arange(1, packets), 5, replace=False))
    first = np.sort(random.choice(np.arange(1, frames), 5, replace=False))
    return ChunkIndex(
        offset=offset,
        size=size,
        disposable=random.random(packets) < 0.5,
        key_packet=np.append(0, keys),
        key_frame=np.append(0, first),
        frame_packet=random.permutation(packets)[:frames],
        pts=np.cumsum(random.integers(1, 1 << 40, frames)) - (1 << 41),
        end=1 << 60,
        crc=random.integers(0, 1 << 32, packets) if crc else None,
    )


def same(one, other):
    names = ("offset", "size", "disposable", "key_packet", "key_frame", "frame_packet", "pts", "crc")
    assert one.end == other.end
    for name in names:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.tolist() == right.tolist()


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_an_index_comes_back_as_it_was(seed, crc):
    index = some_index(seed=seed, crc=crc)
    again = ChunkIndex.decode(index.encode())
    same(again, index)
    assert again.encode() == index.encode()
    assert len(again) == 40


def test_every_flipped_bit_is_noticed():
    whole = some_index().encode()
    for at in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        with pytest.raises(CorruptStream):
            ChunkIndex.decode(bytes(broken))


def test_every_short_index_is_noticed():
    whole = some_index().encode()
    for length in range(0, len(whole), 11):
        with pytest.raises(CorruptStream):
            ChunkIndex.decode(whole[:length])
    with pytest.raises(CorruptStream):
        ChunkIndex.decode(whole + b"\0")


@pytest.mark.parametrize(
    ("column", "at", "value"),
    [
        ("size", 3, 0),
        ("key_packet", 0, 1),
        ("key_packet", 5, 50),
        ("key_frame", 0, 1),
        ("key_frame", 5, 40),
        ("frame_packet", 1, 50),
        ("frame_packet", 1, -1),
        ("pts", 1, -(1 << 50)),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(column, at, value):
    index = some_index()
    getattr(index, column)[at] = value
    with pytest.raises(CorruptStream):
        ChunkIndex.decode(index.encode())


def test_two_frames_from_one_packet_are_refused():
    index = some_index()
    index.frame_packet[1] = index.frame_packet[0]
    with pytest.raises(CorruptStream, match="contradicts itself"):
        ChunkIndex.decode(index.encode())


def test_the_key_of_a_frame_is_the_last_from_which_it_decodes_correctly():
    index = some_index()
    first = index.key_frame.tolist()
    for frame in range(len(index)):
        assert index.key_for(frame) == max(number for number, begin in enumerate(first) if begin <= frame)


def test_a_coding_survives_json_and_has_a_key():
    coding = Coding("h264", b"\x01\x64", 64, 48, "yuv420p", "avc1", 24, 1, 1, 1, 1, (("strict", "1"),))
    again = Coding.from_json(json.loads(json.dumps(coding.to_json())))
    assert again == coding
    assert again.key == coding.key
    assert len(coding.key) == 32
    assert Coding("h264", b"\x01\x65", 64, 48).key != Coding("h264", b"\x01\x64", 64, 48).key


@pytest.mark.parametrize(
    "change",
    [
        {"extradata": "no base64!"},
        {"options": [["threads", "1000000"]]},
        {"options": 5},
        {"width": "wide"},
        {"codec": 7},
    ],
)
def test_an_invalid_coding_is_refused(change):
    document = Coding("h264", b"", 64, 48).to_json() | change
    with pytest.raises(CorruptStream):
        Coding.from_json(document)
    for name in document:
        with pytest.raises(CorruptStream):
            Coding.from_json({key: value for key, value in Coding("h264", b"", 1, 1).to_json().items() if key != name})
