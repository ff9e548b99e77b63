"""Pixels of all raw pixel formats, against the ffmpeg program."""

from __future__ import annotations

import contextlib
import re
import subprocess

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from ffmpeg_program import PROGRAM, make, run, shown_pictures
from made_clips import moving_frame
from tiers import only_fast

import streamloader as sl
from streamloader.errors import UnreadableStream
from streamloader.media.video.convert import Converter
from streamloader.media.video.reformat import reformat_frame
from streamloader.testing import describe_streams, read_stream

HEIGHT, WIDTH = 32, 64
MAX_ERROR = 6  # mean of all pixels; ffmpeg interpolates the chroma of subsampled formats otherwise
LISTED = subprocess.run([PROGRAM, "-v", "quiet", "-pix_fmts"], capture_output=True, text=True, check=True).stdout
FORMATS = [
    name
    for flags, name in re.findall(r"^([IOHPB.]{5}) (\S+)", LISTED.partition("-----\n")[2], re.MULTILINE)
    if "H" not in flags and name in av.video.format.names
]
WRONG = ["rgb555be", "rgb565be", "bgr565be", "bgr555be"]


def smooth_picture():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 4, y * 8, (x + y) * 2], -1).astype(np.uint8)


def convert(data, source, target, size=None):
    scaled = [] if size is None else ["-vf", f"scale={size[1]}:{size[0]}:flags=bilinear"]
    try:
        return run(
            "-f", "rawvideo", "-pix_fmt", source, "-s", f"{WIDTH}x{HEIGHT}", "-i", "-", *scaled, "-pix_fmt", target,
            "-f", "rawvideo", "-", data=data,
        )  # fmt: skip
    except subprocess.CalledProcessError:
        return b""


def decode_raw(data, pix_fmt):
    context = av.CodecContext.create("rawvideo", "r")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, pix_fmt
    packet = av.Packet(data)
    packet.pts = 0
    (frame,) = context.decode(packet)
    return frame


def read_planes(frame, pix_fmt, size):
    converter = Converter("rgbp" if pix_fmt == "gbrp" else pix_fmt, *size)
    return np.concatenate([plane.reshape(-1) for plane in converter.convert_by_pyav(frame)])


@pytest.mark.parametrize("pix_fmt", only_fast(FORMATS, [*WRONG, "yuv420p", "yuyv422", "rgb555le", "pal8", "gray16be"]))
def test_every_raw_format_is_converted_as_ffmpeg_does_or_refused(pix_fmt):
    data = convert(smooth_picture().tobytes(), "rgb24", pix_fmt)
    if not data:
        pytest.skip("ffmpeg cannot write this format")
    frame = decode_raw(data, pix_fmt)
    assert frame.format.name == pix_fmt
    for target in ("rgb24", "gray", "gbrp"):
        for size in ((HEIGHT, WIDTH), (16, 40)):
            truth = np.frombuffer(convert(data, pix_fmt, target, None if size[0] == HEIGHT else size), np.uint8)
            if not len(truth):
                with pytest.raises(UnreadableStream, match=f"pixel format {pix_fmt} .*cannot be converted to {target}"):
                    read_planes(frame, target, size)
                continue
            found = read_planes(frame, target, size)
            assert np.abs(found.astype(int) - truth).mean() < MAX_ERROR, f"{target} {size}"


@pytest.mark.slow
@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_formats_that_cannot_be_converted_are_refused(pix_fmt):
    if convert(smooth_picture().tobytes(), "rgb24", pix_fmt):
        pytest.skip("ffmpeg converts it")
    frame = av.VideoFrame(WIDTH, HEIGHT, pix_fmt)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    with contextlib.suppress(UnreadableStream):  # it names the format, see above
        assert len(np.unique(read_planes(frame, "rgb24", (HEIGHT, WIDTH)))) <= 3, "a flat picture stays flat"


@pytest.mark.parametrize("pix_fmt", WRONG[:3])  # MOV does not have the other one
def test_raw_formats_in_mov(tmp_path, pix_fmt):
    path = make(tmp_path / "raw.mov", "-c:v", "rawvideo", "-pix_fmt", pix_fmt, seconds=0.2)
    dataset = sl.VideoStreams(path)
    (info,) = describe_streams(dataset)
    pictures = read_stream(dataset, info)["data"]
    data = run("-i", path, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    truth = np.frombuffer(data, np.uint8).reshape(-1, 48, 64, 3)
    assert np.abs(pictures.astype(int) - truth).mean() < 1
    planes = sl.VideoStreams(path, pix_fmt="rgbp", size=(20, 30))
    assert read_stream(planes, describe_streams(planes)[0])["data"].shape == (5, 3, 20, 30)
    assert len(shown_pictures(path, 48, 64)) == 5


@pytest.mark.parametrize("source", ["yuv420p", "yuvj420p", "yuv422p", "yuva420p", "yuv444p", "nv12", "yuv420p10le"])
def test_planes_of_any_width_are_written_completely(source):
    reformatter = VideoReformatter()
    for width in range(16, 81):
        frame = moving_frame(3, 32, width, source)
        planes = read_planes_of(frame, width)
        rgb = reformat_frame(reformatter, frame, width, 32, "rgb24").to_ndarray()
        difference = np.abs(planes.astype(int) - np.moveaxis(rgb, -1, 0)).mean(axis=(0, 1))
        assert difference.max() < 24, (width, difference.round())


def read_planes_of(frame, width):
    green, blue, red = (plane[..., 0] for plane in Converter("rgbp", 32, width).convert_by_pyav(frame))
    return np.stack([red, green, blue])


@pytest.mark.parametrize("width", [1080, 360, 56, 58, 64])
def test_planes_are_those_of_ffmpeg(tmp_path, width):
    path = make(tmp_path / "clip.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", seconds=0.2, size=f"{width}x48")
    dataset = sl.VideoStreams(path, pix_fmt="rgbp")
    (info,) = describe_streams(dataset)
    pictures = read_stream(dataset, info)["data"]
    data = run("-i", path, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    truth = np.moveaxis(np.frombuffer(data, np.uint8).reshape(-1, 48, width, 3), -1, 1)
    assert np.abs(pictures.astype(int) - truth).max() <= 1
