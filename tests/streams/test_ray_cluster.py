"""Indexing on a real Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from archive.ingest.executors.test_ray_executor import cluster, environment  # noqa: F401 - a fixture
from made_clips import make_clip

from streamloader.errors import ConfigError
from streamloader.streams.make_index import index_videos
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams

PROGRAM = """
import os, signal, sys
from streamloader.media.video import bulk_indexer
from streamloader.streams.make_index import index_videos

def crash(entry, settings, real=bulk_indexer._index_for_parent):
    if entry.video.endswith("5.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(entry, settings)

if sys.argv[3] == "crash":
    bulk_indexer._index_for_parent = crash
report = index_videos(sys.argv[1], sys.argv[2], executor="ray", ray_address=os.environ["RAY_HEAD"], unreadable="skip")
print(report.videos, [(os.path.basename(v.address), v.error) for v in report.skipped])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["honest", "crash"])
def test_the_file_is_the_one_that_child_processes_make(cluster, tmp_path, monkeypatch, what):  # noqa: F811
    (tmp_path / "data").mkdir()
    for number in range(9):
        make_clip(tmp_path / "data" / f"{number}.mp4", frames=7 + number)
    (tmp_path / "data" / "bad.mp4").write_bytes(b"junk")
    file = tmp_path / "data" / "index.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "data", file, what],
        env=environment(cluster[0]) | {"STREAMLOADER_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    crashed = [("5.mp4", "CorruptStream")] if what == "crash" else []
    skipped = [*crashed, ("bad.mp4", "UnreadableStream")]
    assert done.stdout.endswith(f"{9 - len(crashed)} {skipped}\n"), done.stderr  # Ray prints to stdout, too
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "other"))
    infos = list(describe_streams(VideoStreams.from_index(file)))
    if what == "honest":
        index_videos(tmp_path / "data", tmp_path / "data" / "local.sqlite", unreadable="skip")
        assert infos == list(describe_streams(VideoStreams.from_index(tmp_path / "data" / "local.sqlite")))
    else:
        assert [info.length for info in infos] == [7, 8, 9, 10, 11, 13, 14, 15]


def test_arguments(tmp_path):
    with pytest.raises(ConfigError, match='executor must be "local" or "ray"'):
        index_videos(tmp_path, tmp_path / "x", executor="threads")
    with pytest.raises(ConfigError, match="ray_address= is for executor"):
        index_videos(tmp_path, tmp_path / "x", ray_address="127.0.0.1:9")
    assert not os.listdir(tmp_path)
