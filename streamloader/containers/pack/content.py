"""Decompress small members of packs in one call."""

from __future__ import annotations

from streamloader.common.inflate import inflate
from streamloader.config import Limits
from streamloader.containers.compression import load_zstd
from streamloader.containers.pack.format import STORED, ZLIB

__all__ = ["decompress_member", "expands_too_much"]


def decompress_member(method: int, stored: bytes | memoryview, size: int) -> bytes | memoryview:
    """Return the content of a member. No more than `size` + 1 bytes are ever allocated.

    Args:
        method: Method of the format: :data:`STORED`, :data:`ZLIB` or :data:`ZSTD`.
        stored: Stored bytes.
        size: Size of the content in bytes, as the index declares it.

    Raises:
        ValueError: If the stored bytes are damaged, or have other content than the declared size.
        MissingDependency: If the package for zstd is not installed.
    """
    if method == STORED:
        return stored
    content = inflate(stored, size) if method == ZLIB else _decompress_frame(stored, size)
    if len(content) != size:
        raise ValueError(f"it decompresses to {len(content)} bytes, and not to the declared {size}")
    return content


def expands_too_much(stored_size: int, size: int, limits: Limits) -> bool:
    """Return whether the declared size of a member is beyond the limits for compressed data."""
    return size > limits.expansion_bytes and size > limits.expansion_ratio * stored_size


def _decompress_frame(stored: bytes | memoryview, size: int) -> bytes:
    zstd = load_zstd()
    decompressor = zstd.ZstdDecompressor()
    try:
        content: bytes = decompressor.decompress(stored, size + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"it is not valid zstd data: {error}") from error
    if len(content) > size:
        raise ValueError(f"it decompresses to more than the declared {size} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("its compressed data are incomplete, or other data follow them")
    return content
