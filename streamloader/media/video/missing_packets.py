"""Notice packets that FFmpeg passes over, so that frames are missing without an error.

FFmpeg's demuxers of Matroska, FLV, Ogg and MPEG-TS search on after bytes that they cannot parse. What is in them is
gone, and the packets after it look intact. So the structure of a file is followed from one packet to the next one where
the timestamps leave a gap, and at both ends. In MPEG-TS, FFmpeg also marks a packet near missing ones; it marks packets
of recordings that were joined too, where nothing is missing and there is no gap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from streamloader.media.declared_sizes import ReadAt
from streamloader.media.video.files import open_media_file
from streamloader.media.video.ogg_pages import find_damaged_page
from streamloader.media.video.remote import Video, VideoFile
from streamloader.media.video.structure import (
    EbmlElement,
    find_segment_end,
    iterate_elements,
    read_element,
    read_number,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

__all__ = ["PacketSpans", "find_missing_packets"]

Follow: TypeAlias = "Callable[[ReadAt, int, int | None, int | None], int | None]"

_GAP_STEPS: Final = 1.5  # a longer distance of two frames, in usual ones, is a gap
_MAX_LOSS_S: Final = 1  # in MPEG-TS; a longer gap is one between two recordings
_MARK_DISTANCE: Final = 4  # packets from one that FFmpeg marks to the gap: its parser holds some back
_TS_SYNC: Final = b"\x47"  # the first byte of each packet of a transport stream
_TS_PACKET_BYTES: Final = (188, 192, 204)
_MAX_TS_BYTES: Final = 16 << 20
_MAX_NEAR_BYTES: Final = 16  # from the end of a packet to the next one: nothing fits in there
_MAX_REMOTE_SPANS: Final = 64  # that are read of a file in a store, the longest ones
_MAX_ELEMENTS: Final = 1 << 16  # between two packets; each costs a read
_MAX_BLOCK_ID_BYTES: Final = 9  # of the identifier and the size of a Matroska block
_SEGMENT: Final = 0x18538067
_CLUSTER: Final = 0x1F43B675
_BLOCK_GROUP: Final = 0xA0
_BLOCKS: Final = frozenset({0xA3, 0xA1})  # SimpleBlock and Block
_TRACKS: Final = 0x1654AE6B
_TRACK_NUMBER: Final = 0xD7
_BLOCK_FIELDS_BYTES: Final = 3  # of a block after its track number: timestamp and flags
_UNKNOWN_END: Final = 1 << 62
_PARENTS: Final = frozenset({_SEGMENT, _CLUSTER, _BLOCK_GROUP})
_FLV_TAGS: Final = frozenset({8, 9, 18})  # sound, video, and data
_FLV_TYPE: Final = 0x1F  # the bits of a tag's type
_FLV_OFFSET: Final = 5  # where the header of a file states its own size
_FLV_TAG_BYTES: Final = 11  # of the header of a tag
_MAX_PADDING_BYTES: Final = 64 << 10  # zeros at the end of a file
_FLV_SIZE_BYTES: Final = 4  # of the size that follows each tag


@dataclass
class PacketSpans:
    """Where the packets of a file are, in storage order. Empty for containers that are not followed.

    Attributes:
        position: Offset in bytes of each packet, as FFmpeg reports it.
        size: Size of each packet in bytes.
        pts: Presentation timestamp of each packet, or None.
        dts: Decoding timestamp of each packet, or None.
        marked: Numbers of the packets that FFmpeg marks as damaged.
    """

    position: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    marked: list[int] = field(default_factory=list)

    def add(self, packet: Packet[Any]) -> None:
        """Add the next packet."""
        if packet.is_corrupt:
            self.marked.append(len(self.pts))
        self.position.append(-1 if packet.pos is None else packet.pos)
        self.size.append(packet.size)
        self.pts.append(packet.pts)
        self.dts.append(packet.dts)


def find_missing_packets(
    container: InputContainer, video: Video, file: VideoFile | None, spans: PacketSpans, time_base: Fraction
) -> tuple[int, str] | None:
    """Return the number of the packet before which others are missing and the reason, or None if none are known to be.

    Args:
        container: Open file.
        video: Path of a local file, or a video in a store.
        file: Open bytes of a video in a store.
        spans: All packets of the video.
        time_base: Unit of their timestamps in seconds.

    Raises:
        StoreError: If the store fails to deliver bytes.
    """
    names = set(container.format.name.split(","))
    if "mpegts" in names:
        return _find_loss_in_ts(video, file, spans, time_base)
    if "ogg" in names:
        damaged = find_damaged_page(video, file)
        if damaged is None:
            return None
        number = int(np.searchsorted(np.array(spans.position, np.int64), damaged))
        return number, f"the page at byte {damaged} is damaged, or one before it is missing"
    follow = _follow_matroska if "matroska" in names else _follow_flv if "flv" in names else None
    if follow is None or not spans.size or min(spans.position) < 0:
        return None
    with _open_reader(video, file) as (read, size):
        return _follow_spans(follow, read, size, spans, is_remote=file is not None)


def _find_loss_in_ts(
    video: Video, file: VideoFile | None, spans: PacketSpans, time_base: Fraction
) -> tuple[int, str] | None:
    """Return the first packet of a transport stream before which others are missing, or None.

    There is a gap before it, and FFmpeg marks a packet near it, or what is in between are no packets of a transport
    stream.
    """
    if None in spans.dts:
        return None
    steps = np.diff(np.array(spans.dts, np.int64))
    shortest, longest = int(_GAP_STEPS * _usual_step(spans.dts)), int(_MAX_LOSS_S / time_base)
    gaps = np.flatnonzero((steps > shortest) & (steps <= longest)) + 1
    if not len(gaps):
        return None
    marked = np.array(spans.marked, np.int64)
    with _open_reader(video, file) as (read, _):
        for gap in gaps[: _MAX_REMOTE_SPANS if file is not None else None].tolist():
            if np.abs(marked - gap).min(initial=_MARK_DISTANCE + 1) <= _MARK_DISTANCE:
                return gap, "FFmpeg marks what remains there as damaged"
            damaged = _find_lost_sync(read, spans.position[gap - 1], spans.position[gap])
            if damaged is not None:
                return gap, f"the bytes from {damaged} on cannot be parsed"
    return None


def _find_lost_sync(read: ReadAt, start: int, end: int) -> int | None:
    """Return the offset of the first bytes between two packets that are no packets of a transport stream, or None."""
    if not 0 <= start < end <= start + _MAX_TS_BYTES:
        return None
    data = read(start, end - start)
    for size in _TS_PACKET_BYTES:
        if not len(data) % size and data[:1] == _TS_SYNC:
            signs = data[::size]
            return None if signs == _TS_SYNC * len(signs) else start + size * (len(signs) - len(signs.lstrip(_TS_SYNC)))
    return None


def _usual_step(times: list[int | None]) -> float:
    """Return the median distance of two frames, in order of their times."""
    steps = np.diff(np.sort(np.array([time for time in times if time is not None], np.int64)))
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 0.0


def _follow_spans(
    follow: Follow, read: ReadAt, size: int, spans: PacketSpans, *, is_remote: bool
) -> tuple[int, str] | None:
    """Follow the structure of a file between its packets, see :func:`find_missing_packets`."""
    positions, sizes = np.array(spans.position, np.int64), np.array(spans.size, np.int64)
    numbers = [0]
    if _has_gap(spans.pts):
        distances = positions[1:] - positions[:-1] - sizes[:-1]
        far = np.flatnonzero((distances > _MAX_NEAR_BYTES) & (np.diff(positions) > 0)) + 1
        if is_remote:
            far = np.sort(far[np.argsort(distances[far - 1])[::-1][:_MAX_REMOTE_SPANS]])
        numbers += far.tolist()
    numbers.append(len(positions))
    for number in numbers:
        start = None if number == 0 else spans.position[number - 1]
        target = None if number == len(positions) else spans.position[number]
        damaged = follow(read, size, start, target)
        if damaged is not None:
            return number, f"the bytes from {damaged} on cannot be parsed"
    return None


def _has_gap(times: list[int | None]) -> bool:
    """Return whether some frame is later than usual, or unknown."""
    if None in times:
        return True
    steps = np.diff(np.sort(np.array(times, np.int64)))
    return bool(len(steps) and steps.max() > _GAP_STEPS * _usual_step(times) + 1)


@contextlib.contextmanager
def _open_reader(video: Video, file: VideoFile | None) -> Iterator[tuple[ReadAt, int]]:
    if file is not None:
        yield file.remote.read_at, file.remote.size
        return
    with open(open_media_file(str(video)), "rb", buffering=0) as local:
        descriptor = local.fileno()
        yield lambda offset, count: os.pread(descriptor, count, offset), os.fstat(descriptor).st_size


def _follow_matroska(read: ReadAt, size: int, position: int | None, target: int | None) -> int | None:
    """Return the offset of the first bytes that are no element, from one block to the next, or None.

    Args:
        read: Function that returns up to `count` bytes from an offset.
        size: Size of the file in bytes.
        position: Position of the first block, at its contents, or None to start at the beginning of the file.
        target: Position of the other block, or None to end at the end of the segment.
    """
    offset = 0 if position is None else _find_block_end(read, position)
    end = find_segment_end(read) if target is None else target
    if offset is None or end is None:
        return None
    neighbour = target if position is None else position
    own = None if neighbour is None else read_number(read(neighbour, _MAX_BLOCK_ID_BYTES))[0]
    for _ in range(_MAX_ELEMENTS):
        if offset >= min(end, size):
            return None if target is None else offset
        element = read_element(read, offset)
        if element is None:
            return offset
        if element.identifier in _BLOCKS and element.start == target:
            return None
        following = element.start if element.identifier in _PARENTS else element.end
        if following is None or following > end or _is_lost_block(read, element, own):
            return offset
        offset = following
    return None


def _is_lost_block(read: ReadAt, block: EbmlElement, own: int | None) -> bool:
    """Return whether an element is a block of the video that FFmpeg has passed over, as far as this can be known.

    Args:
        read: Function that returns up to `count` bytes from an offset.
        block: The element.
        own: Number of the video's track.
    """
    if block.identifier not in _BLOCKS:
        return False
    head = read(block.start, _MAX_BLOCK_ID_BYTES)
    number, number_bytes = read_number(head)
    if not number:
        return True
    if number == own:
        return block.end is None or block.end - block.start > number_bytes + _BLOCK_FIELDS_BYTES  # or it is empty
    return number not in _list_tracks(read)


def _list_tracks(read: ReadAt) -> set[int]:
    """Return the numbers of the tracks that a Matroska file declares, in the one segment that most files have."""
    numbers: set[int] = set()
    for outer in iterate_elements(read, 0, _UNKNOWN_END):
        for tracks in iterate_elements(read, *outer[1:]) if outer[0] == _SEGMENT else ():
            if tracks[0] == _CLUSTER:
                return numbers
            for entry in iterate_elements(read, *tracks[1:]) if tracks[0] == _TRACKS else ():
                for kind, start, end in iterate_elements(read, *entry[1:]):
                    if kind == _TRACK_NUMBER:
                        numbers.add(int.from_bytes(read(start, min(end - start, 8)), "big"))
    return numbers


def _find_block_end(read: ReadAt, position: int) -> int | None:
    """Return the offset at which a block ends whose contents begin at a position, or None if that is unclear."""
    before = max(0, position - _MAX_BLOCK_ID_BYTES)
    head = read(before, position - before)
    for start in range(len(head) - 2, -1, -1):  # an identifier of one byte, and a size of one byte or more
        if head[start] in _BLOCKS:
            element = read_element(read, before + start)
            if element is not None and element.start == position:
                return element.end
    return None


def _follow_flv(read: ReadAt, size: int, position: int | None, target: int | None) -> int | None:
    """Return the offset of the first bytes that are no tag, see :func:`_follow_matroska`."""
    offset = int.from_bytes(read(_FLV_OFFSET, 4), "big") + _FLV_SIZE_BYTES if position is None else position
    end = size if target is None else target
    for _ in range(_MAX_ELEMENTS):
        if offset == target:
            return None
        head = read(offset, _FLV_TAG_BYTES) if offset < end else b""
        if len(head) < _FLV_TAG_BYTES or head[0] & _FLV_TYPE not in _FLV_TAGS:
            is_padding = target is None and not read(offset, _MAX_PADDING_BYTES).strip(b"\0")
            return None if is_padding else offset
        offset += _FLV_TAG_BYTES + int.from_bytes(head[1:4], "big") + _FLV_SIZE_BYTES
    return None
