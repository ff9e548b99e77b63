"""Hostile videos are refused by an ingest as they are by a loader, and nothing of them is kept."""

from __future__ import annotations

import sys

import hostile_media as hostile
import pytest
from archive.ingest.archives import CHUNK, archive, clip, files, stems

from streamloader.archive.archive import open_archive
from streamloader.archive.ingest import add_videos
from streamloader.archive.streams import ArchiveStreams
from streamloader.errors import ConfigError, MediaLimitExceeded, UnreadableStream
from streamloader.media.chunks.settings import CutSettings
from streamloader.testing import describe_streams

SETTINGS = CutSettings(chunk_frames=CHUNK)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify tells which files are opened")
def test_hostile_files_are_refused_and_honest_ones_added(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    honest = clip(tmp_path / "honest.mp4")
    attacks = hostile.naming_files(folder, honest)
    bombs = {
        "png.mp4": hostile.png(30_000, 30_000),
        "gif.mp4": hostile.gif(hostile.HUGE, hostile.HUGE),
        "vp8.mkv": hostile.matroska([("V_VP8", hostile.HUGE, hostile.HUGE)], [(1, bytes(50))]),
        "many.mkv": hostile.matroska([("V_VP8", 64, 48)] * 5000, [(1, bytes(50))]),
    }
    for name, data in bombs.items():
        (folder / name).write_bytes(data)
    grown = hostile.growing_h264(folder, hostile.LARGE, hostile.LARGE)
    paths = [*attacks.values(), *(folder / name for name in bombs), grown]
    with archive(tmp_path / "archive") as catalog, hostile.watch_opened(folder) as opened:
        report = add_videos(catalog, [*paths, honest], SETTINGS, jobs=1, on_error="report")
        assert opened() == {path.name for path in paths}
        assert stems(catalog) == ["honest"]
    refused = {failed.source: failed.error for failed in report.failed}
    assert set(refused) == {str(path) for path in paths}
    assert all(isinstance(error, UnreadableStream) for error in refused.values())
    limited = {source for source, error in refused.items() if isinstance(error, MediaLimitExceeded)}
    assert limited == {str(path) for path in (folder / "gif.mp4", folder / "vp8.mkv", folder / "many.mkv", grown)}
    assert len([name for name in files(tmp_path / "archive") if name.endswith((".mp4", ".mkv"))]) == 4


def test_archives_have_a_limit_for_their_frames(tmp_path):
    with archive(tmp_path / "archive") as catalog:
        add_videos(catalog, clip(tmp_path / "v.mp4"), SETTINGS, jobs=0)
    with open_archive(tmp_path / "archive", max_pixels=64 * 48) as opened:
        assert opened[3].shape == (48, 64, 3)
        with pytest.raises(ConfigError, match="max_pixels"):
            ArchiveStreams(opened, max_pixels=5)
    with open_archive(tmp_path / "archive", max_pixels=1000) as opened:
        for read in (lambda: opened[3], lambda: next(iter(opened)), lambda: describe_streams(ArchiveStreams(opened))):
            with pytest.raises(MediaLimitExceeded, match=r"64x48 .*max_pixels=1000"):
                read()
    with (
        open_archive(tmp_path / "archive", size=(8, 8), max_pixels=1000) as opened,
        pytest.raises(MediaLimitExceeded, match="64x48"),  # where a decoder is opened
    ):
        opened[3]
    with pytest.raises(ConfigError, match="max_pixels must be"):
        open_archive(tmp_path / "archive", max_pixels=0)
