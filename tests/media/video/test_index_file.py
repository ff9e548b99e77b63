"""Index files with any contents: what cannot be used is a typed error, and takes no memory by what it declares."""

from __future__ import annotations

import contextlib
import random
import resource
import sqlite3
import struct
import zlib

import numpy as np
import pytest
from made_clips import make_clip

from streamloader.errors import CorruptStream, StreamloaderError, UnreadableStream
from streamloader.media.video.index import IndexSettings
from streamloader.media.video.index_blob import encode_index
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.index_file import FileVersion, IndexFile, IndexFileWriter
from streamloader.media.video.summary import SUMMARY, summarize_index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return load_index(str(make_clip(tmp_path_factory.mktemp("clips") / "a.mp4", frames=13, gop=5)))


def write(path, index, addresses=("a.mp4", "b/c.mp4", "/d.mp4", "s3://e/f.mp4")):
    with IndexFileWriter(str(path) + ".new", IndexSettings()) as writer:
        ids = [writer.add_index(FileVersion(1000 + n, 5), encode_index(index)) for n in range(len(addresses))]
        writer.add_skipped("bad.mp4", FileVersion(3, None, "v", 1.5), "CorruptStream", "it is bad")
        records = np.frombuffer(summarize_index(index) * len(addresses), SUMMARY)
        writer.finish(addresses, records, np.array(ids), str(path))
    return str(path)


@contextlib.contextmanager
def opened(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def read_all(path):
    with IndexFile(path) as file:
        columns = file.read_columns()
        for id_ in columns.ids.tolist():
            file.read_index(id_)
        return (
            list(columns.addresses),
            columns.records,
            file.read_versions(),
            file.read_skipped(),
            file.sample_addresses,
        )


def test_what_is_written_is_read(tmp_path, index):
    path = write(tmp_path / "index.sqlite", index)
    addresses, records, versions, skipped, samples = read_all(path)
    assert addresses == ["a.mp4", "b/c.mp4", "/d.mp4", "s3://e/f.mp4"]
    assert records["frames"].tolist() == [13] * 4
    assert versions == {n: FileVersion(1000 + n, 5) for n in range(4)}
    assert skipped == {"bad.mp4": (FileVersion(3, None, "v", 1.5), "CorruptStream", "it is bad")}
    assert samples == ["/d.mp4", "s3://e/f.mp4"]
    assert not list(tmp_path.glob("*.new*"))


def test_many_videos_are_in_several_blocks(tmp_path, index):
    wanted = [f"folder/{number}.mp4" for number in range(20_000)]
    path = write(tmp_path / "index.sqlite", index, wanted)
    with IndexFile(path) as file:
        assert list(file.read_columns().addresses) == wanted
    with opened(path) as db:
        assert db.execute("SELECT count(*) FROM blocks").fetchone() == (3,)


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), IndexFileWriter(str(tmp_path / "x"), IndexSettings()):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


CHANGES = {
    "another application": "PRAGMA application_id = 5",
    "a view": "CREATE VIEW more AS SELECT 1",
    "a trigger": "CREATE TRIGGER more AFTER INSERT ON header BEGIN SELECT 1; END",
    "no header": "DELETE FROM header",
    "a header of another type": "UPDATE header SET value = x'00' WHERE name = 'videos'",
    "settings": "UPDATE header SET value = 'perhaps' WHERE name = 'verify'",
    "samples": "UPDATE header SET value = '[1]' WHERE name = 'samples'",
    "deep samples": "UPDATE header SET value = replace(hex(zeroblob(100000)), '00', '[') WHERE name = 'samples'",
    "too few videos": "UPDATE header SET value = '3' WHERE name = 'videos'",
    "no videos": "UPDATE header SET value = '0' WHERE name = 'videos'",
    "too many videos": "UPDATE header SET value = '4000000000' WHERE name = 'videos'",
    "many declared videos": "UPDATE blocks SET videos = 200000000; UPDATE header SET value = '200000000' "
    "WHERE name = 'videos'",
    "declared bytes": "UPDATE blocks SET bytes = 1000000000000",
    "more declared bytes": "UPDATE blocks SET bytes = bytes + 1",
    "fewer declared bytes": "UPDATE blocks SET bytes = bytes - 1",
    "no block": "DELETE FROM blocks",
    "another number": "UPDATE blocks SET number = 7",
    "no data": "UPDATE blocks SET data = ''",
    "text": "UPDATE blocks SET data = 'text', bytes = 'text'",
    "no index": "DELETE FROM indexes",
    "an index of another type": "UPDATE indexes SET data = 'text'",
    "an index that is cut": "UPDATE indexes SET data = substr(data, 1, 20)",
    "a version of another type": "UPDATE indexes SET mtime_ns = 'now'",
    "a size of another type": "UPDATE indexes SET size = -1",
    "a skipped video": "UPDATE skipped SET modified = 'x'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(tmp_path, index, change):
    path = write(tmp_path / "index.sqlite", index)
    with opened(path) as db:
        db.executescript(CHANGES[change])
    with pytest.raises((CorruptStream, UnreadableStream)) as caught:
        read_all(path)
    assert path in caught.value.message


@pytest.mark.parametrize(
    ("position", "data"),
    [
        (0, struct.pack("<q", 0)), (8, struct.pack("<q", -1)), (32, struct.pack("<i", 0)), (56, struct.pack("<q", -7)),
        (4 * 64, struct.pack("<I", 0)), (4 * 64, struct.pack("<I", 2**32 - 1)), (4 * 68, b"\xff"), (4 * 68, b"\0"),
        (4 * 68 + 4, "é".encode()),
    ],
)  # fmt: skip
def test_changed_blocks_are_noticed(tmp_path, index, position, data):
    path = write(tmp_path / "index.sqlite", index)
    with opened(path) as db:
        body = bytearray(zlib.decompress(db.execute("SELECT data FROM blocks").fetchone()[0]))
        body[position : position + len(data)] = data
        db.execute("UPDATE blocks SET data = ?, bytes = ?", (zlib.compress(bytes(body)), len(body)))
    with pytest.raises(CorruptStream, match="is damaged"):
        read_all(path)


def check_any_bytes(tmp_path, index, seed, count):
    path = write(tmp_path / "index.sqlite", index)
    with open(path, "rb") as file:
        whole = file.read()
    random_ = random.Random(seed)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 3, 30))):
            position = random_.randrange(len(data)) if random_.random() < 0.5 else random_.randrange(4096)
            data[position] = random_.choice((0, 1, 127, 128, 255, random_.randrange(256)))
        if random_.random() < 0.2:
            data = data[: random_.randrange(len(data))]
        with open(path, "wb") as file:
            file.write(data)
        try:
            read_all(path)
        except StreamloaderError:
            refused += 1
    assert refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def test_any_bytes(tmp_path, index):
    check_any_bytes(tmp_path, index, 1, 300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_bytes(tmp_path, index, seed):
    check_any_bytes(tmp_path, index, seed, 10_000)
