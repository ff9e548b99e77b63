"""Looking at a chunk that was written as its readers will: where its packets are, and what comes of decoding them."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import CorruptStream
from streamloader.media.chunks.disposable import spare_packets
from streamloader.media.chunks.format import ChunkIndex, Coding
from streamloader.media.chunks.frame_hash import pixel_digest, rgb_digest
from streamloader.media.chunks.packet_decoder import PacketDecoder, coding_of
from streamloader.media.chunks.remux import Unfit
from streamloader.media.chunks.scan import check_cancelled
from streamloader.media.video.packets import hard_key, nal_length_size
from streamloader.values import Array

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["Expected", "Stored", "check_chunk", "read_back"]

_OPTIONS: Final[tuple[tuple[tuple[str, str], ...], ...]] = ((), (("strict", "1"),))
_HEADER: Final = 64  # bytes between where FFmpeg says a packet is, and its data
_SAMPLED: Final = 5  # of so many spare packets, one is decoded while the others are left out


@dataclass(frozen=True)
class Stored:
    """The packets of a chunk as they lie in its file."""

    file: str
    coding: Coding
    offset: Array
    size: Array
    crc: Array
    keys: Array
    spare: Array

    def __len__(self) -> int:
        """Return the number of packets."""
        return len(self.offset)

    def reading(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield packets by their numbers."""
        with open(self.file, "rb", buffering=0) as chunk:
            for number in numbers:
                yield number, os.pread(chunk.fileno(), int(self.size[number]), int(self.offset[number]))


@dataclass(frozen=True)
class Expected:
    """What a chunk has to show: digests of frame number i, where they are known.

    Attributes:
        frames: how many.
        shown: int64 (frames,): the packet that each comes from; None if that is to be found out.
        digest: of the pixels.
        look: of the same in RGB.
        hard: packets that are known to be key frames from which everything later comes out; given if only the groups
            of the first and the last of these are to be decoded.
    """

    frames: int
    shown: Array | None
    digest: Callable[[int], bytes | None]
    look: Callable[[int], bytes | None]
    hard: Array | None = None


def read_back(file: str) -> Stored:
    """Find the packets of a chunk in its file.

    Raises:
        Unfit: the container keeps them in pieces, or otherwise than it gives them back.
    """
    # As they are stored: an edit list is for players.
    options = {"ignore_editlist": "1"} if file.endswith(".mp4") else {}
    container = av.open("file:" + file, options=options)
    stream = container.streams.video[0]
    columns: tuple[list[int], ...] = [], [], [], []
    offset, size, crc, keys = columns
    with contextlib.closing(container), open(file, "rb", buffering=0) as chunk:
        coding = coding_of(stream.codec_context)
        for packet in container.demux(stream):
            if not packet.size:
                continue
            data = bytes(packet)
            at = packet.pos if packet.pos is not None else -1
            inside = os.pread(chunk.fileno(), len(data) + _HEADER, at).find(data) if at >= 0 else -1
            if inside < 0:
                raise Unfit("its packets are not found in the file again")
            if packet.has_sidedata("new_extradata") or packet.has_sidedata("palette"):
                raise Unfit("its packets do not tell everything that it takes to decode them")
            if packet.is_keyframe:
                keys.append(len(offset))
            offset.append(at + inside)
            size.append(len(data))
            crc.append(zlib.crc32(data))
    if not offset:
        raise Unfit("no packet of it is found in the file again")
    named = dict(
        zip(("offset", "size", "crc", "keys"), (np.array(column, np.int64) for column in columns), strict=True)
    )
    stored = Stored(file, coding, **named, spare=np.zeros(len(offset), bool))
    packets = (data for _, data in stored.reading(range(len(offset))))
    return replace(stored, spare=np.array(spare_packets(coding.codec, coding.extradata, packets), bool))


def check_chunk(
    stored: Stored, expected: Expected, pts: Array, end: int, cancelled: Callable[[], bool]
) -> tuple[ChunkIndex, Coding]:
    """Decode a chunk as its readers will: as a whole, and again from each key frame without what is spare.

    Args:
        stored: what was read back.
        expected: what it has to show.
        pts: int64 (frames,), of the index.
        end: of the index.
        cancelled: is asked now and then.

    Returns:
        The index: of key frames and spare packets it lists those that proved to be such. And the coding, with such
        options that all frames come out.

    Raises:
        Unfit: frames are missing, or are not what they should be.
    """
    reason = Unfit("it cannot be decoded")
    for options in _OPTIONS if stored.coding.codec == "h264" else _OPTIONS[:1]:
        coding = replace(stored.coding, options=options)
        try:
            found = _Checking(stored, coding, expected, cancelled)
            found.whole()
        except Unfit as refused:
            reason = refused
            continue
        keys, first = found.keys()
        index = ChunkIndex(
            stored.offset, stored.size, found.spare, keys, first, found.shown, pts, end, stored.crc
        )  # fmt: skip
        return ChunkIndex.decode(index.encode()), coding
    raise reason


def _edges(shown: Array, hard: Array) -> list[tuple[int, int, int, int]]:
    """Return the first group of pictures and the last: packets [start, stop) and frames [first, behind) of each."""
    earliest = np.minimum.accumulate(shown[::-1])[::-1]
    clean = [int(at) for at in np.flatnonzero(np.isin(shown, hard) & (earliest == shown)) if at > 0]
    if len(clean) < 2:
        return []
    first, last = clean[0], clean[-1]
    return [
        (0, int(shown[:first].max()) + 1, 0, first),
        (int(shown[last]), int(shown[last:].max()) + 1, last, len(shown)),
    ]


class _Checking:
    """Decodes one chunk in several ways, and compares."""

    def __init__(self, stored: Stored, coding: Coding, expected: Expected, cancelled: Callable[[], bool]) -> None:
        self._stored = stored
        self._coding = coding
        self._expected = expected
        self._cancelled = cancelled
        self._digests: dict[int, bytes] = {}  # of frames, by their number
        self.shown = np.empty(0, np.int64)
        self.spare = stored.spare.copy()

    def whole(self) -> None:
        """Decode all that is to be compared, in one go, and see that each frame is there and right."""
        found: dict[int, bytes] = {}
        looks: dict[int, bytes] = {}
        shown = self._expected.shown
        numbers = {} if shown is None else {number: at for at, number in enumerate(shown.tolist())}
        spans = [(0, len(self._stored), 0, self._expected.frames)]
        if shown is not None and self._expected.hard is not None:
            spans = _edges(shown, self._expected.hard) or spans
        reformatter = VideoReformatter()
        for start, stop, first, behind in spans:
            for number, frame in self._play(range(start, stop)):
                if shown is None and number not in numbers:
                    numbers[number] = len(numbers)
                at = numbers.get(number, -1)
                if not first <= at < behind:
                    continue
                if at in found:
                    raise Unfit(f"two frames come from packet {number} of it")
                found[at] = pixel_digest(frame)
                if self._expected.look(at) is not None:
                    looks[at] = rgb_digest(frame, reformatter)
            if len(found) != behind - first:
                raise Unfit(f"it shows {len(found)} of {behind - first} frames")
            self._digests |= found
            found = {}
        self.shown = np.array(list(numbers), np.int64)
        self._compare_all(looks)
        self.spare &= np.isin(np.arange(len(self._stored)), self.shown)

    def _compare_all(self, looks: dict[int, bytes]) -> None:
        for at, digest in self._digests.items():
            if self._expected.digest(at) not in (None, digest):
                raise Unfit(f"its frame {at} does not come out as it was")
        for at, look in looks.items():
            if self._expected.look(at) != look:
                raise Unfit(f"its frame {at} does not come out in the same colours")

    def keys(self) -> tuple[Array, Array]:
        """Return the packets at which decoding can begin, and the frames from which each of them is enough."""
        keys: list[int] = []
        firsts: list[int] = []
        behind = len(self.shown)
        earliest = np.minimum.accumulate(self.shown[::-1])[::-1]
        for key in sorted({0, *self._stored.keys.tolist()}, reverse=True):
            own = np.flatnonzero(self.shown == key)
            if key and not len(own):
                continue  # all that could begin here are frames that are shown before it
            first = max(int(np.searchsorted(earliest, key)), int(own[0])) if key else 0
            if first >= behind:
                continue
            known = any(at in self._digests for at in (first, behind - 1))
            if not known and key not in (self._expected.hard if self._expected.hard is not None else ()):
                continue
            right = self._right_from(key, first, behind) if known else first
            if right < behind and (key > 0 or right == 0):
                keys.append(key)
                firsts.append(right)
                behind = right
            elif key == 0:
                raise Unfit("what is left out of it is needed")
        return np.array(keys[::-1], np.int64), np.array(firsts[::-1], np.int64)

    def _right_from(self, key: int, first: int, behind: int) -> int:
        """Decode from a key frame, and return the frame in [first, behind] from which all up to `behind` are right."""
        stop = int(self.shown[first:behind].max()) + 1
        window = np.arange(key, stop)
        spare = window[self.spare[key:stop]]
        wanted = set(self.shown[first:behind].tolist())
        left_out = set(spare.tolist()) - set(spare[::_SAMPLED].tolist())
        right = self._compare(key, stop, left_out, wanted, first, behind)
        if left_out and (right > first or not self._is_hard(key)):
            # What was left out may be wrong too: a picture between one that is wrong and one that is right.
            fully = self._compare(key, stop, set(), wanted, first, behind)
            if fully < right:
                self.spare[key:stop] = False
            right = fully
        return right

    def _is_hard(self, key: int) -> bool:
        ((_, data),) = self._stored.reading([key])
        codec, extradata = self._coding.codec, self._coding.extradata
        return bool(hard_key(codec, memoryview(data), nal_length_size(codec, extradata)))

    def _compare(self, key: int, stop: int, left_out: set[int], wanted: set[int], first: int, behind: int) -> int:
        numbers = (number for number in range(key, stop) if number not in left_out)
        try:
            found = {number: pixel_digest(frame) for number, frame in self._play(numbers) if number in wanted}
        except Unfit:
            return behind
        right = first
        for at in range(first, behind):
            number = int(self.shown[at])
            if number not in left_out and at in self._digests and found.get(number) != self._digests[at]:
                right = at + 1
        return right

    def _play(self, numbers: Iterable[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode packets with a new decoder."""
        decoder = PacketDecoder(self._coding, name=self._stored.file)
        with contextlib.closing(decoder):
            try:
                for number, data in self._stored.reading(numbers):
                    check_cancelled(self._cancelled, self._stored.file)
                    yield from decoder.send(number, data)
                yield from decoder.drain()
            except CorruptStream as error:
                raise Unfit(error.message) from error
