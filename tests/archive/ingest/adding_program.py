"""A program that adds videos to an archive: ``adding_program.py CATALOG EXECUTOR JOBS VIDEOS...``; tests kill it."""

from __future__ import annotations

import os
import sys

from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.archive.ingest import add_videos
from streamloader.media.chunks.settings import CutSettings

if __name__ == "__main__":
    url, executor, jobs, *videos = sys.argv[1:]
    with get_shared_catalog(url) as catalog:
        report = add_videos(
            catalog,
            videos,
            CutSettings(chunk_frames=10),
            executor=executor,
            jobs=int(jobs),
            ray_address=os.environ.get("RAY_HEAD"),
        )
    sys.stdout.write(f"{len(report.added)} {len(report.existing)} {report.frames_made}\n")
