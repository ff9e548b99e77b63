"""Packets that a demuxer passes over are damage, and packets without bytes are not."""

from __future__ import annotations

import av
import numpy as np
import pytest
from ffmpeg_program import make, run, shown_pictures, shown_times
from tiers import only_fast

import streamloader as sl
from streamloader.errors import CorruptStream
from streamloader.media.video.indexer import index_video
from streamloader.testing import describe_streams, read_stream

HEIGHT, WIDTH = 48, 64
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-g", 10, "-bf", 2)
CONTAINERS = {
    "mkv": X264,
    "webm": ("-c:v", "libvpx", "-g", 10, "-deadline", "realtime"),
    "flv": ("-c:v", "flv", "-g", 10),
    "ogv": ("-c:v", "libtheora", "-g", 10),
    "ts": X264,
}
SOUND = ("-f", "lavfi", "-i", "sine=duration=2", "-shortest")


def play(path, **options):
    dataset = sl.VideoStreams(path, pix_fmt="gray", **options)
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info)


def erase(path, numbers, value=0):
    """Overwrite packets and the headers in front of them."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        position, size = packets[number]
        data[position : position + size] = bytes([value]) * size
    path.write_bytes(data)


CASES = [(suffix, numbers) for suffix in CONTAINERS for numbers in ((1,), (24, 25), (29,), (3, 23))]


@pytest.mark.parametrize(("suffix", "numbers"), only_fast(CASES, [(suffix, (24, 25)) for suffix in CONTAINERS]))
def test_lost_packets_are_damage(tmp_path, suffix, numbers):
    path = make(tmp_path / f"clip.{suffix}", *CONTAINERS[suffix], seconds=2)
    assert len(play(path)["data"]) == len(shown_pictures(path, HEIGHT, WIDTH))
    erase(path, numbers)
    shown = shown_pictures(path, HEIGHT, WIDTH, "-threads", 1)
    with pytest.raises(CorruptStream, match='pass damaged="keep"') as caught:
        play(path)
    assert caught.value.address == str(path)
    kept = play(path, damaged="keep")["data"]
    assert np.abs(kept[..., 0].astype(int) - shown).max() <= 1


@pytest.mark.parametrize(("suffix", "last"), [("mkv", True), ("webm", False), ("flv", True), ("ogv", True)])
def test_lost_packets_at_an_end_are_damage(tmp_path, suffix, last):
    path = make(tmp_path / f"clip.{suffix}", *CONTAINERS[suffix], seconds=1)
    erase(path, [-1 if last else 0], 0xFF)
    with pytest.raises(CorruptStream):
        play(path)


def test_sounds_between_frames_are_no_damage(tmp_path):
    """Frames of irregular distance, with blocks of another track between them."""
    codecs = {"mkv": X264, "webm": ("-c:v", "libvpx"), "flv": (*X264, "-c:a", "aac"), "ts": X264}
    for suffix, codec in codecs.items():
        path = tmp_path / f"clip.{suffix}"
        run(
            "-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=2", *SOUND, "-vf",
            "select='not(mod(n,7))+lt(n,9)+eq(n,30)'", "-fps_mode", "vfr", *codec, path,
        )  # fmt: skip
        assert len(play(path)["data"]) == len(shown_times(path)), suffix


def test_lost_frames_beside_a_sound_are_damage(tmp_path):
    path = tmp_path / "clip.mkv"
    picture = f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=2"
    run("-f", "lavfi", "-i", picture, *SOUND, *X264, "-c:a", "libopus", path)
    assert len(play(path)["data"]) == 50
    erase(path, [20])
    with pytest.raises(CorruptStream, match="frames are missing before packet 20"):
        play(path)


@pytest.mark.parametrize("suffix", ["ogv", "nut", "mkv", "avi"])
def test_empty_packets_show_no_frame(tmp_path, suffix):
    """Theora stores a frame that equals the one before as a packet without bytes."""
    path = make(tmp_path / f"clip.{suffix}", "-c:v", "libtheora", source="color", seconds=0.5)
    with av.open(str(path)) as container:
        packets = container.demux(video=0)  # the one that flushes the decoder has no timestamps
        empty = sum(not packet.size and (packet.pts, packet.dts) != (None, None) for packet in packets)
    assert empty or suffix in ("mkv", "avi")  # these demuxers leave them out
    for verify in ("tables", "frames"):
        played = play(path, verify=verify)
        assert len(played["data"]) == len(shown_pictures(path, HEIGHT, WIDTH))
        index = index_video(str(path), verify=verify)
        assert np.allclose((index.pts - index.pts[0]) * float(index.time_base), shown_times(path), atol=1e-3)
    assert np.array_equal(play(path, damaged="keep")["data"], played["data"])
