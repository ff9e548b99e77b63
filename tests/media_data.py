"""Real clips for the tests: the clips of the demo, cached outside of the repository for later runs."""

from __future__ import annotations

from pathlib import Path

from servers.cache import cache_folder

from streamloader.demo import clips
from streamloader.demo.clips import CLIPS, ClipFacts
from streamloader.errors import StreamNotFound

__all__ = ["CLIPS", "ClipFacts", "ClipsMissing", "fetch_clips"]

ClipsMissing = StreamNotFound


def fetch_clips() -> dict[str, Path]:
    """Return name -> path of all clips. ``$STREAMLOADER_TEST_CACHE`` sets the cache folder."""
    return clips.fetch_clips(cache_folder() / "clips")
