"""Read the packets of a video without decoding: which of them show a frame, and where decoding can start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.errors import UnreadableStream
from streamloader.media.progress import PROGRESS
from streamloader.media.video.frame_probe import FrameProbe
from streamloader.media.video.frame_times import MAX_BACKWARD_STEP_S, MAX_CLOCK_STEP_S, TimestampLog, is_packet
from streamloader.media.video.missing_packets import PacketSpans
from streamloader.media.video.parameter_sets import nal_length_size, split_units
from streamloader.media.video.source import translate_errors
from streamloader.media.video.source_errors import refuse_encrypted

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from streamloader.media.video.remote import Video, VideoFile
    from streamloader.values import Array

__all__ = [
    "MAX_HEAD_BYTES",
    "REORDERING_CODECS",
    "PacketTable",
    "codec_name",
    "count_max_packets",
    "is_clean_key",
    "list_shown_packets",
    "may_clock_jump",
    "nal_length_size",
    "read_packets",
    "seeks_by_dts",
]

_MAX_PACKETS: Final = 1 << 24  # of one video: 77 hours at 60 frames per second
MAX_HEAD_BYTES: Final = 64 << 10  # of the first packet: parameter sets and SEI precede its first slice
# Containers in which each frame has its own packet and timestamp, and codecs that show one frame per packet (VP8 and
# VP9 do so once their hidden frames are left out). The frames of all others are only known after decoding.
_EXACT_CONTAINERS: Final = frozenset({"mov", "mp4", "matroska", "webm"})
_EXACT_CODECS: Final = frozenset(
    "h264 hevc av1 vp8 vp9 mjpeg prores dnxhd ffv1 png huffyuv ffvhuff utvideo jpeg2000 qtrle".split()  # noqa: SIM905
)
# FFmpeg's parser makes one packet of each frame of a transport stream, if the stream gives each its timestamp.
_PARSED_CONTAINERS: Final = frozenset({"mpegts"})
_PAYLOAD_DEPENDENT_CODECS: Final = frozenset({"vp8", "vp9"})  # their payload determines whether a packet shows a frame
_PARSED_CODECS: Final = frozenset({"h264", "hevc"})
REORDERING_CODECS: Final = frozenset({"h264", "hevc"})  # of the exact ones; all others show frames in storage order
_MAY_JUMP: Final = 0x200  # AVFMT_TS_DISCONT of libavformat
_H264_IDR: Final = 5  # nal_unit_type of an IDR slice; types 1 to 5 are slices
_HEVC_SLICE_TYPES_END: Final = 32  # lower nal_unit_types are slices
_HEVC_IRAP: Final = range(16, 22)  # BLA, IDR and CRA: frames that follow in output order need no earlier packet


@dataclass
class PacketTable:
    """The packets of a file in storage order, reduced to what an index needs.

    Attributes:
        pts: Timestamps of the packets that show a frame.
        ends: Timestamps at which the frames of `pts` end (pts + duration).
        key_pts: Timestamps of the key frames.
        key_seek: Timestamps to pass to the demuxer to reach the key frames.
        count: Number of packets.
        end_offset: Offset in bytes of the end of the last packet, as far as the container reports it.
        dts: Decoding timestamps of the packets of `pts`, if the container has them, else empty.
        key_packet: Numbers of the packets that are key frames, in storage order.
        spans: Positions, sizes and timestamps of the packets.
        exact: Whether `pts` holds exactly the timestamps of the frames, as far as this is known without decoding.
        repairable: Whether `pts` would be exact, but for timestamps that are repeated or out of order, or a clock that
            jumps, with which packets may be marked as damaged.
        is_order_confirmed: Whether the headers of the frames say that they are shown in the order of `pts`.
        parsed: Whether that depends on how FFmpeg's parser divided the bytes into packets.
        first: First packet, if it was read.
        last: Last packet, in storage order.
    """

    pts: Sequence[int] | Array = field(default_factory=list)
    ends: Sequence[int] | Array = field(default_factory=list)
    key_pts: Sequence[int] | Array = field(default_factory=list)
    key_seek: Sequence[int] | Array = field(default_factory=list)
    count: int = 0
    end_offset: int = 0
    exact: bool = True
    repairable: bool = False
    is_order_confirmed: bool = False
    parsed: bool = False
    first: Packet[Any] | None = None
    last: Packet[Any] | None = None
    dts: list[int] = field(default_factory=list)
    key_packet: list[int] = field(default_factory=list)
    spans: PacketSpans = field(default_factory=PacketSpans)

    @property
    def head(self) -> bytes:
        """Beginning of the first packet."""
        return b"" if self.first is None else bytes(memoryview(self.first)[:MAX_HEAD_BYTES])

    def sorted_keys(self) -> tuple[Array, Array]:
        """Return key_pts and key_seek of the key frames, sorted by timestamp."""
        order = np.argsort(np.array(self.key_pts, np.int64), kind="stable")
        return np.array(self.key_pts, np.int64)[order], np.array(self.key_seek, np.int64)[order]


def codec_name(stream: VideoStream) -> str:
    """Return FFmpeg's name of the codec, whichever decoder is used for it."""
    name = str(stream.codec_context.name)
    return {"libdav1d": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(name, name)


def read_packets(
    container: InputContainer,
    stream: VideoStream,
    video: Video,
    table: PacketTable,
    *,
    file: VideoFile | None = None,
    probe: FrameProbe | None = None,
) -> None:
    """Demux the whole file once and add its packets to `table`.

    Args:
        container: Open file.
        stream: Video stream of the file.
        video: Path of a local file, or a video in a store, for error messages.
        table: Table to which the packets are added.
        file: Open bytes of a video in a store. Defaults to none, for a local file.
        probe: Receiver of the first packets of its streams. Defaults to none.

    Raises:
        CorruptStream: If the demuxer fails. `table` then holds the packets before the error.
        UnreadableStream: If there are more packets than an index can hold, or if they are encrypted.
        MediaLimitExceeded: If `probe` finds a frame that is too large.
        StoreError: If the store fails to deliver bytes.
    """
    codec = codec_name(stream)
    formats = set(container.format.name.split(","))
    table.parsed = bool(formats & _PARSED_CONTAINERS)
    exact = codec in (_PARSED_CODECS if table.parsed else _EXACT_CODECS)
    exact = exact and bool(formats & (_PARSED_CONTAINERS | _EXACT_CONTAINERS))
    clock = _ClockWatch(stream) if may_clock_jump(container) else None
    depends_on_payload = codec in _PAYLOAD_DEPENDENT_CODECS
    by_dts = seeks_by_dts(container)
    table.pts, table.ends = all_pts, ends = [], []
    table.key_pts, table.key_seek = key_pts, key_seek = [], []
    table.spans = spans = PacketSpans()
    with translate_errors(video):
        for packet in _demux(container, stream, video, table, file, probe):
            pts = packet.pts
            if pts is None or packet.is_discard:
                exact = False
            spans.add(packet)
            if clock is not None:
                clock.watch(packet)
            is_key = packet.is_keyframe
            if is_key:
                table.key_packet.append(table.count - 1)
            if is_key and pts is not None:
                key_pts.append(pts)
                key_seek.append(packet.dts if by_dts and packet.dts is not None else pts)
            elif table.first is packet:
                exact = False  # starts in the middle of a group of pictures: the decoder drops these frames
            if exact and pts is not None and (not depends_on_payload or _shows_frame(codec, packet)):
                all_pts.append(pts)
                ends.append(pts + (packet.duration or 0))
                if by_dts:
                    table.dts.append(pts if packet.dts is None else packet.dts)
    exact = exact and len(all_pts) > 0
    has_jumped = clock is not None and clock.has_jumped
    is_regular = len(set(all_pts)) == len(all_pts) and not has_jumped
    if exact and is_regular and codec not in REORDERING_CODECS:
        is_regular = bool((np.diff(np.array(all_pts, np.int64)) > 0).all())
    table.exact = exact and is_regular and not spans.marked
    table.repairable = exact and not is_regular and (not spans.marked or has_jumped)


class _ClockWatch:
    """Notices that the clock of a container jumps. Whether it really does is decided later, from all packets.

    Attributes:
        has_jumped: Whether it may have jumped.
    """

    def __init__(self, stream: VideoStream) -> None:
        ticks_per_s = 1 / Fraction(stream.time_base or 1)
        self.has_jumped = False
        self._forward, self._backward = int(MAX_CLOCK_STEP_S * ticks_per_s), int(MAX_BACKWARD_STEP_S * ticks_per_s)
        self._last: int | None = None

    def watch(self, packet: Packet[Any]) -> None:
        """Watch a packet."""
        dts = packet.dts
        if dts is not None:
            if self._last is not None and not -self._backward <= dts - self._last <= self._forward:
                self.has_jumped = True
            self._last = dts


def may_clock_jump(container: InputContainer) -> bool:
    """Return whether the clock of this kind of container may jump, so that a gap between packets is none."""
    return bool(container.format.flags & _MAY_JUMP)


def seeks_by_dts(container: InputContainer) -> bool:
    """Return whether a seek to the pts of a key frame lands after it, so that its dts is needed."""
    return not {"mpegts", "mpeg"}.isdisjoint(container.format.name.split(","))


def list_shown_packets(
    container: InputContainer,
    stream: VideoStream,
    log: TimestampLog,
    heads: dict[int, bytes],
    marked: dict[int, bytes],
) -> list[int]:
    """Demux the whole file, and return the numbers of the packets that show a frame, for codecs whose packets say so.

    Args:
        container: Open file.
        stream: Video stream of the file.
        log: Log to which all packets are added.
        heads: Dictionary to which the beginnings of packets are added before which a clock may have jumped.
        marked: Dictionary to which packets are added that FFmpeg marks as damaged.
    """
    codec = codec_name(stream)
    depends_on_payload = codec in _PAYLOAD_DEPENDENT_CODECS
    shown: list[int] = []
    watch = _ClockWatch(stream)
    for packet in container.demux(stream):
        if not is_packet(packet):
            continue
        PROGRESS.packets += 1
        watch.has_jumped = False
        watch.watch(packet)
        if watch.has_jumped:
            heads[len(log)] = bytes(memoryview(packet)[:MAX_HEAD_BYTES])
        if packet.is_corrupt:
            marked[len(log)] = bytes(packet)
        if not depends_on_payload or _shows_frame(codec, packet):
            shown.append(len(log))
        log.add(packet)
    return shown


def _demux(
    container: InputContainer,
    stream: VideoStream,
    video: Video,
    table: PacketTable,
    file: VideoFile | None,
    probe: FrameProbe | None,
) -> Iterator[Packet[Any]]:
    """Yield the packets of a stream and count them in `table`. The arguments and errors are those of read_packets."""
    max_packets = count_max_packets(video)
    for packet in container.demux([stream] if probe is None else probe.streams):
        if probe is not None:
            if not probe.is_done:
                probe.add(packet)
            if packet.stream_index != stream.index:
                continue
        size, position = packet.size, packet.pos
        if not is_packet(packet):
            continue
        table.count += 1
        refuse_encrypted(packet, video)
        if table.count == 1:
            table.first = packet
        table.last = packet
        if file is not None:
            file.mark_progress()
        if table.count > max_packets:
            raise UnreadableStream(
                f"{video} has more than {max_packets:,} packets, which is more than one for each of its bytes, or more "
                "than an index can hold",
                stream=str(video),
                address=str(video),
            )
        PROGRESS.packets += 1
        if position is not None and position >= 0:
            table.end_offset = max(table.end_offset, position + size)
        yield packet


def count_max_packets(video: Video) -> int:
    """Return the maximum number of packets of a video: one for each byte of the file, or what an index can hold."""
    return min(_MAX_PACKETS, os.path.getsize(video) if isinstance(video, str) else video.info.size or 0)


def _shows_frame(codec: str, packet: Any) -> bool:
    if codec == "vp8":  # RFC 6386, 9.1: bit 4 of the frame tag is show_frame
        return packet.size > 0 and bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return packet.size > 0 and _vp9_shows_frame(memoryview(packet))
    return True


def _vp9_shows_frame(data: memoryview) -> bool:
    """Return show_frame of VP9's uncompressed header (bitstream specification, 6.2 and annex B)."""
    if data[-1] & 0xE0 == 0xC0:
        return True  # a superframe: its last frame is shown
    bits = data[0]
    profile = (bits >> 5 & 1) | (bits >> 3 & 2)
    show_existing_frame = 2 if profile == 3 else 3  # number of the bit
    if bits >> show_existing_frame & 1:
        return True
    return bool(bits >> (show_existing_frame - 2) & 1)


def is_clean_key(codec: str, data: memoryview, length_size: int) -> bool | None:
    """Return whether all frames shown from a key frame on decode without any earlier packet.

    Args:
        codec: FFmpeg's name of the codec.
        data: Bytes of the key frame's packet, or their beginning.
        length_size: Size of the length fields in bytes, from :func:`nal_length_size`.

    Returns:
        None if `data` ends before the first slice, whose type is needed.
    """
    if codec not in ("h264", "hevc"):
        return True
    for unit in split_units(data, length_size):
        kind = unit[0] & 0x1F if codec == "h264" else unit[0] >> 1 & 0x3F
        if codec == "h264" and 1 <= kind <= _H264_IDR:
            return kind == _H264_IDR  # otherwise a recovery point: an open group of pictures, or gradual refresh
        if codec == "hevc" and kind < _HEVC_SLICE_TYPES_END:
            return kind in _HEVC_IRAP
    return None
