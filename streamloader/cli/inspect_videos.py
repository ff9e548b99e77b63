"""Summaries of video files for ``streamloader inspect``: what their index says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from streamloader.cli.tables import Section
from streamloader.errors import ConfigError

__all__ = ["describe_unusual", "format_video_file", "summarize_video_file"]

_SQUARE: Final = "1:1"


def summarize_video_file(address: str, stream: int | None) -> dict[str, Any] | None:
    """Return a summary of a video file as plain JSON values, or None if the address is not that of a video.

    Args:
        address: Path of a file, or its address in a store.
        stream: Number of the video stream, or None.

    Raises:
        ConfigError: If the address stands for several files.
        StreamloaderError: If the file cannot be indexed.
    """
    from streamloader.media.video.index_cache import load_index
    from streamloader.redaction import redact_address
    from streamloader.stores.addresses import expand_addresses
    from streamloader.streams.indexing import make_videos
    from streamloader.streams.video_names import is_video

    if not is_video(address) or os.path.isdir(address):
        return None
    files = expand_addresses([address], is_video, None)
    if len(files) != 1:
        raise ConfigError(f"{address} stands for {len(files)} videos: name one of them")
    index = load_index(make_videos(files, None)[0], damaged="keep", stream=stream)
    height, width = index.upright_size
    aspect = index.upright_pixel_aspect
    return {
        "video": redact_address(address),
        "frames": len(index),
        "seconds": float((index.end - int(index.pts[0])) * index.time_base),
        "height": height,
        "width": width,
        "pixel_aspect": f"{aspect.numerator}:{aspect.denominator}",
        "turn": list(index.orientation),
        "cropping": list(index.cropping),
        "stream": index.stream,
        "video_streams": index.video_streams,
        "clock_jumps": index.clock_jumps,
        "retimed": index.retiming is not None,
        "time_base": str(index.time_base),
        "key_frames": len(index.key_pts),
        "seekable": index.seekable,
        "damage": index.note,
    }


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


def format_video_file(report: Mapping[str, Any], duration: str) -> Iterator[Section]:
    """Yield the sections that show a summary.

    Args:
        report: Result of :func:`summarize_video_file`.
        duration: Duration of the video as text.
    """
    rate = report["frames"] / max(report["seconds"], 1e-9)
    facts = {
        "video": report["video"],
        "frames": f"{report['frames']:,}",
        "time": f"{duration} ({rate:.3f} frames/s on average)",
        "frame size": f"{report['height']}x{report['width']}",
        "key frames": f"{report['key_frames']:,}" + ("" if report["seekable"] else "; seeking decodes from the start"),
    }
    facts |= describe_unusual(report)
    if report["retimed"]:
        facts["timestamps"] = "repaired: the file has none for some frames, or repeated, disordered or jumping ones"
    if report["damage"]:
        facts["damage"] = report["damage"]
    yield Section("", facts=facts)
