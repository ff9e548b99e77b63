"""Frames of which FFmpeg conceals parts that it cannot decode: they are damage."""

from __future__ import annotations

import logging
import random

import av
import numpy as np
import pytest
from made_clips import linear_decode, make_clip

import streamloader as sl
from streamloader.cli.main import main
from streamloader.errors import CorruptStream
from streamloader.media.video.indexer import index_video
from streamloader.testing import describe_streams, read_stream

FRAMES, GOP = 60, 20
CODECS = {"libx264": "mp4", "mpeg4": "avi", "mpeg2video": "ts"}


def flip_bits(path, target, packet_number):
    """Flip bits of a key frame until FFmpeg marks frames. Return the numbers of these frames."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        data = path.read_bytes()
        position, size = packets[packet_number].pos, packets[packet_number].size
    for seed in range(100):
        damaged, random_ = bytearray(data), random.Random(seed)
        for _ in range(3):
            damaged[position + size // 3 + random_.randrange(size // 2)] ^= 1 << random_.randrange(8)
        target.write_bytes(damaged)
        try:
            frames = linear_decode(target)
        except (av.error.FFmpegError, EOFError):
            continue
        marked = [number for number, frame in enumerate(frames) if frame.is_corrupt]
        if marked and len(frames) == FRAMES and GOP - 3 <= marked[0] < FRAMES - GOP:
            return marked
    raise AssertionError("FFmpeg marks nothing")


@pytest.fixture(scope="module", params=CODECS)
def damaged(request, tmp_path_factory):
    """Return a file with a concealed frame, the numbers of such frames, and the intact file."""
    folder = tmp_path_factory.mktemp("concealed")
    suffix = CODECS[request.param]
    whole = make_clip(folder / f"whole.{suffix}", request.param, frames=FRAMES, gop=GOP, height=128, width=160)
    target = folder / f"damaged.{suffix}"
    return target, flip_bits(whole, target, GOP), whole


def play(path, **options):
    dataset = sl.VideoStreams(path, **options)
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info)["data"]


@pytest.mark.parametrize("verify", ["tables", "ends", "frames"])
def test_a_concealed_frame_is_an_error(damaged, verify):
    path, marked, _ = damaged
    with pytest.raises(CorruptStream, match="FFmpeg has concealed them") as caught:
        play(path, verify=verify)
    assert caught.value.offset == marked[0]
    assert caught.value.address == str(path)


def test_proof_of_all_frames_finds_it_before_playing(damaged):
    path, marked, _ = damaged
    with pytest.raises(CorruptStream) as caught:
        index_video(str(path), verify="frames")
    assert caught.value.offset == marked[0]


def test_frames_that_are_not_shown_are_checked_too(damaged):
    """The frames after it are made from it."""
    path, _, _ = damaged
    with pytest.raises(CorruptStream, match="concealed"):
        play(path, stride=7)


@pytest.mark.parametrize("verify", ["tables", "frames"])
def test_damaged_files_are_played_as_ffmpeg_shows_them(damaged, verify, caplog):
    path, _, _ = damaged
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        pictures = play(path, damaged="keep", verify=verify)
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1  # what is concealed depends on it
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(pictures, expected)
    assert "damaged" in caplog.text


@pytest.mark.parametrize("mode", ["copy", "lossless"])
def test_an_archive_refuses_it(damaged, tmp_path, mode, capsys):
    path, _, whole = damaged
    arguments = ["--to", str(tmp_path / "archive"), "--mode", mode, "--verify", "frames", "--jobs", "0", "--quiet"]
    assert main(["ingest", str(path), *arguments]) == 1
    assert "concealed" in capsys.readouterr().out
    assert main(["ingest", str(whole), *arguments]) == 0


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov"])
def test_a_decoder_that_marks_nothing_has_to_refuse_it(tmp_path, suffix):
    """FFmpeg's decoder of MJPEG shows what it has not decoded as what was in its memory before."""
    path = make_clip(tmp_path / f"whole.{suffix}", "mjpeg", frames=5, height=128, width=160, pix_fmt="yuvj420p")
    assert len(play(path)) == 5
    with av.open(str(path)) as container:
        packets = [(packet.pos, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    data, (position, packet) = bytearray(path.read_bytes()), packets[3]
    start = data.index(packet, position)
    data[start + len(packet) // 2 : start + len(packet)] = bytes(len(packet) - len(packet) // 2)
    path.write_bytes(data)
    with pytest.raises(CorruptStream) as caught:
        play(path)
    assert (caught.value.offset, caught.value.address) == (3, str(path))
    assert len(play(path, damaged="keep")) == 5
