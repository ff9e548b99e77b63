"""What has to be known of a chunk to decode any frame of it: how its packets are coded, where they lie, what they show.

A chunk is an ordinary video file, but no demuxer is needed to read it: the index says where the bytes of each packet
are. Packets are handed to the decoder numbered in storage order, and a decoder tells of each frame which packet it came
from. So frames are known by packets, not by times, and a frame that is not the expected one is noticed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

import numpy as np

from streamloader.errors import CorruptStream
from streamloader.values import Array

__all__ = ["ChunkIndex", "Coding"]

_MAGIC: Final = b"SLX1"
_HEAD: Final = struct.Struct("<4sIIIIq")  # magic, CRC-32 of all that follows, packets, keys, frames, end
_MOST: Final = 1 << 26  # packets of a chunk: more is damage
_OPTIONS: Final = frozenset({"strict"})  # of decoders that a catalog may choose


@dataclass(frozen=True)
class Coding:
    """How the packets of chunks are coded: what a decoder has to be told before the first one.

    Attributes:
        codec: FFmpeg's name of the codec (not of a decoder), such as ``"h264"``.
        extradata: what the container keeps for the decoder (parameter sets), perhaps nothing.
        width: of frames as they are stored.
        height: of frames as they are stored.
        pix_fmt: FFmpeg's name of the pixel format as the container has it; None where only the packets tell.
        tag: the four characters by which the container calls the codec; some decoders go by them.
        bits: per coded sample, where the container has it, else 0.
        color_range: as in ITU-T H.273 (FFmpeg's numbers), as are the next three; what the packets say goes before.
        colorspace: matrix coefficients.
        color_primaries: see above.
        color_trc: transfer characteristics.
        options: further options of the decoder; only ``strict`` is allowed.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    pix_fmt: str | None = None
    tag: str = ""
    bits: int = 0
    color_range: int = 0
    colorspace: int = 2
    color_primaries: int = 2
    color_trc: int = 2
    options: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        told: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return told | {
            "extradata": base64.b64encode(self.extradata).decode(),
            "options": [list(option) for option in self.options],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Coding:
        """Rebuild it.

        Raises:
            CorruptStream: that is none.
        """
        try:
            values = {item.name: told[item.name] for item in fields(cls)}
            values["extradata"] = base64.b64decode(told["extradata"], validate=True)
            values["options"] = tuple((str(name), str(value)) for name, value in told["options"])
            for name in ("width", "height", "bits", "color_range", "colorspace", "color_primaries", "color_trc"):
                values[name] = int(told[name])
            if not isinstance(told["codec"], str) or not {name for name, _ in values["options"]} <= _OPTIONS:
                raise ValueError(f"codec {told['codec']!r} with options {values['options']}")
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise CorruptStream(f"the catalog does not say how a chunk is coded: {error!r}") from error
        return cls(**values)

    @cached_property
    def key(self) -> str:
        """A name that is the same for the same coding: 32 hexadecimal digits of the SHA-256 of its JSON."""
        told = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(told.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ChunkIndex:
    """Where the packets of a chunk are, and which frames they show.

    Packets are numbered in storage order, which is decoding order; frames in the order in which they are shown, from
    0 in each chunk. A chunk may hold packets that none of its frames comes from, because frames of it need them.

    Attributes:
        offset: int64 (packets,): of the first byte of each packet in the file.
        size: int64 (packets,): its bytes.
        spare: bool (packets,): no other packet needs it, so it can be left out where its own frame is not wanted.
        keys: int64 (keys,): packets at which decoding can begin, ascending; the first is packet 0.
        first: int64 (keys,): if decoding begins there, this frame and all later ones come out right; the first is 0.
        shown: int64 (frames,): the packet that each frame comes from.
        pts: int64 (frames,), strictly increasing: when it is shown in the source, in ticks of the video's time base.
        end: tick at which the last frame ends.
        crc: int64 (packets,): CRC-32 (as in zlib) of the bytes of each packet, so that a read of a few of them can be
            checked; None where it is not known.
    """

    offset: Array
    size: Array
    spare: Array
    keys: Array
    first: Array
    shown: Array
    pts: Array
    end: int
    crc: Array | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.shown)

    def encode(self) -> bytes:
        """Return it as bytes: a header, then the columns, deflated (see docs/archive.md)."""
        gaps = self.offset - np.concatenate([[0], (self.offset + self.size)[:-1]]) if len(self.offset) else self.offset
        columns = [gaps, self.size, self.spare, _steps(self.keys), _steps(self.first), _steps(self.shown)]
        columns.append(_steps(_steps(self.pts)))
        if self.crc is not None:
            columns.append(self.crc)
        body = zlib.compress(b"".join(_planes(column) for column in columns), 6)
        counts = len(self.offset), len(self.keys), len(self.shown)
        rest = _HEAD.pack(b"", 0, *counts, self.end)[8:] + body
        return _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest

    @classmethod
    def decode(cls, data: bytes) -> ChunkIndex:
        """Rebuild it from :meth:`encode`.

        Raises:
            CorruptStream: these are not the bytes of an index.
        """
        try:
            magic, checksum, packets, keys, frames, end = _HEAD.unpack_from(data)
            if magic != _MAGIC:
                raise ValueError(f"it begins with {magic!r}, not {_MAGIC!r}: is it of a newer version?")
            if zlib.crc32(memoryview(data)[8:]) != checksum:
                raise ValueError("its checksum is wrong")
            if not (0 < keys <= packets <= _MOST and 0 < frames <= packets):
                raise ValueError(f"{packets} packets, {keys} key frames, {frames} frames make no sense")
            counts = [packets, packets, packets, keys, keys, frames, frames, packets]
            inflater = zlib.decompressobj()
            body = inflater.decompress(data[_HEAD.size :], 8 * sum(counts) + 1)
            if len(body) == 8 * sum(counts[:-1]):
                counts.pop()  # the index keeps no checksums
            if len(body) != 8 * sum(counts) or not inflater.eof:
                raise ValueError("its columns have another length")
        except (ValueError, struct.error, zlib.error) as error:
            raise CorruptStream(f"the frame index of a chunk is damaged: {error}") from error
        gaps, size, spare, key, first, shown, pts, *crc = _columns(body, counts)
        offset = np.cumsum(gaps + size) - size
        index = cls(
            offset, size, spare.astype(bool), np.cumsum(key), np.cumsum(first), np.cumsum(shown),
            np.cumsum(np.cumsum(pts)), end, *crc,
        )  # fmt: skip
        index._check()
        return index

    def key_for(self, frame: int) -> int:
        """Return the number (in `keys`) of the last key from which `frame` comes out right."""
        return int(np.searchsorted(self.first, frame, side="right")) - 1

    def _check(self) -> None:
        packets = len(self.offset)
        sane = (
            bool((self.size > 0).all() and (self.offset >= 0).all())
            and self.keys[0] == 0
            and self.first[0] == 0
            and bool((np.diff(self.keys) > 0).all() and (np.diff(self.first) > 0).all())
            and int(self.keys[-1]) < packets
            and int(self.first[-1]) < len(self.shown)
            and int(self.shown.min()) >= 0
            and int(self.shown.max()) < packets
            and len(np.unique(self.shown)) == len(self.shown)
            and bool((np.diff(self.pts) > 0).all())
            and self.end > int(self.pts[-1])
        )
        if not sane:
            raise CorruptStream("the frame index of a chunk contradicts itself: it is damaged")


def _steps(values: Array) -> Array:
    return np.diff(values, prepend=0)


def _planes(column: Array) -> bytes:
    """Return a column as little-endian int64, all lowest bytes first, then all second ones: it deflates better."""
    return np.ascontiguousarray(column.astype("<i8")).view(np.uint8).reshape(-1, 8).T.tobytes()


def _columns(body: bytes, counts: list[int]) -> list[Array]:
    columns = []
    at = 0
    for count in counts:
        planes = np.frombuffer(body, np.uint8, 8 * count, at).reshape(8, count)
        columns.append(np.ascontiguousarray(planes.T).view("<i8").reshape(count).astype(np.int64))
        at += 8 * count
    return columns
