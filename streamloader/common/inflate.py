"""Decompress zlib and gzip data up to a maximum size. A few kilobytes can otherwise expand to gigabytes."""

from __future__ import annotations

import zlib
from typing import Final

__all__ = ["ExpandsTooFar", "gunzip", "inflate"]

_GZIP_WINDOW_BITS: Final = 16 + zlib.MAX_WBITS
_MAX_MEMBERS: Final = 256  # of a gzip file: each costs a copy of all that follows it


class ExpandsTooFar(ValueError):
    """Compressed data expand to more bytes than allowed."""


def inflate(data: bytes | memoryview, max_bytes: int) -> bytes:
    """Return the decompressed data. No more than `max_bytes` + 1 bytes are ever allocated.

    Args:
        data: One complete zlib stream.
        max_bytes: Maximum size of the decompressed data in bytes.

    Raises:
        ValueError: If the data are damaged, incomplete, or larger than `max_bytes`, or if other data follow.
    """
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"it is not valid zlib data: {error}") from error
    if len(result) > max_bytes:
        raise ValueError(f"it decompresses to more than the declared {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("its compressed data are incomplete, or other data follow them")
    return result


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """Return the decompressed data of a gzip file, which may have several members (RFC 1952).

    No more than `max_bytes` + 1 bytes are ever allocated for them.

    Args:
        data: Complete gzip file.
        max_bytes: Maximum size of the decompressed data in bytes.

    Raises:
        ValueError: If the data are damaged or incomplete.
        ExpandsTooFar: If they expand to more than `max_bytes`.
    """
    parts: list[bytes] = []
    size = 0
    while data:
        if len(parts) == _MAX_MEMBERS:
            raise ValueError(f"it has more than {_MAX_MEMBERS} members")
        inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
        try:
            part = inflater.decompress(data, max_bytes - size + 1)
        except zlib.error as error:
            raise ValueError(f"it is not valid gzip data: {error}") from error
        size += len(part)
        if size > max_bytes:
            raise ExpandsTooFar(f"it decompresses to more than {max_bytes} bytes")
        if not inflater.eof:
            raise ValueError("its compressed data are incomplete")
        parts.append(part)
        data = inflater.unused_data.lstrip(b"\0")
    return b"".join(parts)
