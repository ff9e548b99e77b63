"""Where to cut a video."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.errors import CorruptStream
from streamloader.media.chunks.scan import Survey, survey_source
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.index_cache import cached_index
from streamloader.media.video.orientation import Turn
from streamloader.media.video.selection import latest_ticks, steps_at_rate
from streamloader.values import Array

__all__ = ["Cut", "CutPlan", "plan_cuts"]

_FAR: Final = 4  # times chunk_frames, or so many frames if that is more: further away no key frame is looked for
_FAR_FRAMES: Final = 1000


class Cut(NamedTuple):
    """One chunk: its number, and its frames [first, stop)."""

    number: int
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class CutPlan:
    """How one video is to be cut.

    Attributes:
        frames: of the video that the chunks make up.
        height: of these as they are shown.
        width: the same.
        turn: how they have to be turned to be upright.
        time_base: seconds of one tick.
        first_pts: of the first frame.
        end: tick at which the last frame ends.
        cuts: the chunks, in order, without a gap.
        survey: of the source.
    """

    frames: int
    height: int
    width: int
    turn: Turn
    time_base: Fraction
    first_pts: int
    end: int
    cuts: tuple[Cut, ...]
    survey: Survey

    def source_frames(self, cut: Cut) -> Array:
        """Return the number, in the source, of each frame of a chunk."""
        steps = np.arange(cut.first, cut.stop, dtype=np.int64)
        if self.time_base == self.survey.time_base and self.frames == len(self.survey):
            return steps
        latest = latest_ticks(steps, self.survey.time_base, 1 / self.time_base)
        pts = self.survey.pts
        return np.searchsorted(pts, latest + int(pts[0]), side="right").astype(np.int64) - 1

    def pts(self, cut: Cut) -> Array:
        """Return when each frame of a chunk is shown, and when the last one ends: int64 (frames + 1,)."""
        if self.time_base == self.survey.time_base and self.frames == len(self.survey):
            return np.append(self.survey.pts, self.survey.end)[cut.first : cut.stop + 1]
        return np.arange(cut.first, cut.stop + 1, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "turn": list(self.turn),
            "time_base": str(self.time_base),
            "first_pts": self.first_pts,
            "end": self.end,
            "cuts": [list(cut) for cut in self.cuts],
            "survey": self.survey.to_json(),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CutPlan:
        """Rebuild it.

        Raises:
            CorruptStream: that is none.
        """
        try:
            return cls(
                **{name: int(told[name]) for name in ("frames", "height", "width", "first_pts", "end")},
                turn=Turn(*(bool(value) for value in told["turn"])),
                time_base=Fraction(told["time_base"]),
                cuts=tuple(Cut(*(int(value) for value in cut)) for cut in told["cuts"]),
                survey=Survey.from_json(told["survey"]),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise CorruptStream(f"this does not tell how a video is to be cut: {error!r}") from error


def plan_cuts(path: str, settings: CutSettings, cancelled: Callable[[], bool] = lambda: False) -> CutPlan:
    """Look at a video, and decide where it is cut. Reads and decodes all of it once.

    Args:
        path: of the local file.
        settings: what the user chose.
        cancelled: is asked now and then.

    Raises:
        StreamNotFound: there is no such file.
        UnreadableStream: it cannot be opened, holds no video, or no frame of it can be decoded.
        CorruptStream: it breaks off, or is damaged.
        ClosedError: the work was cancelled.
    """
    index = cached_index(path)
    decode = settings.verify == "frames" or settings.mode == "lossless"  # which has to know where the size changes
    survey = survey_source(path, index, decode=decode, cancelled=cancelled)
    height, width = settings.size or index.shown_size
    frames, time_base, first_pts, end = len(index), index.time_base, int(index.pts[0]), index.end
    if settings.fps is not None:
        frames = steps_at_rate(index.end - first_pts, index.time_base, settings.fps)
        time_base, first_pts, end = 1 / settings.fps, 0, frames
    return CutPlan(
        frames, height, width, index.turn, time_base, first_pts, end, _cuts(settings, survey, frames), survey
    )


def _cuts(settings: CutSettings, survey: Survey, frames: int) -> tuple[Cut, ...]:
    wanted = settings.chunk_frames
    if settings.mode != "copy":
        borders = set(range(0, frames, wanted))
        if settings.mode == "lossless":
            borders |= set(survey.shapes.tolist())
    else:
        # An encoder, if one is needed, cannot change the size of frames.
        ends = [0, *survey.shapes.tolist(), frames]
        keys = _clean_keys(survey)
        borders = set()
        for start, stop in itertools.pairwise(ends):
            borders |= set(_near_keys(start, stop, keys, wanted))
    starts = sorted(borders)
    return tuple(Cut(*cut) for cut in zip(range(len(starts)), starts, [*starts[1:], frames], strict=True))


def _clean_keys(survey: Survey) -> list[int]:
    """Return the frames that key frames show, and behind which none comes from an earlier packet."""
    if not len(survey.packet):
        return []
    earliest = np.minimum.accumulate(survey.packet[::-1])[::-1]
    return np.flatnonzero(np.isin(survey.packet, survey.keys[:, 0]) & (earliest == survey.packet)).tolist()


def _near_keys(start: int, stop: int, keys: list[int], wanted: int) -> list[int]:
    """Return where chunks of the frames [start, stop) begin: at the key frames nearest to `wanted` after another."""
    far = max(_FAR * wanted, _FAR_FRAMES)
    borders = [start]
    while True:
        at, aim = borders[-1], borders[-1] + wanted
        if at == start or _is_among(keys, at):
            border = _next_border(at, stop, keys, wanted, far)
        else:  # this chunk has to be coded anew: up to where packets can be copied again
            later = bisect.bisect_right(keys, at)
            border = min(aim, stop, *keys[later : later + 1])
        if border >= stop:
            return borders
        borders.append(border)


def _next_border(at: int, stop: int, keys: list[int], wanted: int, far: int) -> int:
    aim = at + wanted
    later = bisect.bisect_left(keys, aim)
    near = [key for key in keys[max(0, later - 1) : later + 1] if at < key < stop and key - at <= far]
    # Past a key frame that is too near: a chunk of a few frames helps nobody.
    near = [key for key in near if key >= at + (wanted + 1) // 2] or near[-1:]
    if near:
        border = min(near, key=lambda key: (abs(key - aim), key))
        return stop if abs(stop - aim) <= abs(border - aim) else border
    return stop if stop - at <= (far if keys else wanted) else aim


def _is_among(keys: list[int], frame: int) -> bool:
    at = bisect.bisect_left(keys, frame)
    return at < len(keys) and keys[at] == frame
