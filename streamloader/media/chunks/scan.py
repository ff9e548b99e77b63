"""Scan a source video before it is cut: its packets, which packet contains each frame, and hashes of its frames."""

from __future__ import annotations

import base64
import binascii
import contextlib
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av.error
import numpy as np
from av.packet import Packet
from av.video.reformatter import VideoReformatter

from streamloader.common.inflate import inflate
from streamloader.errors import ClosedError, CorruptStream
from streamloader.media.chunks.frame_hash import HASH_BYTES, frame_hash, rgb_hash
from streamloader.media.progress import PROGRESS
from streamloader.media.video.cropping import FrameCropper
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.packets import codec_name, is_clean_key, nal_length_size
from streamloader.media.video.source import concealed_error, open_video, refuse_concealed, translate_errors
from streamloader.values import Array

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["NO_TIMESTAMP", "RGB_SAMPLE_EVERY", "SourceScan", "raise_if_cancelled", "scan_source"]

RGB_SAMPLE_EVERY: Final = 16  # every 16th frame is also hashed in RGB
NO_TIMESTAMP: Final = int(np.iinfo(np.int64).min)
_KEY_COLUMNS: Final = 6  # of SourceScan.keys
_MAX_COLUMN_BYTES: Final = 256 << 20  # of one array in the JSON form: the timestamps of 32 million frames
# The names of the arrays in the JSON form, in its order -> the attributes of SourceScan.
_JSON_ARRAYS: Final = {
    "pts": "pts", "packet": "frame_packet", "times": "packet_pts", "keys": "keys", "shapes": "shape_changes",
    "concealed": "concealed",
}  # fmt: skip
_JSON_BYTES: Final = {"digests": "frame_hashes", "looks": "rgb_hashes"}


@dataclass(frozen=True, eq=False)
class SourceScan:
    """Frames and key frames of a source. Frames are numbered from 0; so are packets, in storage order.

    Attributes:
        pts: Timestamp of each frame in units of `time_base`, int64 (frames,), strictly increasing.
        time_base: Duration of one unit of `pts`, in seconds.
        end: Timestamp at which the last frame ends.
        frame_packet: Packet that contains each frame, int64 (frames,). Empty if this is unknown.
        packet_pts: Timestamp of each packet, or NO_TIMESTAMP, int64 (packets,).
        keys: Key frames, int64 (keys, 6). The columns are: packet number, its pts and its dts (or NO_TIMESTAMP), its
            size in bytes, its CRC-32, and 1 if all frames shown after it decode from it alone.
        shape_changes: Frames whose size, pixel format or colour tags differ from the frame before, int64 (changes,).
        frame_hashes: Hashes of all frames, decoded from the start, 8 bytes each. Empty if the source was not decoded.
        rgb_hashes: RGB hashes of every 16th frame, 8 bytes each. Empty if the source was not decoded.
        codec: FFmpeg's name of the codec.
        note: Reason why packets of the source cannot be copied. Empty if they can.
        stream: Number of the video stream among those of the source.
        concealed: Frames of which FFmpeg has concealed parts, int64 (frames,). Only a damaged source has some.
    """

    pts: Array
    time_base: Fraction
    end: int
    frame_packet: Array
    packet_pts: Array
    keys: Array
    shape_changes: Array
    frame_hashes: bytes = b""
    rgb_hashes: bytes = b""
    codec: str = ""
    note: str = ""
    stream: int = 0
    concealed: Array = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    def frame_hash(self, frame: int) -> bytes | None:
        """Return the hash of a frame, or None if it is unknown."""
        return self.frame_hashes[HASH_BYTES * frame : HASH_BYTES * (frame + 1)] or None

    def rgb_hash(self, frame: int) -> bytes | None:
        """Return the RGB hash of a frame, or None if it is unknown."""
        if frame % RGB_SAMPLE_EVERY:
            return None
        sample = frame // RGB_SAMPLE_EVERY
        return self.rgb_hashes[HASH_BYTES * sample : HASH_BYTES * (sample + 1)] or None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        document: dict[str, Any] = {"time_base": str(self.time_base), "end": self.end, "codec": self.codec}
        document |= {"note": self.note, "stream": self.stream}
        columns = {
            name: np.ascontiguousarray(getattr(self, attribute).astype("<i8").T).tobytes()
            for name, attribute in _JSON_ARRAYS.items()
        }
        columns |= {name: getattr(self, attribute) for name, attribute in _JSON_BYTES.items()}
        for name, data in columns.items():
            document[name] = base64.b64encode(zlib.compress(data, 1)).decode()
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SourceScan:
        """Rebuild a scan from :meth:`to_json`.

        Raises:
            CorruptStream: If `document` is not a valid scan.
        """
        try:
            values: dict[str, Any] = {"end": int(document["end"]), "note": str(document["note"])}
            values["codec"] = str(document["codec"])
            values["stream"] = int(document["stream"])
            values["time_base"] = Fraction(document["time_base"])
            for name, attribute in (_JSON_ARRAYS | _JSON_BYTES).items():
                values[attribute] = inflate(base64.b64decode(document[name], validate=True), _MAX_COLUMN_BYTES)
            for attribute in _JSON_ARRAYS.values():
                values[attribute] = np.frombuffer(values[attribute], "<i8").astype(np.int64)
            values["keys"] = np.ascontiguousarray(values["keys"].reshape(_KEY_COLUMNS, -1).T)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, binascii.Error) as error:
            raise CorruptStream(f"this is not a valid plan for cutting a video: {error!r}") from error
        return cls(**values)


def raise_if_cancelled(is_cancelled: Callable[[], bool], path: str) -> None:
    """Raise an error if the work was cancelled.

    Raises:
        ClosedError: If the work was cancelled.
    """
    PROGRESS.packets += 1
    if is_cancelled():
        raise ClosedError(f"cutting {path} was cancelled", stream=path, address=path)


def scan_source(
    path: str,
    index: VideoIndex,
    *,
    decode: bool,
    is_cancelled: Callable[[], bool],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> SourceScan:
    """Read all packets of a source. Decode it once from the start if requested, or if its packets are not sufficient.

    Args:
        path: Path of the local file.
        index: Index of the video.
        decode: Whether to hash all frames.
        is_cancelled: Function that returns whether to stop. Called before each packet.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.

    Raises:
        CorruptStream: If the source is damaged, or changed since it was indexed.
        MediaLimitExceeded: If a frame exceeds `max_pixels`.
        ClosedError: If the work was cancelled.
    """
    scan = SourceScan(
        pts=index.pts, time_base=index.time_base, end=index.end, frame_packet=np.empty(0, np.int64),
        packet_pts=np.empty(0, np.int64), keys=np.empty((0, _KEY_COLUMNS), np.int64),
        shape_changes=np.empty(0, np.int64), stream=index.stream,
    )  # fmt: skip
    limit = PixelLimit(max_pixels, path)
    if not decode and index.has_pts and index.seekable:
        packets = _PacketLog(index)
        with contextlib.closing(_demux_numbered(path, packets, is_cancelled, limit, tolerant=False)) as demuxed:
            for _ in demuxed:
                pass
        frame_packet = packets.match_frames(index)
        if frame_packet is not None:
            return replace(
                scan, frame_packet=frame_packet, packet_pts=packets.pts_array(), keys=packets.key_table(),
                codec=packets.codec,
            )  # fmt: skip
    return _scan_by_decoding(path, index, scan, is_cancelled, limit)


class _PacketLog:
    """Timestamps and key frames of the packets demuxed so far.

    Args:
        index: Index of the video, whose new timestamps of packets are used if it has some.

    Attributes:
        stream: Number of the video stream among those of the file.
        pts: Timestamp of each packet, or None.
        keys: Rows of SourceScan.keys.
        codec: FFmpeg's name of the codec.
        obstacle: Reason why the packets cannot be copied one by one. Empty if they can.
    """

    def __init__(self, index: VideoIndex) -> None:
        self.stream = index.stream
        self._new_pts = None if index.retiming is None else index.retiming.packet_pts
        self.pts: list[int | None] = []
        self.keys: list[tuple[int, ...]] = []
        self.codec = ""
        self.obstacle = ""

    def add_timestamp(self, pts: int | None) -> None:
        """Add the timestamp of the next packet."""
        if self._new_pts is not None:
            number = len(self.pts)
            new = int(self._new_pts[number]) if number < len(self._new_pts) else NO_TIMESTAMP
            pts = None if new == NO_TIMESTAMP else new
        self.pts.append(pts)

    def pts_array(self) -> Array:
        return np.array([NO_TIMESTAMP if pts is None else pts for pts in self.pts], np.int64)

    def key_table(self) -> Array:
        return np.array(self.keys, np.int64).reshape(-1, _KEY_COLUMNS)

    def match_frames(self, index: VideoIndex) -> Array | None:
        """Return the packet of each frame if every packet has the timestamp of one frame, otherwise None."""
        if self.obstacle or None in self.pts or len(self.pts) != len(index):
            return None
        pts = np.array(self.pts, np.int64)
        order = np.argsort(pts, kind="stable").astype(np.int64)
        return order if np.array_equal(pts[order], index.pts) else None


def _demux_numbered(
    path: str, packets: _PacketLog, is_cancelled: Callable[[], bool], limit: PixelLimit, *, tolerant: bool
) -> Generator[Any, None, None]:
    """Yield all packets with their numbers as timestamps, then the empty packet that flushes the decoder."""
    container, stream = open_video(path, max_pixels=limit.max_pixels, number=packets.stream)
    with contextlib.closing(container), translate_errors(path):
        refuse_concealed(stream, tolerant=tolerant)
        codec = packets.codec = codec_name(stream)
        length_size = nal_length_size(codec, stream.codec_context.extradata)
        number = 0
        for packet in _read_to_damage(container, stream, tolerant=tolerant):
            raise_if_cancelled(is_cancelled, path)
            if packet.size == 0:
                if packet.pts is None and packet.dts is None:
                    yield packet
                    return
                packets.obstacle = "some of its packets are empty"
                continue
            packets.add_timestamp(packet.pts)
            if packet.is_keyframe:
                data = memoryview(packet)
                times = (NO_TIMESTAMP if value is None else value for value in (packet.pts, packet.dts))
                is_clean = is_clean_key(codec, data, length_size)
                packets.keys.append((number, *times, packet.size, zlib.crc32(data), int(bool(is_clean))))
            if packet.is_discard:
                packets.obstacle = packets.obstacle or "some of its packets are not shown"
            packet.pts = packet.dts = number
            number += 1
            yield packet


def _read_to_damage(container: InputContainer, stream: VideoStream, *, tolerant: bool) -> Iterator[Any]:
    """Yield the packets of a stream. If `tolerant`, they end where the demuxer fails, with the empty packet."""
    try:
        yield from container.demux(stream)
    except (av.error.FFmpegError, EOFError):
        if not tolerant:
            raise
        packet: Packet[Any] = Packet()
        packet.stream = stream
        yield packet


def _scan_by_decoding(
    path: str, index: VideoIndex, scan: SourceScan, is_cancelled: Callable[[], bool], limit: PixelLimit
) -> SourceScan:
    packets, frame_hashes, rgb_hashes = _PacketLog(index), bytearray(), bytearray()
    cropper = FrameCropper(index.cropping)
    numbers: list[int] = []
    shape_changes: list[int] = []
    concealed: list[int] = []
    reformatter, shape = VideoReformatter(), None
    demuxing = _demux_numbered(path, packets, is_cancelled, limit, tolerant=index.damaged)
    with contextlib.closing(demuxing) as demuxed, translate_errors(path):
        for packet in demuxed:
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if not index.damaged:
                    raise
                continue
            limit.check_frames(frames)
            for frame in map(cropper.crop, frames):
                if frame.is_corrupt:
                    _require_damaged(index, path, len(numbers))
                    concealed.append(len(numbers))
                found = _describe_shape(frame)
                if shape is not None and shape != found:
                    shape_changes.append(len(numbers))
                shape = found
                if len(numbers) % RGB_SAMPLE_EVERY == 0:
                    rgb_hashes += rgb_hash(frame, reformatter)
                numbers.append(-1 if frame.pts is None else frame.pts)
                frame_hashes += frame_hash(frame)
    if len(numbers) != len(index):
        raise CorruptStream(
            f"{path} has {len(numbers)} frames, but its index has {len(index)}: it was changed while it was read",
            stream=path,
            address=path,
            offset=len(numbers),
        )
    scan = replace(
        scan, packet_pts=packets.pts_array(), keys=packets.key_table(),
        shape_changes=np.array(shape_changes, np.int64), concealed=np.array(concealed, np.int64),
        frame_hashes=bytes(frame_hashes), rgb_hashes=bytes(rgb_hashes), codec=packets.codec,
    )  # fmt: skip
    frame_packet = np.array(numbers, np.int64)
    if len(set(numbers)) < len(numbers) or frame_packet.min() < 0 or frame_packet.max() >= len(packets.pts):
        return replace(scan, note="its frames do not each have a packet of their own")
    if packets.obstacle.endswith("empty"):
        return replace(scan, note=packets.obstacle)
    packet_pts = [packets.pts[number] for number in numbers]
    if index.has_pts and None not in packet_pts and not np.array_equal(np.array(packet_pts, np.int64), index.pts):
        return replace(scan, note="its frames have other timestamps than their packets")
    return replace(scan, frame_packet=frame_packet)


def _require_damaged(index: VideoIndex, path: str, frame: int) -> None:
    """Raise an error for a frame of which FFmpeg has concealed parts, unless the video is known to be damaged."""
    if not index.damaged:
        raise concealed_error(path, frame)


def _describe_shape(frame: VideoFrame) -> tuple[str | int, ...]:
    """Return what an encoder cannot change in the middle of a chunk."""
    colors = frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc
    return frame.format.name, frame.width, frame.height, *map(int, colors)
