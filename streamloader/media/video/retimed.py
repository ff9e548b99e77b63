"""Build the index of a video whose packets cannot be identified by their timestamps: these are repaired.

Packets are counted from the start of the file, or from a key frame, and given new timestamps before they are decoded,
see :class:`streamloader.media.video.index.Retiming`.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.coded_size import find_parameters
from streamloader.media.video.frame_order import ends_with_slice, is_predictable, may_reorder
from streamloader.media.video.frame_times import (
    NO_TIME,
    ClockCorrection,
    RepairedTimes,
    TimestampLog,
    correct_clock,
    find_frame_times,
)
from streamloader.media.video.index import Retiming, VideoIndex
from streamloader.media.video.packets import (
    REORDERING_CODECS,
    codec_name,
    is_clean_key,
    list_shown_packets,
    may_clock_jump,
    nal_length_size,
    seeks_by_dts,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.packets import PacketTable
    from streamloader.values import Array

__all__ = ["TimedPackets", "repair_packets", "retime_index", "time_packets"]

_FORMATS_WITHOUT_PTS: Final = frozenset({"avi"})  # which FFmpeg guesses, and cannot know with B frames
_CANNOT_SEEK_BYTES: Final = 0x8000  # AVFMT_NO_BYTE_SEEK of libavformat
_HAS_NO_TIMESTAMPS: Final = 0x80  # AVFMT_NOTIMESTAMPS of libavformat, which makes them up
_HAS_GENERIC_INDEX: Final = 0x100  # AVFMT_GENERIC_INDEX
_MAX_MARK_DISTANCE: Final = 3  # packets that FFmpeg reads ahead
_DEFAULT_RATE: Final = 25
_MAX_DURATION_RATIO: Final = 4  # AVI declares one tick for frames that last many
_NAL_CODECS: Final = frozenset({"h264", "hevc"})


class TimedPackets(NamedTuple):
    """Packets of a video and the times of its frames.

    Attributes:
        log: All packets of the video.
        frame_packet: Packet of each frame in the order of presentation, int64 (frames,). -1 where a frame has none.
        clock: Timestamps of the packets, without jumps of the clock.
        found: Times of the frames.
    """

    log: TimestampLog
    frame_packet: Array
    clock: ClockCorrection
    found: RepairedTimes

    @property
    def is_regular(self) -> bool:
        """Whether the timestamps of the file can be used as they are."""
        return self.found.are_stamps and not len(self.clock.jumps)

    @property
    def jumps(self) -> ClockJumps:
        """Jumps of the clock, in units of the times of the frames."""
        numbers, scale = self.clock.jumps, self.found.scale
        positions = np.array(self.log.positions, np.int64)[numbers]
        after = np.array(self.log.dts, np.int64)[numbers]
        return ClockJumps(positions, self.clock.before * scale, after * scale, self.clock.shifts * scale)

    @property
    def last_duration(self) -> int:
        """Duration of the last frame, or 0 where it is unknown, or where the durations are not those of the frames."""
        packet = int(self.frame_packet[-1])
        if packet < 0 or len(self.found.times) < 2:
            return max(0, self.log.durations[packet]) * self.found.scale
        usual = float(np.median(self.log.durations)) * self.found.scale
        step = float(np.median(np.diff(self.found.times)))
        is_plausible = step / _MAX_DURATION_RATIO < usual < step * _MAX_DURATION_RATIO
        return self.log.durations[packet] * self.found.scale if is_plausible else 0


def time_packets(
    container: InputContainer,
    stream: VideoStream,
    log: TimestampLog,
    frame_packet: Array,
    output_after: Array | None = None,
) -> TimedPackets:
    """Find the times of frames.

    Args:
        container: Open file.
        stream: Video stream of the file.
        log: All packets of the video.
        frame_packet: Packet of each frame in the order of presentation, int64 (frames,). -1 where a frame has none.
        output_after: Packet after which the decoder has shown each frame, int64 (frames,), -1 where it has shown it
            after the last one. Defaults to None, for frames that were not decoded.
    """
    time_base = Fraction(stream.time_base or Fraction(1, _DEFAULT_RATE))
    clock = correct_clock(log, time_base, may_jump=may_clock_jump(container))
    rate = Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE)
    durations = np.array(log.durations, np.int64)
    stored = clock
    if container.format.name in _FORMATS_WITHOUT_PTS:
        stored = clock._replace(pts=np.full(len(log), NO_TIME, np.int64))
    elif container.format.flags & _HAS_NO_TIMESTAMPS and not _has_steady_steps(clock, durations, frame_packet):
        none = np.full(len(log), NO_TIME, np.int64)
        stored = clock._replace(pts=none, dts=none)
    found = find_frame_times(stored, durations, frame_packet, 1 / (rate * time_base), output_after)
    if stored is not clock and (frame_packet >= 0).all():
        found = found._replace(are_stamps=np.array_equal(found.times, clock.pts[frame_packet]))
    return TimedPackets(log, frame_packet, clock, found)


def _has_steady_steps(clock: ClockCorrection, durations: Array, frame_packet: Array) -> bool:
    """Return whether each frame follows the one before it by that one's duration."""
    if (frame_packet < 0).any():
        return True
    times, steps = clock.pts[frame_packet], durations[frame_packet]
    return bool((times != NO_TIME).all() and (np.diff(times) == steps[:-1]).all()) or bool((steps <= 0).any())


def repair_packets(container: InputContainer, stream: VideoStream, table: PacketTable) -> TimedPackets | None:
    """Find the times of frames without decoding, or return None if the order of the frames cannot be known then.

    Args:
        container: Open file whose decoders are disabled.
        stream: Video stream of the file.
        table: All packets of the video.
    """
    assert table.first is not None
    assert table.last is not None
    codec, configuration = codec_name(stream), bytes(stream.codec_context.extradata or b"")
    log, heads, marked = TimestampLog(), dict[int, bytes](), dict[int, bytes]()
    shown = np.array(list_shown_packets(container, stream, log, heads, marked), np.int64)
    if len(shown) != len(table.pts) or len(log) != table.count:
        return None
    time_base = Fraction(stream.time_base or Fraction(1, _DEFAULT_RATE))
    clock = correct_clock(log, time_base, may_jump=may_clock_jump(container))
    pts = clock.pts[shown]
    order = np.arange(len(pts))
    if codec in REORDERING_CODECS:
        order = np.argsort(pts, kind="stable")
        is_reordered = bool((np.diff(order) < 0).any())
        if (pts == NO_TIME).any():
            return None
        if (is_reordered or may_reorder(codec, configuration, table.head)) and len(np.unique(pts)) < len(pts):
            return None  # which of equal ones is shown first?
    is_known = (
        is_predictable(codec, configuration, table.head, order)
        and (not table.parsed or ends_with_slice(codec, memoryview(table.last)))
        and _are_clean_jumps(clock.jumps.tolist(), codec, configuration, table.head, heads, marked)
    )
    if not is_known:
        return None
    return time_packets(container, stream, log, shown[order])


def _are_clean_jumps(
    jumps: list[int], codec: str, configuration: bytes, first: bytes, heads: dict[int, bytes], marked: dict[int, bytes]
) -> bool:
    """Return whether no frame is lost or damaged where the clock jumps.

    FFmpeg marks one of the last packets before a place where recordings were joined, because packets of the transport
    stream are not counted on there.
    """
    explained = {jump - distance for jump in jumps for distance in range(1, _MAX_MARK_DISTANCE + 1)}
    return all(
        number in explained and ends_with_slice(codec, memoryview(data)) for number, data in marked.items()
    ) and all(_starts_alike(codec, configuration, first, heads.get(jump)) for jump in jumps)


def _starts_alike(codec: str, configuration: bytes, first: bytes, head: bytes | None) -> bool:
    """Return whether the packet after a jump of the clock starts like the first one, so that no frame is lost there."""
    if head is None or not is_clean_key(codec, memoryview(head), nal_length_size(codec, configuration)):
        return False
    return codec not in _NAL_CODECS or find_parameters(codec, b"", head) == find_parameters(codec, b"", first)


def retime_index(index: VideoIndex, packets: TimedPackets, container: InputContainer) -> VideoIndex:
    """Return an index with new timestamps of packets.

    Args:
        index: Index with `pts` and `time_base` of the repaired times. Its key frames are replaced.
        packets: Packets of the video. Each frame has one of its own.
        container: Open file.
    """
    log, frame_packet = packets.log, packets.frame_packet
    packet_pts = np.full(len(log), NO_TIME, np.int64)
    packet_pts[frame_packet] = packets.found.times
    keys = np.array(log.keys, np.int64)
    keys = keys[packet_pts[keys] != NO_TIME]
    by_bytes = _seeks_by_bytes(container, packets)
    sought = _sought_values(log, keys, container, by_bytes=by_bytes)
    positions = np.array(log.positions, np.int64)[keys]
    usable = _find_usable(keys, sought, positions, packet_pts)
    keys, sought, positions = keys[usable], sought[usable], positions[usable]
    retiming = Retiming(packet_pts, keys, positions, by_bytes)
    return replace(index, retiming=retiming, key_pts=packet_pts[keys], key_seek=sought, seekable=len(keys) > 0)


def _seeks_by_bytes(container: InputContainer, packets: TimedPackets) -> bool:
    """Return whether key frames are found by their positions: where a timestamp does not name one place of the file."""
    allowed = not container.format.flags & _CANNOT_SEEK_BYTES and bool(
        may_clock_jump(container) or container.format.flags & _HAS_GENERIC_INDEX
    )
    has_times = any(value != NO_TIME for value in packets.log.dts)
    return allowed and (len(packets.clock.jumps) > 0 or not has_times)


def _sought_values(log: TimestampLog, keys: Array, container: InputContainer, *, by_bytes: bool) -> Array:
    """Return what to pass to the demuxer to reach each key frame, NO_TIME where it is unknown."""
    if by_bytes:
        positions = np.array(log.positions, np.int64)[keys]
        return np.where(positions >= 0, positions, NO_TIME)
    first, second = np.array(log.pts, np.int64)[keys], np.array(log.dts, np.int64)[keys]
    if seeks_by_dts(container):
        first, second = second, first
    return np.where(first != NO_TIME, first, second)


def _find_usable(keys: Array, sought: Array, positions: Array, packet_pts: Array) -> Array:
    """Return which key frames can be sought and recognized, in the order of their times, bool (n,)."""
    _, inverse, counts = np.unique(sought, return_inverse=True, return_counts=True)
    usable: Array = (sought != NO_TIME) & ((positions >= 0) | (counts[inverse] == 1))
    times: Any = packet_pts[keys]
    latest = np.maximum.accumulate(np.where(usable, times, NO_TIME))
    usable[1:] &= times[1:] > latest[:-1]
    return usable
