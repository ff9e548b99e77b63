"""Checking and repairing archives."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time

import pytest
from archive.ingest.archives import CHUNK, archive, assert_whole, clip, rows

from streamloader.archive.catalog.base import IngestJob
from streamloader.archive.ingest import add_videos, check_archive
from streamloader.archive.ingest.inventory import _compute_digest
from streamloader.media.chunks.settings import CutSettings
from streamloader.stores.memory import MemoryStore

SETTINGS = CutSettings(chunk_frames=CHUNK)


@pytest.fixture
def source(tmp_path):
    return clip(tmp_path / "v.mp4")


@pytest.fixture
def catalog(tmp_path, source):
    with archive(tmp_path / "archive", ["one", "two"]) as made:
        add_videos(made, source, SETTINGS, jobs=0, name="v")
        yield made


def chunk_files(catalog):
    """Paths of the files of all chunks."""
    header = catalog.call(catalog.resource.get_header())
    return [os.path.join(header.places[chunk.place].url, chunk.path) for _, chunks in rows(catalog) for chunk in chunks]


def kinds(report):
    return [(problem.kind, problem.repaired) for problem in report.problems]


def test_nothing_is_wrong(catalog):
    report = check_archive(catalog, deep=True)
    assert report.ok
    assert (report.problems, report.videos, report.chunks) == ((), 1, 4)
    assert report.bytes == rows(catalog)[0][0].bytes_out
    assert report.to_json()["ok"] is True


def test_chunks_that_are_missing_short_or_damaged_are_found_and_made_again(catalog):
    missing, short, damaged, whole = chunk_files(catalog)
    os.unlink(missing)
    os.truncate(short, 100)
    with open(damaged, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert kinds(check_archive(catalog)) == [("missing", False), ("size", False)]
    report = check_archive(catalog, deep=True)
    assert kinds(report) == [("missing", False), ("size", False), ("digest", False)]
    assert not report.ok
    assert [problem.address for problem in report.problems] == [missing, short, damaged]
    assert {problem.video for problem in report.problems} == {"v"}
    stamp = os.stat(whole).st_mtime_ns
    repaired = check_archive(catalog, deep=True, repair=True)
    assert kinds(repaired) == [("missing", True), ("size", True), ("digest", True)]
    assert repaired.ok
    assert os.stat(whole).st_mtime_ns == stamp
    assert check_archive(catalog, deep=True).problems == ()
    assert_whole(catalog)


def test_what_cannot_be_made_again_is_named(catalog, source, tmp_path):
    path = chunk_files(catalog)[2]
    os.unlink(path)
    shutil.move(source, tmp_path / "elsewhere.mp4")
    gone = check_archive(catalog, repair=True)
    assert kinds(gone) == [("missing", False)]
    assert "v: chunk 2 is missing" in gone.problems[0].text
    assert str(source) in gone.problems[0].text
    clip(source, seed=5)
    other = check_archive(catalog, repair=True)
    assert kinds(other) == [("missing", False)]
    assert "was changed" in other.problems[0].text
    assert not os.path.exists(path)
    shutil.move(tmp_path / "elsewhere.mp4", source)
    assert kinds(check_archive(catalog, repair=True)) == [("missing", True)]


def test_files_that_no_video_has(catalog, tmp_path):
    place = tmp_path / "archive" / "one"
    content = rows(catalog)[0][0].content
    strays = [
        place / "chunks" / "stray.mp4",
        place / "chunks" / content[:2] / content / "000000-0000000000000000.mp4",
        place / "chunks" / "ab" / ("ab" * 32) / "000000-0123456789abcdef.mp4",
    ]
    others = [  # of places in this place, with and without a marker
        place / "chunks" / "chunks" / "ab" / ("ab" * 32) / "000000-0123456789abcdef.mp4",
        place / "chunks" / "x" / ".streamloader-archives" / f"{'0' * 32}-0.json",
        place / "chunks" / "x" / "film.mp4",
    ]
    for stray in strays + others:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"stray")
    (place / "notes.txt").write_text("not in the folder of chunks: not ours")
    found = check_archive(catalog)
    assert kinds(found) == [("orphan", False)] * 6
    assert {problem.address for problem in found.problems} == set(map(str, strays + others))
    repaired = check_archive(catalog, repair=True).problems
    assert {problem.address: problem.repaired for problem in repaired} == {
        **dict.fromkeys(map(str, strays), True), **dict.fromkeys(map(str, others), False),
    }  # fmt: skip
    assert not any(stray.exists() for stray in strays)
    assert all(other.exists() for other in others)
    assert (place / "notes.txt").exists()


def test_what_somebody_works_on_is_left_alone(catalog, tmp_path):
    content = "ab" * 32
    now = time.time()
    catalog.call(catalog.resource.begin_job(IngestJob(content, "new", "/x", now, now)))
    stray = tmp_path / "archive" / "one" / "chunks" / "ab" / content / "000000-0123456789abcdef.mp4"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"just written, not staged yet")
    unfinished = stray.with_name(".streamloader-new-00")
    unfinished.write_bytes(b"half")
    assert check_archive(catalog, repair=True).problems == ()
    assert stray.exists()
    assert unfinished.exists()
    catalog.call(catalog.resource.record_heartbeat(content, now - 3600))
    os.utime(unfinished, (now - 3600, now - 3600))
    report = check_archive(catalog)
    assert kinds(report) == [("job", False), ("unfinished", False)]
    assert "new (/x)" in report.problems[0].text
    assert kinds(check_archive(catalog, repair=True)) == [("job", True), ("orphan", True), ("unfinished", True)]
    assert not stray.exists()
    assert not unfinished.exists()
    assert_whole(catalog)


def test_a_place_that_cannot_be_looked_at_is_one_problem_and_no_reason_to_delete_anything(catalog, tmp_path):
    header = catalog.call(catalog.resource.get_header())
    first, second = header.places
    lost = type(second)(second.number, "ssh://nobody@127.0.0.1:1/nothing", second.weight)
    catalog.call(catalog.resource.set_places([first, lost]))
    report = check_archive(catalog, repair=True, storage_options={"timeouts": None, "retry": None})
    assert [problem.kind for problem in report.problems] == ["unreachable"]
    assert not report.ok
    catalog.call(catalog.resource.set_places([first, second]))
    assert check_archive(catalog, deep=True).problems == ()


def test_no_more_of_a_chunk_is_hashed_than_its_row_declares():
    async def hash_with(size):
        async with MemoryStore("memory://hashed") as store:
            await store.write("a", bytes(6 << 20))
            return await _compute_digest(store, "a", size)

    assert asyncio.run(hash_with(6 << 20)) == f"sha256:{hashlib.sha256(bytes(6 << 20)).hexdigest()}"
    assert asyncio.run(hash_with((6 << 20) - 1)) is None


def test_sources_are_parsed_in_other_processes_and_within_limits(catalog, source, monkeypatch):
    path = chunk_files(catalog)[1]
    os.unlink(path)
    monkeypatch.setattr("streamloader.media.chunks.plan.plan_cuts", None)  # of this process
    refused = check_archive(catalog, repair=True, max_pixels=1000)
    assert kinds(refused) == [("missing", False)]
    assert "64x48" in refused.problems[0].text
    assert str(source) in refused.problems[0].text
    assert kinds(check_archive(catalog, repair=True)) == [("missing", True)]
    assert_whole(catalog)


def test_a_process_that_was_taken_over_writes_no_other_chunk(catalog, tmp_path, monkeypatch):
    path = chunk_files(catalog)[1]
    os.unlink(path)
    (tmp_path / "other").write_text("no chunk")
    for answer in ("/etc/passwd", "../one/nothing", str(tmp_path / "other"), 5, ["x"]):
        monkeypatch.setattr("streamloader.media.parser_pool.ParserPool.call", lambda *a, answer=answer, **k: answer)
        assert kinds(check_archive(catalog, repair=True)) == [("missing", False)]
        assert not os.path.exists(path)


def test_a_catalog_chooses_no_option_that_can_name_files(tmp_path, source):
    stats = tmp_path / "stats"
    settings = CutSettings("encode", options={"x264-params": f"stats={stats}:pass=1"})
    with archive(tmp_path / "encoded", ["one"]) as catalog:
        add_videos(catalog, source, settings, jobs=0)
        os.unlink(chunk_files(catalog)[0])
        stats.unlink()
        report = check_archive(catalog, repair=True)
    assert kinds(report) == [("missing", False)]
    assert "option 'x264-params', which may name files" in report.problems[0].text
    assert not stats.exists()
