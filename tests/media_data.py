"""Real clips for the tests: those of the demo, kept for all later runs and outside of the repository."""

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
    """Return name -> path of all clips; ``$STREAMLOADER_TEST_CACHE`` names another folder to keep them in."""
    chosen = os.environ.get("STREAMLOADER_TEST_CACHE")
    kept = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("streamloader-tests", appauthor=False))
    return clips.fetch_clips(kept / "clips")
