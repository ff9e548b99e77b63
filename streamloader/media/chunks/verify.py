"""Verify a new chunk as its readers will use it: read its packets back from the file, decode them, compare frames."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import CorruptStream
from streamloader.media.chunks.format import ChunkIndex, Coding
from streamloader.media.chunks.frame_hash import frame_hash, rgb_hash
from streamloader.media.chunks.packet_decoder import PacketDecoder, read_coding
from streamloader.media.chunks.remux import ChunkRejected
from streamloader.media.chunks.scan import raise_if_cancelled
from streamloader.media.video.container import open_container
from streamloader.media.video.disposable import find_disposable_packets
from streamloader.media.video.index import NOT_CROPPED, Cropping
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, PixelLimit
from streamloader.media.video.packets import is_clean_key, nal_length_size
from streamloader.values import Array

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["ExpectedFrames", "StoredPackets", "read_stored_packets", "verify_chunk"]

_DECODER_OPTIONS: Final[tuple[tuple[tuple[str, str], ...], ...]] = ((), (("strict", "1"),))
_MAX_PACKET_HEADER_BYTES: Final = 64  # between the position that FFmpeg reports for a packet, and its data
_DISPOSABLE_SAMPLE_EVERY: Final = 5  # of this many disposable packets, one is decoded while the others are left out


@dataclass(frozen=True)
class StoredPackets:
    """Packets of a chunk as they are stored in its file.

    Attributes:
        file: Path of the file.
        coding: Coding of the packets.
        offset: Offset in the file of the first byte of each packet, int64 (packets,).
        size: Size of each packet in bytes, int64 (packets,).
        crc: CRC-32 of each packet, int64 (packets,).
        keys: Packets that are key frames, int64 (keys,).
        disposable: Whether each packet is disposable according to its headers, bool (packets,).
        max_pixels: Maximum number of pixels of a frame.
    """

    file: str
    coding: Coding
    offset: Array
    size: Array
    crc: Array
    keys: Array
    disposable: Array
    max_pixels: int

    def __len__(self) -> int:
        """Return the number of packets."""
        return len(self.offset)

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (number, bytes) of packets."""
        with open(self.file, "rb", buffering=0) as chunk:
            for number in numbers:
                yield number, os.pread(chunk.fileno(), int(self.size[number]), int(self.offset[number]))


@dataclass(frozen=True)
class ExpectedFrames:
    """Frames that a chunk must contain.

    Attributes:
        count: Number of frames.
        frame_packet: Packet that contains each frame, int64 (frames,), or None if it is to be determined.
        frame_hash: Function that returns the hash of frame number i, or None if it is unknown.
        rgb_hash: Function that returns the RGB hash of frame number i, or None if it is unknown.
        clean_keys: Packets that are known to be key frames from which all later frames decode correctly, int64 (keys,).
            If given, only the first and the last group of pictures are decoded. Defaults to decoding everything.
    """

    count: int
    frame_packet: Array | None
    frame_hash: Callable[[int], bytes | None]
    rgb_hash: Callable[[int], bytes | None]
    clean_keys: Array | None = None


def read_stored_packets(
    file: str, max_pixels: int = DEFAULT_MAX_PIXELS, cropping: Cropping = NOT_CROPPED
) -> StoredPackets:
    """Find the packets of a chunk in its file.

    Args:
        file: Path of the file.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        cropping: Cropping of the decoded frames. Defaults to none.

    Raises:
        ChunkRejected: If the container does not store each packet in one piece, as FFmpeg returns it.
    """
    # Edit lists are for players; all packets are needed here.
    options = {"ignore_editlist": "1"} if file.endswith(".mp4") else {}
    container = open_container(file, PixelLimit(max_pixels, file), options=options)
    stream = container.streams.video[0]
    columns: tuple[list[int], ...] = [], [], [], []
    offset, size, crc, keys = columns
    with contextlib.closing(container), open(file, "rb", buffering=0) as chunk:
        coding = replace(
            read_coding(stream.codec_context), cropping=(cropping.top, cropping.bottom, cropping.left, cropping.right)
        )
        for packet in container.demux(stream):
            if not packet.size:
                continue
            data = bytes(packet)
            position = packet.pos if packet.pos is not None else -1
            header_bytes = -1
            if position >= 0:
                header_bytes = os.pread(chunk.fileno(), len(data) + _MAX_PACKET_HEADER_BYTES, position).find(data)
            if header_bytes < 0:
                raise ChunkRejected("its packets cannot be located in the file")
            if packet.has_sidedata("new_extradata") or packet.has_sidedata("palette"):
                raise ChunkRejected("its packets do not contain everything needed to decode them")
            if packet.is_keyframe:
                keys.append(len(offset))
            offset.append(position + header_bytes)
            size.append(len(data))
            crc.append(zlib.crc32(data))
    if not offset:
        raise ChunkRejected("none of its packets can be located in the file")
    arrays = dict(
        zip(("offset", "size", "crc", "keys"), (np.array(column, np.int64) for column in columns), strict=True)
    )
    stored = StoredPackets(file, coding, **arrays, disposable=np.zeros(len(offset), bool), max_pixels=max_pixels)
    packets = (data for _, data in stored.read(range(len(offset))))
    disposable = find_disposable_packets(coding.codec, coding.extradata, packets)
    return replace(stored, disposable=np.array(disposable, bool))


def verify_chunk(
    stored: StoredPackets, expected: ExpectedFrames, pts: Array, end: int, is_cancelled: Callable[[], bool]
) -> tuple[ChunkIndex, Coding]:
    """Decode a chunk as its readers will: completely, and from each key frame on without disposable packets.

    Args:
        stored: Packets in the file of the chunk.
        expected: Frames that the chunk must contain.
        pts: Timestamp of each frame for the index, int64 (frames,).
        end: Timestamp at which the last frame ends, for the index.
        is_cancelled: Function that returns whether to stop, called regularly.

    Returns:
        The index of the chunk, with only those key frames and disposable packets that this check confirmed, and its
        coding, with decoder options that make it return all frames.

    Raises:
        ChunkRejected: If frames are missing, or differ from the expected ones.
    """
    reason = ChunkRejected("it cannot be decoded")
    for options in _DECODER_OPTIONS if stored.coding.codec == "h264" else _DECODER_OPTIONS[:1]:
        coding = replace(stored.coding, options=options)
        try:
            verifier = _ChunkVerifier(stored, coding, expected, is_cancelled)
            verifier.verify_frames()
        except ChunkRejected as error:
            reason = error
            continue
        key_packet, key_frame = verifier.find_keys()
        index = ChunkIndex(
            stored.offset, stored.size, verifier.disposable, key_packet, key_frame, verifier.frame_packet, pts, end,
            stored.crc,
        )  # fmt: skip
        return ChunkIndex.decode(index.encode()), coding
    raise reason


def _edge_groups(frame_packet: Array, clean_keys: Array) -> list[tuple[int, int, int, int]]:
    """Return the first and the last group of pictures, as (first packet, end packet, first frame, end frame)."""
    earliest_packet = np.minimum.accumulate(frame_packet[::-1])[::-1]
    is_start = np.isin(frame_packet, clean_keys) & (earliest_packet == frame_packet)
    starts = [int(frame) for frame in np.flatnonzero(is_start) if frame > 0]
    if len(starts) < 2:
        return []
    first, last = starts[0], starts[-1]
    return [
        (0, int(frame_packet[:first].max()) + 1, 0, first),
        (int(frame_packet[last]), int(frame_packet[last:].max()) + 1, last, len(frame_packet)),
    ]


class _ChunkVerifier:
    """Decodes one chunk in several ways, and compares the frames.

    Attributes:
        frame_packet: Packet that contains each frame, int64 (frames,). Set by :meth:`verify_frames`.
        disposable: Whether each packet is disposable, bool (packets,), as far as this was confirmed.
    """

    def __init__(
        self, stored: StoredPackets, coding: Coding, expected: ExpectedFrames, is_cancelled: Callable[[], bool]
    ) -> None:
        self._stored = stored
        self._coding = coding
        self._expected = expected
        self._is_cancelled = is_cancelled
        self._hashes: dict[int, bytes] = {}  # by frame number
        self.frame_packet = np.empty(0, np.int64)
        self.disposable = stored.disposable.copy()

    def verify_frames(self) -> None:
        """Decode all frames that are to be compared, and check that each is present once and correct.

        Raises:
            ChunkRejected: If a frame is missing or differs.
        """
        hashes: dict[int, bytes] = {}
        rgb_hashes: dict[int, bytes] = {}
        frame_packet = self._expected.frame_packet
        frames = {} if frame_packet is None else {packet: frame for frame, packet in enumerate(frame_packet.tolist())}
        groups = [(0, len(self._stored), 0, self._expected.count)]
        if frame_packet is not None and self._expected.clean_keys is not None:
            groups = _edge_groups(frame_packet, self._expected.clean_keys) or groups
        reformatter = VideoReformatter()
        for packet_start, packet_end, frame_start, frame_end in groups:
            for packet, picture in self._decode(range(packet_start, packet_end)):
                if frame_packet is None and packet not in frames:
                    frames[packet] = len(frames)
                frame = frames.get(packet, -1)
                if not frame_start <= frame < frame_end:
                    continue
                if frame in hashes:
                    raise ChunkRejected(f"its packet {packet} contains two frames")
                hashes[frame] = frame_hash(picture)
                if self._expected.rgb_hash(frame) is not None:
                    rgb_hashes[frame] = rgb_hash(picture, reformatter)
            if len(hashes) != frame_end - frame_start:
                raise ChunkRejected(f"it shows {len(hashes)} of {frame_end - frame_start} frames")
            self._hashes |= hashes
            hashes = {}
        self.frame_packet = np.array(list(frames), np.int64)
        self._compare_with_expected(rgb_hashes)
        self.disposable &= np.isin(np.arange(len(self._stored)), self.frame_packet)

    def _compare_with_expected(self, rgb_hashes: dict[int, bytes]) -> None:
        for frame, digest in self._hashes.items():
            if self._expected.frame_hash(frame) not in (None, digest):
                raise ChunkRejected(f"its frame {frame} differs from the source")
        for frame, digest in rgb_hashes.items():
            if self._expected.rgb_hash(frame) != digest:
                raise ChunkRejected(f"its frame {frame} differs in colour from the source")

    def find_keys(self) -> tuple[Array, Array]:
        """Return the packets at which decoding can start, and the first frame that is correct from each of them on.

        Raises:
            ChunkRejected: If frames differ when disposable packets are left out.
        """
        key_packets: list[int] = []
        key_frames: list[int] = []
        end = len(self.frame_packet)
        earliest_packet = np.minimum.accumulate(self.frame_packet[::-1])[::-1]
        for key in sorted({0, *self._stored.keys.tolist()}, reverse=True):
            own_frame = np.flatnonzero(self.frame_packet == key)
            if key and not len(own_frame):
                continue  # all frames that could be decoded from here are shown before this key frame
            first = max(int(np.searchsorted(earliest_packet, key)), int(own_frame[0])) if key else 0
            if first >= end:
                continue
            is_hashed = any(frame in self._hashes for frame in (first, end - 1))
            clean_keys = self._expected.clean_keys if self._expected.clean_keys is not None else ()
            if not is_hashed and key not in clean_keys:
                continue
            correct = self._first_correct_frame(key, first, end) if is_hashed else first
            if correct < end and (key > 0 or correct == 0):
                key_packets.append(key)
                key_frames.append(correct)
                end = correct
            elif key == 0:
                raise ChunkRejected("its frames depend on packets that seemed disposable")
        return np.array(key_packets[::-1], np.int64), np.array(key_frames[::-1], np.int64)

    def _first_correct_frame(self, key: int, first: int, end: int) -> int:
        """Decode from a key frame on. Return the frame in [first, end] from which all frames up to `end` are correct.

        Packets that prove not to be disposable are marked so.
        """
        packet_end = int(self.frame_packet[first:end].max()) + 1
        packets = np.arange(key, packet_end)
        disposable = packets[self.disposable[key:packet_end]]
        wanted = set(self.frame_packet[first:end].tolist())
        left_out = set(disposable.tolist()) - set(disposable[::_DISPOSABLE_SAMPLE_EVERY].tolist())
        correct = self._compare(key, packet_end, left_out, wanted, first, end)
        if left_out and (correct > first or not self._is_clean_key(key)):
            # A frame that was left out may be wrong too, if it lies between a wrong frame and a correct one.
            correct_with_all = self._compare(key, packet_end, set(), wanted, first, end)
            if correct_with_all < correct:
                self.disposable[key:packet_end] = False
            correct = correct_with_all
        return correct

    def _is_clean_key(self, key: int) -> bool:
        ((_, data),) = self._stored.read([key])
        codec, extradata = self._coding.codec, self._coding.extradata
        return bool(is_clean_key(codec, memoryview(data), nal_length_size(codec, extradata)))

    def _compare(self, key: int, packet_end: int, left_out: set[int], wanted: set[int], first: int, end: int) -> int:
        packets = (packet for packet in range(key, packet_end) if packet not in left_out)
        try:
            hashes = {packet: frame_hash(picture) for packet, picture in self._decode(packets) if packet in wanted}
        except ChunkRejected:
            return end
        correct = first
        for frame in range(first, end):
            packet = int(self.frame_packet[frame])
            if packet not in left_out and frame in self._hashes and hashes.get(packet) != self._hashes[frame]:
                correct = frame + 1
        return correct

    def _decode(self, packets: Iterable[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode packets with a new decoder."""
        decoder = PacketDecoder(self._coding, name=self._stored.file, max_pixels=self._stored.max_pixels)
        with contextlib.closing(decoder):
            try:
                for number, data in self._stored.read(packets):
                    raise_if_cancelled(self._is_cancelled, self._stored.file)
                    yield from decoder.send(number, data)
                yield from decoder.drain()
            except CorruptStream as error:
                raise ChunkRejected(error.message) from error
