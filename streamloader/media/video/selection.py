"""Select the frames of a video that become steps: by rate, stride, length and start, in exact arithmetic."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from streamloader.errors import ConfigError, CorruptStream

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["Selection", "TimedFrames", "as_int", "check_resampling", "frames_at_rate", "latest_ticks", "steps_at_rate"]

_MIN_MAX_STEPS: Final = 10_000_000  # days of a still picture at 25 frames per second
_MAX_STEPS_PER_FRAME: Final = 1000
_MAX_STEPS: Final = 1 << 62
_MAX_INT: Final = 1 << 48  # of an option
_MAX_FPS: Final = 1_000_000_000


class TimedFrames(Protocol):
    """Times of the frames of a video, or of images that are played like one.

    Attributes:
        pts: Start of each frame in units of `time_base`, int64 (n,), not decreasing.
        time_base: Unit of the times in seconds.
        end: End of the last frame, in units of `time_base`.
    """

    @property
    def pts(self) -> Array: ...  # noqa: D102 - described above

    @property
    def time_base(self) -> Fraction: ...  # noqa: D102

    @property
    def end(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Options that select which frames of a video become steps.

    "Positions" below are the frames of the video, or the steps of `fps` if it is given.

    Attributes:
        max_frames: Maximum number of steps, or None for no limit.
        random_start: Whether the first step is drawn at random.
        stride: Number of positions from one step to the next.
        fps: Rate in frames per second to which the video is resampled first, or None for no resampling.
    """

    max_frames: int | None
    random_start: bool
    stride: int
    fps: Fraction | None

    @classmethod
    def from_options(cls, max_frames: int | None, random_start: bool, stride: int, fps: Any) -> Selection:
        """Validate the user's options.

        Raises:
            ConfigError: If an option is invalid. The message names valid values.
        """
        if max_frames is not None and as_int(max_frames) < 1:
            raise ConfigError(f"max_frames must be a whole number of at least 1, got {max_frames!r}")
        if as_int(stride) < 1:
            raise ConfigError(f"stride must be a whole number of at least 1, got {stride!r}")
        if random_start and max_frames is None:
            raise ConfigError("random_start=True needs max_frames=, the number of steps of each stream")
        max_steps = None if max_frames is None else as_int(max_frames)
        return cls(max_steps, bool(random_start), as_int(stride), None if fps is None else _parse_fps(fps))

    def count_video_steps(self, index: TimedFrames) -> int:
        """Return the number of steps of a video, which does not depend on its start."""
        return self.count_steps(self._count_positions(index))

    def count_steps(self, positions: int) -> int:
        """Return the number of steps selected from a number of positions."""
        steps = -(-positions // self.stride)
        return steps if self.max_frames is None else min(steps, self.max_frames)

    def count_all_steps(self, records: Array) -> Array:
        """Return the number of steps of many videos, int64 (n,), as :meth:`count_video_steps` does for one.

        Args:
            records: Record of each video, in the layout of :data:`streamloader.media.video.summary.SUMMARY`.
        """
        positions = records["frames"] if self.fps is None else _count_all_at_rate(records, self.fps)
        steps: Array = -(-positions // self.stride)
        return steps if self.max_frames is None else np.minimum(steps, self.max_frames)

    def find_leaps(self, steps: Array, records: Array) -> Array:
        """Return the numbers of the videos whose steps :meth:`check_steps` refuses."""
        if self.fps is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(steps > _MIN_MAX_STEPS + _MAX_STEPS_PER_FRAME * records["frames"])

    def check_steps(self, steps: int, frames: int, name: str) -> None:
        """Check the number of steps of a video, as :func:`check_resampling` does."""
        check_resampling(steps, frames, self.fps, name)

    def frame_range(self, positions: int, start_draw: float) -> range:
        """Return the positions that become steps.

        Args:
            positions: Number of positions.
            start_draw: Random number in [0, 1) that determines the start if `random_start` is set.
        """
        span = (self.count_steps(positions) - 1) * self.stride + 1
        start = int(start_draw * (positions - span + 1)) if self.random_start else 0
        return range(start, start + span, self.stride)

    def select_frames(self, index: TimedFrames, start_draw: float) -> tuple[Array, Array]:
        """Return the frame number (int64) and the time in seconds (float64) of each step.

        Args:
            index: Index of the video.
            start_draw: Random number in [0, 1) that determines the start if `random_start` is set.
        """
        selected = self.frame_range(self._count_positions(index), start_draw)
        positions = np.arange(selected.start, selected.stop, selected.step, dtype=np.int64)
        if self.fps is not None:
            times = positions * self.fps.denominator / self.fps.numerator
            return frames_at_rate(index, self.fps, positions), times
        ticks = index.pts[positions] - index.pts[0]
        return positions, ticks * index.time_base.numerator / index.time_base.denominator

    def divide_samples(self, index: TimedFrames, rate: int, start_draw: float) -> Array:
        """Return which samples of a sound belong to each step: the first of each, and the end, int64 (steps + 1,).

        Sample k is k / rate seconds after the first frame. A step has the samples from its time on, up to the time of
        the step after it or the end of the last frame.

        Args:
            index: Index of the video.
            rate: Number of samples per second.
            start_draw: Random number in [0, 1) that determines the start if `random_start` is set.
        """
        selected = self.frame_range(self._count_positions(index), start_draw)
        first = int(index.pts[0])
        end = _round_times([index.end - first], index.time_base * rate)
        positions = selected.start + np.arange(len(selected) + 1, dtype=np.int64) * selected.step
        if self.fps is not None:
            bounds = _round_times(positions, rate / self.fps)
        else:
            inside = positions[positions < len(index)]
            bounds = _round_times(index.pts[inside] - first, index.time_base * rate)
        if len(bounds) == len(selected):
            bounds = np.append(bounds, end)
        bounds[-1] = max(bounds[-2], min(bounds[-1], end[0]))
        return bounds

    def longest_interval(self, index: TimedFrames) -> Fraction:
        """Return an upper bound for the time from one step to the next in seconds."""
        if self.fps is not None:
            return self.stride / self.fps
        times = np.append(index.pts, index.end)
        stride = min(self.stride, len(times) - 1)
        return int((times[stride:] - times[:-stride]).max()) * index.time_base

    def _count_positions(self, index: TimedFrames) -> int:
        if self.fps is None:
            return len(index)
        return steps_at_rate(index.end - int(index.pts[0]), index.time_base, self.fps)


def frames_at_rate(index: TimedFrames, fps: Fraction, steps: Array) -> Array:
    """Return the frames that are shown at multiples of 1/fps, int64.

    Step k shows the last frame whose pts is not after t0 + k/fps, in exact arithmetic.

    Args:
        index: Index of the video.
        fps: Rate in frames per second.
        steps: Numbers of the steps, int64, below :func:`steps_at_rate`.
    """
    first = int(index.pts[0])
    latest = latest_ticks(steps, index.time_base, fps)
    return np.searchsorted(index.pts, latest + first, side="right").astype(np.int64) - 1


def _round_times(ticks: Array | list[int], samples_per_tick: Fraction) -> Array:
    """Return the number of the sample that is closest to each time, int64, in exact arithmetic."""
    numerator, denominator = samples_per_tick.numerator, samples_per_tick.denominator
    values = np.asarray(ticks, np.int64)
    if (2 * int(np.abs(values).max(initial=0)) + 1) * max(numerator, denominator) < 1 << 62:
        rounded: Array = (2 * values * numerator + denominator) // (2 * denominator)
        return rounded
    exact = [(2 * value * numerator + denominator) // (2 * denominator) for value in values.tolist()]
    return np.array(exact, np.int64)


def steps_at_rate(ticks: int, time_base: Fraction, fps: Fraction) -> int:
    """Return the number of steps at a rate, at least 1, of a video that lasts `ticks` units of `time_base` seconds."""
    return max(1, math.ceil(ticks * time_base * fps))


def _count_all_at_rate(records: Array, fps: Fraction) -> Array:
    """Return :func:`steps_at_rate` of many videos, int64 (n,). Absurdly large numbers become 2^62."""
    numerators, which = np.unique(records["numerator"], return_inverse=True)
    denominators, which_denominator = np.unique(records["denominator"], return_inverse=True)
    pairs, which_pair = np.unique(which * len(denominators) + which_denominator, return_inverse=True)
    steps = np.ones(len(records), np.int64)
    for number, pair in enumerate(pairs.tolist()):
        rows = np.flatnonzero(which_pair == number) if len(pairs) > 1 else slice(None)
        ticks = records["ticks"][rows]
        time_base = Fraction(
            int(numerators[pair // len(denominators)]), int(denominators[pair % len(denominators)]) or 1
        )
        rate = time_base * fps
        if int(ticks.max()) * rate.numerator < _MAX_STEPS and rate.denominator < _MAX_STEPS:
            steps[rows] = np.maximum(1, -(-(ticks * rate.numerator) // rate.denominator))
        else:
            steps[rows] = [min(_MAX_STEPS, steps_at_rate(each, time_base, fps)) for each in ticks.tolist()]
    return steps


def check_resampling(steps: int, frames: int, fps: Fraction | None, name: str) -> None:
    """Check that the timestamps of a video do not leap so far that `fps` makes absurdly many steps of its frames.

    Args:
        steps: Number of steps.
        frames: Number of frames of the video.
        fps: Rate in frames per second, or None for no resampling.
        name: Name of the video for the error message.

    Raises:
        CorruptStream: If they do.
    """
    max_steps = _MIN_MAX_STEPS + _MAX_STEPS_PER_FRAME * frames
    if fps is not None and steps > max_steps:
        raise CorruptStream(
            f"{name} has {frames} frames, and {steps} steps at fps={fps}, but at most {max_steps} are plausible: its "
            "timestamps leap. Repair the file, or do not resample it",
            stream=name,
            address=name,
        )


def latest_ticks(steps: Array, time_base: Fraction, fps: Fraction) -> Array:
    """Return the last whole tick, counted from the first frame, that is not after the start of each step (int64)."""
    steps_per_tick = time_base * fps
    numerator, denominator = steps_per_tick.denominator, steps_per_tick.numerator  # ticks per step, as a fraction
    if len(steps) and int(steps[-1]) * numerator >= 1 << 62:
        return np.array([k * numerator // denominator for k in steps.tolist()], np.int64)
    return steps * numerator // denominator


def as_int(value: object) -> int:
    """Return `value` as an int, or 0 if it is not a whole number, or more than any number of steps or pixels."""
    try:
        number = operator.index(value) if not isinstance(value, bool) else 0  # type: ignore[arg-type]
    except TypeError:
        return 0
    return number if number <= _MAX_INT else 0


def _parse_fps(fps: Any) -> Fraction:
    try:
        exact = Fraction(fps)
        if isinstance(fps, (float, np.floating)):
            exact = exact.limit_denominator(1_000_000)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ConfigError(
            f"fps must be a number of frames per second such as 25 or '30000/1001', got {fps!r}"
        ) from error
    if not 0 < exact <= _MAX_FPS:
        raise ConfigError(f"fps must be greater than 0, and at most {_MAX_FPS:,}, got {fps!r:.80}")
    return exact
