"""Plan where a video is cut into chunks."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.errors import CorruptStream
from streamloader.media.chunks.scan import SourceScan, scan_source
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.index import NOT_CROPPED, Cropping
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.selection import check_resampling, latest_ticks, steps_at_rate
from streamloader.values import Array

__all__ = ["Cut", "CutPlan", "plan_cuts"]

# A chunk ends at a key frame within this many frames, or this multiple of chunk_frames if that is more.
_MAX_KEY_DISTANCE_FRAMES: Final = 1000
_MAX_KEY_DISTANCE_FACTOR: Final = 4


class Cut(NamedTuple):
    """One chunk of a video.

    Attributes:
        number: Number of the chunk.
        start: First frame of the chunk.
        end: Frame after its last frame.
    """

    number: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Plan for cutting one video into chunks.

    Attributes:
        frames: Number of frames in all chunks.
        height: Height of an upright frame in pixels.
        width: Width of an upright frame in pixels.
        orientation: Rotation and mirroring that turn the stored frames upright.
        time_base: Unit of timestamps in the chunks, in seconds.
        first_pts: Timestamp of the first frame.
        end: Timestamp at which the last frame ends.
        cuts: Chunks, in order and without gaps.
        scan: Scan of the source.
        cropping: Rows and columns that are removed from each stored frame of the source.
        pixel_aspect: Width of a pixel of the upright frames divided by its height.
        video_streams: Number of video streams of the source.
        clock: Places at which the clock of the source jumps.
    """

    frames: int
    height: int
    width: int
    orientation: Orientation
    time_base: Fraction
    first_pts: int
    end: int
    cuts: tuple[Cut, ...]
    scan: SourceScan
    cropping: Cropping = NOT_CROPPED
    pixel_aspect: Fraction = Fraction(1)
    video_streams: int = 1
    clock: ClockJumps = field(default_factory=ClockJumps)

    def source_frames(self, cut: Cut) -> Array:
        """Return the frame number in the source of each frame of a chunk."""
        steps = np.arange(cut.start, cut.end, dtype=np.int64)
        if self.time_base == self.scan.time_base and self.frames == len(self.scan):
            return steps
        latest = latest_ticks(steps, self.scan.time_base, 1 / self.time_base)
        pts = self.scan.pts
        return np.searchsorted(pts, latest + int(pts[0]), side="right").astype(np.int64) - 1

    def pts(self, cut: Cut) -> Array:
        """Return the timestamp of each frame of a chunk, and the end of the last one, int64 (frames + 1,)."""
        if self.time_base == self.scan.time_base and self.frames == len(self.scan):
            return np.append(self.scan.pts, self.scan.end)[cut.start : cut.end + 1]
        return np.arange(cut.start, cut.end + 1, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "turn": list(self.orientation),
            "time_base": str(self.time_base),
            "first_pts": self.first_pts,
            "end": self.end,
            "cuts": [list(cut) for cut in self.cuts],
            "survey": self.scan.to_json(),
            "cropping": list(self.cropping),
            "pixel_aspect": str(self.pixel_aspect),
            "video_streams": self.video_streams,
            "clock": [column.tolist() for column in self.clock.columns()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CutPlan:
        """Rebuild a plan from :meth:`to_json`.

        Raises:
            CorruptStream: If `document` is not a valid plan.
        """
        try:
            return cls(
                **{name: int(document[name]) for name in ("frames", "height", "width", "first_pts", "end")},
                orientation=Orientation(*(bool(value) for value in document["turn"])),
                time_base=Fraction(document["time_base"]),
                cuts=tuple(Cut(*(int(value) for value in cut)) for cut in document["cuts"]),
                scan=SourceScan.from_json(document["survey"]),
                cropping=Cropping(*(int(side) for side in document["cropping"])),
                pixel_aspect=Fraction(document["pixel_aspect"]),
                video_streams=int(document["video_streams"]),
                clock=ClockJumps(*(np.array(column, np.int64) for column in document["clock"])),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CorruptStream(f"this is not a valid plan for cutting a video: {error!r}") from error


def plan_cuts(path: str, settings: CutSettings, is_cancelled: Callable[[], bool] = lambda: False) -> CutPlan:
    """Scan a video and plan where it is cut. Reads all of it once, and decodes it if needed.

    Args:
        path: Path of the local file.
        settings: Settings for the chunks.
        is_cancelled: Function that returns whether to stop, called regularly. Defaults to never.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If the file cannot be opened, contains no video, or none of its frames can be decoded.
        CorruptStream: If the file is truncated or damaged.
        ClosedError: If the work was cancelled.
    """
    load = partial(
        load_index, path, damaged=settings.damaged, max_pixels=settings.max_pixels, verify="ends",
        stream=settings.stream,
    )  # fmt: skip
    index = load()
    decode = settings.verify == "frames" or settings.mode == "lossless"  # lossless chunks end where the size changes
    scan_index = partial(scan_source, path, decode=decode, is_cancelled=is_cancelled, max_pixels=settings.max_pixels)
    try:
        scan = scan_index(index=index)
    except CorruptStream:
        if settings.damaged != "keep" or index.damaged:
            raise
        index = load(renew=True)  # the file was damaged after it was indexed
        scan = scan_index(index=index)
    height, width = settings.size or index.upright_size
    frames, time_base, first_pts, end = len(index), index.time_base, int(index.pts[0]), index.end
    if settings.fps is not None:
        frames = steps_at_rate(index.end - first_pts, index.time_base, settings.fps)
        check_resampling(frames, len(index), settings.fps, path)
        time_base, first_pts, end = 1 / settings.fps, 0, frames
    cuts = _choose_cuts(settings, scan, frames)
    upright_height, upright_width = index.upright_size
    aspect = index.upright_pixel_aspect * Fraction(upright_width * height, upright_height * width)
    return CutPlan(
        frames, height, width, index.orientation, time_base, first_pts, end, cuts, scan, index.cropping, aspect,
        index.video_streams, index.clock,
    )  # fmt: skip


def _choose_cuts(settings: CutSettings, scan: SourceScan, frames: int) -> tuple[Cut, ...]:
    chunk_frames = settings.chunk_frames
    if settings.mode != "copy":
        starts = set(range(0, frames, chunk_frames))
        if settings.mode == "lossless":
            starts |= set(scan.shape_changes.tolist())
    else:
        # A chunk may have to be encoded, and encoders cannot change size or colour in the middle.
        bounds = [0, *scan.shape_changes.tolist(), frames]
        keys = _find_clean_keys(scan)
        starts = set()
        for start, end in itertools.pairwise(bounds):
            starts |= set(_chunk_starts(start, end, keys, chunk_frames))
    ordered = sorted(starts)
    return tuple(Cut(*cut) for cut in zip(range(len(ordered)), ordered, [*ordered[1:], frames], strict=True))


def _find_clean_keys(scan: SourceScan) -> list[int]:
    """Return the frames that are key frames and after which no frame comes from an earlier packet."""
    if not len(scan.frame_packet):
        return []
    earliest_packet = np.minimum.accumulate(scan.frame_packet[::-1])[::-1]
    is_key = np.isin(scan.frame_packet, scan.keys[:, 0])
    return np.flatnonzero(is_key & (earliest_packet == scan.frame_packet)).tolist()


def _chunk_starts(start: int, end: int, keys: list[int], chunk_frames: int) -> list[int]:
    """Return the first frame of each chunk of the frames [start, end): key frames nearest to the target length."""
    max_distance = max(_MAX_KEY_DISTANCE_FACTOR * chunk_frames, _MAX_KEY_DISTANCE_FRAMES)
    starts = [start]
    while True:
        current, target = starts[-1], starts[-1] + chunk_frames
        if current == start or _contains(keys, current):
            following = _next_chunk_start(current, end, keys, chunk_frames, max_distance)
        else:  # this chunk must be re-encoded: it ends where packets can be copied again
            later = bisect.bisect_right(keys, current)
            following = min(target, end, *keys[later : later + 1])
        if following >= end:
            return starts
        starts.append(following)


def _next_chunk_start(current: int, end: int, keys: list[int], chunk_frames: int, max_distance: int) -> int:
    target = current + chunk_frames
    later = bisect.bisect_left(keys, target)
    candidates = [
        key for key in keys[max(0, later - 1) : later + 1] if current < key < end and key - current <= max_distance
    ]
    # Skip a key frame that is too close: chunks of a few frames are inefficient.
    candidates = [key for key in candidates if key >= current + (chunk_frames + 1) // 2] or candidates[-1:]
    if candidates:
        nearest = min(candidates, key=lambda key: (abs(key - target), key))
        return end if abs(end - target) <= abs(nearest - target) else nearest
    return end if end - current <= (max_distance if keys else chunk_frames) else target


def _contains(keys: list[int], frame: int) -> bool:
    number = bisect.bisect_left(keys, frame)
    return number < len(keys) and keys[number] == frame
