"""Damaged or replaced chunks: a typed error that names the problem, never a wrong frame."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest
from archive_data import make_archive

from streamloader.archive.archive import open_archive
from streamloader.archive.catalog.base import ChunkRow
from streamloader.archive.reader.packets import PacketReader
from streamloader.archive.reader.plan import DecodeSpan
from streamloader.errors import CatalogError, CorruptStream, NotFound, StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return folder / "store", make_archive(folder, ("b_frames.mp4",))["b_frames"]


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "store")
    return tmp_path / "store"


def _open(store, **options):
    return open_archive(store, places={0: str(store)}, **options)


def _chunk(archive, frame):
    """Return the chunk that contains a frame, as the reader has it."""
    lookup = archive.reader._get_session().lookup
    ((video, row, _),) = lookup.locate([frame]).values()
    return lookup.load_chunks([(video, row)])[0]


def _file(store, archive, frame):
    chunk = _chunk(archive, frame)
    return store / chunk.row.path, chunk


def _replace_cached(archive, chunk, **changes):
    """Change fields of a chunk in the cache of the reader."""
    lookup = archive.reader._get_session().lookup
    other = dataclasses.replace(chunk, **changes)
    lookup._chunks.put(chunk.key, other, 1)
    return other


def test_any_flipped_bit_of_a_needed_packet_is_detected(store, made):
    with _open(store) as archive:
        path, chunk = _file(store, archive, 25)
        data = path.read_bytes()
        random = np.random.default_rng(5)
        offsets = np.concatenate(
            [np.arange(o, o + s) for o, s in zip(chunk.index.offset, chunk.index.size, strict=True)]
        )
        for offset in random.choice(offsets, 40, replace=False).tolist():
            broken = bytearray(data)
            broken[offset] ^= 1 << int(random.integers(8))
            path.write_bytes(broken)
            where = f"chunk {chunk.row.number} of video 'b_frames'"
            with _open(store) as other, pytest.raises(CorruptStream, match=where) as caught:
                other[20:40]
            assert caught.value.stream == "b_frames"
            assert caught.value.address == str(path)
        path.write_bytes(data)
        assert np.array_equal(archive[20:30].numpy(), made[1][20:30])


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_another_size_is_detected(store, change):
    with _open(store) as archive:
        path, chunk = _file(store, archive, 0)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(CorruptStream, match=rf"has \d+ bytes, but the catalog says {chunk.row.bytes}"):
            archive[0]


def test_overwritten_packets_are_detected(store):
    with _open(store) as archive:
        path, chunk = _file(store, archive, 0)
        data = bytearray(path.read_bytes())
        data[int(chunk.index.offset[0]) :] = os.urandom(len(data) - int(chunk.index.offset[0]))
        path.write_bytes(data)
        with pytest.raises(CorruptStream, match="wrong checksum in packet"):
            archive[3]
        with pytest.raises(CorruptStream, match="wrong checksum in packet"):
            list(archive)


def test_a_missing_or_unreadable_chunk(store):
    with _open(store) as archive:
        path, _ = _file(store, archive, 39)
        path.unlink()
        with pytest.raises(NotFound, match=r"video 'b_frames' cannot be read: .*places=") as caught:
            archive[39]
        assert caught.value.address == str(path)
        assert archive[0].shape == (48, 64, 3)
        path.mkdir()
        with pytest.raises((StoreError, CorruptStream)):
            archive[39]


def test_without_checksums_whole_chunks_are_compared_with_their_digest(store, made):
    with _open(store, cache_limit=0) as archive:
        path, chunk = _file(store, archive, 20)
        chunk = _replace_cached(archive, chunk, index=dataclasses.replace(chunk.index, crc=None))
        first, count = chunk.row.first_frame, chunk.row.frames
        assert np.array_equal(archive[first : first + count].numpy(), made[1][first : first + count])
        data = bytearray(path.read_bytes())
        data[int(chunk.index.offset[3]) + 4] ^= 1
        path.write_bytes(data)
        every = PacketReader(archive.reader._get_session().chunks, chunk, range(len(chunk.index.offset)))
        with pytest.raises(CorruptStream, match="wrong digest"):
            every.read_packet(0)


@pytest.mark.parametrize("codec", ["mpeg2video", "hevc"])
def test_packets_that_do_not_decode_never_give_another_frame(made, codec):
    store, _ = made
    with _open(store, cache_limit=0, threads=1) as archive:
        chunk = _chunk(archive, 20)
        _replace_cached(archive, chunk, coding=dataclasses.replace(chunk.coding, codec=codec, extradata=b"", tag=""))
        with pytest.raises(CorruptStream, match=r"chunk \d of video 'b_frames'.* at frame 2[0-9]") as caught:
            archive[25]
        assert caught.value.offset == 25
        assert archive.stats()["retried"] >= 1


def test_missing_frames_are_decoded_again_without_skipping_packets(made):
    """A span that starts after the key: its first frames are missing, and are then decoded from the key."""
    store, frames = made
    with _open(store, cache_limit=0, threads=1) as archive:
        chunk = _chunk(archive, 0)
        session = archive.reader._get_session()
        wanted = np.arange(2, 8, dtype=np.int64)
        late = DecodeSpan(
            int(chunk.index.frame_packet[:10].max()), int(chunk.index.frame_packet[:10].max()) + 1, wanted
        )
        got = list(session.decoders.decode(chunk, late))
        assert [number for number, _ in got] == wanted.tolist()
        assert archive.stats()["retried"] == 1
        for number, frame in got:
            assert np.array_equal(frame.to_ndarray(format="rgb24"), frames[number])


def test_a_catalog_that_contradicts_itself(store):
    with _open(store) as archive:
        lookup = archive.reader._get_session().lookup
        ((video, row, _),) = lookup.locate([0]).values()
        wrong = dataclasses.replace(row, frames=row.frames + 1)
        with pytest.raises(CorruptStream, match="the catalog says"):
            lookup.load_chunks([(video, wrong)])
        assert isinstance(row, ChunkRow)
        chunk = _chunk(archive, 0)
        _replace_cached(archive, chunk, row=dataclasses.replace(chunk.row, place=7))
        lookup._rows[video.start] = video, dataclasses.replace(row, place=7)
        with pytest.raises(CatalogError, match="place 7"):
            archive[0]
