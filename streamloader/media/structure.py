"""How long a file says it is: enough of three container formats to notice that one was cut short."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final

__all__ = ["declared_size"]

_SEGMENT: Final = 0x18538067  # Matroska's element that holds everything else
_EBML: Final = 0x1A45DFA3
_NOT_FILLED_IN: Final = 0xFFFFFFF0  # sizes from here on are placeholders of live recordings
_BOX_TYPES: Final = frozenset(
    b"ftyp moov mdat free skip wide pnot udta moof mfra sidx ssix styp uuid meta emsg prft pdin".split()
)


def declared_size(path: str) -> int | None:
    """Return the size in bytes that the outermost structures of the file add up to; None where they do not say.

    Known: ISO base media and QuickTime (ISO/IEC 14496-12, 4.2), Matroska and WebM (RFC 8794, RFC 9559), RIFF.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] in _BOX_TYPES:
            return _boxes(file, os.fstat(file.fileno()).st_size)
        if start[:4] == _EBML.to_bytes(4, "big"):
            return _segment(file)
        if start[:4] == b"RIFF" and len(start) == 12:
            size = struct.unpack("<I", start[4:8])[0]
            return size + 8 if 0 < size < _NOT_FILLED_IN else None
    return None


def _boxes(file: BinaryIO, size: int) -> int | None:
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8 or head[4:8] not in _BOX_TYPES:
            return at  # trailing bytes that are no box
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:
            return size  # the last box goes on to the end
        if length < 8:
            return None
        at += length
    return at


def _segment(file: BinaryIO) -> int | None:
    at = 0
    for _ in range(16):  # the header, perhaps padding, then the segment
        file.seek(at)
        head = file.read(16)
        identifier, used = _vint(head, keep_marker=True)
        length, used_by_length = _vint(head[used:], keep_marker=False)
        if not used or not used_by_length:
            return None
        unknown = length == (1 << 7 * used_by_length) - 1
        at += used + used_by_length
        if identifier == _SEGMENT:
            return None if unknown else at + length
        if unknown:
            return None
        at += length
    return None


def _vint(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """Read one EBML number: its value, and the bytes it takes (0 if it is none)."""
    if not data or not data[0]:
        return 0, 0
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keep_marker else value & ((1 << 7 * length) - 1)), length
