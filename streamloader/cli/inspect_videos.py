"""What is unusual about the source of a video, for ``streamloader inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["describe_unusual"]

_SQUARE: Final = "1:1"


def describe_unusual(report: Mapping[str, Any]) -> dict[str, str]:
    """Return what is unusual about the source of a video as facts for people, by name."""
    facts = {}
    if report.get("pixel_aspect", _SQUARE) != _SQUARE:
        facts["pixel aspect"] = f"{report['pixel_aspect']} (width:height of a pixel)"
    if any(report.get("cropping", ())):
        top, bottom, left, right = report["cropping"]
        facts["cropped"] = f"{top} rows above, {bottom} below, {left} columns left, {right} right"
    if report.get("video_streams", 1) > 1:
        facts["stream"] = f"{report['stream']} of {report['video_streams']} video streams, numbered from 0"
    if report.get("clock_jumps", 0):
        times = "once" if report["clock_jumps"] == 1 else f"{report['clock_jumps']:,} times"
        facts["clock"] = f"jumps {times}; the times go on without a gap there"
    return facts
