"""Damaged sources: refused, or taken with the frames that ffmpeg shows."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest
from archive.ingest.archives import archive, assert_whole
from ffmpeg_program import make, shown_pictures
from made_clips import zero_packets
from tiers import only_fast

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.errors import ConfigError, CorruptStream
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.index_cache import load_index
from streamloader.testing import describe_streams, read_stream

X264 = ("-c:v", "libx264", "-g", 10, "-preset", "veryfast", "-sc_threshold", 0)


def played_gray(path):
    """The frames as the dataset has them, whose gray is full range as ffmpeg's is."""
    dataset = sl.VideoStreams(path, pix_fmt="gray", damaged="keep")
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info)["data"][..., 0]


@pytest.mark.parametrize(
    ("suffix", "options"), [("mp4", X264), ("mkv", X264), ("mov", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"))]
)
def test_the_frames_that_can_be_decoded_are_kept(tmp_path, suffix, options):
    path = make(tmp_path / f"clip.{suffix}", *options, seconds=2)
    zero_packets(path, (23, 24))
    shown = shown_pictures(path, 48, 64)
    assert len(shown) < 50
    with archive(tmp_path) as catalog:
        with pytest.raises(CorruptStream):
            add_videos(catalog, path, CutSettings(chunk_frames=10), jobs=0)
        report = add_videos(catalog, path, CutSettings(chunk_frames=10, damaged="keep"), jobs=0)
        assert_whole(catalog)
    (video,) = report.added
    assert video.frames == len(shown)
    assert 0 < len(report.notes) < video.chunks  # only chunks with damage in them are encoded
    with sl.open_archive(str(tmp_path / "catalog.sqlite"), pix_fmt="gray") as reader:
        assert np.array_equal(reader[:][..., 0], played_gray(path))


CONCEALED = [
    (mode, suffix, options)
    for mode in ("copy", "lossless")
    for suffix, options in (
        ("mp4", X264),
        ("mp4", ("-c:v", "mpeg4", "-g", 10)),
        ("mkv", ("-c:v", "mpeg2video", "-g", 10)),
        ("mov", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")),
        ("mov", ("-c:v", "prores_ks")),
    )
]


@pytest.mark.parametrize(("mode", "suffix", "options"), only_fast(CONCEALED, [CONCEALED[0], CONCEALED[3]]))
def test_frames_of_which_parts_are_concealed_are_kept(tmp_path, mode, suffix, options):
    """The second half of some packets is zero: FFmpeg shows their frames, and marks them or refuses them."""
    path = make(tmp_path / f"clip.{suffix}", *options, seconds=2)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    for number in (20, 23):
        position, packet = packets[number]
        start = data.index(packet, position)
        data[start + len(packet) // 2 : start + len(packet)] = bytes(len(packet) - len(packet) // 2)
    path.write_bytes(data)
    with archive(tmp_path) as catalog:
        with pytest.raises(CorruptStream):
            add_videos(catalog, path, CutSettings(mode=mode, chunk_frames=10), jobs=0)
        report = add_videos(catalog, path, CutSettings(mode=mode, chunk_frames=10, damaged="keep"), jobs=0)
        assert_whole(catalog)
    assert report.added[0].frames == len(played_gray(path))
    if mode == "copy":
        assert 0 < len(report.notes) < report.added[0].chunks or "prores_ks" in options  # Matroska cuts its packets
        assert "re-encoded without loss" in report.notes[0].note


def test_damage_after_a_file_was_indexed_is_kept_too(tmp_path):
    path = make(tmp_path / "clip.mp4", *X264, seconds=2)
    load_index(str(path), damaged="keep", verify="ends")
    version = path.stat()
    zero_packets(path, (23, 24))
    os.utime(path, ns=(version.st_atime_ns, version.st_mtime_ns))
    with archive(tmp_path) as catalog:
        report = add_videos(catalog, path, CutSettings(damaged="keep"), jobs=0)
        assert_whole(catalog)
    assert report.added[0].frames == len(shown_pictures(path, 48, 64)) < 50


def test_intact_sources_get_the_names_that_they_had():
    assert "damaged" not in CutSettings().to_json()
    for settings in (CutSettings(), CutSettings(damaged="keep")):
        assert CutSettings.from_json(settings.to_json()) == settings
    with pytest.raises(ConfigError, match="damaged must be"):
        CutSettings(damaged="skip")
