"""Damage that is met while a video is played: where its index does not know of it."""

from __future__ import annotations

import logging
import os

import av
import numpy as np
import pytest
from ffmpeg_program import make, run
from made_clips import make_clip, zero_packets

import streamloader as sl
from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.video import index_cache
from streamloader.testing import describe_streams, read_stream

FRAMES, GOP = 40, 10


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        make_clip(
            tmp_path / f"{number}.mp4", frames=FRAMES, gop=GOP, options={"x264-params": f"bframes=2:qp={20 + number}"}
        )
    return tmp_path


def damage(path, first, last=FRAMES):
    """Overwrite the packets of frames, so that the index in the cache still seems to fit."""
    index_cache.load_index(str(path))
    index_cache.load_index(str(path), damaged="keep")
    version = path.stat()
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        ticks = container.streams.video[0].time_base.denominator // 25
        for packet in container.demux(video=0):
            if packet.size and first <= packet.pts // ticks < last:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    os.utime(path, ns=(version.st_atime_ns, version.st_mtime_ns))


def shown_pictures(path):
    """The frames that the ffmpeg program shows."""
    data = run("-threads", 1, "-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    return np.frombuffer(data, np.uint8).reshape(-1, 48, 64, 3)


def play(dataset, **options):
    """Return the frames of each stream, and the whole epoch as plain arrays."""
    with sl.MultiStreamer(dataset, 2, 8, shuffle=False, **options) as loader:
        epoch = [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]
        assert len(epoch) == len(loader)
    frames = {}
    for batch in epoch:
        for row in range(2):
            for step in np.flatnonzero(batch["valid"][row]):
                frames.setdefault(int(batch["stream"][row, step]), []).append(batch["data"][row, step])
    return epoch, frames


def assert_equal(epoch, expected):
    assert len(epoch) == len(expected)
    for one, two in zip(epoch, expected, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in two)


@pytest.mark.parametrize("first", [30, 34, 37])
def test_a_stream_ends_where_nothing_more_can_be_decoded(folder, first, caplog):
    path = folder / "1.mp4"
    damage(path, first)
    pictures = shown_pictures(path)
    dataset = sl.VideoStreams(path, damaged="keep")
    (info,) = describe_streams(dataset)
    assert info.length == FRAMES
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        played = read_stream(dataset, info)["data"]
    assert first - 3 <= len(played) <= first
    assert np.array_equal(played, pictures)
    text = caplog.records[-1].getMessage()
    assert text.startswith(f"stream {info.key} ({path}) is damaged at frame ")
    assert f"the stream has {len(played)} steps instead of {FRAMES}" in text
    for start in (0, 5, len(played) - 1, len(played), len(played) + 1, FRAMES - 1):
        assert np.array_equal(read_stream(dataset, info, seek=start)["data"], played[start:]), start


def test_with_a_stride_it_ends_there_too(folder):
    damage(folder / "1.mp4", 33)
    pictures = shown_pictures(folder / "1.mp4")
    for stride in (3, 12):
        dataset = sl.VideoStreams(folder / "1.mp4", damaged="keep", stride=stride)
        (info,) = describe_streams(dataset)
        played = read_stream(dataset, info)["data"]
        assert np.array_equal(played, pictures[::stride])
        for start in (1, len(played)):
            assert np.array_equal(read_stream(dataset, info, seek=start)["data"], played[start:])


@pytest.mark.parametrize("first", [1, 14, 30])
def test_it_plays_on_after_damage_that_the_index_does_not_know(folder, first, caplog):
    path = folder / "1.mp4"
    damage(path, first, first + 2)
    raises, keeps = (sl.VideoStreams(path, damaged=each) for each in ("raise", "keep"))
    (info,) = describe_streams(raises)
    with pytest.raises(CorruptStream, match='or pass damaged="keep"') as raised:
        read_stream(raises, info)
    assert (raised.value.stream, raised.value.address) == (info.key, str(path))
    assert first - 4 <= raised.value.offset <= first
    (info,) = describe_streams(keeps)
    assert info.length == FRAMES
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        played = read_stream(keeps, info)["data"]
    shown = shown_pictures(path)
    assert FRAMES - 12 <= len(shown) < FRAMES
    assert np.array_equal(played, shown)
    texts = [record.getMessage() for record in caplog.records]
    assert any(f"{len(shown)} of its {FRAMES} frames can be decoded" in text for text in texts)


def test_a_file_without_any_frame_is_an_error(folder):
    damage(folder / "1.mp4", 0)
    dataset = sl.VideoStreams(folder / "1.mp4", damaged="keep")
    (info,) = describe_streams(dataset)
    with pytest.raises(UnreadableStream, match="no frame of its video can be decoded") as caught:
        read_stream(dataset, info)
    assert caught.value.address == str(folder / "1.mp4")


def test_missing_frames_at_the_end_raise_by_default(folder):
    damage(folder / "1.mp4", 34)
    dataset = sl.VideoStreams(folder / "1.mp4")
    (info,) = describe_streams(dataset)
    with pytest.raises(CorruptStream, match='or pass damaged="keep"'):
        read_stream(dataset, info)


def test_the_epoch_is_the_same_for_any_number_of_workers(folder):
    """The lane goes on with its next stream, and the rest of the epoch is padded."""
    damage(folder / "0.mp4", 34)
    pictures = [shown_pictures(folder / f"{each}.mp4") for each in range(3)]
    dataset = sl.VideoStreams(folder, damaged="keep")
    expected, frames = play(dataset)
    lengths = [len(frames[number]) for number in range(3)]
    assert lengths[1:] == [FRAMES, FRAMES]
    assert 30 < lengths[0] <= 34
    for number in range(3):
        shown = np.stack(frames[number]).transpose(0, 2, 3, 1)
        assert np.array_equal(shown, pictures[number])
    epoch, _ = play(dataset, num_workers=2)
    assert_equal(epoch, expected)


def test_resuming_at_the_early_end(folder):
    damage(folder / "0.mp4", 34)
    dataset = sl.VideoStreams(folder, damaged="keep")
    with sl.MultiStreamer(dataset, 2, 8, shuffle=False) as loader:
        batches, states = [], []
        for batch in loader:
            batches.append({name: array.copy() for name, array in batch.numpy().items()})
            states.append(loader.state_dict())
    for number in (3, 4, 5):
        with sl.MultiStreamer(dataset, 2, 8, shuffle=False) as loader:
            loader.load_state_dict(states[number])
            rest = [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]
        assert_equal(rest, batches[number + 1 :])


def test_a_transform_is_not_called_without_frames(folder):
    damage(folder / "1.mp4", 34)
    counts = []

    def transform(frames, rng):
        counts.append(len(frames))
        return frames

    dataset = sl.VideoStreams(folder / "1.mp4", damaged="keep", transform=transform)
    (info,) = describe_streams(dataset)
    end = len(read_stream(dataset, info)["data"])
    counts.clear()
    assert len(read_stream(dataset, info, seek=end)["data"]) == 0
    assert 0 not in counts


CODECS = {
    "h264": ("mp4", "-c:v", "libx264", "-g", 30, "-preset", "veryfast"),
    "h264 in mkv": ("mkv", "-c:v", "libx264", "-g", 30, "-preset", "veryfast"),
    "hevc": ("mkv", "-c:v", "libx265", "-x265-params", "log-level=error", "-preset", "ultrafast", "-g", 30),
    "vp9": ("mp4", "-c:v", "libvpx-vp9", "-g", 30, "-deadline", "realtime", "-cpu-used", 8),
    "av1": ("mkv", "-c:v", "libsvtav1", "-g", 30, "-preset", 12),
    "mjpeg": ("mp4", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "prores": ("mov", "-c:v", "prores"),
    "png": ("mov", "-c:v", "png"),
}


@pytest.mark.parametrize("codec", CODECS)
def test_the_index_knows_of_damage_in_the_middle(tmp_path, codec):
    """Tables list all packets. Only decoding shows which frames there are: those that ffmpeg shows."""
    suffix, *options = CODECS[codec]
    path = make(tmp_path / f"clip.{suffix}", *options, seconds=4.8)
    zero_packets(path, (50, 51, 52))
    shown = shown_pictures(path)
    assert 105 <= len(shown) <= 117
    dataset = sl.VideoStreams(path, damaged="keep")
    (info,) = describe_streams(dataset)
    assert info.length == len(shown)
    assert np.array_equal(read_stream(dataset, info)["data"], shown)
    for start in (49, 60, len(shown) - 1):
        assert np.array_equal(read_stream(dataset, info, seek=start)["data"], shown[start:])
