"""Files that a user names, one by one, and that are missing or cannot be accessed: left out, or listed in one error."""

from __future__ import annotations

import logging
import os

import pytest
from archive.ingest.archives import archive, names
from datasets.shards.shard_files import make_samples, write_shards
from image_data import encode, make_pixels
from made_clips import make_clip
from made_sounds import make_sound
from range_server import served

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.cli.main import main
from streamloader.errors import DatasetNotFound, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.streams.make_index import index_videos
from streamloader.testing import describe_streams

ENDINGS = {"videos": "mp4", "images": "png", "cameras": "png", "sounds": "wav", "texts": "txt", "found": "mp4"}
DATASETS = {
    "videos": sl.VideoStreams,
    "images": lambda files, **options: sl.ImageStreams(files, streams="files", **options),
    "cameras": lambda files, **options: sl.CameraStreams(files, (8, 8), **options),
    "sounds": sl.AudioStreams,
    "texts": lambda files, **options: sl.TextStreams(files, len_of_text, **options),
    "found": sl.find_streams,
}


def len_of_text(text):
    return [len(text)]


def write_good(path):
    if path.suffix == ".mp4":
        make_clip(path, frames=4)
    elif path.suffix == ".png":
        path.write_bytes(encode(make_pixels(1)))
    elif path.suffix == ".wav":
        make_sound(path, "pcm_s16le", samples=9000)
    else:
        path.write_text("hello")


def name_sources(folder, ending):
    """Write a good file, a bad one, a pipe and a dead link. Return all of them, a missing file and a missing folder."""
    write_good(folder / f"good.{ending}")
    (folder / f"bad.{ending}").write_bytes(b"\xff\xfe junk" * 50)
    (folder / f"link.{ending}").symlink_to("nowhere")
    os.mkfifo(folder / f"pipe.{ending}")
    return [str(folder / f"{name}.{ending}") for name in ("gone", "good", "link", "bad", "pipe")] + [f"{folder}/none/"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", DATASETS)
def test_they_are_left_out_or_listed_in_one_error(tmp_path, kind, caplog):
    sources = name_sources(tmp_path, ENDINGS[kind])
    good = sources[1]
    bad = [source for source in sources if source != good]
    if kind == "cameras":  # whose images are opened when they are played
        bad = [source for source in bad if "bad" not in source]
        sources = [good, *bad]
    for unreadable in (None, "raise"):
        with pytest.raises(StreamloaderError) as raised:
            describe_streams(DATASETS[kind](sources, unreadable=unreadable))
        assert sorted(name for name, _, _ in raised.value.details["failed"]) == sorted(bad)
        assert raised.value.details["failed_count"] == len(bad)
        assert all(name in raised.value.message for name in bad)
        assert 'unreadable="skip"' in raised.value.message
    dataset = DATASETS[kind](sources, unreadable="skip")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "streamloader"):
        assert [info.key.removesuffix("#0") for info in describe_streams(dataset)] == [good]
    assert sorted(each.address for each in dataset.skipped) == sorted(bad)
    assert {each.error for each in dataset.skipped if "bad" not in each.address} == {
        "StreamNotFound",
        "UnreadableStream",
    }
    assert caplog.text.count("that cannot be used") == (1 if kind == "cameras" else 2)  # one of the search, one of bad
    assert "left out 4 files and directories that cannot be used" in caplog.text
    with pytest.raises(StreamloaderError, match=r"gone(.|\n)*pipe") as raised:
        describe_streams(DATASETS[kind](bad, unreadable="skip"))
    assert sorted(name for name, _, _ in raised.value.details["failed"]) == sorted(bad)
    with pytest.raises(StreamNotFound, match="gone"):
        describe_streams(DATASETS[kind](sources[0] if kind != "cameras" else bad[0], unreadable="skip"))


@pytest.mark.parametrize("unreadable", [None, "raise", "skip"])
def test_a_pattern_without_matches_is_an_error(tmp_path, unreadable):
    sources = name_sources(tmp_path, "txt")
    (tmp_path / "empty").mkdir()
    wrong = [f"{tmp_path}/goood*.txt", f"{tmp_path}/empty"]
    named = [source for source in sources if "good" not in source and "bad" not in source]
    with pytest.raises(StreamNotFound) as raised:
        describe_streams(sl.TextStreams([*sources, *wrong], unreadable=unreadable))
    listed = [name for name, _, _ in raised.value.details["failed"]]
    assert listed == sorted(wrong if unreadable == "skip" else [*wrong, *named])


def test_a_folder_of_nothing_but_bad_files_is_left_out_with_them(tmp_path):
    write_good(tmp_path / "good.txt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").symlink_to("nowhere")
    for source in (folder, folder / "*.txt"):
        dataset = sl.TextStreams([tmp_path / "good.txt", source, source], unreadable="skip")
        assert len(describe_streams(dataset)) == 1
        assert [each.address for each in dataset.skipped] == [f"{folder}/a.txt"]
        with pytest.raises(StreamNotFound, match=r"a\.txt is a link to nowhere"):
            describe_streams(sl.TextStreams(source, unreadable="skip"))


def test_a_loader_that_skips_leaves_them_out(tmp_path):
    sources = name_sources(tmp_path, "mp4")
    with sl.MultiStreamer(sl.VideoStreams(sources), 1, 4, on_error="skip", shuffle=False) as loader:
        assert [info.key for info in loader.streams] == [sources[1]]
        assert len(list(loader)) == 1


def test_an_index_file(tmp_path, capsys):
    sources = name_sources(tmp_path, "mp4")
    target = str(tmp_path / "index.sqlite")
    with pytest.raises(StreamNotFound) as raised:
        index_videos(sources, target, progress=False)
    assert raised.value.details["failed_count"] == 5
    assert not os.path.exists(target)
    report = index_videos(sources, target, unreadable="skip", progress=False)
    assert report.videos == 1
    assert sorted(each.address for each in report.skipped) == sorted({*sources} - {sources[1]})
    assert main(["index", *sources[:3], "--to", target, "--unreadable", "skip"]) == 1
    assert sources[0] in capsys.readouterr().out
    assert [os.path.basename(info.key) for info in describe_streams(sl.VideoStreams.from_index(target))] == ["good.mp4"]


@pytest.mark.parametrize("unreadable", [None, "raise"])
def test_nothing_is_added_to_an_archive_before_all_missing_videos_are_named(tmp_path, unreadable):
    sources = name_sources(tmp_path, "mp4")
    with archive(tmp_path / "archive") as catalog:
        with pytest.raises(StreamNotFound) as raised:
            add_videos(catalog, sources, jobs=0, unreadable=unreadable)
        assert sorted(name for name, _, _ in raised.value.details["failed"]) == sorted(
            source for source in sources if "good" not in source and "bad" not in source
        )
        assert names(catalog) == []


def test_an_archive_leaves_them_out(tmp_path, capsys):
    sources = name_sources(tmp_path, "mp4")
    with archive(tmp_path / "archive") as catalog:
        report = add_videos(catalog, sources, jobs=0, unreadable="skip")
        assert not report.failed
        assert len(report.added) == 1
        assert sorted(each.address for each in report.skipped) == sorted({*sources} - {sources[1]})
        with pytest.raises(StreamloaderError, match="none of the 4 files or directories can be used"):
            add_videos(catalog, [s for s in sources if "good" not in s and "bad" not in s], jobs=0, unreadable="skip")
    command = ["ingest", *sources, "--to", str(tmp_path / "other"), "--jobs", "0", "--quiet"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in (sources[0], sources[2], sources[4], sources[5]))
    assert main([*command, "--unreadable", "skip"]) == 1
    out = capsys.readouterr().out
    assert "1 video added, 5 left out" in out


def test_shards(tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, make_samples(4), samples_per_shard=2, index=False, manifest=False)
    good = sorted(map(str, folder.glob("*.tar")))
    os.truncate(good[1], 700)
    (folder / "link.tar").symlink_to("nowhere")
    sources = [f"{folder}/gone.tar", *good, f"{folder}/link.tar"]
    for unreadable in (None, "raise"):
        with pytest.raises(DatasetNotFound) as raised:
            sl.RemoteDataset(sources, unreadable=unreadable)
        assert [name for name, _, _ in raised.value.details["failed"]] == [sources[0], sources[3], good[1]]
    dataset = sl.RemoteDataset(sources, unreadable="skip")
    assert len(list(dataset)) == 2
    assert sorted(each.shard for each in dataset.skipped) == [os.path.basename(good[1]), "gone.tar", "link.tar"]
    with pytest.raises(StreamloaderError, match=r"gone\.tar(.|\n)*link\.tar"):
        sl.RemoteDataset([sources[0], sources[3]], unreadable="skip")


def test_local_files_and_those_of_a_server_are_listed_together(tmp_path):
    write_good(tmp_path / "good.txt")
    with served(tmp_path) as url:
        sources = ["/nowhere/a.txt", f"{url}/b.txt", f"{url}/good.txt", str(tmp_path / "good.txt"), f"{url}/c.txt"]
        dataset = sl.TextStreams(sources, unreadable="skip")
        assert [info.key for info in describe_streams(dataset)] == sources[2:4]
        assert [each.address for each in dataset.skipped] == [sources[0], sources[1], sources[4]]
        with pytest.raises(StreamNotFound, match="3 files or directories cannot be used"):
            describe_streams(sl.TextStreams(sources))


def test_paths_that_lead_nowhere(tmp_path):
    """A link to itself, a path through a file, and a name that is too long."""
    write_good(tmp_path / "good.txt")
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    sources = [tmp_path / "good.txt", tmp_path / "circle.txt", f"{tmp_path}/good.txt/inner.txt", "x" * 300]
    dataset = sl.TextStreams(sources, unreadable="skip")
    assert len(describe_streams(dataset)) == 1
    assert len(dataset.skipped) == 3
    with pytest.raises((StreamNotFound, UnreadableStream), match="3 files or directories cannot be used"):
        describe_streams(sl.TextStreams(sources))
