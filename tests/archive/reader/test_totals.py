"""What a catalog declares for a chunk bounds the memory of its readers."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import struct
import zlib

import pytest
from archive_data import make_archive

from streamloader.archive.archive import open_archive
from streamloader.errors import CorruptStream


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    make_archive(folder, ("b_frames.mp4",))
    return folder / "store"


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def change(store, statement, *values):
    (path,) = store.glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


def encode_columns(packets, keys, frames):
    """Return an index of zeros that declares these counts."""
    body = bytes(8 * (4 * packets + 2 * keys + 2 * frames))
    rest = struct.pack("<IIIq", packets, keys, frames, 1) + zlib.compress(body, 1)
    return b"SLX1" + struct.pack("<I", zlib.crc32(rest)) + rest


def read_fails(store, match):
    with open_archive(store, places={0: str(store)}) as archive, pytest.raises(CorruptStream, match=match) as caught:
        archive[0]
    assert caught.value.stream == "b_frames"


def test_an_index_that_inflates_is_refused(store):
    change(store, "UPDATE indexes SET data = ?", encode_columns(1 << 20, 1, 10))
    read_fails(store, "packets, more than its")


def test_an_index_with_other_counts_than_the_row_is_refused(store):
    change(store, "UPDATE indexes SET data = ?", encode_columns(100_000, 1, 90_000))
    read_fails(store, "it has 90000 frames, the catalog says")


def test_an_index_with_packets_outside_of_its_chunk_is_refused(store):
    change(store, "UPDATE chunks SET bytes = 100")
    read_fails(store, r"chunk 0 of video 'b_frames'.*(contradicts itself|more than its)")


def test_time_lookups_check_the_index_too(store):
    change(store, "UPDATE indexes SET data = ?", encode_columns(1 << 20, 1, 10))
    with (
        open_archive(store, places={0: str(store)}) as archive,
        pytest.raises(CorruptStream, match="packets, more than"),
    ):
        archive.reader.frame_at(0.1)
