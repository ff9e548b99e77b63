"""The sizes that chunks, headers and pages of containers of sound, and of ASF, state: a shorter file is truncated.

Sources of the layouts: RIFF and AIFF (Multimedia Programming Interface and Data Specifications 1.0; AIFF 1.3), Sony's
Wave64, AU (RFC 2361 names its codecs), Apple's Core Audio Format, Advanced Systems Format 1.20, and Ogg (RFC 3533).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["ReadAt", "read_declared_size"]

ReadAt: TypeAlias = "Callable[[int, int], bytes]"  # returns up to `count` bytes from an offset

_MIN_PLACEHOLDER_SIZE: Final = 0xFFFFFFF0  # live recordings write placeholder sizes from this value on
_LENGTH_FORMATS: Final = {b"RIFF": "<I", b"FORM": ">I"}
_MAX_CHUNKS: Final = 256
_MAX_HEADER_BYTES: Final = 64 << 10
_ASF_PROPERTIES: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # GUID of the File Properties Object
_ASF_PROPERTIES_BYTES: Final = 92  # up to its flags
_OGG_PATTERN: Final = b"OggS"
_OGG_HEADER_BYTES: Final = 27  # the last byte is the number of segments, whose sizes follow
_MAX_OGG_PAGE_BYTES: Final = _OGG_HEADER_BYTES + 255 + 255 * 255


def read_declared_size(start: bytes, read: ReadAt, size: int) -> int | None:
    """Return the size in bytes that a file states, or None if it is in another format or states none.

    Args:
        start: First 12 bytes of the file.
        read: Function that returns up to `count` bytes from an offset.
        size: Size of the file in bytes.
    """
    signature = start[:4]
    try:
        if signature in _LENGTH_FORMATS:
            (length,) = struct.unpack_from(_LENGTH_FORMATS[signature], start, 4)
            return int(length) + 8 if 0 < length < _MIN_PLACEHOLDER_SIZE else None
        if signature == b".snd":
            offset, length = struct.unpack_from(">II", start, 4)
            return int(offset + length) if length < _MIN_PLACEHOLDER_SIZE else None
        find_end = _SEARCHES.get(signature)
        return None if find_end is None else find_end(read, size)
    except struct.error:  # even its header is not whole
        return None


def _read_w64_size(read: ReadAt, _size: int) -> int | None:
    (length,) = struct.unpack("<q", read(16, 8))
    return int(length) if length > 0 else None


def _find_caf_end(read: ReadAt, size: int) -> int | None:
    offset = 8
    for _ in range(_MAX_CHUNKS):
        if offset >= size:
            return offset
        (length,) = struct.unpack(">q", read(offset + 4, 8))
        if length < 0:
            return None
        offset += 12 + length
    return None


def _read_asf_size(read: ReadAt, size: int) -> int | None:
    data = read(0, min(_MAX_HEADER_BYTES, size))
    position = data.find(_ASF_PROPERTIES)
    if position < 0 or len(data) < position + _ASF_PROPERTIES_BYTES:
        return None
    (length,) = struct.unpack_from("<Q", data, position + 40)
    is_broadcast = data[position + 88] & 1
    return None if is_broadcast else int(length)


def _find_last_page_end(read: ReadAt, size: int) -> int | None:
    offset = max(0, size - _MAX_OGG_PAGE_BYTES)
    data = read(offset, size - offset)
    position = data.rfind(_OGG_PATTERN)
    if position < 0:
        return None
    lacing = position + _OGG_HEADER_BYTES
    if lacing > len(data):
        return offset + lacing
    count = data[lacing - 1]
    return offset + lacing + count + sum(data[lacing : lacing + count])


_SEARCHES: Final[dict[bytes, Callable[[ReadAt, int], int | None]]] = {
    b"riff": _read_w64_size,
    b"caff": _find_caf_end,
    b"\x30\x26\xb2\x75": _read_asf_size,
    _OGG_PATTERN: _find_last_page_end,
}
