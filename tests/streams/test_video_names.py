"""Which files of a directory are videos."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ffmpeg_program import make
from range_server import served

import streamloader as sl
from streamloader.archive.ingest.add import _expand_videos
from streamloader.errors import CorruptStream, StreamNotFound, UnreadableStream
from streamloader.stores.io_thread import open_shared_store
from streamloader.streams.video_names import find_videos, is_video
from streamloader.testing import describe_streams, read_stream

SCRIPT = b"export const frames: number = 24;\n// caf\xc3\xa9\n" * 20


def names(infos):
    return [info.key.rpartition("/")[2] for info in infos]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    make(folder / "a.ts", "-c:v", "libx264", seconds=0.4)
    (folder / "web").mkdir()
    for name, data in {
        "main.ts": SCRIPT,
        "module.mts": SCRIPT,
        "utf16.ts": "const a = 1".encode("utf-16"),
        "latin.ts": "// caf\xe9".encode("latin-1"),
        "go.mod": b"module example.org/a\n",
        "music.mod": b"song\0\0\0" * 40,
        "cut.avs": b'AviSource("a.avi")\n',
    }.items():
        (folder / "web" / name).write_bytes(data)
    return folder


def test_text_with_the_ending_of_a_video_is_left_out(folder, caplog):
    with caplog.at_level(logging.INFO, "streamloader"):
        assert names(describe_streams(sl.VideoStreams(folder))) == ["a.ts"]
    assert any("left out 7 files that are text" in record.getMessage() for record in caplog.records)
    assert names(describe_streams(sl.find_streams(folder))) == ["a.ts"]
    assert [file.address for file in _expand_videos(folder, None)] == [str(folder / "a.ts")]
    assert sl.index_videos(folder, folder.parent / "videos.index").videos == 1


def test_text_that_is_named_is_an_error(folder):
    with pytest.raises(UnreadableStream, match=r"web/main.ts cannot be opened as a video"):
        describe_streams(sl.VideoStreams([folder / "a.ts", folder / "web" / "main.ts"]))
    with pytest.raises(StreamNotFound, match=r"no video, only text .*main.ts"):
        describe_streams(sl.VideoStreams(folder / "web"))


def test_text_on_a_server_is_left_out(folder):
    with served(folder) as url:
        files = [f"{url}/a.ts", f"{url}/web/main.ts"]
        assert len(find_videos(files)) == 2  # both are named
    store = {"memory://names/v/a.ts": (folder / "a.ts").read_bytes(), "memory://names/v/main.ts": SCRIPT}
    for address, data in store.items():
        opened, path = open_shared_store(address, None)
        with opened:
            opened.write(path, data)
    assert [file.address for file in find_videos("memory://names/v/")] == ["memory://names/v/a.ts"]


def test_empty_and_broken_files_stay_errors(tmp_path):
    """Only text is no video: what is empty, cut or HTML under the name of a video is named."""
    (tmp_path / "empty.ts").touch()
    (tmp_path / "page.mp4").write_bytes(b"<html>" * 50)
    with pytest.raises(UnreadableStream, match="2 of 2 videos cannot be used") as caught:
        describe_streams(sl.VideoStreams(tmp_path))
    assert [name for name, _, _ in caught.value.details["failed"]] == [
        str(tmp_path / name) for name in ("empty.ts", "page.mp4")
    ]


def test_one_error_lists_all_bad_files_of_a_folder(tmp_path):
    good = make(tmp_path / "0.mp4", "-c:v", "libx264", seconds=0.4)
    data = good.read_bytes()
    for number in (2, 4, 6):
        (tmp_path / f"{number}.mp4").write_bytes(data)
    (tmp_path / "1.mp4").touch()
    (tmp_path / "3.mp4").write_bytes(b"<!DOCTYPE html><html></html>")
    (tmp_path / "5.mp4").write_bytes(data[: data.index(b"moov") - 4])
    make(tmp_path / "7.mp4", "-vn", "-f", "lavfi", "-i", "sine=duration=0.4", "-map", "1:a")
    cut = make(tmp_path / "8.mp4", "-c:v", "libx264", "-movflags", "+faststart", seconds=2)
    cut.write_bytes(cut.read_bytes()[:-3000])
    bad = {
        "1.mp4": "is empty (0 bytes)",
        "3.mp4": "it is an HTML page, and not a video",
        "5.mp4": "cannot be opened as a video",
        "7.mp4": "contains no video",
        "8.mp4": "truncated",
    }
    with pytest.raises((UnreadableStream, CorruptStream), match="5 of 9 videos cannot be used") as caught:
        describe_streams(sl.VideoStreams(tmp_path))
    for (name, kind, reason), (expected, text) in zip(caught.value.details["failed"], bad.items(), strict=True):
        assert name == str(tmp_path / expected)
        assert text in reason
        assert kind == ("CorruptStream" if expected == "8.mp4" else "UnreadableStream")
        assert f"- {tmp_path / expected}" in str(caught.value)
    dataset = sl.VideoStreams(tmp_path, unreadable="skip")
    assert names(describe_streams(dataset)) == ["0.mp4", "2.mp4", "4.mp4", "6.mp4"]
    assert [skipped.address for skipped in dataset.skipped] == [str(tmp_path / name) for name in bad]


FORMATS = {
    "h264": ("264", "avc", "h264", "26l"),
    "hevc": ("265", "h265", "hevc"),
    "mp4": ("insv", "lrv", "lrf", "360", "mqv"),
    "mov": ("qt",),
    "vob": ("mod", "m2p", "mpg"),
    "mpegts": ("tod", "trp", "tp", "m2t", "mts"),
    "matroska": ("mk3d",),
    "3gp": ("3gpp", "3gp"),
    "3g2": ("3gp2", "3gpp2", "3g2"),
    "ismv": ("ismv",),
    "obu": ("obu",),
    "avi": ("avi", "divx", "xvid"),
    "asf": ("wm", "wmv", "asf"),
    "gxf": ("gxf",),
    "nut": ("nut",),
    "ivf": ("ivf",),
    "mjpeg": ("mjpg", "mjpeg"),
}


@pytest.mark.parametrize("muxer", FORMATS)
def test_endings_that_ffmpeg_knows_are_taken(tmp_path, muxer):
    codec = {
        "hevc": ("libx265", "-x265-params", "log-level=error"), "vob": ("mpeg2video",), "gxf": ("mpeg2video",),
        "obu": ("libsvtav1", "-preset", 12), "ivf": ("libvpx",), "mjpeg": ("mjpeg", "-pix_fmt", "yuvj420p"),
        "asf": ("wmv2",), "3gp": ("mpeg4",), "3g2": ("mpeg4",),
    }.get(muxer, ("libx264",))  # fmt: skip
    size = "720x512" if muxer == "gxf" else "64x48"
    first, *others = FORMATS[muxer]
    made = make(tmp_path / f"clip.{first}", "-c:v", *codec, "-f", muxer, seconds=0.4, size=size)
    for ending in others:
        (tmp_path / f"clip.{ending}").write_bytes(made.read_bytes())
    dataset = sl.VideoStreams(tmp_path)
    infos = describe_streams(dataset)
    assert names(infos) == sorted(f"clip.{ending}" for ending in FORMATS[muxer])
    played = [read_stream(dataset, info)["data"] for info in infos]
    assert len(played[0]) >= 8
    assert all(np.array_equal(each, played[0]) for each in played)


def test_endings_of_refused_formats_are_said(tmp_path, caplog):
    make(tmp_path / "a.mp4", "-c:v", "libx264", seconds=0.2)
    for name in ("b.braw", "c.R3D", "d.r3d"):
        (tmp_path / name).write_bytes(b"raw")
    with caplog.at_level(logging.WARNING, "streamloader"):
        assert names(describe_streams(sl.VideoStreams(tmp_path))) == ["a.mp4"]
    (record,) = [record for record in caplog.records if "not accepted" in record.getMessage()]
    assert "left out 3 files in formats that are not accepted (.braw: 1, .r3d: 2)" in record.getMessage()


def test_what_is_no_video():
    assert not any(is_video(name) for name in ("a.txt", "a.mp4.txt", "ts", "a.tsx", "a.mp3", "a.jpg", "a.psp", "a.ogg"))
