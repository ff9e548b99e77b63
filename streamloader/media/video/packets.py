"""What the packets of a video tell without decoding: which of them show a frame, and where decoding can begin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.media.video.source import decoding

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.remote import Video
    from streamloader.values import Array

__all__ = ["PAYLOAD_MATTERS", "PacketTable", "codec_of", "hard_key", "nal_length_size", "read_packets"]

# Containers that give every frame a packet and a time of its own, and codecs that show one frame for each packet
# (VP8 and VP9 do once their hidden frames are left out). For all others only decoding tells.
_EXACT_CONTAINERS: Final = frozenset({"mov", "mp4", "matroska", "webm"})
_EXACT_CODECS: Final = frozenset(
    "h264 hevc av1 vp8 vp9 mjpeg prores dnxhd ffv1 png huffyuv ffvhuff utvideo jpeg2000 qtrle".split()  # noqa: SIM905
)
PAYLOAD_MATTERS: Final = frozenset({"vp8", "vp9"})  # where the bytes of every packet say whether it shows a frame
_IDR_H264: Final = 5
_SLICES_HEVC: Final = 32  # types below hold slices
_IRAP_HEVC: Final = range(16, 22)  # BLA, IDR and CRA: what follows in output order needs nothing from before


@dataclass
class PacketTable:
    """The packets of a file in storage order, reduced to what an index needs."""

    pts: list[int] = field(default_factory=list)  # of packets that show a frame
    ends: list[int] = field(default_factory=list)  # pts + duration of the same
    key_pts: list[int] = field(default_factory=list)
    key_seek: list[int] = field(default_factory=list)  # what to ask the demuxer for to get there
    key_hard: list[bool] = field(default_factory=list)
    key_bytes: list[tuple[int, int]] = field(default_factory=list)  # [start, end) in the file; start < 0 if unknown
    count: int = 0  # all packets
    end_position: int = 0  # byte behind the last packet, where the container says
    exact: bool = True  # the pts are those of the shown frames, as far as packets can tell

    def keys(self) -> tuple[Array, Array, Array]:
        """Return of the key frames, sorted by pts: pts, seek times, and whether nothing before it is needed."""
        order = np.argsort(np.array(self.key_pts, np.int64), kind="stable")
        pts, seek = np.array(self.key_pts, np.int64)[order], np.array(self.key_seek, np.int64)[order]
        return pts, seek, np.array(self.key_hard, bool)[order]


def codec_of(stream: VideoStream) -> str:
    """Return the name of the codec, whatever decodes it here."""
    name = str(stream.codec_context.name)
    return {"libdav1d": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(name, name)


def read_packets(
    container: InputContainer, stream: VideoStream, video: Video, table: PacketTable, *, hollow: bool = False
) -> None:
    """Demux the whole file once, adding its packets to `table`.

    Args:
        container: the open file.
        stream: its video stream.
        video: for errors.
        table: what is added to.
        hollow: the bytes of packets are not there: ``key_hard`` is left for the caller to fill in.

    Raises:
        CorruptStream: the demuxer failed; `table` then has the packets up to there.
        StoreError: bytes of it could not be had.
    """
    codec = codec_of(stream)
    family = set(container.format.name.split(","))
    table.exact = bool(family & _EXACT_CONTAINERS) and codec in _EXACT_CODECS
    seeks_by_dts = bool(family & {"mpegts", "mpeg"})  # where a search for the pts ends behind the key frame
    length_size = nal_length_size(codec, stream.codec_context.extradata)
    with decoding(video):
        for packet in container.demux(stream):
            if packet.size == 0 and packet.pts is None and packet.dts is None:
                continue  # the flush packet at the end
            table.count += 1
            if packet.pos is not None and packet.pos >= 0:
                table.end_position = max(table.end_position, packet.pos + packet.size)
            if packet.is_corrupt or packet.is_discard or packet.pts is None:
                table.exact = False
            if packet.is_keyframe and packet.pts is not None:
                table.key_pts.append(packet.pts)
                table.key_seek.append(packet.dts if seeks_by_dts and packet.dts is not None else packet.pts)
                table.key_hard.append(not hollow and bool(hard_key(codec, memoryview(packet), length_size)))
                at = -1 if packet.pos is None else packet.pos
                table.key_bytes.append((at, at + packet.size))
            elif table.count == 1:
                table.exact = False  # begins in the middle of something: the decoder drops what it cannot show
            if table.exact and packet.pts is not None and _shows_a_frame(codec, packet):
                table.pts.append(packet.pts)
                table.ends.append(packet.pts + (packet.duration or 0))
    table.exact = table.exact and len(set(table.pts)) == len(table.pts) > 0


def _shows_a_frame(codec: str, packet: Any) -> bool:
    if codec == "vp8":  # RFC 6386, 9.1: bit 4 of the frame tag is show_frame
        return packet.size > 0 and bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return packet.size > 0 and _vp9_shows(memoryview(packet))
    return True


def _vp9_shows(data: memoryview) -> bool:
    """Read VP9's uncompressed header (bitstream specification, 6.2 and annex B) as far as show_frame."""
    if data[-1] & 0xE0 == 0xC0:
        return True  # a superframe: its last frame is shown
    bits = data[0]
    profile = (bits >> 5 & 1) | (bits >> 3 & 2)
    at = 2 if profile == 3 else 3
    if bits >> at & 1:
        return True
    return bool(bits >> (at - 2) & 1)  # behind show_existing_frame and frame_type


def hard_key(codec: str, data: memoryview, length_size: int) -> bool | None:
    """Say whether all frames shown from a key frame on can be decoded from it alone.

    Args:
        codec: of the stream.
        data: of the packet, or its beginning.
        length_size: see :func:`nal_length_size`.

    Returns:
        None if `data` does not reach the first slice, which tells.
    """
    if codec not in ("h264", "hevc"):
        return True
    for head in _nal_heads(data, length_size):
        kind = head & 0x1F if codec == "h264" else head >> 1 & 0x3F
        if codec == "h264" and 1 <= kind <= _IDR_H264:
            return kind == _IDR_H264  # else a recovery point: an open group, or gradual refresh
        if codec == "hevc" and kind < _SLICES_HEVC:
            return kind in _IRAP_HEVC
    return None


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Return the bytes of the length before each NAL unit, or 0 where start codes are used instead."""
    if not extradata or extradata[0] != 1:
        return 0
    at = {"h264": 4, "hevc": 21}.get(codec, len(extradata))
    return (extradata[at] & 3) + 1 if at < len(extradata) else 0


def _nal_heads(data: memoryview, length_size: int) -> list[int]:
    heads = []
    if length_size:
        at = 0
        while at + length_size < len(data):
            heads.append(data[at + length_size])
            at += length_size + int.from_bytes(data[at : at + length_size], "big")
        return heads
    raw = bytes(data)
    at = raw.find(b"\0\0\1")
    while 0 <= at < len(raw) - 3:
        heads.append(raw[at + 3])
        at = raw.find(b"\0\0\1", at + 3)
    return heads
