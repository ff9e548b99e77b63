"""Damage that is met while a video is played: where its index does not know of it."""

from __future__ import annotations

import logging
import os

import av
import numpy as np
import pytest
from made_clips import as_rgb, linear_decode, make_clip

import streamloader as sl
from streamloader.errors import CorruptStream
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
    """Overwrite the packets of frames, so that the index in the cache still seems to fit. Return the intact frames."""
    pictures = as_rgb(linear_decode(path))
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
    return pictures


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
    pictures = damage(path, first)
    dataset = sl.VideoStreams(path, damaged="keep")
    (info,) = describe_streams(dataset)
    assert info.length == FRAMES
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        played = read_stream(dataset, info)["data"]
    assert first - 3 <= len(played) <= first
    assert np.array_equal(played, pictures[: len(played)])
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith(f"stream {info.key} ({path}) is damaged and ends early, at frame {len(played)} of {FRAMES}")
    for start in (0, 5, len(played) - 1, len(played), len(played) + 1, FRAMES - 1):
        assert np.array_equal(read_stream(dataset, info, seek=start)["data"], played[start:]), start


def test_with_a_stride_it_ends_there_too(folder):
    pictures = damage(folder / "1.mp4", 33)
    for stride in (3, 12):
        dataset = sl.VideoStreams(folder / "1.mp4", damaged="keep", stride=stride)
        (info,) = describe_streams(dataset)
        played = read_stream(dataset, info)["data"]
        assert np.array_equal(played, pictures[:33:stride][: len(played)])
        assert (len(played) - 1) * stride >= 30 - stride
        for start in (1, len(played)):
            assert np.array_equal(read_stream(dataset, info, seek=start)["data"], played[start:])


def test_damage_before_intact_key_frames_is_an_error(folder):
    damage(folder / "1.mp4", 14, 16)
    raises, keeps = (sl.VideoStreams(folder / "1.mp4", damaged=each) for each in ("raise", "keep"))
    (info,) = describe_streams(raises)
    with pytest.raises(CorruptStream, match='or pass damaged="keep"') as raised:
        read_stream(raises, info)
    describe_streams(keeps)
    with pytest.raises(CorruptStream, match=r'pass verify="frames" too') as kept:
        read_stream(keeps, info)
    for error in (raised.value, kept.value):
        assert (error.stream, error.address) == (info.key, str(folder / "1.mp4"))
        assert 10 < error.offset <= 14
    assert raised.value.offset == kept.value.offset


def test_a_file_without_any_frame_is_an_error(folder):
    damage(folder / "1.mp4", 0)
    dataset = sl.VideoStreams(folder / "1.mp4", damaged="keep")
    (info,) = describe_streams(dataset)
    with pytest.raises(CorruptStream) as caught:
        read_stream(dataset, info)
    assert caught.value.offset == 0


def test_missing_frames_at_the_end_raise_by_default(folder):
    damage(folder / "1.mp4", 34)
    dataset = sl.VideoStreams(folder / "1.mp4")
    (info,) = describe_streams(dataset)
    with pytest.raises(CorruptStream, match='or pass damaged="keep"'):
        read_stream(dataset, info)


def test_the_epoch_is_the_same_for_any_number_of_workers(folder):
    """The lane goes on with its next stream, and the rest of the epoch is padded."""
    pictures = [damage(folder / "0.mp4", 34), *(as_rgb(linear_decode(folder / f"{each}.mp4")) for each in (1, 2))]
    dataset = sl.VideoStreams(folder, damaged="keep")
    expected, frames = play(dataset)
    lengths = [len(frames[number]) for number in range(3)]
    assert lengths[1:] == [FRAMES, FRAMES]
    assert 30 < lengths[0] <= 34
    for number, length in enumerate(lengths):
        shown = np.stack(frames[number]).transpose(0, 2, 3, 1)
        assert np.array_equal(shown, pictures[number][:length])
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
