"""Decompress zlib data up to a declared size. A few kilobytes can otherwise expand to gigabytes."""

from __future__ import annotations

import zlib

__all__ = ["inflate"]


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
