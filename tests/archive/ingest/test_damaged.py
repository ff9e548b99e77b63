"""Damaged sources: refused, or taken with the frames that ffmpeg shows."""

from __future__ import annotations

import numpy as np
import pytest
from archive.ingest.archives import archive, assert_whole
from ffmpeg_program import make, shown_pictures
from made_clips import zero_packets

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.errors import ConfigError, CorruptStream
from streamloader.media.chunks.settings import CutSettings
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


def test_intact_sources_get_the_names_that_they_had():
    assert "damaged" not in CutSettings().to_json()
    for settings in (CutSettings(), CutSettings(damaged="keep")):
        assert CutSettings.from_json(settings.to_json()) == settings
    with pytest.raises(ConfigError, match="damaged must be"):
        CutSettings(damaged="skip")
