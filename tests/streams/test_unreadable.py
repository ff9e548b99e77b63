"""Files that cannot be used: left out, or listed in one error."""

from __future__ import annotations

import logging
import os

import pytest
from made_clips import make_clip
from range_server import served

from streamloader.errors import (
    ConfigError,
    CorruptStream,
    MediaLimitExceeded,
    StoreTimeout,
    StreamFailed,
    StreamNotFound,
    Unreachable,
    UnreadableStream,
)
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.media.video import index_cache
from streamloader.streams.make_index import index_videos
from streamloader.streams.unreadable import SkippedVideo, combine_errors, ends_indexing
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams

BAD = ("02.mp4", "05.mp4", "07.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten videos, three of which cannot be used: junk, no bytes, and frames that are too large."""
    folder = tmp_path_factory.mktemp("videos")
    clip = make_clip(folder / "00.mp4", frames=8)
    for number in range(1, 10):
        os.link(clip, folder / f"{number:02}.mp4")
    for name, data in zip(BAD, (b"junk" * 100, b"", None), strict=True):
        (folder / name).unlink()
        if data is None:
            make_clip(folder / name, frames=2, width=128, height=128)
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


OPTIONS = {"max_pixels": 64 * 48, "size": (24, 32)}


def names(infos):
    return [os.path.basename(info.key) for info in infos]


GOOD = [f"{number:02}.mp4" for number in range(10) if f"{number:02}.mp4" not in BAD]


@pytest.mark.parametrize("is_cached", [False, True])
def test_they_are_left_out_and_listed(folder, caplog, is_cached):
    if is_cached:
        describe_streams(VideoStreams(folder, size=(24, 32), unreadable="skip"))
    dataset = VideoStreams(folder, **OPTIONS, unreadable="skip")
    assert dataset.skipped == ()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "streamloader"):
        infos = describe_streams(dataset)
    assert names(infos) == GOOD
    assert [info.extra["path"] for info in infos] == [str(folder / name) for name in GOOD]
    assert [(video.key, video.address) for video in dataset.skipped] == [(str(folder / name),) * 2 for name in BAD]
    assert [video.error for video in dataset.skipped] == ["UnreadableStream", "UnreadableStream", "MediaLimitExceeded"]
    assert all(str(folder) in video.message for video in dataset.skipped)
    (record,) = caplog.records
    assert record.getMessage().splitlines()[0] == "left out 3 of 10 videos that cannot be used:"
    assert all(f"- {folder / name} " in record.getMessage() for name in BAD)
    again = VideoStreams(folder, **OPTIONS, unreadable="skip")
    assert list(describe_streams(again)) == list(infos)
    assert again.skipped == dataset.skipped


def test_one_error_lists_all_and_the_rest_is_cached(folder, monkeypatch):
    with pytest.raises(UnreadableStream) as caught:
        describe_streams(VideoStreams(folder, **OPTIONS))
    assert caught.value.stream == str(folder / BAD[0])
    message = caught.value.message
    assert message.splitlines()[0] == "3 of 10 videos cannot be used:"
    assert 'unreadable="skip"' in message
    assert [line.split()[1] for line in message.splitlines()[1:4]] == [str(folder / name) for name in BAD]
    assert [kind for _, kind, _ in caught.value.details["failed"]] == [
        "UnreadableStream", "UnreadableStream", "MediaLimitExceeded",
    ]  # fmt: skip
    assert caught.value.details["failed_count"] == 3
    indexed = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda path, **k: indexed.append(path) or real(path, **k))
    describe_streams(VideoStreams(folder, **OPTIONS, unreadable="skip"))
    assert set(indexed) <= {str(folder / name) for name in BAD}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_that_skips_leaves_them_out(folder, num_workers):
    dataset = VideoStreams(folder, **OPTIONS)
    with MultiStreamer(dataset, 1, 4, num_workers=num_workers, shuffle=False, on_error="skip") as loader:
        assert names(loader.streams) == GOOD
        assert sum(int(batch.valid.sum()) for batch in loader) == 8 * len(GOOD)
        assert not loader.quarantined
    assert len(dataset.skipped) == 3


def test_nothing_is_left_if_no_video_can_be_used(folder):
    with pytest.raises(UnreadableStream, match="2 of 2 videos cannot be used"):
        describe_streams(VideoStreams([folder / name for name in BAD[:2]], unreadable="skip"))


def test_keys_of_videos_that_are_listed_twice_do_not_change(folder):
    paths = [folder / name for name in ("00.mp4", "02.mp4", "00.mp4")]
    dataset = VideoStreams(paths, unreadable="skip")
    assert names(describe_streams(dataset)) == ["00.mp4", "00.mp4#2"]


def test_a_leap_of_timestamps_is_left_out(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("streamloader.media.video.selection._MIN_MAX_STEPS", 0)
    monkeypatch.setattr("streamloader.media.video.selection._MAX_STEPS_PER_FRAME", 1)
    dataset = VideoStreams(
        [folder / "00.mp4", make_clip(tmp_path / "still.mkv", frames=2)], fps=1000, unreadable="skip"
    )
    with pytest.raises(CorruptStream, match=r"(?s)2 of 2.*timestamps leap"):
        describe_streams(dataset)


def test_videos_in_stores_are_left_out(folder):
    with served(folder) as url:
        dataset = VideoStreams([f"{url}/{name}" for name in ("00.mp4", "02.mp4", "01.mp4")], unreadable="skip")
        assert names(describe_streams(dataset)) == ["00.mp4", "01.mp4"]
        assert [video.address for video in dataset.skipped] == [f"{url}/02.mp4"]


def test_an_error_that_may_pass_leaves_nothing_out(folder, monkeypatch):
    def fail(video, **keywords):
        if video.endswith("04.mp4"):
            raise Unreachable("the server is down", address="http://a/b.mp4")
        return real(video, **keywords)

    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", fail)
    with pytest.raises(Unreachable):
        describe_streams(VideoStreams(folder, unreadable="skip"))


def test_which_errors_end_the_work():
    for error in (Unreachable("x"), StoreTimeout("x"), ConfigError("x"), ValueError("x"), KeyboardInterrupt()):
        assert ends_indexing(error), error
    for error in (CorruptStream("x"), UnreadableStream("x"), MediaLimitExceeded("x"), StreamFailed("x")):
        assert not ends_indexing(error), error


def test_a_long_list_is_cut_off():
    errors = {number: CorruptStream(f"{number}.mp4 is damaged " + "x" * 1000) for number in range(1200)}
    error = combine_errors(errors, [f"{number}.mp4" for number in range(9000)])
    assert error.message.startswith("1,200 of 9,000 videos cannot be used:\n- 0.mp4 is damaged")
    assert "- and 1,180 more\n" in error.message
    assert len(error.message) < 20_000
    assert len(error.details["failed"]) == 1000


def test_names_do_not_forge_lines():
    errors = {n: CorruptStream("harm", address=f"a\n- b{n}.mp4") for n in range(2)}
    lines = combine_errors(errors, ["a\n- b0.mp4", "a\n- b1.mp4"]).message.splitlines()
    assert lines[1:3] == [r"- a\n- b0.mp4: harm", r"- a\n- b1.mp4: harm"]
    assert SkippedVideo.from_error("k", "a", errors[0]).error == "CorruptStream"


def test_options_are_checked(folder):
    with pytest.raises(ConfigError, match='unreadable must be "raise" or "skip"'):
        VideoStreams(folder, unreadable="ignore")
    with pytest.raises(ConfigError, match="verify must be one of tables, ends, frames"):
        VideoStreams(folder, verify="all")


def test_one_error_lists_what_cannot_be_opened_and_what_cannot_be_used(folder, tmp_path):
    """Whether the search finds it, or a look into the file."""
    os.link(folder / "00.mp4", tmp_path / "00.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    os.mkfifo(tmp_path / "pipe\x1b.mp4")
    (tmp_path / "link.mp4").symlink_to("nothing")
    (tmp_path / "folder.mp4").mkdir()
    bad = ["link.mp4", "pipe\x1b.mp4", "empty.mp4", "page.mp4"]
    for action in (
        lambda: describe_streams(VideoStreams(tmp_path)),
        lambda: describe_streams(VideoStreams(tmp_path, unreadable="raise")),
        lambda: index_videos(tmp_path, tmp_path / "index.sqlite", progress=False),
    ):
        with pytest.raises(StreamNotFound, match="2 files or directories cannot be read") as raised:
            action()
        assert "2 of 3 videos cannot be used" in raised.value.message
        assert [os.path.basename(name) for name, _, _ in raised.value.details["failed"]] == bad
        assert "pipe\\x1b.mp4 is not a regular file" in raised.value.message
    dataset = VideoStreams(tmp_path, unreadable="skip")
    report = index_videos(tmp_path, tmp_path / "index.sqlite", unreadable="skip", progress=False)
    assert names(describe_streams(dataset)) == ["00.mp4"]
    for skipped in (dataset.skipped, report.skipped):
        assert sorted(os.path.basename(file.address) for file in skipped) == sorted(bad)
