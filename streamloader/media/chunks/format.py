"""Metadata for decoding any frame of a chunk: the coding of its packets, their byte ranges, and their frames.

A chunk is an ordinary video file, but no demuxer is needed to read it: the index holds the byte range of each packet.
Packets are passed to the decoder numbered in storage order, and the decoder returns with each frame the number of its
packet. Frames are thus identified by packets, not by timestamps, and an unexpected frame is detected.
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

from streamloader.common.inflate import inflate
from streamloader.errors import CorruptStream
from streamloader.values import Array

__all__ = ["ChunkIndex", "Coding"]

_MAGIC: Final = b"SLX1"
_HEADER: Final = struct.Struct("<4sIIIIq")  # magic, CRC-32 of all that follows, packets, keys, frames, end
_MAX_PACKETS: Final = 1 << 26  # a larger number means damage
# Packets of an index that has less than two stored bytes for each. The checksums alone take four bytes each.
_MAX_DENSE_PACKETS: Final = 1 << 18
_MAX_PACKET_BYTES: Final = 1 << 30
_ALLOWED_OPTIONS: Final = frozenset({"strict"})  # decoder options that a catalog may set


@dataclass(frozen=True)
class Coding:
    """Parameters with which a decoder is opened for the packets of a chunk.

    Attributes:
        codec: FFmpeg's name of the codec (not of a decoder), such as ``"h264"``.
        extradata: Codec parameters stored in the container (parameter sets). May be empty.
        width: Width of a stored frame in pixels.
        height: Height of a stored frame in pixels.
        pix_fmt: FFmpeg's name of the pixel format in the container, or None if only the packets specify it.
        tag: Four characters that the container uses for the codec. Some decoders depend on them.
        bits: Bits per coded sample in the container, or 0 if it does not specify them.
        color_range: Colour range as in ITU-T H.273 (FFmpeg's numbers). Values in the packets override all colour tags.
        colorspace: Matrix coefficients, in the same form.
        color_primaries: Colour primaries, in the same form.
        color_trc: Transfer characteristics, in the same form.
        options: Further options of the decoder. Only ``strict`` is allowed.
        cropping: Rows above and below, and columns left and right, that are removed from each decoded frame: what the
            container of the source declares not to be shown. `width` and `height` contain them.
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
    cropping: tuple[int, int, int, int] = (0, 0, 0, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        document: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        document |= {
            "extradata": base64.b64encode(self.extradata).decode(),
            "options": [list(option) for option in self.options],
            "cropping": list(self.cropping),
        }
        if not any(self.cropping):
            del document["cropping"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Coding:
        """Rebuild a coding from :meth:`to_json`.

        Raises:
            CorruptStream: If `document` is not a valid coding.
        """
        try:
            document = {"cropping": (0, 0, 0, 0)} | dict(document)
            values = {item.name: document[item.name] for item in fields(cls)}
            values["extradata"] = base64.b64decode(document["extradata"], validate=True)
            values["options"] = tuple((str(name), str(value)) for name, value in document["options"])
            for name in ("width", "height", "bits", "color_range", "colorspace", "color_primaries", "color_trc"):
                values[name] = int(document[name])
            values["cropping"] = tuple(int(side) for side in document["cropping"])
            top, bottom, left, right = values["cropping"]
            if min(values["cropping"]) < 0 or (
                any(values["cropping"]) and not (top + bottom < values["height"] and left + right < values["width"])
            ):
                raise ValueError(f"cropping {document['cropping']!r}")
            if (
                not isinstance(document["codec"], str)
                or not isinstance(document["tag"], str)
                or not isinstance(document["pix_fmt"], (str, type(None)))
                or not {name for name, _ in values["options"]} <= _ALLOWED_OPTIONS
            ):
                raise ValueError(f"codec {document['codec']!r} with options {values['options']}")
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
            raise CorruptStream(f"the catalog has no valid coding for a chunk: {error!r}") from error
        return cls(**values)

    @cached_property
    def key(self) -> str:
        """Identifier of this coding: the first 32 hexadecimal digits of the SHA-256 of its JSON."""
        document = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ChunkIndex:
    """Byte ranges of the packets of a chunk, and the frames that they contain.

    Packets are numbered in storage order, which is decoding order. Frames are numbered in the order of presentation,
    from 0 in each chunk. A chunk may hold packets that contain none of its frames, because its frames refer to them.

    Attributes:
        offset: Offset in the file of the first byte of each packet, int64 (packets,).
        size: Size of each packet in bytes, int64 (packets,).
        disposable: Whether each packet can be left out without changing any other frame, bool (packets,).
        key_packet: Packets at which decoding can start, int64 (keys,), ascending from packet 0.
        key_frame: First frame from which all frames decode correctly, for each start in `key_packet`, int64 (keys,),
            ascending from frame 0.
        frame_packet: Packet that contains each frame, int64 (frames,).
        pts: Timestamp of each frame in the source, in units of the video's time base, int64 (frames,), strictly
            increasing.
        end: Timestamp at which the last frame ends.
        crc: CRC-32 (as in zlib) of each packet, int64 (packets,), to verify partial reads. None if unknown.
    """

    offset: Array
    size: Array
    disposable: Array
    key_packet: Array
    key_frame: Array
    frame_packet: Array
    pts: Array
    end: int
    crc: Array | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frame_packet)

    def encode(self) -> bytes:
        """Return the index as bytes: a header, then the columns, compressed (see docs/archive.md)."""
        gaps = self.offset - np.concatenate([[0], (self.offset + self.size)[:-1]]) if len(self.offset) else self.offset
        columns = [gaps, self.size, self.disposable]
        columns += [_differences(column) for column in (self.key_packet, self.key_frame, self.frame_packet)]
        columns.append(_differences(_differences(self.pts)))
        if self.crc is not None:
            columns.append(self.crc)
        body = zlib.compress(b"".join(_byte_planes(column) for column in columns), 6)
        counts = len(self.offset), len(self.key_packet), len(self.frame_packet)
        rest = _HEADER.pack(b"", 0, *counts, self.end)[8:] + body
        return _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest

    @classmethod
    def decode(cls, data: bytes, *, frames: int | None = None, chunk_bytes: int | None = None) -> ChunkIndex:
        """Rebuild an index from :meth:`encode`. Its size is checked before it is decompressed.

        Args:
            data: Encoded index.
            frames: Number of frames that the index must have. Defaults to any number.
            chunk_bytes: Size of the chunk's file in bytes, in which all packets must lie. Defaults to any size.

        Raises:
            CorruptStream: If `data` is not a valid index, or not the index of such a chunk.
        """
        try:
            magic, checksum, packets, keys, frame_count, end = _HEADER.unpack_from(data)
            if magic != _MAGIC:
                raise ValueError(f"it starts with {magic!r} instead of {_MAGIC!r}: is it from a newer version?")
            if zlib.crc32(memoryview(data)[8:]) != checksum:
                raise ValueError("its checksum is wrong")
            if not (0 < keys <= packets <= _MAX_PACKETS and 0 < frame_count <= packets):
                raise ValueError(f"{packets} packets, {keys} key frames, {frame_count} frames are not possible")
            if frames not in (None, frame_count):
                raise ValueError(f"it has {frame_count} frames, the catalog says {frames}")
            max_packets = max(len(data) // 2, _MAX_DENSE_PACKETS)
            if packets > min(max_packets, max_packets if chunk_bytes is None else chunk_bytes):
                raise ValueError(f"it has {packets} packets, more than its {len(data)} bytes or its chunk can hold")
            counts = [packets, packets, packets, keys, keys, frame_count, frame_count, packets]
            body = inflate(memoryview(data)[_HEADER.size :], 8 * sum(counts))
            if len(body) == 8 * sum(counts[:-1]):
                counts.pop()  # this index has no checksums of packets
            if len(body) != 8 * sum(counts):
                raise ValueError("its columns have the wrong length")
        except (ValueError, struct.error) as error:
            raise CorruptStream(f"the frame index of a chunk is damaged: {error}") from error
        gaps, size, disposable, key_packet, key_frame, frame_packet, pts, *crc = _split_columns(body, counts)
        offset = np.cumsum(gaps + size) - size
        index = cls(
            offset, size, disposable.astype(bool), np.cumsum(key_packet), np.cumsum(key_frame),
            np.cumsum(frame_packet), np.cumsum(np.cumsum(pts)), end, *crc,
        )  # fmt: skip
        index._check(chunk_bytes)
        return index

    def key_for(self, frame: int) -> int:
        """Return the number (in `key_packet`) of the last key from which `frame` decodes correctly."""
        return int(np.searchsorted(self.key_frame, frame, side="right")) - 1

    def _check(self, chunk_bytes: int | None) -> None:
        packets = len(self.offset)
        valid = (
            bool((self.size > 0).all() and (self.offset >= 0).all() and (self.size <= _MAX_PACKET_BYTES).all())
            and (chunk_bytes is None or bool((self.offset <= chunk_bytes - self.size).all()))
            and self.key_packet[0] == 0
            and self.key_frame[0] == 0
            and bool((np.diff(self.key_packet) > 0).all() and (np.diff(self.key_frame) > 0).all())
            and int(self.key_packet[-1]) < packets
            and int(self.key_frame[-1]) < len(self.frame_packet)
            and int(self.frame_packet.min()) >= 0
            and int(self.frame_packet.max()) < packets
            and len(np.unique(self.frame_packet)) == len(self.frame_packet)
            and bool((np.diff(self.pts) > 0).all())
            and self.end > int(self.pts[-1])
        )
        if not valid:
            raise CorruptStream("the frame index of a chunk contradicts itself: it is damaged")


def _differences(values: Array) -> Array:
    return np.diff(values, prepend=0)


def _byte_planes(column: Array) -> bytes:
    """Return a column as little-endian int64, all lowest bytes first, then all second bytes, ...

    This order compresses better.
    """
    return np.ascontiguousarray(column.astype("<i8")).view(np.uint8).reshape(-1, 8).T.tobytes()


def _split_columns(body: bytes, counts: list[int]) -> list[Array]:
    columns = []
    offset = 0
    for count in counts:
        planes = np.frombuffer(body, np.uint8, 8 * count, offset).reshape(8, count)
        columns.append(np.ascontiguousarray(planes.T).view("<i8").reshape(count).astype(np.int64, copy=False))
        offset += 8 * count
    return columns
