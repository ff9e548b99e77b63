"""The cache of indexes: what it shows of addresses, which of its rows are used, and any contents."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import struct
import subprocess
import sys
import zlib
from dataclasses import fields

import numpy as np
import pytest
from made_clips import make_clip
from range_server import served
from tiers import fast_first

from streamloader.errors import StreamloaderError
from streamloader.media.video import index_cache, index_database
from streamloader.media.video.files import file_version
from streamloader.media.video.index import IndexSettings
from streamloader.media.video.index_blob import encode_index
from streamloader.media.video.index_cache import (
    IndexedVideo,
    VideoVersion,
    find_summaries,
    load_index,
    store_indexes,
)
from streamloader.media.video.index_database import TAG_BYTES, close_databases
from streamloader.media.video.reader import FrameReader
from streamloader.media.video.remote import RemoteVideo
from streamloader.media.video.summary import SUMMARY, summarize_index
from streamloader.stores.io_thread import open_shared_store


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "a.mp4", frames=13, gop=5)


@pytest.fixture(scope="module")
def url(clip):
    """The address of the folder of the clip."""
    with served(clip.parent) as url:
        yield url


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a cache that is empty at first."""
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture
def calls(monkeypatch):
    """The videos that are really indexed, not found in the cache."""
    made = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda video, **k: made.append(str(video)) or real(video, **k))
    return made


def the_file(cache):
    (file,) = cache.rglob("*.sqlite")
    return file


@contextlib.contextmanager
def opened(cache):
    """The database, as another program has it."""
    with contextlib.closing(sqlite3.connect(the_file(cache), isolation_level=None)) as db:
        yield db


def count_rows(cache):
    with opened(cache) as db:
        return db.execute("SELECT count(*) FROM indexes").fetchone()[0]


def look_up(address):
    """Return a video in a store with its current information."""
    store, path = open_shared_store(address, {})
    with store:
        return RemoteVideo(address, store.head(path))


def assert_same(index, expected):
    for field in fields(expected):
        assert np.array_equal(getattr(index, field.name), getattr(expected, field.name)), field.name


# --- addresses -------------------------------------------------------------------------------------------------------


def test_no_secret_of_an_address_is_stored(url, cache):
    login = url.replace("://", "://user:Zeb@ra'x@")
    addresses = [
        f"{login}/a.mp4", f"{url}/a.mp4?md5=Zebra&expires=17", f"{url}/a.mp4?h=Zebra", f"{url}/a.mp4?h=Zebraa",
        f"{url}/a.mp4?Zebra", f"{url}/a.mp4?p='Zebra'&X-Amz-Signature=Zebra",
    ]  # fmt: skip
    indexes = [load_index(look_up(address)) for address in addresses]
    stored = b"".join(path.read_bytes() + str(path).encode() for path in cache.rglob("*") if path.is_file())
    assert b"Zeb" not in stored
    assert b"ra'x" not in stored
    # Videos whose addresses differ in more than a login or a signature have rows of their own.
    assert count_rows(cache) == len(addresses)
    for index in indexes:
        assert_same(index, indexes[0])


def test_addresses_signed_again_find_their_index(url, cache, monkeypatch):
    load_index(look_up(f"{url}/a.mp4?md5=one&Expires=1&X-Amz-Signature=a"))
    load_index(look_up(f"{url.replace('://', '://me:old@')}/a.mp4"))
    monkeypatch.setattr(index_cache, "index_video", pytest.fail)
    load_index(look_up(f"{url}/a.mp4?md5=two&Expires=2&X-Amz-Signature=b"))
    load_index(look_up(f"{url.replace('://', '://me:new@')}/a.mp4"))


# --- levels of proof -------------------------------------------------------------------------------------------------


def test_an_index_serves_lower_levels_of_proof(clip, cache, calls):
    path = str(clip)
    for level, made in (("ends", 1), ("tables", 1), ("ends", 1), ("frames", 2), ("tables", 2), ("ends", 2)):
        load_index(path, verify=level)
        assert len(calls) == made, level
    assert count_rows(cache) == 1


def test_a_lower_level_of_proof_replaces_the_index_of_another_version(clip, cache, calls, tmp_path):
    path = tmp_path / "b.mp4"
    path.write_bytes(clip.read_bytes())
    load_index(str(path), verify="frames")
    make_clip(path, frames=7)
    for _ in range(2):
        assert len(load_index(str(path), verify="tables")) == 7
    assert len(calls) == 2
    assert count_rows(cache) == 1


def test_an_index_of_a_lower_level_does_not_replace_a_better_one(clip, cache, calls):
    index = load_index(str(clip), verify="frames")
    entry = VideoVersion(str(clip), file_version(str(clip)))
    worse = IndexedVideo(entry, summarize_index(index), encode_index(index))
    store_indexes([worse], IndexSettings(verify="tables"))
    load_index(str(clip), verify="frames")
    assert len(calls) == 1


# --- many videos -----------------------------------------------------------------------------------------------------


def test_many_videos_are_found_with_few_queries(clip, cache, monkeypatch):
    index = load_index(str(clip))
    entries = [VideoVersion(f"/videos/{number}.mp4", (1000 + number, number)) for number in range(1200)]
    settings = IndexSettings()
    store_indexes([IndexedVideo(e, summarize_index(index), encode_index(index)) for e in entries[::2]], settings)
    queries = []
    real = index_database.IndexDatabase._run
    monkeypatch.setattr(
        index_database.IndexDatabase, "_run", lambda self, work, *a, **k: queries.append(1) or real(self, work, *a, **k)
    )
    records, found = find_summaries(entries, settings)
    assert len(queries) == 1
    assert found.tolist() == [True, False] * 600
    assert set(records["frames"].tolist()) == {13, 0}
    assert not find_summaries(entries, IndexSettings(damaged="keep"))[1].any()
    changed = [VideoVersion(e.video, (e.version[0], e.version[1] + 1)) for e in entries]
    assert not find_summaries(changed, settings)[1].any()


def test_a_record_with_impossible_values_is_not_used(clip, cache):
    index = load_index(str(clip))
    entry, settings = VideoVersion("/videos/a.mp4", (1000, 1)), IndexSettings()
    for values in (
        (0, 1, 1, 1, 2, 2, 1, 1, 1, 0),
        (1, -1, 1, 1, 2, 2, 1, 1, 1, 0),
        (1, 1, 0, 1, 2, 2, 1, 1, 1, 0),
        (1, 1, 1, 1, 0, 2, 1, 1, 1, 0),
        (1 << 25, 1, 1, 1, 2, 2, 1, 1, 1, 0),
        (1, 1, 1, 1, 2, 2, 1, 0, 1, 0),
        (1, 1, 1, 1, 2, 2, 1, 1, 0, 0),
        (1, 1, 1, 1, 2, 2, 1, 1, 1, -1),
    ):
        record = np.array(values, SUMMARY).tobytes()
        store_indexes([IndexedVideo(entry, record, encode_index(index))], settings)
        assert not find_summaries([entry], settings)[1].any(), values
    store_indexes([IndexedVideo(entry, b"short", encode_index(index))], settings)
    assert not find_summaries([entry], settings)[1].any()


def test_a_record_of_another_index_is_not_used(clip, cache, calls, tmp_path):
    other = load_index(str(make_clip(tmp_path / "other.mp4", frames=7)))
    index = load_index(str(clip))
    entry = VideoVersion(str(clip), file_version(str(clip)))
    store_indexes([IndexedVideo(entry, summarize_index(other), encode_index(index))], IndexSettings())
    calls.clear()
    assert len(load_index(str(clip))) == 13
    assert calls == [str(clip)]


def test_several_processes_write_at_the_same_time(clip, cache):
    """Each stores 400 indexes in 40 transactions, while the others do so."""
    load_index(str(clip))
    program = (
        "import sys; from streamloader.media.video.index_cache import *; from streamloader.media.video.index import *\n"
        "from streamloader.media.video.index_blob import encode_index\n"
        "from streamloader.media.video.summary import summarize_index\n"
        "index = load_index(sys.argv[1]); summary, data = summarize_index(index), encode_index(index)\n"
        "for block in range(40):\n"
        "    entries = [VideoVersion(f'/{sys.argv[2]}/{block}/{n}', (999, n)) for n in range(10)]\n"
        "    store_indexes([IndexedVideo(entry, summary, data) for entry in entries], IndexSettings())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(clip), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert count_rows(cache) == 1201


def test_a_writer_that_is_killed_leaves_a_whole_database(clip, cache, tmp_path):
    """The process is killed while it writes one transaction after another; what it has committed is there."""
    load_index(str(clip))
    program = (
        "import sys; from streamloader.media.video.index_cache import *; from streamloader.media.video.index import *\n"
        "from streamloader.media.video.index_blob import encode_index\n"
        "from streamloader.media.video.summary import summarize_index\n"
        "index = load_index(sys.argv[1]); summary, data = summarize_index(index), encode_index(index)\n"
        "for block in range(10**6):\n"
        "    entries = [VideoVersion(f'/{block}/{n}', (999, n)) for n in range(10)]\n"
        "    store_indexes([IndexedVideo(entry, summary, data) for entry in entries], IndexSettings())\n"
        "    print(block, flush=True)\n"
    )
    close_databases()
    writer = subprocess.Popen([sys.executable, "-c", program, str(clip)], stdout=subprocess.PIPE, text=True)
    for line in writer.stdout:
        if int(line) == 20:
            break
    writer.kill()
    committed = [20, *map(int, writer.stdout.read().split())][-1]
    writer.wait()
    writer.stdout.close()
    with opened(cache) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    settings = IndexSettings()
    entries = [VideoVersion(f"/{block}/{n}", (999, n)) for block in range(committed + 1) for n in range(10)]
    assert find_summaries(entries, settings)[1].all()


def test_a_forked_child_opens_the_database_again(clip, cache, calls):
    load_index(str(clip))
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os._exit(len(load_index(str(clip))) + 10 * len(calls))
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 13 + 10
    load_index(str(clip))
    assert len(calls) == 1


# --- any contents ----------------------------------------------------------------------------------------------------


def mutate(summary, data, random_):
    """Return the values of a row with a change that its checksums do not show."""
    tag, payload = summary[:TAG_BYTES], bytearray(summary[TAG_BYTES + 8 :])
    body = bytearray(zlib.decompress(data[4:]))
    choice = random_.random()
    if choice < 0.15:
        payload[random_.randrange(len(payload))] = random_.choice((0, 1, 127, 128, 255))
    elif choice < 0.85:
        for _ in range(random_.choice((1, 1, 2, 8))):
            position = random_.randrange(len(body))
            junk = random_.choice(
                (b"\0", b"\1", b"\xff", b"\x7f" * 4, b"\xff" * 8, b"\0" * 8, struct.pack("<q", 2**62))
            )
            body[position : position + len(junk)] = junk
        if random_.random() < 0.2:
            body = body[: random_.randrange(len(body))]
        elif random_.random() < 0.2:
            body += bytes(random_.randrange(20))
    size = len(body) if random_.random() < 0.9 else random_.choice((0, 1, len(body) - 1, 2**32 - 1))
    data = struct.pack("<I", size) + zlib.compress(bytes(body))
    if choice > 0.95:
        data = random_.choice((b"", data[:3], data[:-3], data + b"x", bytes(100)))
    checksum = zlib.crc32(payload)
    return tag + struct.pack("<II", zlib.crc32(data, checksum), checksum) + payload, data


def check_contents(video, cache, seed, count):
    random_ = random.Random(seed)
    expected = load_index(video)
    with opened(cache) as db:
        (intact,) = db.execute("SELECT summary, data FROM indexes").fetchall()
        used = 0
        for _ in range(count):
            db.execute("UPDATE indexes SET summary = ?, data = ?", mutate(*intact, random_))
            index = load_index(video)  # never an error: what cannot be used is made again
            try:
                assert_same(index, expected)
            except AssertionError:
                used += 1  # possible values: at worst an error, or other frames
                with contextlib.suppress(StreamloaderError), contextlib.closing(FrameReader(video, index)) as reader:
                    for number in (0, len(index) - 1, len(index) // 2):
                        reader.read_frame(number)
        assert used < count / 2
        db.execute("UPDATE indexes SET summary = ?, data = ?", intact)
    assert_same(load_index(video), expected)


def test_changed_files(clip, cache):
    check_contents(str(clip), cache, 1, 80)


def test_changed_files_of_videos_in_stores(url, cache):
    check_contents(look_up(f"{url}/a.mp4"), cache, 2, 25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 9))
def test_many_changed_files(clip, cache, seed):
    check_contents(str(clip), cache, seed, 1500)


@pytest.mark.parametrize("values", [(7, "text", b""), (0, b"", None), (None, None, None), (0, 5, 1.5)])
def test_values_of_other_types_are_not_used(clip, cache, calls, values):
    load_index(str(clip))
    with opened(cache) as db:
        db.execute("UPDATE indexes SET verify = ?, summary = ?, data = ?", values)
    assert len(load_index(str(clip))) == 13
    assert not find_summaries([VideoVersion(str(clip), file_version(str(clip)))], IndexSettings(verify="frames"))[1][0]
    assert len(calls) == 2


@pytest.mark.parametrize("is_open", fast_first([True, False]))
@pytest.mark.parametrize(
    "harm", [b"", b"PK\x03\x04 but no database", "half", "another schema", "a view", "random pages"]
)
def test_a_database_that_is_damaged_is_replaced(clip, cache, calls, harm, is_open):
    load_index(str(clip))
    close_databases()
    file = the_file(cache)
    if harm == "another schema":
        with opened(cache) as db:
            db.execute("CREATE TABLE more (a)")
    elif harm == "a view":
        with opened(cache) as db:
            db.execute("ALTER TABLE indexes RENAME TO other")
            db.execute("CREATE VIEW indexes AS SELECT id, verify, summary, zeroblob(1000000000) AS data FROM other")
    else:
        whole = file.read_bytes()
        if harm == "half":
            harm = whole[: len(whole) // 2]
        elif harm == "random pages":
            harm = whole[:100] + random.Random(1).randbytes(len(whole) - 100)
        file.write_bytes(harm)
    if is_open:
        find_summaries([VideoVersion(str(clip), (1, 1))], IndexSettings())
    for _ in range(3):
        assert len(load_index(str(clip))) == 13
    assert len(calls) == 2
    assert count_rows(cache) == 1


def test_a_database_that_another_process_replaces_is_opened_again(clip, cache, calls):
    load_index(str(clip))
    the_file(cache).unlink()
    for _ in range(2):
        load_index(str(clip))
    assert len(calls) == 2
    assert count_rows(cache) == 1


def test_an_index_that_is_not_used_is_reported_in_the_log(clip, cache, caplog):
    load_index(str(clip))
    with opened(cache) as db:
        ((summary, data),) = db.execute("SELECT summary, data FROM indexes").fetchall()
        body = bytearray(zlib.decompress(data[4:]))
        body[25:29] = struct.pack("<I", 2**30)  # the height
        data = data[:4] + zlib.compress(bytes(body))
        summary = (
            summary[:TAG_BYTES]
            + struct.pack("<I", zlib.crc32(data, zlib.crc32(summary[TAG_BYTES + 8 :])))
            + summary[TAG_BYTES + 4 :]
        )
        db.execute("UPDATE indexes SET summary = ?, data = ?", (summary, data))
    with caplog.at_level("INFO", "streamloader"):
        load_index(str(clip))
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot use the cached index of {clip}, indexing the video again: its frame size is invalid"
    ]
