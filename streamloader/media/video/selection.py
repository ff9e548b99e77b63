"""Which frames of a file become the steps of a stream: rate, stride, length and start, in exact arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.media.video.index import VideoIndex
    from streamloader.values import Array

__all__ = ["Selection", "frames_at_rate", "latest_ticks", "steps_at_rate", "whole"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of a file become steps."""

    max_frames: int | None
    random_start: bool
    stride: int
    fps: Fraction | None

    @classmethod
    def checked(cls, max_frames: int | None, random_start: bool, stride: int, fps: Any) -> Selection:
        """Check what the user gave.

        Raises:
            ConfigError: it cannot work; the message says what would.
        """
        if max_frames is not None and whole(max_frames) < 1:
            raise ConfigError(f"max_frames must be a whole number of at least 1, got {max_frames!r}")
        if whole(stride) < 1:
            raise ConfigError(f"stride must be a whole number of at least 1, got {stride!r}")
        if random_start and max_frames is None:
            raise ConfigError("random_start=True needs max_frames=: how many steps each stream has")
        return cls(max_frames, bool(random_start), int(stride), None if fps is None else _checked_fps(fps))

    def steps(self, index: VideoIndex) -> int:
        """Return how many steps a stream of this file has: the same whatever its start."""
        return self.steps_of(self._positions(index))

    def steps_of(self, positions: int) -> int:
        """Return how many steps are taken of a stream that has so many: frames, or steps of the rate."""
        steps = -(-positions // self.stride)
        return steps if self.max_frames is None else min(steps, self.max_frames)

    def taken(self, positions: int, start_draw: float) -> range:
        """Return which of so many frames, or steps of the rate, are taken; `start_draw` is in [0, 1)."""
        span = (self.steps_of(positions) - 1) * self.stride + 1
        start = int(start_draw * (positions - span + 1)) if self.random_start else 0
        return range(start, start + span, self.stride)

    def choose(self, index: VideoIndex, start_draw: float) -> tuple[Array, Array]:
        """Return frame numbers (int64) and times (float64, seconds) of all steps; `start_draw` is in [0, 1)."""
        taken = self.taken(self._positions(index), start_draw)
        positions = np.arange(taken.start, taken.stop, taken.step, dtype=np.int64)
        if self.fps is not None:
            times = positions * self.fps.denominator / self.fps.numerator
            return frames_at_rate(index, self.fps)[positions], times
        ticks = index.pts[positions] - index.pts[0]
        return positions, ticks * index.time_base.numerator / index.time_base.denominator

    def _positions(self, index: VideoIndex) -> int:
        return len(index) if self.fps is None else len(frames_at_rate(index, self.fps))


def frames_at_rate(index: VideoIndex, fps: Fraction) -> Array:
    """Return the frame shown at each multiple of 1/fps from the first frame on, to the end of the last: int64.

    Step k shows the last frame whose pts is not after t0 + k/fps, in exact arithmetic; there is always a step 0.
    """
    first = int(index.pts[0])
    count = steps_at_rate(index.end - first, index.time_base, fps)
    latest = latest_ticks(np.arange(count, dtype=np.int64), index.time_base, fps)
    return np.searchsorted(index.pts, latest + first, side="right").astype(np.int64) - 1


def steps_at_rate(ticks: int, time_base: Fraction, fps: Fraction) -> int:
    """Return how many steps a video that lasts so many ticks has at a rate: at least one."""
    return max(1, math.ceil(ticks * time_base * fps))


def latest_ticks(steps: Array, time_base: Fraction, fps: Fraction) -> Array:
    """Return for steps (int64) of a rate the last whole tick, after the first frame's, at which each has begun."""
    tick = time_base * fps  # steps of one tick
    numerator, denominator = tick.denominator, tick.numerator  # ticks of one step, as a fraction
    if len(steps) and int(steps[-1]) * numerator >= 1 << 62:
        return np.array([k * numerator // denominator for k in steps.tolist()], np.int64)
    return steps * numerator // denominator


def whole(value: object) -> int:
    """Return `value` if it is a whole number, else 0."""
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else 0


def _checked_fps(fps: Any) -> Fraction:
    try:
        exact = Fraction(fps)
        if isinstance(fps, (float, np.floating)):
            exact = exact.limit_denominator(1_000_000)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ConfigError(
            f"fps must be a number of frames per second such as 25 or '30000/1001', got {fps!r}"
        ) from error
    if exact <= 0:
        raise ConfigError(f"fps must be greater than 0, got {fps!r}")
    return exact
