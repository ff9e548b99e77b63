"""Adding videos: their order, existing videos, and videos that cannot be added."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from archive.ingest.archives import CHUNK, archive, assert_whole, clip, files, name_of, names, rows, tidied

from streamloader.archive.ingest import add_videos
from streamloader.archive.ingest.naming import compute_content
from streamloader.errors import (
    ConfigError,
    IngestFailed,
    NameConflict,
    ObjectChanged,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.media.chunks.settings import CutSettings

SETTINGS = CutSettings(chunk_frames=CHUNK)


@pytest.fixture
def catalog(tmp_path):
    with archive(tmp_path / "archive") as made:
        yield made


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [clip(folder / f"{name}.mp4", seed) for seed, name in enumerate(["b", "a", "c"])]


def add(catalog, videos, **options):
    return add_videos(catalog, videos, SETTINGS, **({"jobs": 0} | options))


def test_processes_add_videos_in_the_order_in_which_they_were_named(catalog, clips):
    report = add(catalog, clips, jobs=3, metadata={"set": "train"})
    assert names(catalog) == [video.name for video in report.added] == list(map(name_of, clips))
    assert [(video.frames, video.chunks) for video in report.added] == [(40, 4)] * 3
    assert (report.frames, report.frames_made, report.existing, report.failed, report.notes) == (120, 120, (), (), ())
    assert report.bytes_in == sum(os.path.getsize(path) for path in clips)
    assert report.bytes_out == sum(video.bytes_out for video in report.added)
    video = rows(catalog)[1][0]
    assert (video.source, video.metadata, video.mode) == (str(clips[1]), {"set": "train"}, "copy")
    assert (video.height, video.width, video.chunk_frames) == (48, 64, CHUNK)
    assert video.content == compute_content(video.origin["digest"], SETTINGS.to_json())
    assert_whole(catalog)
    assert json.loads(json.dumps(report.to_json()))["added"][2]["start"] == 80


def test_existing_videos_are_recognized(catalog, clips, tmp_path):
    first = add(catalog, clips[:2])
    renamed = shutil.copy(clips[0], tmp_path / "renamed.mov")
    again = add(catalog, [renamed, clips[1], clips[2]])
    assert [(one.source, one.video) for one in again.existing] == [
        (str(renamed), first.added[0]),
        (str(clips[1]), first.added[1]),
    ]
    assert [video.name for video in again.added] == [name_of(clips[2])]
    assert again.frames_made == 40
    assert_whole(catalog)


def test_a_source_that_did_not_change_is_not_read_again(catalog, clips, monkeypatch):
    first = add(catalog, clips)
    monkeypatch.setattr("streamloader.archive.ingest.unit.open_source", None)
    assert [one.video for one in add(catalog, clips).existing] == list(first.added)


def test_a_source_that_did_change_is_another_video(catalog, clips, tmp_path):
    source = tmp_path / "v.mp4"
    shutil.copy(clips[0], source)
    add(catalog, source)
    shutil.copy(clips[1], source)
    with pytest.raises(NameConflict):
        add(catalog, source)
    add(catalog, source, name="w")
    assert names(catalog) == [name_of(source), "w"]
    assert_whole(catalog)


def test_other_settings_make_another_video(catalog, clips):
    add(catalog, clips[0])
    add_videos(catalog, clips[0], CutSettings(chunk_frames=20), name="longer", jobs=0)
    assert [video.chunks for video, _ in rows(catalog)] == [4, 2]
    assert_whole(catalog)


@pytest.mark.parametrize("jobs", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_content_twice_in_one_call(catalog, clips, tmp_path, jobs):
    twins = [shutil.copy(clips[0], tmp_path / f"{name}.mp4") for name in "pqrs"]
    report = add(catalog, [twins[0], clips[1], *twins[1:]], jobs=jobs)
    first = name_of(tmp_path / "p.mp4")
    assert names(catalog) == [first, name_of(clips[1])]
    assert [(one.source, one.video.name) for one in report.existing] == [(twin, first) for twin in map(str, twins[1:])]
    assert report.frames_made == 80
    assert_whole(catalog)


def test_files_of_the_same_name(catalog, tmp_path):
    for seed, folder in enumerate(("x", "y", "z")):
        (tmp_path / folder).mkdir()
        clip(tmp_path / folder / "v.mp4", seed, frames=12)
    add(catalog, str(tmp_path / "?" / "*.mp4"))
    assert names(catalog) == ["x/v.mp4", "y/v.mp4", "z/v.mp4"]


def test_a_directory_means_the_videos_in_it(catalog, clips):
    (clips[0].parent / "notes.txt").write_text("no video")
    add(catalog, clips[0].parent)
    assert names(catalog) == sorted(map(name_of, clips))


def test_an_error_of_one_video_keeps_no_other_from_being_added(catalog, clips, tmp_path):
    broken, cut = tmp_path / "broken.mp4", tmp_path / "cut.mp4"
    broken.write_bytes(b"no video at all" * 100)
    data = clips[1].read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(IngestFailed, match="2 of 4 videos could not be added") as raised:
        add(catalog, [broken, clips[0], cut, clips[2]], jobs=2)
    report = raised.value.details["report"]
    assert [one.source for one in report.failed] == [str(broken), str(cut)]
    assert all(one.source in one.error.message or one.error.stream == one.source for one in report.failed)
    assert not any(one.resumable for one in report.failed)
    assert str(broken) in str(raised.value)
    assert names(catalog) == [name_of(clips[0]), name_of(clips[2])]
    assert_whole(catalog)


def test_the_error_of_a_single_video_is_its_own(catalog, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(UnreadableStream, match=r"broken\.mp4"):
        add(catalog, tmp_path / "broken.mp4")
    report = add(catalog, tmp_path / "broken.mp4", on_error="report")
    assert [type(one.error) for one in report.failed] == [UnreadableStream]
    assert_whole(catalog)


def test_a_taken_name_is_refused_before_any_work(catalog, clips, monkeypatch):
    add(catalog, clips[0], name="mine")
    monkeypatch.setattr("streamloader.archive.ingest.unit.plan_cuts", None)
    with pytest.raises(NameConflict, match="mine"):
        add(catalog, clips[1], name="mine")
    assert_whole(catalog)


def test_a_source_that_changes_while_it_is_cut(catalog, clips, tmp_path, monkeypatch):
    from streamloader.archive.ingest import unit

    source = tmp_path / "v.mp4"
    shutil.copy(clips[0], source)
    make, made = unit.build_chunk, []

    def change_after_two(*arguments):
        if len(made) == 2:
            source.write_bytes(source.read_bytes() + b"\0")
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(unit, "build_chunk", change_after_two)
    with pytest.raises(ObjectChanged, match="was changed while it was added"):
        add(catalog, source)
    assert_whole(catalog)  # neither job nor files


def test_nothing_is_done_where_a_name_is_wrong(catalog, clips):
    with pytest.raises(StreamNotFound):
        add(catalog, [clips[0], clips[0].parent / "none.mp4"])
    assert names(catalog) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": "x"}, "single video"),
        ({"name": ""}, "name"),
        ({"executor": "cloud"}, "executor"),
        ({"jobs": -1}, "jobs"),
        ({"jobs": True}, "jobs"),
        ({"spread": "even"}, "spread"),
        ({"on_error": "skip"}, "on_error"),
        ({"metadata": {"x": b""}}, "metadata"),
        ({"progress": 3}, "progress"),
    ],
)
def test_arguments_that_cannot_work(catalog, clips, options, why):
    with pytest.raises(ConfigError, match=why):
        add(catalog, clips, **options)
    assert_whole(catalog)


def test_metadata_of_each_video(catalog, clips):
    add(catalog, clips, metadata=lambda source: {"stem": Path(source).stem})
    assert [video.metadata for video, _ in rows(catalog)] == [{"stem": "b"}, {"stem": "a"}, {"stem": "c"}]


def test_chunks_over_several_places(tmp_path, clips):
    with archive(tmp_path / "archive", ["one", "two", "three"]) as catalog:
        add(catalog, clips)
        assert {chunk.place for _, chunks in rows(catalog) for chunk in chunks} == {0, 1, 2}
        assert_whole(catalog)
        more = clip(tmp_path / "more.mp4", 9)
        add(catalog, more, places=[1], spread="free")
        assert {chunk.place for chunk in rows(catalog)[-1][1]} == {1}
        assert_whole(catalog)


def test_two_who_add_the_same_at_once(catalog, clips):
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(add(catalog, clips, jobs=1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(catalog)) == sorted(map(name_of, clips))
    assert sum(len(report.added) for report in reports) == 3
    assert sum(len(report.existing) for report in reports) == 3
    tidied(catalog)  # a worker whose video the other one has added ends in the middle of a write


def test_objects_of_stores_are_fetched_and_nothing_is_left(catalog, clips, tmp_path):
    from streamloader.stores.io_thread import open_shared_store

    before = files(os.environ["TMPDIR"])
    store, path = open_shared_store("memory://clips/deep/v.mp4")
    with store:
        store.write(path, clips[0].read_bytes())
        report = add(catalog, "memory://clips/deep")
        assert [video.source for video in report.added] == ["memory://clips/deep/v.mp4"]
        again = add(catalog, "memory://clips/deep/v.mp4")
        assert [one.video.name for one in again.existing] == ["deep/v.mp4"]
        store.write(path, b"no video" * 100)
        with pytest.raises(UnreadableStream) as raised:
            add(catalog, "memory://clips/deep/v.mp4", name="w")
    assert "memory://clips/deep/v.mp4" in str(raised.value)
    assert os.environ["TMPDIR"] not in raised.value.message
    assert_whole(catalog)
    left = {path for path in set(files(os.environ["TMPDIR"])) - set(before) if "streamloader-ingest" in path}
    assert left == set()
