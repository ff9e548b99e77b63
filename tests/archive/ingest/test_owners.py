"""Archives that share a place, or a catalog that was copied: no check and no ingest deletes what others need."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading

import pytest
from archive.ingest.archives import CHUNK, archive, assert_whole, clip, rows

from streamloader.archive.catalog.base import IngestJob, Place
from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.archive.ingest import add_videos, check_archive, parse_places
from streamloader.archive.ingest.owners import MARKERS_FOLDER
from streamloader.errors import StreamloaderError
from streamloader.media.chunks.settings import CutSettings

SETTINGS = CutSettings(chunk_frames=CHUNK)
STRAY = f"chunks/ab/{'ab' * 32}/000000-0123456789abcdef.mp4"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [clip(folder / f"{name}.mp4", seed, frames=20) for seed, name in enumerate("abc")]


@contextlib.contextmanager
def at(folder, *places):
    """A catalog of its own in `folder`, over places that it may share."""
    os.makedirs(folder, exist_ok=True)
    with get_shared_catalog(str(folder / "catalog.sqlite")) as catalog:
        if not (folder / "catalog.sqlite").exists():
            catalog.call(catalog.resource.create(parse_places([str(place) for place in places])))
        yield catalog


def named(catalog):
    return {place.number: place.url for place in catalog.call(catalog.resource.get_header()).places}


def add(catalog, videos, **options):
    return add_videos(catalog, videos, SETTINGS, jobs=0, addresses=named(catalog), **options)


def check(catalog, **options):
    return check_archive(catalog, repair=True, stale_after=0, places=named(catalog), **options)


def put_stray(place):
    path = place / STRAY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stray")
    return path


def deleted(report):
    return [problem.address for problem in report.problems if problem.repaired]


def test_two_archives_in_one_place(tmp_path, clips):
    place = tmp_path / "shared"
    with at(tmp_path / "one", place) as one, at(tmp_path / "two", place) as two:
        add(one, clips[0])
        add(two, clips[1])
        partial = place / "chunks" / ".streamloader-new-00"
        partial.write_bytes(b"of one of the two")
        os.utime(partial, (0, 0))
        for catalog, other in ((one, two), (two, one)):
            report = check(catalog)
            assert {problem.kind for problem in report.problems} == {"orphan", "unfinished"}
            assert deleted(report) == []
            identity = other.call(other.resource.get_header()).archive_id
            assert all(identity in problem.text for problem in report.problems)
        assert partial.exists()
        partial.unlink()
        for catalog in (one, two):
            assert check_archive(catalog, deep=True).chunks == 2
            assert {problem.kind for problem in check_archive(catalog, deep=True).problems} == {"orphan"}
        # The archives use one place through different addresses.
        (tmp_path / "link").symlink_to(place)
        with at(tmp_path / "three", tmp_path / "link") as three:
            add(three, clips[2])
            assert deleted(check(three)) == []
        # When an archive is gone for good, the user deletes its marker.
        assert len(list((place / MARKERS_FOLDER).iterdir())) == 3


def test_two_places_of_an_archive_that_are_one_folder(tmp_path, clips):
    (tmp_path / "link").symlink_to(tmp_path / "place")
    (tmp_path / "place").mkdir()
    with at(tmp_path / "c", tmp_path / "place", tmp_path / "link") as catalog:
        add(catalog, clips[0])
        assert deleted(check(catalog)) == deleted(check(catalog, claim=True)) == []
        assert check_archive(catalog, deep=True).chunks == 2
        assert {problem.kind for problem in check_archive(catalog, deep=True).problems} == {"orphan"}


def test_archives_made_before_places_had_markers(tmp_path, clips):
    place = tmp_path / "shared"
    with at(tmp_path / "old", place) as old, at(tmp_path / "new", place) as new:
        add(old, clips[0])
        shutil.rmtree(place / MARKERS_FOLDER)
        add(new, clips[1])
        assert deleted(check(new)) == []
        assert deleted(check(old)) == []
        assert check_archive(old, deep=True).chunks == 2
        # Not even a claim overrides the marker of another archive.
        assert deleted(check(old, claim=True)) == []
    with at(tmp_path / "alone", tmp_path / "own") as alone:
        add(alone, clips[0])
        shutil.rmtree(tmp_path / "own" / MARKERS_FOLDER)
        stray = put_stray(tmp_path / "own")
        report = check(alone)
        assert deleted(report) == []
        assert "does not record" in report.problems[0].text
        assert deleted(check(alone, claim=True)) == [str(stray)]
        assert_whole(alone)


def test_a_check_that_finds_nothing_unknown_records_that(tmp_path, clips):
    place = tmp_path / "own"
    with at(tmp_path / "c", place) as catalog:
        add(catalog, clips[0])
        shutil.rmtree(place / MARKERS_FOLDER)
        assert check(catalog).ok
        stray = put_stray(place)
        assert deleted(check(catalog)) == [str(stray)]


def test_a_copy_of_the_catalog_does_not_delete_newer_videos(tmp_path, clips):
    place = tmp_path / "place"
    with at(tmp_path / "original", place) as original:
        add(original, clips[0])
    (tmp_path / "copy").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "original" / "catalog.sqlite")) as db:
        db.execute("VACUUM INTO ?", (str(tmp_path / "copy" / "catalog.sqlite"),))
    with at(tmp_path / "original", place) as original, at(tmp_path / "copy", place) as copy:
        add(original, clips[1])
        report = check(copy)
        assert deleted(report) == []
        assert "older copy" in report.problems[0].text
        # The copy goes on, as another archive with the same identity.
        add(copy, clips[2])
        assert deleted(check(copy)) == deleted(check(original)) == []
        for catalog in (original, copy):
            assert check_archive(catalog, deep=True).chunks == 4
            assert {problem.kind for problem in check_archive(catalog, deep=True).problems} == {"orphan"}


def test_a_failed_ingest_keeps_the_chunks_that_another_archive_has_of_the_same_video(tmp_path, clips, monkeypatch):
    place = tmp_path / "shared"
    with at(tmp_path / "one", place) as one, at(tmp_path / "two", place) as two:
        add(one, clips[0])
        from streamloader.archive.ingest import unit

        def fail(source):
            raise StreamloaderError("the work is worthless")

        monkeypatch.setattr(unit.LocalSource, "check_unchanged", fail)
        monkeypatch.setattr(unit, "open_source", lambda *args: contextlib.nullcontext(_source(clips[0])))
        with pytest.raises(StreamloaderError, match="worthless"):
            add(two, clips[0])
        assert two.call(two.resource.list_jobs()) == []
        assert check_archive(one, deep=True).problems == ()


def _source(path):
    import hashlib

    from streamloader.archive.ingest.sources import LocalSource

    data = path.read_bytes()
    return LocalSource(
        str(path), str(path), f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), "1", in_place=True
    )


def test_a_stale_job_of_a_video_that_another_archive_has(tmp_path, clips):
    place = tmp_path / "shared"
    with at(tmp_path / "one", place) as one, at(tmp_path / "two", place) as two:
        add(one, clips[0])
        video, chunks = rows(one)[0]
        two.call(two.resource.begin_job(IngestJob(video.content, "v", "/v", 0.0, 0.0)))
        report = check(two)
        assert [problem.kind for problem in report.problems if problem.repaired] == ["job"]
        assert all((place / chunk.path).exists() for chunk in chunks)


def test_archives_that_register_at_the_same_time(tmp_path, clips):
    place = tmp_path / "shared"
    with contextlib.ExitStack() as stack:
        catalogs = [stack.enter_context(at(tmp_path / str(number), place)) for number in range(4)]
        threads = [threading.Thread(target=add, args=(catalog, clips[0])) for catalog in catalogs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list((place / MARKERS_FOLDER).iterdir())) == 4
        put_stray(place)
        assert [deleted(check(catalog)) for catalog in catalogs] == [[]] * 4


@pytest.mark.parametrize("marker", [b"", b"[]", b"{" * 100_000, b'{"archive": 1}', b"\xff", None])
def test_a_damaged_marker_proves_nothing(tmp_path, clips, marker):
    place = tmp_path / "own"
    with at(tmp_path / "c", place) as catalog:
        add(catalog, clips[0])
        stray = put_stray(place)
        identity = catalog.call(catalog.resource.get_header()).archive_id
        path = place / MARKERS_FOLDER / f"{identity}-0.json"
        assert json.loads(path.read_bytes())["exclusive"] is True
        if marker is None:
            path.unlink()
            os.mkfifo(path)
        else:
            path.write_bytes(marker)
        assert deleted(check(catalog)) == []
        assert stray.exists()


def test_a_place_of_a_strangers_catalog_is_not_written(tmp_path, clips):
    """Of a local place, either the user names it, or the archive has registered there."""
    victim = tmp_path / "home"
    victim.mkdir()
    with archive(tmp_path / "downloads", ["x"]) as catalog:
        add_videos(catalog, clips[0], SETTINGS, jobs=0)
        (place,) = catalog.call(catalog.resource.get_header()).places
        shutil.copytree(place.url, victim, dirs_exist_ok=True)
        shutil.rmtree(victim / MARKERS_FOLDER)
        catalog.call(catalog.resource.set_places([Place(0, str(victim))]))
        _, chunks = rows(catalog)[0]
        assert check_archive(catalog, deep=True).problems == ()  # reading is allowed
        with pytest.raises(StreamloaderError, match="places="):
            add_videos(catalog, clips[1], SETTINGS, jobs=0)
        (victim / chunks[0].path).unlink()
        put_stray(victim)
        report = check_archive(catalog, repair=True, claim=True)
        assert {(problem.kind, problem.repaired) for problem in report.problems} == {
            ("missing", False),
            ("orphan", False),
        }
        assert all("places=" in problem.text for problem in report.problems)
        assert not (victim / MARKERS_FOLDER).exists()
        named_report = check_archive(catalog, repair=True, places={0: str(victim)})
        assert ("missing", True) in {(problem.kind, problem.repaired) for problem in named_report.problems}
