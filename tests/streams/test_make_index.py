"""Index files: made, played, moved with their videos, brought up to date, interrupted."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from made_clips import make_clip
from tiers import fast_first

from streamloader.errors import ConfigError, CorruptStream, MediaLimitExceeded, StreamNotFound, UnreadableStream
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.media.video import bulk_indexer, index_cache
from streamloader.media.video.index_file import IndexFile
from streamloader.stores.io_thread import open_shared_store
from streamloader.streams.make_index import index_videos
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams, read_stream


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Paths of clips of 7, 8 and 9 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{frames}.mp4", frames=frames) for frames in (7, 8, 9)]


@pytest.fixture
def folder(tmp_path, clips):
    """Six videos in two folders, each a file of its own."""
    folder = tmp_path / "data"
    for number, name in enumerate(("a/0.mp4", "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4", "b/5.mp4")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clips[number % 3], folder / name)
    return folder


@pytest.fixture
def indexed(monkeypatch):
    """Names of the videos that are parsed. Parsing is done in this process."""
    names = []
    real = index_cache.index_video

    def parse(video, **keywords):
        names.append(os.path.basename(str(video)))
        return real(video, **keywords)

    monkeypatch.setattr(bulk_indexer.BulkIndexer, "_open_parsers", lambda self: None)
    monkeypatch.setattr(index_cache, "index_video", parse)
    return names


def keys(dataset):
    return [info.key for info in describe_streams(dataset)]


def play(dataset):
    return [read_stream(dataset, info)["data"] for info in describe_streams(dataset)]


def test_videos_of_an_index_file_are_those_of_their_folder(folder):
    report = index_videos(folder, folder / "index.sqlite")
    assert (report.videos, report.added, report.unchanged, report.skipped) == (6, 6, 0, ())
    assert report.address == str(folder / "index.sqlite")
    dataset, expected = VideoStreams.from_index(folder / "index.sqlite"), VideoStreams(folder)
    assert keys(dataset) == ["a/0.mp4", "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4", "b/5.mp4"]
    assert [str(folder / key) for key in keys(dataset)] == keys(expected)
    assert dataset.fields == expected.fields
    assert dataset.settings == expected.settings
    for one, other in zip(play(dataset), play(expected), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("num_workers", "options"),
    fast_first(
        [(2, {"fps": 50, "max_frames": 9}), (0, {"stride": 3}), (0, {}), (0, {"fps": "7/3"}), (0, {"max_frames": 5})]
    ),
)
@pytest.mark.usefixtures("indexed")
def test_loaders_deliver_the_same(folder, options, num_workers):
    index_videos(folder, folder / "index.sqlite")

    def batches(dataset, num_workers):
        with MultiStreamer(dataset, 2, 4, num_workers=num_workers, seed=3) as loader:
            return [[b.numpy()[name].tobytes() for name in ("data", "time", "reset")] for b in loader]

    expected = batches(VideoStreams(folder, **options), 0)
    assert batches(VideoStreams.from_index(folder / "index.sqlite", **options), num_workers) == expected


def test_the_index_of_a_video_is_read_from_the_file(folder, indexed, monkeypatch, tmp_path):
    index_videos(folder, folder / "index.sqlite")
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(index_cache, "load_index", pytest.fail)
    monkeypatch.setattr(index_cache, "index_video", pytest.fail)
    assert [len(data) for data in play(VideoStreams.from_index(folder / "index.sqlite"))] == [7, 8, 9, 7, 8, 9]
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("indexed")
def test_videos_and_file_are_moved_together(folder, tmp_path):
    index_videos(folder, folder / "index.sqlite")
    expected = play(VideoStreams.from_index(folder / "index.sqlite"))
    shutil.move(folder, tmp_path / "elsewhere")
    moved = VideoStreams.from_index(tmp_path / "elsewhere" / "index.sqlite")
    assert [data.tobytes() for data in play(moved)] == [data.tobytes() for data in expected]


@pytest.mark.usefixtures("indexed")
def test_videos_in_other_folders_have_absolute_addresses(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    index_videos("a/*.mp4", tmp_path / "b" / "index.sqlite")
    assert keys(VideoStreams.from_index(tmp_path / "b" / "index.sqlite")) == [
        str(folder / f"a/{n}.mp4") for n in range(3)
    ]
    index_videos(["a/1.mp4", "./a/1.mp4", str(folder / "a/0.mp4")], "index.sqlite")
    assert keys(VideoStreams.from_index("index.sqlite")) == ["a/1.mp4", "a/0.mp4"]


@pytest.mark.usefixtures("indexed")
def test_names_of_any_characters(tmp_path, clips):
    names = ["ä €.mp4", "new\nline.mp4", "#%3f?.mp4", "~x.mp4", os.fsdecode(b"\xff.mp4")]
    for name in names:
        (tmp_path / "v").mkdir(exist_ok=True)
        shutil.copyfile(clips[0], tmp_path / "v" / name)
    index_videos(tmp_path / "v", tmp_path / "v" / "index.sqlite")
    dataset = VideoStreams.from_index(tmp_path / "v" / "index.sqlite")
    assert sorted(keys(dataset)) == sorted(names)
    assert [len(data) for data in play(dataset)] == [7] * 5


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize("change", ["other content", "time", "gone", "file"])
def test_a_change_is_noticed_when_a_video_is_played(folder, clips, change):
    file = folder / "index.sqlite"
    index_videos(folder, file)
    dataset = VideoStreams.from_index(file)
    infos = describe_streams(dataset)
    path = folder / "a/0.mp4"
    if change == "other content":
        shutil.copyfile(clips[2], path)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "gone":
        path.unlink()
    else:
        index_videos(folder / "a", file)
    error, text = (StreamNotFound, "no such video") if change == "gone" else (CorruptStream, "was changed since")
    with pytest.raises(error, match=text) as caught:
        read_stream(dataset, infos[0])
    assert caught.value.stream == "a/0.mp4"
    if change != "file":
        assert len(read_stream(dataset, infos[1])["data"]) == 8


def test_update_looks_at_nothing_that_has_not_changed(folder, clips, indexed):
    file = folder / "index.sqlite"
    assert index_videos(folder, file, update=True).added == 6
    assert sorted(indexed) == [f"{n}.mp4" for n in range(6)]
    indexed.clear()
    report = index_videos(folder, file, update=True)
    assert (report.videos, report.added, report.changed, report.removed, report.unchanged) == (6, 0, 0, 0, 6)
    assert indexed == []
    (folder / "a/1.mp4").unlink()
    shutil.copyfile(clips[2], folder / "b/3.mp4")
    shutil.copyfile(clips[0], folder / "a/9.mp4")
    shutil.rmtree(os.environ["STREAMLOADER_CACHE"])
    report = index_videos(folder, file, update=True)
    assert (report.videos, report.added, report.changed, report.removed, report.unchanged) == (6, 1, 1, 1, 4)
    assert sorted(indexed) == ["3.mp4", "9.mp4"]
    dataset = VideoStreams.from_index(file)
    assert keys(dataset) == ["a/0.mp4", "a/2.mp4", "a/9.mp4", "b/3.mp4", "b/4.mp4", "b/5.mp4"]
    assert [len(data) for data in play(dataset)] == [7, 9, 7, 9, 8, 9]
    with IndexFile(str(file)) as stored:
        assert len(stored.read_versions()) == 6, "the index of a video that is gone is gone"


@pytest.mark.usefixtures("indexed")
def test_settings_of_a_file_are_kept(folder):
    file = folder / "index.sqlite"
    index_videos(folder, file, verify="ends", damaged="keep")
    index_videos(folder, file, update=True)
    index_videos(folder, file, update=True, verify="ends")
    index_videos(folder, file, update=True, verify="frames")  # which "keep" stands for
    with pytest.raises(ConfigError, match="made with damaged='keep' and verify='frames'"):
        index_videos(folder, file, update=True, damaged="raise")
    assert VideoStreams.from_index(file).settings["damaged"] == "raise", "it is known after index()"
    dataset = VideoStreams.from_index(file)
    describe_streams(dataset)
    assert dataset.settings["damaged"] == "keep"
    with pytest.raises(ConfigError, match="damaged, verify: the index file was made with"):
        VideoStreams.from_index(file, verify="ends", damaged="keep")


def test_videos_that_cannot_be_used(folder, indexed):
    file = folder / "index.sqlite"
    (folder / "a/bad.mp4").write_bytes(b"junk" * 30)
    (folder / "b/empty.mp4").write_bytes(b"")
    with pytest.raises(UnreadableStream, match=r"2 of 8 videos cannot be used"):
        index_videos(folder, file)
    assert not file.exists()
    assert not list(folder.glob(".*"))
    for _ in range(2):
        report = index_videos(folder, file, unreadable="skip", update=True)
        assert report.videos == 6
        assert [(os.path.basename(video.address), video.error) for video in report.skipped] == [
            ("bad.mp4", "UnreadableStream"),
            ("empty.mp4", "UnreadableStream"),
        ]
        assert len(keys(VideoStreams.from_index(file))) == 6
    assert indexed.count("bad.mp4") == 2, "it has not changed since the first time that it was left out"
    with pytest.raises(UnreadableStream, match="2 of 8 videos"):
        index_videos(folder, file, update=True)
    assert len(keys(VideoStreams.from_index(file))) == 6, "an update that fails leaves the file as it was"


@pytest.mark.usefixtures("indexed")
def test_a_limit_on_pixels_is_checked_when_a_video_is_opened(folder):
    index_videos(folder, folder / "index.sqlite")
    dataset = VideoStreams.from_index(folder / "index.sqlite", max_pixels=100)
    infos = describe_streams(dataset)
    with pytest.raises(MediaLimitExceeded):
        read_stream(dataset, infos[0])


def test_arguments(folder, tmp_path):
    with pytest.raises(ConfigError, match="is a folder: name the index file"):
        index_videos(folder, folder)
    with pytest.raises(ConfigError, match="unreadable must be"):
        index_videos(folder, folder / "x", unreadable="ignore")
    with pytest.raises(ConfigError, match="password or a signature"):
        index_videos("http://127.0.0.1:9/a.mp4?X-Amz-Signature=1", folder / "x")
    with pytest.raises(StreamNotFound, match="there is no index file"):
        describe_streams(VideoStreams.from_index(tmp_path / "missing.sqlite"))
    (tmp_path / "other.sqlite").write_bytes(b"text" * 100)
    with pytest.raises(UnreadableStream, match="is not an index file"):
        describe_streams(VideoStreams.from_index(tmp_path / "other.sqlite"))
    with pytest.raises(UnreadableStream, match="is not an index file"):
        index_videos(folder, tmp_path / "other.sqlite", update=True)


# --- other programs --------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, signal
from streamloader.media.video import index_file
from streamloader.streams.make_index import index_videos
real, where = index_file.IndexFileWriter.finish, sys.argv[3]
def finish(self, *args):
    if where == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace, os.replace = os.replace, lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    real(self, *args)
if where:
    index_file.IndexFileWriter.finish = finish
index_videos(sys.argv[1], sys.argv[2])
"""


@pytest.mark.usefixtures("indexed")
@pytest.mark.parametrize("where", fast_first(["at the end", "before"]))
def test_a_writer_that_is_killed_leaves_the_old_file(folder, where, monkeypatch):
    file = folder / "index.sqlite"
    index_videos(folder / "a", file)
    before = file.read_bytes()
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder, file, where], timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == before
    (left,) = folder.glob(".*")
    index_videos(folder, file)
    assert left.exists(), "it may belong to a program that is about to lock it"
    monkeypatch.setattr("streamloader.streams.make_index._ABANDONED_AFTER_S", -1.0)
    assert index_videos(folder, file, update=True).unchanged == 6
    assert not left.exists()


def test_two_writers_at_the_same_time_leave_a_whole_file(folder):
    file = folder / "index.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", PROGRAM, folder, file, ""]) for _ in range(2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if file.exists():
            seen.add(len(describe_streams(VideoStreams.from_index(file))))
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= {6}
    assert len(play(VideoStreams.from_index(file))) == 6
    assert not list(folder.glob(".*"))


@pytest.mark.usefixtures("indexed")
def test_an_unfinished_file_of_a_writer_that_lives_is_not_removed(folder, monkeypatch):
    monkeypatch.setattr("streamloader.streams.make_index._ABANDONED_AFTER_S", -1.0)
    real, waiting, go_on = bulk_indexer.BulkIndexer.run, threading.Event(), threading.Event()
    first = itertools.count()

    def run(self, videos):
        if next(first) == 0:
            waiting.set()
            assert go_on.wait(60)
        return real(self, videos)

    monkeypatch.setattr(bulk_indexer.BulkIndexer, "run", run)
    slow = threading.Thread(target=index_videos, args=(folder, folder / "index.sqlite"))
    slow.start()
    assert waiting.wait(60)
    index_videos(folder / "a", folder / "index.sqlite")
    assert len(list(folder.glob(".*"))) == 1
    go_on.set()
    slow.join()
    assert len(keys(VideoStreams.from_index(folder / "index.sqlite"))) == 6


# --- stores ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(folder, request):
    """The same videos in the memory of this process. A copy in a store has no modification time of a file."""
    root = f"memory://{request.node.name.replace('[', '-').replace(']', '')}"
    store, _ = open_shared_store(f"{root}/x")
    with store:
        for path in sorted(folder.rglob("*.mp4")):
            store.write(str(path.relative_to(folder)), path.read_bytes())
        yield root, store


def test_a_file_in_a_store_beside_its_videos(bucket, folder):
    root, _ = bucket
    report = index_videos(f"{root}/**/*.mp4", f"{root}/index.sqlite")
    assert report.videos == 6
    dataset = VideoStreams.from_index(f"{root}/index.sqlite")
    assert keys(dataset) == ["a/0.mp4", "a/1.mp4", "a/2.mp4", "b/3.mp4", "b/4.mp4", "b/5.mp4"]
    for one, other in zip(play(dataset), play(VideoStreams(folder)), strict=True):
        assert np.array_equal(one, other)
    assert index_videos(f"{root}/**/*.mp4", f"{root}/index.sqlite", update=True).unchanged == 6


def test_a_file_in_a_store_is_fetched_once_for_each_version(bucket):
    root, _ = bucket
    index_videos(f"{root}/**/*.mp4", f"{root}/index.sqlite")
    dataset = VideoStreams.from_index(f"{root}/index.sqlite")
    copies = os.path.join(os.environ["STREAMLOADER_CACHE"], "index", "files")
    assert len(keys(dataset)) == 6
    (copy,) = os.listdir(copies)
    inode = os.stat(os.path.join(copies, copy)).st_ino
    assert len(keys(VideoStreams.from_index(f"{root}/index.sqlite"))) == 6
    assert os.stat(os.path.join(copies, copy)).st_ino == inode
    index_videos(f"{root}/a/*.mp4", f"{root}/index.sqlite")
    assert len(keys(VideoStreams.from_index(f"{root}/index.sqlite"))) == 3
    assert len(os.listdir(copies)) == 2, "a loader may still read the other one"
    assert len(read_stream(dataset, describe_streams(dataset)[0])["data"]) == 7
    for name in os.listdir(copies):
        os.utime(os.path.join(copies, name), (1, 1))
    index_videos(f"{root}/b/*.mp4", f"{root}/index.sqlite")
    assert len(keys(VideoStreams.from_index(f"{root}/index.sqlite"))) == 3
    assert len(os.listdir(copies)) == 1


@pytest.mark.usefixtures("indexed")
def test_videos_that_were_copied_to_a_store_with_their_file(bucket, folder):
    """They are recognized by their sizes, since a store has other versions and times."""
    root, store = bucket
    index_videos(folder, folder / "index.sqlite")
    store.write("index.sqlite", (folder / "index.sqlite").read_bytes())
    dataset = VideoStreams.from_index(f"{root}/index.sqlite")
    infos = describe_streams(dataset)
    assert [len(data) for data in play(dataset)] == [7, 8, 9, 7, 8, 9]
    store.write("a/0.mp4", (folder / "a/1.mp4").read_bytes())
    with pytest.raises(CorruptStream, match="was changed since"):
        read_stream(dataset, infos[0])


def test_an_object_that_was_replaced_is_noticed(bucket, folder):
    root, store = bucket
    index_videos(f"{root}/**/*.mp4", f"{root}/index.sqlite")
    dataset = VideoStreams.from_index(f"{root}/index.sqlite")
    infos = describe_streams(dataset)
    store.write("a/0.mp4", (folder / "a/1.mp4").read_bytes())
    with pytest.raises(OSError, match=r"changed|version|replaced"):
        read_stream(dataset, infos[0])
    report = index_videos(f"{root}/**/*.mp4", f"{root}/index.sqlite", update=True)
    assert (report.changed, report.unchanged) == (1, 5)
