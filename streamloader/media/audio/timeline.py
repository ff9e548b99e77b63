"""The sound of a video on the clock of its frames.

The samples of a sound do not say when they are played: the timestamps of its packets do. They may start before or after
the frames, leap where packets are missing, and drift from the number of samples where a recorder had two clocks. The
timeline follows them: where they differ from the count of samples by more than a few milliseconds, it begins a new
piece there, with silence in front or without the samples that come too late. A timestamp that differs from those around
it does not count, and where all of them are uneven, as those of some phones, only what exceeds their unevenness does.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.media.audio.index import AudioIndex
    from streamloader.media.audio.reader import SampleReader
    from streamloader.media.video.clock_jumps import ClockJumps
    from streamloader.values import Array

__all__ = ["MAX_OFFSET_S", "TimelineReader", "lay_out_sound"]

MAX_OFFSET_S: Final = 0.004  # by which a sample may be played too early or too late. Matroska rounds to 0.001
_MAX_JITTER_S: Final = 0.02  # by which it may be, where the timestamps themselves are that uneven
_JITTER_QUANTILE: Final = 0.95
# Timestamps of so many packets make one. FFmpeg is wrong about the first packet of some pages of Vorbis in Ogg.
_SMOOTHED_PACKETS: Final = 5


def lay_out_sound(
    index: AudioIndex, origin: Fraction, clock: ClockJumps | None = None, clock_base: Fraction = Fraction(1)
) -> Array:
    """Return when samples are played: int64 (pieces, 3), each with its first position, first sample and size.

    Positions count samples from `origin` on. Pieces are in order, do not overlap, and begin at 0 or later.

    Args:
        index: Index of the sound.
        origin: Time of the first frame of the video, in seconds on the clock of the file.
        clock: Jumps of this clock. Defaults to none.
        clock_base: Unit of the timestamps of `clock` in seconds.
    """
    starts = index.packet_starts
    if index.has_exact_pts:
        pts, first_samples = np.zeros(1, np.int64), np.zeros(1, np.int64)
    else:
        pts, first_samples = index.pts, starts[: len(index.pts)]
        if clock is not None and len(pts):
            durations = np.rint(index.samples[:-1] / float(index.time_base * index.rate)).astype(np.int64)
            pts = pts + clock.find_shifts(pts, durations, index.offsets, clock_base, index.time_base)
    if not len(pts) or not len(index.kept):
        return np.zeros((0, 3), np.int64)
    base = round((int(pts[0]) * index.time_base - origin) * index.rate)  # exact, and the rest is small
    ticks = float(index.time_base * index.rate)
    offsets = base + np.rint((pts - pts[0]) * ticks).astype(np.int64) - first_samples
    smooth = _smooth(offsets)
    jitter = float(np.quantile(np.abs(offsets - smooth), _JITTER_QUANTILE)) / index.rate
    tolerance_s = min(max(MAX_OFFSET_S, 2 * jitter), _MAX_JITTER_S)
    offsets = smooth
    breaks = _find_breaks(offsets, max(1, int(tolerance_s * index.rate)))
    bounds = np.append(first_samples[breaks], starts[-1])
    pieces = [
        piece
        for number, packet in enumerate(breaks)
        for piece in _intersect(index, int(bounds[number]), int(bounds[number + 1]), int(offsets[packet]))
    ]
    return _resolve_overlaps(pieces)


def _smooth(offsets: Array) -> Array:
    """Return the medians of neighbouring offsets. Lasting leaps stay, at the same packets."""
    padded = np.pad(offsets, _SMOOTHED_PACKETS // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED_PACKETS)
    medians: Array = np.sort(windows, axis=1)[:, _SMOOTHED_PACKETS // 2]
    return medians


def _find_breaks(offsets: Array, tolerance: int) -> list[int]:
    """Return the numbers of the packets at which a new piece begins."""
    breaks, position, count = [0], 0, 1
    while position + count < len(offsets):  # looks at twice as many each time, so that many breaks take no longer
        differs = np.abs(offsets[position + count : position + 2 * count] - offsets[breaks[-1]]) > tolerance
        step = int(np.argmax(differs))
        if differs[step]:
            position += count + step
            breaks.append(position)
            count = 1
        else:
            count *= 2
    return breaks


def _intersect(index: AudioIndex, start: int, end: int, offset: int) -> list[tuple[int, int, int]]:
    """Return the pieces of decoded samples [start, end) that are played, `offset` positions later."""
    pieces = []
    for number, (first, last) in enumerate(index.kept.tolist()):
        low, high = max(first, start), min(last, end)
        if low < high:
            pieces.append((low + offset, int(index.kept_starts[number]) + low - first, high - low))
    return pieces


def _resolve_overlaps(pieces: list[tuple[int, int, int]]) -> Array:
    position = 0
    resolved = []
    for start, sample, count in pieces:
        late = max(0, position - start)
        if late < count:
            resolved.append((start + late, sample + late, count - late))
            position = start + count
    return np.array(resolved, np.int64).reshape(-1, 3)


class TimelineReader:
    """Reads the sound of a video by position. Where nothing is played, there is silence.

    Args:
        reader: Reader of the sound, which this one closes.
        pieces: Pieces, from :func:`lay_out_sound`.

    Attributes:
        start: Position of the first sample that is played, and 0 if there is none.
    """

    def __init__(self, reader: SampleReader, pieces: Array) -> None:
        self._reader = reader
        self._pieces = pieces
        self._ends = pieces[:, 0] + pieces[:, 2]
        self.start = int(pieces[0, 0]) if len(pieces) else 0

    def __len__(self) -> int:
        """Return the position at which the sound ends."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def rate(self) -> int:
        """Number of samples per second."""
        return self._reader.rate

    def read(self, start: int, end: int) -> Array:
        """Return the samples at the positions [start, end), (samples, channels).

        The end of the sound, or an error, ends them early.

        Raises:
            CorruptStream: If the sample at `start` cannot be decoded. ``offset`` is the sample.
            StoreError: If the store fails to deliver bytes.
        """
        index = self._reader.index
        end = min(end, len(self))
        silence = 128 if index.format == "u8" else 0
        out = np.full((max(0, end - start), index.channels), silence, index.dtype)
        number = int(np.searchsorted(self._ends, start, "right"))
        while number < len(self._pieces) and self._pieces[number, 0] < end:
            first, sample, count = (int(value) for value in self._pieces[number])
            low, high = max(first, start), min(first + count, end)
            part = self._reader.read(sample + low - first, sample + high - first)
            out[low - start : low - start + len(part)] = part
            if len(part) < high - low:  # the next read raises the error
                return out[: low - start + len(part)]
            number += 1
        return out

    def close(self) -> None:
        """Close the sound."""
        self._reader.close()
