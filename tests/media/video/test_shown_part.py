"""Which stream of a file is shown, which part of its frames, and with which shape of pixels, against ffmpeg."""

from __future__ import annotations

import contextlib
import json
import logging
import struct
from fractions import Fraction

import numpy as np
import pytest
from ffmpeg_program import make, run, shown_pictures

import streamloader as sl
from streamloader.cli.main import main
from streamloader.errors import ConfigError, UnreadableStream
from streamloader.media.video.cropping import _convert_aperture
from streamloader.media.video.index import Cropping
from streamloader.media.video.index_blob import decode_index, encode_index
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader
from streamloader.testing import describe_streams, read_stream

H264 = ("-c:v", "libx264", "-bf", "2", "-g", "10", "-pix_fmt", "yuv420p")


def play(path, **options):
    """Return the gray frames of the only stream, (n, H, W), and its description."""
    dataset = sl.VideoStreams(path, pix_fmt="gray", **options)
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info)["data"][..., 0], info


def assert_close(pictures, truth):
    assert pictures.shape == truth.shape
    assert np.abs(pictures.astype(int) - truth).max() <= 1


# --- several streams -------------------------------------------------------------------------------------------------


def make_cameras(path, *, default=None, bits=("50k", "400k")):
    """Write two cameras into one file, the second of which has the higher bit rate."""
    flags = [] if default is None else [
        option for each in range(2) for option in (f"-disposition:v:{each}", "default" if each == default else "0")
    ]  # fmt: skip
    run(
        "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1", "-f", "lavfi", "-i",
        "mandelbrot=size=64x48:rate=25:end_pts=25", "-t", 1, "-map", "0:v", "-map", "1:v", *H264, "-b:v:0", bits[0],
        "-b:v:1", bits[1], *flags, path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mov", "nut"])
@pytest.mark.parametrize("bits", [("50k", "400k"), ("400k", "50k")])
def test_the_first_of_equal_streams_is_played(tmp_path, suffix, bits):
    path = make_cameras(tmp_path / f"two.{suffix}", bits=bits)
    for number in range(2):
        truth = shown_pictures(path, 48, 64, stream=number)
        assert_close(play(path, stream=number)[0], truth)
        if number == 0:
            assert_close(play(path)[0], truth)


@pytest.mark.parametrize("default", [0, 1])
def test_the_stream_that_is_marked_as_default_is_played(tmp_path, default, caplog):
    path = make_cameras(tmp_path / "two.mkv", default=default)
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        pictures, _ = play(path)
    assert_close(pictures, shown_pictures(path, 48, 64, stream=default))
    assert caplog.text.count("of several video streams") == 1
    caplog.clear()
    play(path, stream=1 - default)
    assert "several video streams" not in caplog.text


def test_streams_have_indexes_of_their_own(tmp_path):
    path = str(make_cameras(tmp_path / "two.mp4"))
    first, second, chosen = (load_index(path, stream=number) for number in (0, 1, None))
    assert [each.stream for each in (first, second, chosen)] == [0, 1, 0]
    assert {each.video_streams for each in (first, second, chosen)} == {2}
    again = decode_index(encode_index(second), None)
    assert (again.stream, again.video_streams) == (1, 2)


def test_a_stream_that_does_not_exist(tmp_path):
    path = str(make_cameras(tmp_path / "two.mp4"))
    with pytest.raises(UnreadableStream, match="has 2 video streams, numbered from 0, so there is no stream 2"):
        index_video(path, stream=2)
    for wrong in (-1, True, "0", 1.5):
        with pytest.raises(ConfigError, match="stream must be the number"):
            sl.VideoStreams(path, stream=wrong)


def test_a_cover_picture_is_no_stream(tmp_path):
    video, cover = make(tmp_path / "video.mp4", *H264, seconds=1), tmp_path / "cover.png"
    run("-f", "lavfi", "-i", "color=red:size=600x600", "-frames:v", 1, cover)
    for suffix in ("mp4", "mkv"):
        path = tmp_path / f"cover.{suffix}"
        inputs = ["-i", cover, "-i", video, "-map", "0", "-map", "1"] if suffix == "mp4" else ["-i", video]
        attached = ["-disposition:v:0", "attached_pic"] if suffix == "mp4" else [
            "-attach", cover, "-metadata:s:t", "mimetype=image/png",
        ]  # fmt: skip
        run(*inputs, *attached, "-c", "copy", path)
        pictures, _ = play(path)
        assert_close(pictures, shown_pictures(video, 48, 64))
        index = index_video(str(path), stream=0)
        assert (index.stream, index.video_streams, index.height) == (0, 1, 48)
        with pytest.raises(UnreadableStream, match="has 1 video stream"):
            index_video(str(path), stream=1)


def test_an_index_file_keeps_the_stream(tmp_path):
    path = make_cameras(tmp_path / "two.mp4")
    file = tmp_path / "index.sqlite"
    sl.index_videos(path, file, stream=1, progress=False)
    dataset = sl.VideoStreams.from_index(file, pix_fmt="gray")
    (info,) = describe_streams(dataset)
    assert_close(read_stream(dataset, info)["data"][..., 0], shown_pictures(path, 48, 64, stream=1))
    sl.index_videos(path, file, update=True, progress=False)
    with pytest.raises(ConfigError, match="stream=1"):
        sl.index_videos(path, file, update=True, stream=0, progress=False)
    with pytest.raises(ConfigError, match="stream"):
        sl.VideoStreams.from_index(file, stream=1)


# --- cropping --------------------------------------------------------------------------------------------------------


def with_matroska_crop(source, target, **sides):
    """Write PixelCrop elements into the first Video element of a Matroska file, in place of padding that is added."""
    data = source.read_bytes()
    kinds = {"bottom": b"\x54\xaa", "top": b"\x54\xbb", "left": b"\x54\xcc", "right": b"\x54\xdd"}
    added = b"".join(kinds[name] + b"\x82" + value.to_bytes(2, "big") for name, value in sides.items())
    path = [0x18538067, 0x1654AE6B, 0xAE, 0xE0]
    target.write_bytes(_insert(data, path, added, 0, len(data)))
    return target


def _insert(data, path, added, start, end):
    """Return `data` with bytes at the end of an EBML element, whose sizes are written in eight bytes."""
    offset = start
    while offset < end:
        id_bytes = 9 - data[offset].bit_length()
        kind = int.from_bytes(data[offset : offset + id_bytes], "big")
        size_bytes = 9 - data[offset + id_bytes].bit_length()
        content = offset + id_bytes + size_bytes
        raw = int.from_bytes(data[offset + id_bytes : content], "big") & ((1 << 7 * size_bytes) - 1)
        stop = content + raw
        if kind == path[0]:
            body = data[content:stop] + added if len(path) == 1 else _insert(data, path[1:], added, content, stop)
            inner = body if len(path) == 1 else body[content : len(body) - (len(data) - stop)]
            header = data[offset : offset + id_bytes] + (len(inner) | 1 << 56).to_bytes(8, "big")
            return data[:offset] + header + inner + data[stop:]
        offset = stop
    raise AssertionError("the element is missing")


def with_aperture(source, target, *values):
    """Insert a clean aperture into the sample entry of an MP4 file whose ``moov`` comes last."""
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", *values)
    data = bytearray(source.read_bytes())
    end = len(data)
    start = 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", None):
        if kind is None:
            start += 8  # version and number of entries
        else:
            while data[start + 4 : start + 8] != kind:
                start += int.from_bytes(data[start : start + 4], "big")
        size = int.from_bytes(data[start : start + 4], "big")
        data[start : start + 4] = (size + len(box)).to_bytes(4, "big")
        end = start + size
        start += 8
    target.write_bytes(data[:end] + box + data[end:])
    return target


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return {suffix: make(folder / f"plain.{suffix}", *H264, seconds=1) for suffix in ("mkv", "mp4")}


def assert_cropped(path, height, width):
    truth = shown_pictures(path, height, width)
    pictures, _ = play(path)
    assert_close(pictures, truth)
    scaled, _ = play(path, size=(20, 30), stride=7)
    assert scaled.shape == (4, 20, 30)
    index = index_video(str(path), verify="frames")
    assert (index.height, index.width) == (height, width)
    with contextlib.closing(FrameReader(str(path), index)) as reader:
        for number in (24, 3, 11):
            assert np.array_equal(reader.read_frame(number).to_ndarray(format="gray"), pictures[number])


@pytest.mark.parametrize(
    "sides",
    [{"top": 8, "bottom": 4, "left": 6, "right": 10}, {"left": 3, "top": 5}, {"bottom": 47 - 1}, {"right": 61}],
)
def test_cropping_of_matroska(plain, tmp_path, sides):
    path = with_matroska_crop(plain["mkv"], tmp_path / "cropped.mkv", **sides)
    height = 48 - sides.get("top", 0) - sides.get("bottom", 0)
    width = 64 - sides.get("left", 0) - sides.get("right", 0)
    assert_cropped(path, height // 2 * 2, width // 2 * 2)  # whole samples of chroma


def test_cropping_that_leaves_nothing(plain, tmp_path, caplog):
    path = with_matroska_crop(plain["mkv"], tmp_path / "cropped.mkv", top=30, bottom=30)
    with pytest.raises(UnreadableStream, match="cannot be opened as a video"):
        index_video(str(path))
    path = with_matroska_crop(plain["mkv"], tmp_path / "narrow.mkv", right=63)
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        assert index_video(str(path)).cropping == Cropping()
    assert "It is not cropped" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        (48, 1, 32, 1, 0, 1, 0, 1), (48, 1, 32, 1, 4, 1, -6, 1), (60, 1, 44, 1, 2, 2, 2, 2),
        (50, 2, 30, 2, 3, 2, -1, 2), (47, 1, 33, 1, 1, 2, 1, 2), (64, 1, 48, 1, 0, 1, 0, 1),
    ],
)  # fmt: skip
def test_cropping_of_mp4(plain, tmp_path, values):
    path = with_aperture(plain["mp4"], tmp_path / "cropped.mp4", *values)
    top, bottom, left, right = _convert_aperture(values, 48, 64)
    assert_cropped(path, (48 - top - bottom) // 2 * 2, (64 - left - right) // 2 * 2)


@pytest.mark.parametrize("pix_fmt", ["rgb24", "rgbp", "yuv420p"])
def test_all_pixel_formats_are_cropped(plain, tmp_path, pix_fmt):
    path = with_matroska_crop(plain["mkv"], tmp_path / "cropped.mkv", top=8, left=6, right=2)
    whole, cropped = (sl.VideoStreams(each, pix_fmt=pix_fmt, max_frames=2) for each in (plain["mkv"], path))
    frames = [read_stream(each, describe_streams(each)[0]) for each in (whole, cropped)]
    if pix_fmt == "yuv420p":
        assert np.array_equal(frames[1]["y"], frames[0]["y"][:, 8:, 6:-2])
        assert np.array_equal(frames[1]["u"], frames[0]["u"][:, 4:, 3:-1])
        return
    inner = frames[0]["data"][..., 8:, 6:-2] if pix_fmt == "rgbp" else frames[0]["data"][:, 8:, 6:-2]
    assert frames[1]["data"].shape == inner.shape
    assert np.abs(frames[1]["data"].astype(int) - inner).mean() < 2  # chroma is interpolated at the border


def test_a_crop_is_applied_before_the_rotation(plain, tmp_path):
    cropped = with_matroska_crop(plain["mkv"], tmp_path / "cropped.mkv", top=8, left=6)
    path = tmp_path / "turned.mp4"
    run("-display_rotation", 90, "-i", cropped, "-c", "copy", path)
    truth = shown_pictures(path, *index_video(str(path)).upright_size)
    assert_close(play(path)[0], truth)


@pytest.mark.parametrize("mode", ["copy", "lossless", "encode"])
def test_archives_are_cropped(plain, tmp_path, mode):
    path = with_matroska_crop(plain["mkv"], tmp_path / "cropped.mkv", top=8, bottom=4, left=6, right=10)
    catalog = tmp_path / "archive"
    assert main(["ingest", str(path), "--to", str(catalog), "--mode", mode, "--jobs", "0", "--quiet"]) == 0
    right, _ = play(path)
    with sl.open_archive(str(catalog), pix_fmt="gray") as opened:
        frames = np.asarray(opened[0:25])[..., 0]
    assert frames.shape == right.shape
    if mode == "encode":
        assert np.abs(frames.astype(int) - right).mean() < 4
    else:
        assert np.array_equal(frames, right)


# --- the shape of pixels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "avi", "264"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_the_shape_of_pixels_is_reported(tmp_path, codec, suffix):
    if (suffix == "264") != (codec == "libx264" and suffix == "264"):
        pytest.skip("a raw stream of H.264")
    options = ("-x265-params", "log-level=0") if codec == "libx265" else ()
    target = tmp_path / (f"wide.{suffix}" if suffix != "264" else "wide.h264")
    path = make(target, "-vf", "setsar=16/11", "-c:v", codec, *options, "-pix_fmt", "yuv420p", seconds=0.4)
    exact = Fraction(4, 3) if (codec, suffix) == ("mpeg2video", "ts") else Fraction(16, 11)
    if (codec, suffix) == ("libx265", "avi"):
        pytest.skip("FFmpeg does not read what it wrote")
    for verify in ("tables", "frames"):
        assert index_video(str(path), verify=verify).pixel_aspect == exact
    pictures, info = play(path)
    assert info.extra["pixel_aspect"] == float(exact)
    assert pictures.shape[1:] == (48, 64)
    square, _ = play(path, square_pixels=True)
    assert square.shape[1:] == (48, round(64 * exact))


def test_the_shape_of_pixels_of_turned_frames(tmp_path):
    path = make(tmp_path / "wide.mp4", "-vf", "setsar=2", *H264, seconds=0.4)
    turned = tmp_path / "turned.mp4"
    run("-display_rotation", 90, "-i", path, "-c", "copy", turned)
    pictures, info = play(turned, square_pixels=True)
    assert info.extra["pixel_aspect"] == 0.5
    assert pictures.shape[1:] == (64, 24)


def test_square_pixels_and_a_size_contradict_each_other(plain):
    with pytest.raises(ConfigError, match="square_pixels=True changes the size"):
        sl.VideoStreams(plain["mp4"], size=(10, 10), square_pixels=True)


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_a_video(tmp_path, capsys):
    path = make_cameras(tmp_path / "two.mkv")
    cropped = with_matroska_crop(path, tmp_path / "cropped.mkv", top=8, left=4)
    assert main(["inspect", str(cropped), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["details"]
    assert (report["frames"], report["frame_size"]) == (25, [40, 60])
    assert (report["video_streams"], report["video_stream"], report["cropping"]) == (2, 0, [8, 0, 4, 0])
    assert main(["inspect", str(cropped), "--stream", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 video streams" in text
    assert "48x64" in text
    assert main(["inspect", str(cropped), "--stream", "2"]) == 1
    assert "there is no stream 2" in capsys.readouterr().out
