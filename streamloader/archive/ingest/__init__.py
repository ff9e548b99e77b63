"""Ingest: videos are cut into chunks, put into stores, and found through a catalog from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamloader.archive.ingest.add import add_videos
    from streamloader.archive.ingest.check import check_archive
    from streamloader.archive.ingest.placement import as_places
    from streamloader.archive.ingest.report import CheckReport, IngestReport

__all__ = ["CheckReport", "IngestReport", "add_videos", "as_places", "check_archive"]

_WHERE = {
    "CheckReport": "report",
    "IngestReport": "report",
    "add_videos": "add",
    "as_places": "placement",
    "check_archive": "check",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker needs none of it."""
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
