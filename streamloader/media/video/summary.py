"""What a dataset needs to know of videos before it opens them, as one record of a NumPy array for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.media.video.index import VideoIndex
    from streamloader.values import Array

__all__ = ["SUMMARY", "are_possible", "read_summaries", "summarize_index"]

# Number of frames; duration in units of the time base; the time base in seconds, as a fraction; height and width of the
# upright frames in pixels; the shape of its pixels, as a fraction; video streams of the file; jumps of its clock.
SUMMARY: Final = np.dtype(
    [("frames", "<i8"), ("ticks", "<i8"), ("numerator", "<i8"), ("denominator", "<i8"), ("height", "<i4"),
     ("width", "<i4"), ("aspect_width", "<i4"), ("aspect_height", "<i4"), ("video_streams", "<i4"), ("jumps", "<i4")]
)  # fmt: skip
_MAX_FRAMES: Final = 1 << 24  # as the indexer
_MAX_TIME: Final = 1 << 62
_MAX_SIDE: Final = 1 << 20  # pixels
_MAX_ASPECT: Final = (1 << 31) - 1
_MAX_STREAMS: Final = 256


def summarize_index(index: VideoIndex) -> bytes:
    """Return the record of one video, in the layout of :data:`SUMMARY`."""
    values: Any = (
        len(index),
        index.end - int(index.pts[0]),
        index.time_base.numerator,
        index.time_base.denominator,
        *index.upright_size,
        index.upright_pixel_aspect.numerator,
        index.upright_pixel_aspect.denominator,
        index.video_streams,
        min(index.clock_jumps, _MAX_FRAMES),
    )
    return np.array(values, SUMMARY).tobytes()


def read_summaries(payloads: list[bytes]) -> Array:
    """Return records as an array. Each has the size of :data:`SUMMARY`."""
    return np.frombuffer(b"".join(payloads), SUMMARY)


def are_possible(records: Array) -> Array:
    """Return which records have values that a video can have, bool (n,)."""
    possible: Array = np.ones(len(records), bool)
    for name, low, high in (
        ("frames", 1, _MAX_FRAMES), ("ticks", 0, _MAX_TIME), ("numerator", 1, _MAX_TIME), ("denominator", 1, _MAX_TIME),
        ("height", 1, _MAX_SIDE), ("width", 1, _MAX_SIDE), ("aspect_width", 1, _MAX_ASPECT),
        ("aspect_height", 1, _MAX_ASPECT), ("video_streams", 1, _MAX_STREAMS), ("jumps", 0, _MAX_FRAMES),
    ):  # fmt: skip
        possible &= (records[name] >= low) & (records[name] <= high)
    return possible
