"""Real clips for the tests: the clips of the demo, cached outside of the repository for later runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from streamloader.demo import clips
from streamloader.demo.clips import CLIPS, ClipFacts
from streamloader.errors import StreamNotFound

__all__ = ["CLIPS", "ClipFacts", "ClipsMissing", "fetch_clips"]

ClipsMissing = StreamNotFound


def fetch_clips() -> dict[str, Path]:
    """Return name -> path of all clips. ``$STREAMLOADER_TEST_CACHE`` sets the cache folder."""
    configured = os.environ.get("STREAMLOADER_TEST_CACHE")
    default = platformdirs.user_cache_dir("streamloader-tests", appauthor=False)
    folder = Path(configured or default)
    return clips.fetch_clips(folder / "clips")
