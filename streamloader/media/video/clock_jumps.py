"""The places at which the clock of a file jumps, and the timestamps of its other streams on a clock without jumps.

The pictures determine by how much timestamps are moved from a jump on, as in FFmpeg's program, where all streams of a
file have one clock. The sound of a recording does not end at the place where its pictures end, so the sound is moved
from the packet on at which its own clock jumps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["ClockJumps"]

_MAX_DISTANCE_S: Final = 5  # of a stream from the pictures beside it, on the clock of the file
_MAX_SHIFT: Final = 1 << 62


def _no_jumps() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class ClockJumps:
    """Jumps of a clock, in the order of storage. Timestamps are those of the file. Defaults to none.

    Attributes:
        positions: Offset in the file of the first packet of pictures after each jump in bytes, int64 (jumps,). -1 where
            unknown.
        before: Decoding timestamp of the packet before it, int64 (jumps,).
        after: Decoding timestamp of that packet, int64 (jumps,).
        shifts: Ticks that are added to timestamps from each jump on, int64 (jumps,).
    """

    positions: Array = field(default_factory=_no_jumps)
    before: Array = field(default_factory=_no_jumps)
    after: Array = field(default_factory=_no_jumps)
    shifts: Array = field(default_factory=_no_jumps)

    def __len__(self) -> int:
        """Return the number of jumps."""
        return len(self.positions)

    def __eq__(self, other: object) -> bool:
        """Whether `other` has the same jumps."""
        if not isinstance(other, ClockJumps):
            return NotImplemented
        return all(np.array_equal(*pair) for pair in zip(self.columns(), other.columns(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def columns(self) -> tuple[Array, Array, Array, Array]:
        """Return the arrays."""
        return self.positions, self.before, self.after, self.shifts

    def find_shifts(
        self, pts: Array, durations: Array, positions: Array, time_base: Fraction, other_base: Fraction
    ) -> Array:
        """Return what is added to the timestamps of another stream, int64 (packets,), in units of its own time base.

        A jump of the other stream is the place where its timestamps leave the old clock of the pictures and join the
        new one. Where there is no such place, the first packet after the jump in the file is taken.

        Args:
            pts: Timestamps of the packets of the other stream in the order of storage, int64 (packets,).
            durations: Durations of the packets, int64 (packets,).
            positions: Offsets of the packets in the file in bytes, int64 (packets,). -1 where unknown.
            time_base: Unit of the timestamps of this clock in seconds.
            other_base: Unit of `pts` in seconds.
        """
        shifts = np.zeros(len(pts), np.int64)
        ratio = time_base / other_base
        stored = np.maximum.accumulate(positions) if len(positions) else positions
        steps = pts[1:] - pts[:-1] - durations[:-1]
        earliest, last_shift = 0, 0
        for position, before, after, shift in zip(*(column.tolist() for column in self.columns()), strict=True):
            start = int(np.searchsorted(stored, position)) if position >= 0 else len(pts)
            wanted = round((last_shift - shift) * ratio)
            near = _MAX_DISTANCE_S / other_base
            candidates = earliest + np.flatnonzero(
                (np.abs(steps[earliest:] - wanted) * 2 < abs(wanted))
                & (np.abs(pts[earliest:-1] - round(before * ratio)) < near)
                & (np.abs(pts[earliest + 1 :] - round(after * ratio)) < near)
            )
            if len(candidates):
                start = 1 + int(candidates[np.argmin(np.abs(candidates + 1 - start))])
            start = max(start, earliest)
            shifts[start:] = max(-_MAX_SHIFT, min(round(shift * ratio), _MAX_SHIFT))
            earliest, last_shift = min(start, max(0, len(pts) - 1)), shift
        return shifts
