"""Find the times of frames where the timestamps of packets are missing, repeated, disordered, or of a clock that jumps.

Times come from what the packets say: their presentation timestamps, else their decoding timestamps in order, else their
durations. A local fault stays local. A clock that jumps in a container whose clock may do so is followed as FFmpeg's
programs follow it (documentation of ffmpeg, ``-dts_delta_threshold`` and ``-dts_error_threshold``).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamloader.values import Array

__all__ = [
    "MAX_BACKWARD_STEP_S", "MAX_CLOCK_STEP_S", "NO_TIME", "ClockCorrection", "RepairedTimes", "TimestampLog",
    "correct_clock", "find_frame_times", "is_packet",
]  # fmt: skip

NO_TIME: Final = int(np.iinfo(np.int64).min)
MAX_CLOCK_STEP_S: Final = 10  # a larger one is a jump of a clock that may jump
MAX_BACKWARD_STEP_S: Final = Fraction(1, 10)  # of decoding timestamps, which never go back
_MAX_GAP_S: Final = 30 * 3600  # between frames, in any container: more is a wrong timestamp
_MAX_SCALE: Final = 1 << 20
_MAX_TIME: Final = 1 << 61
_MAX_DELAY: Final = 16  # frames that are decoded before the first one that is shown
_MIN_DISORDER: Final = 4  # if one of this many timestamps is out of order, all may be those of decoding
_MAX_DISORDER: Final = 16  # of this many timestamps, one may be out of order; more are not those of the frames


@dataclass
class TimestampLog:
    """Timestamps, durations and positions of packets in storage order, :data:`NO_TIME` where there is none.

    Attributes:
        pts: Presentation timestamps.
        dts: Decoding timestamps.
        durations: Durations, 0 where unknown.
        positions: Offsets in the file in bytes, -1 where unknown.
        keys: Numbers of the packets that are key frames.
        discarded: Numbers of the packets that an edit list hides, so that their timestamps are those of no frame.
    """

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of packets."""
        return len(self.pts)

    def add(self, packet: Any) -> None:
        """Add a packet."""
        pts, dts, position = packet.pts, packet.dts, packet.pos
        if packet.is_keyframe:
            self.keys.append(len(self.pts))
        if packet.is_discard:
            self.discarded.append(len(self.pts))
        self.pts.append(NO_TIME if pts is None else pts)
        self.dts.append(NO_TIME if dts is None else dts)
        self.durations.append(packet.duration or 0)
        self.positions.append(-1 if position is None else position)

    def number_packets(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Add packets, and yield them with their numbers as timestamps. The empty packet at the end is not changed."""
        for packet in packets:
            if is_packet(packet):
                self.add(packet)
                packet.pts = packet.dts = len(self.pts) - 1
            yield packet


def is_packet(packet: Any) -> bool:
    """Return whether a packet is one of the file that shows a picture, and not an empty one.

    The last packet of a demuxer is empty and flushes the decoder. Theora repeats a picture by an empty packet, which
    FFmpeg's program does not decode.
    """
    return bool(packet.size)


class ClockCorrection(NamedTuple):
    """Timestamps of a clock without jumps.

    Attributes:
        pts: Presentation timestamps, int64 (packets,).
        dts: Decoding timestamps, int64 (packets,).
        jumps: Packets at which the clock of the file jumps, int64 (jumps,).
        before: Decoding timestamp in the file of the last packet before each jump that has one, int64 (jumps,).
        shifts: Ticks that are added to the timestamps of the file from each jump on, int64 (jumps,).
    """

    pts: Array
    dts: Array
    jumps: Array = np.zeros(0, np.int64)
    before: Array = np.zeros(0, np.int64)
    shifts: Array = np.zeros(0, np.int64)


def correct_clock(log: TimestampLog, time_base: Fraction, *, may_jump: bool) -> ClockCorrection:
    """Return timestamps that go on where those of the file jump.

    Args:
        log: Packets of the file.
        time_base: Unit of the timestamps in seconds.
        may_jump: Whether the clock of this container may jump: then a step of more than 10 seconds is a jump. Otherwise
            it is a gap, and only a clock that goes back and stays there has jumped.
    """
    pts, dts = np.array(log.pts, np.int64), np.array(log.dts, np.int64)
    is_known = dts != NO_TIME
    is_known[np.array(log.discarded, np.int64)] = False
    known = np.flatnonzero(is_known)
    if len(known) < 2:
        return ClockCorrection(pts, dts)
    if not may_jump:
        known = _drop_impossible(pts, dts, known, int(_MAX_GAP_S / time_base))
    times = dts[known]
    steps = _subtract(times[1:], times[:-1])
    durations = np.array(log.durations, np.int64)[known[:-1]]
    usual = int(np.median(steps)) if len(steps) else 0
    durations = np.where(durations > 0, durations, max(0, usual))
    back = steps < -int(MAX_BACKWARD_STEP_S / time_base)
    if may_jump:
        is_jump = back | (np.abs(steps - durations) > int(MAX_CLOCK_STEP_S / time_base))
    else:
        is_jump = back & ~_is_isolated(times)
    if not is_jump.any():
        return ClockCorrection(pts, dts)
    shifts = np.zeros(len(dts), np.int64)
    shifts[known[1:]] = np.where(is_jump, durations - steps, 0)
    if not may_jump:  # FFmpeg makes up decoding timestamps where the container has none
        _join_presentations(shifts, pts, known[1:][is_jump].tolist(), usual)
    offsets = np.cumsum(shifts)
    pts, dts = (np.where(column == NO_TIME, NO_TIME, column + offsets) for column in (pts, dts))
    jumps = known[1:][is_jump]
    return ClockCorrection(pts, dts, jumps, times[:-1][is_jump], offsets[jumps])


def _join_presentations(shifts: Array, pts: Array, jumps: list[int], usual: int) -> None:
    """Change the shifts at jumps so that the first frame shown after each follows the last one before it.

    Args:
        shifts: Ticks that each packet adds to the timestamps from it on, int64 (packets,).
        pts: Presentation timestamps, int64 (packets,).
        jumps: Packets at which the clock jumps, ascending.
        usual: Usual duration of a frame.
    """
    for start, jump, end in zip([0, *jumps[:-1]], jumps, [*jumps[1:], len(pts)], strict=True):
        before, after = pts[start:jump], pts[jump : min(end, jump + _MAX_DELAY)]
        before, after = before[before != NO_TIME], after[after != NO_TIME]
        if len(before) and len(after):
            shifts[jump] = int(before.max()) + usual - int(after.min())


def _subtract(first: Array, second: Array) -> Array:
    """Return a difference of timestamps, of which hostile files have any, within 62 bits."""
    half = first // 2 - second // 2
    result: Array = np.where(np.abs(half) > _MAX_TIME // 2, np.sign(half) * _MAX_TIME, first - second)
    return result


def _is_isolated(times: Array) -> Array:
    """Return whether each step (n - 1) goes back only because one of its two timestamps is wrong."""
    isolated: Array = np.zeros(len(times) - 1, bool)
    if len(times) > 2:
        isolated[1:] |= times[2:] > times[:-2]  # the one before is too late
        isolated[:-1] |= times[2:] > times[:-2]  # the one after is too early
    isolated[-1] = True  # nothing follows that confirms the new clock
    return isolated


def _drop_impossible(pts: Array, dts: Array, known: Array, max_step: int) -> Array:
    """Drop timestamps that are further from those before than any gap. Return the numbers of the others."""
    if int(np.abs(_subtract(dts[known[1:]], dts[known[:-1]])).max()) <= max_step:
        return known
    last, kept = int(dts[known[0]]), [int(known[0])]
    for number in known[1:].tolist():
        if abs(int(dts[number]) - last) > max_step:
            pts[number] = dts[number] = NO_TIME
        else:
            last = int(dts[number])
            kept.append(number)
    return np.array(kept, np.int64)


class RepairedTimes(NamedTuple):
    """Times of frames.

    Attributes:
        times: Time of each frame in the order of presentation, in units of the time base / `scale`, strictly
            increasing, int64 (frames,).
        scale: Number of parts into which the time base is divided, so that frames that share a tick have room.
        are_stamps: Whether these are the presentation timestamps of the packets.
    """

    times: Array
    scale: int
    are_stamps: bool


def find_frame_times(
    clock: ClockCorrection,
    durations: Array,
    frame_packet: Array,
    frame_ticks: Fraction,
    output_after: Array | None = None,
) -> RepairedTimes:
    """Return the times of frames.

    Args:
        clock: Timestamps of the packets.
        durations: Durations of the packets, 0 where unknown, int64 (packets,).
        frame_packet: Packet of each frame in the order of presentation, int64 (frames,). -1 where a frame has none.
        frame_ticks: Duration of a frame at the rate that the container declares, for packets that say nothing.
        output_after: Packet after which the decoder has shown each frame, int64 (frames,), -1 where it has shown it
            after the last one. None to derive it from the order of the packets.
    """
    stamps = np.where(frame_packet >= 0, clock.pts[frame_packet], NO_TIME)
    known = stamps != NO_TIME
    if known.all() and (stamps[1:] > stamps[:-1]).all():
        return RepairedTimes(stamps, 1, True)
    estimates, are_dts = _estimate(clock, durations, frame_packet, frame_ticks, output_after)
    values = stamps[known]
    disorder = len(values) - len(_longest_increasing(values.tolist()))
    is_disordered = disorder * _MAX_DISORDER > len(values)
    if disorder * _MIN_DISORDER > len(values) and not are_dts and len(np.unique(values)) == len(stamps):
        return RepairedTimes(np.sort(values), 1, False)  # they are those of decoding, whatever they are called
    if not len(values) or (are_dts and is_disordered):
        stamps, known = np.full(len(stamps), NO_TIME, np.int64), np.zeros(len(stamps), bool)
        if are_dts and (estimates[1:] > estimates[:-1]).all():
            return RepairedTimes(estimates, 1, False)
        stamps, known = estimates, np.ones(len(stamps), bool)
    kept = np.flatnonzero(known)[_longest_increasing(stamps[known].tolist())]
    return RepairedTimes(*_fill(stamps, kept, estimates, known), False)


def _estimate(
    clock: ClockCorrection, durations: Array, frame_packet: Array, frame_ticks: Fraction, output_after: Array | None
) -> tuple[Array, bool]:
    """Return times of all frames from decoding timestamps in order, and whether there are such.

    A decoder that delays its output by d frames shows frame k when it has decoded packet k + d: the timestamp of that
    packet is the time of the frame, as encoders set it, and as FFmpeg estimates it.
    """
    count = len(frame_packet)
    usual = max(1, round(frame_ticks))
    if (frame_packet >= 0).all():
        packets = np.sort(frame_packet)
        delay = _find_delay(packets, frame_packet, output_after)
        dts = clock.dts[packets]
        if (dts != NO_TIME).all():
            steps = dts[1:] - dts[:-1]
            if not len(steps) or int((steps <= 0).sum()) * _MAX_DISORDER <= len(steps):
                last = int(np.median(steps)) if len(steps) else usual
                tail = dts[-1] + max(1, last) * np.arange(1, delay + 1)
                return np.append(dts[delay:], tail).astype(np.int64), True
        own = durations[frame_packet]
        if (own > 0).all():
            return np.append(0, np.cumsum(own)[:-1]).astype(np.int64), False
    ticks = [round(number * max(frame_ticks, Fraction(1))) for number in range(count)]
    return np.array(ticks, np.int64), False


def _find_delay(packets: Array, frame_packet: Array, output_after: Array | None) -> int:
    """Return by how many frames the decoder delays its output.

    Args:
        packets: Packets that show a frame, ascending.
        frame_packet: Packet of each frame in the order of presentation.
        output_after: Packet after which the decoder has shown each frame. -1 for the last ones, and None if unknown.
    """
    numbers = np.arange(len(frame_packet))
    delay = int((np.maximum.accumulate(np.searchsorted(packets, frame_packet)) - numbers).max())
    if output_after is None or not (output_after >= 0).any():
        return delay
    shown = output_after >= 0
    ranks = np.searchsorted(packets, output_after[shown])
    return max(delay, int(np.median(ranks - numbers[shown])))


def _longest_increasing(values: list[int]) -> list[int]:
    """Return the positions of a longest strictly increasing subsequence. Of equal values, the first one counts."""
    tails: list[int] = []
    ends: list[int] = []  # positions of `tails`
    before: list[int] = []
    for position, value in enumerate(values):
        length = bisect.bisect_left(tails, value)
        before.append(ends[length - 1] if length else -1)
        if length == len(tails):
            tails.append(value)
            ends.append(position)
        elif tails[length] != value:
            tails[length], ends[length] = value, position
    result = []
    position = ends[-1] if ends else -1
    while position >= 0:
        result.append(position)
        position = before[position]
    return result[::-1]


def _fill(stamps: Array, kept: Array, estimates: Array, known: Array) -> tuple[Array, int]:
    """Return times of all frames, which are those of the frames that are kept, and the scale of the time base.

    A frame whose timestamp repeats that of another is one tick after it. One without a timestamp, or with one that is
    out of order, has the estimated distance from the frame before; where that has no room, it is evenly placed.
    """
    gaps = [
        (first, last) for first, last in zip(kept[:-1].tolist(), kept[1:].tolist(), strict=True) if last > first + 1
    ]
    scale = 1
    for first, last in gaps:
        while (int(stamps[last]) - int(stamps[first])) * scale <= last - first - 1 and scale < _MAX_SCALE:
            scale *= 2
    if scale > 1 and int(np.abs(stamps[kept]).max()) > _MAX_TIME // scale:
        raise ArithmeticError("frames share timestamps that leave no room for all of them")
    times = np.zeros(len(stamps), np.int64)
    times[kept] = stamps[kept] * scale
    for first, last in gaps:
        run = slice(first + 1, last)
        low, high, missing = int(times[first]), int(times[last]), last - first - 1
        guess = low + (estimates[run] - estimates[first]) * scale
        bounds = np.concatenate([[low], guess, [high]])
        repeats = bool(known[run].all() and (stamps[run] == stamps[first]).all())
        if repeats and high - low > missing * scale:
            times[run] = low + scale * np.arange(1, missing + 1)
        elif not repeats and (bounds[1:] > bounds[:-1]).all():
            times[run] = guess
        else:
            times[run] = low + np.arange(1, missing + 1) * (high - low) // (missing + 1)
    first, last = int(kept[0]), int(kept[-1])
    step = max(1, int(np.median(np.diff(times[kept]))) if len(kept) > 1 else 1)
    guess = times[first] + (estimates[:first] - estimates[first]) * scale
    is_usable = (np.append(guess, times[first])[1:] > np.append(guess, times[first])[:-1]).all()
    times[:first] = guess if is_usable else times[first] - step * np.arange(first, 0, -1)
    guess = times[last] + (estimates[last + 1 :] - estimates[last]) * scale
    bounds = np.append(times[last], guess)
    repeats = bool(known[last + 1 :].all() and (stamps[last + 1 :] == stamps[last]).all())
    if not repeats and (bounds[1:] > bounds[:-1]).all():
        times[last + 1 :] = guess
    else:
        times[last + 1 :] = times[last] + np.arange(1, len(times) - last) * (scale if repeats else step)
    return times, scale
