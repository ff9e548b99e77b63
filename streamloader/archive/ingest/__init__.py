"""Ingest: cut videos into chunks, write the chunks to stores, and register them in a catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streamloader.archive.ingest.add import add_videos
    from streamloader.archive.ingest.check import check_archive
    from streamloader.archive.ingest.placement import parse_places
    from streamloader.archive.ingest.report import CheckReport, IngestReport

__all__ = ["CheckReport", "IngestReport", "add_videos", "check_archive", "parse_places"]

_HOME_MODULES: Final = {
    "CheckReport": "report",
    "IngestReport": "report",
    "add_videos": "add",
    "check_archive": "check",
    "parse_places": "placement",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: worker processes need none of them."""
    import importlib

    if name not in _HOME_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_MODULES[name]}"), name)
