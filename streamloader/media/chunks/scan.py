"""What has to be known of a source before it is cut: its packets, which of them its frames come from, and digests."""

from __future__ import annotations

import base64
import binascii
import contextlib
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import ClosedError, CorruptStream
from streamloader.media.chunks.frame_hash import DIGEST, pixel_digest, rgb_digest
from streamloader.media.video.index import VideoIndex
from streamloader.media.video.packets import codec_of, hard_key, nal_length_size
from streamloader.media.video.source import decoding, open_video
from streamloader.values import Array

__all__ = ["LOOK", "NEVER", "Survey", "check_cancelled", "survey_source"]

LOOK: Final = 16  # of so many frames one is also looked at in RGB
NEVER: Final = int(np.iinfo(np.int64).min)  # a time that is not known
_KEY: Final = 6  # columns of Survey.keys


@dataclass(frozen=True, eq=False)
class Survey:
    """The frames and key frames of one source, numbered from 0, packets in the order in which they are stored.

    Attributes:
        pts: int64 (frames,), strictly increasing, in ticks of the time base.
        time_base: seconds of a tick.
        end: tick at which the last frame ends.
        packet: int64 (frames,): the packet that each frame comes from; empty where that cannot be told.
        times: int64 (packets,): pts of each packet, or the lowest int64 where it has none.
        keys: int64 (keys, 6): of each key frame its packet, the pts and dts of that (or the lowest int64 where it has
            none), its size, its CRC-32, and 1 if all that is shown after it can be decoded from it alone.
        shapes: int64 (changes,): frames that differ from the one before in size or pixel format.
        digests: bytes (frames x 8): of each frame's pixels, decoded from the beginning; empty if that was not done.
        looks: bytes (x 8): of what every 16th frame looks like in RGB.
        codec: FFmpeg's name of it.
        note: why packets cannot be copied, if so.
    """

    pts: Array
    time_base: Fraction
    end: int
    packet: Array
    times: Array
    keys: Array
    shapes: Array
    digests: bytes = b""
    looks: bytes = b""
    codec: str = ""
    note: str = ""

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    def digest(self, frame: int) -> bytes | None:
        """Return the digest of a frame; None if it is not known."""
        return self.digests[DIGEST * frame : DIGEST * (frame + 1)] or None

    def look(self, frame: int) -> bytes | None:
        """Return the digest of a frame in RGB; None if it is not known."""
        return None if frame % LOOK else self.looks[DIGEST * (frame // LOOK) : DIGEST * (frame // LOOK + 1)] or None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        told: dict[str, Any] = {"time_base": str(self.time_base), "end": self.end, "codec": self.codec}
        told["note"] = self.note
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value.astype("<i8").T).tobytes()
            if isinstance(value, bytes):
                told[item.name] = base64.b64encode(zlib.compress(value, 1)).decode()
        return told

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Survey:
        """Rebuild it.

        Raises:
            CorruptStream: that is none.
        """
        try:
            found: dict[str, Any] = {"end": int(told["end"]), "note": str(told["note"])}
            found["codec"] = str(told["codec"])
            found["time_base"] = Fraction(told["time_base"])
            for item in fields(cls):
                if item.name not in found:
                    found[item.name] = zlib.decompress(base64.b64decode(told[item.name], validate=True))
            for name in ("pts", "packet", "times", "keys", "shapes"):
                found[name] = np.frombuffer(found[name], "<i8").astype(np.int64)
            found["keys"] = np.ascontiguousarray(found["keys"].reshape(_KEY, -1).T)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, zlib.error, binascii.Error) as error:
            raise CorruptStream(f"this does not tell how a video is to be cut: {error!r}") from error
        return cls(**found)


def check_cancelled(cancelled: Callable[[], bool], path: str) -> None:
    """Raise ClosedError if the work was cancelled."""
    if cancelled():
        raise ClosedError(f"cutting {path} was cancelled", stream=path, address=path)


def survey_source(path: str, index: VideoIndex, *, decode: bool, cancelled: Callable[[], bool]) -> Survey:
    """Read all packets of a source, and decode them once from the beginning unless that tells nothing new.

    Args:
        path: of the local file.
        index: its index.
        decode: take digests of all frames.
        cancelled: is asked now and then.

    Raises:
        CorruptStream: it is damaged, or was changed since it was indexed.
        ClosedError: the work was cancelled.
    """
    survey = Survey(
        pts=index.pts, time_base=index.time_base, end=index.end, packet=np.empty(0, np.int64),
        times=np.empty(0, np.int64),         keys=np.empty((0, _KEY), np.int64), shapes=np.empty(0, np.int64),
    )  # fmt: skip
    if not decode and index.has_pts and index.seekable:
        packets = _Packets()
        with contextlib.closing(_demux(path, packets, cancelled)) as read:
            for _ in read:
                pass
        numbers = packets.by_pts(index)
        if numbers is not None:
            return replace(survey, packet=numbers, times=packets.times(), keys=packets.table(), codec=packets.codec)
    return _decoded(path, index, survey, cancelled)


class _Packets:
    """What is kept of packets while they go by."""

    def __init__(self) -> None:
        self.pts: list[int | None] = []
        self.keys: list[tuple[int, ...]] = []
        self.codec = ""
        self.odd = ""  # why they cannot be copied one by one

    def times(self) -> Array:
        return np.array([NEVER if at is None else at for at in self.pts], np.int64)

    def table(self) -> Array:
        return np.array(self.keys, np.int64).reshape(-1, _KEY)

    def by_pts(self, index: VideoIndex) -> Array | None:
        """Return the packet of each frame, if every packet has the pts of one; else None."""
        if self.odd or None in self.pts or len(self.pts) != len(index):
            return None
        times = np.array(self.pts, np.int64)
        order = np.argsort(times, kind="stable").astype(np.int64)
        return order if np.array_equal(times[order], index.pts) else None


def _demux(path: str, packets: _Packets, cancelled: Callable[[], bool]) -> Generator[Any, None, None]:
    """Yield all packets, numbered by their pts, and at last an empty one that drains the decoder."""
    container, stream = open_video(path)
    with contextlib.closing(container), decoding(path):
        codec = packets.codec = codec_of(stream)
        length_size = nal_length_size(codec, stream.codec_context.extradata)
        number = 0
        for packet in container.demux(stream):
            check_cancelled(cancelled, path)
            if packet.size == 0:
                if packet.pts is None and packet.dts is None:
                    yield packet
                    return
                packets.odd = "packets of it are empty"
                continue
            packets.pts.append(packet.pts)
            if packet.is_keyframe:
                data = memoryview(packet)
                times = (NEVER if at is None else at for at in (packet.pts, packet.dts))
                hard = hard_key(codec, data, length_size)
                packets.keys.append((number, *times, packet.size, zlib.crc32(data), int(bool(hard))))
            if packet.is_discard:
                packets.odd = packets.odd or "packets of it are not shown"
            packet.pts = packet.dts = number
            number += 1
            yield packet


def _decoded(path: str, index: VideoIndex, survey: Survey, cancelled: Callable[[], bool]) -> Survey:
    packets, digests, looks = _Packets(), bytearray(), bytearray()
    numbers: list[int] = []
    shapes: list[int] = []
    reformatter, shape = VideoReformatter(), None
    with contextlib.closing(_demux(path, packets, cancelled)) as read, decoding(path):
        for packet in read:
            for frame in packet.decode():
                if shape is not None and shape != (frame.format.name, frame.width, frame.height):
                    shapes.append(len(numbers))
                shape = frame.format.name, frame.width, frame.height
                if len(numbers) % LOOK == 0:
                    looks += rgb_digest(frame, reformatter)
                numbers.append(-1 if frame.pts is None else frame.pts)
                digests += pixel_digest(frame)
    if len(numbers) != len(index):
        raise CorruptStream(
            f"{path} shows {len(numbers)} frames, but its index has {len(index)}: it was changed while it was read",
            stream=path,
            address=path,
            offset=len(numbers),
        )
    found = replace(
        survey, times=packets.times(), keys=packets.table(), shapes=np.array(shapes, np.int64), digests=bytes(digests),
        looks=bytes(looks), codec=packets.codec,
    )  # fmt: skip
    packet = np.array(numbers, np.int64)
    if len(set(numbers)) < len(numbers) or packet.min() < 0 or packet.max() >= len(packets.pts):
        return replace(found, note="its frames cannot be told apart by packets")
    if packets.odd.endswith("empty"):
        return replace(found, note=packets.odd)
    known = [packets.pts[number] for number in numbers]
    if index.has_pts and None not in known and not np.array_equal(np.array(known, np.int64), index.pts):
        return replace(found, note="its frames have other times than their packets")
    return replace(found, packet=packet)
