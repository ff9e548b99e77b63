"""Encrypted files are said to be encrypted, and not damaged."""

from __future__ import annotations

import pytest
from archive.ingest.archives import archive
from ffmpeg_program import make, run

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.errors import UnreadableStream
from streamloader.testing import describe_streams

KEY = (
    "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid",
    "a7e61c373e219033c21091fa607bf3b8",
)  # fmt: skip
VIDEOS = {
    "h264.mp4": ("-c:v", "libx264"),
    "h264.mov": ("-c:v", "libx264"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", 12),
    "mpeg4.mp4": ("-c:v", "mpeg4"),
    "fragments.mp4": ("-c:v", "libx264", "-movflags", "+frag_keyframe+empty_moov"),
    "start.mp4": ("-c:v", "libx264", "-movflags", "+faststart"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_encrypted_videos(tmp_path, name):
    path = make(tmp_path / name, *VIDEOS[name], *KEY, seconds=0.4)
    for damaged in ("raise", "keep"):
        for verify in ("tables", "frames"):
            with pytest.raises(UnreadableStream, match=f"{name} is encrypted") as caught:
                describe_streams(sl.VideoStreams(path, damaged=damaged, verify=verify))
            assert caught.value.address == str(path)
    with archive(tmp_path) as catalog, pytest.raises(UnreadableStream, match=f"{name} is encrypted"):
        add_videos(catalog, path, jobs=0)


def test_encrypted_sounds(tmp_path):
    path = tmp_path / "sound.m4a"
    run("-f", "lavfi", "-i", "sine=duration=0.4", "-c:a", "aac", *KEY, path)
    for damaged in ("raise", "keep"):
        with pytest.raises(UnreadableStream, match="is encrypted"):
            describe_streams(sl.AudioStreams(path, damaged=damaged))


def test_the_sample_entry_of_an_encrypted_track(tmp_path):
    """Without the boxes that describe the encryption, only the name of the sample entry is left."""
    path = make(tmp_path / "a.mp4", "-c:v", "libx264", seconds=0.4)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"drmi", 2).replace(b"drmiiso", b"avc1iso"))
    with pytest.raises(UnreadableStream, match="no decoder for its codec, or the video is encrypted"):
        describe_streams(sl.VideoStreams(path))
