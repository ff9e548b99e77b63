"""Read spans of compressed shards: decompress the frames that they lie in."""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from streamloader.datasets.shards.index import ShardIndex
from streamloader.errors import MissingDependency

__all__ = ["FrameSpan", "decompress_frames", "find_frames"]

_GZIP_WINDOW_BITS: Final = 31  # the largest window, with the header and trailer of gzip: see zlib.h


class FrameSpan:
    """The frames of a compressed shard that contain a span of its content.

    Attributes:
        start: Offset of the first of these frames in the file.
        end: Offset after the last one.
        data_start: Offset of the decompressed frames in the content.
        sizes: Size of each of them in the file, and decompressed. The decompressed size of the last frame of a shard
            is None: its end is not described.
    """

    __slots__ = ("data_start", "end", "sizes", "start")

    def __init__(self, start: int, end: int, data_start: int, sizes: list[tuple[int, int | None]]) -> None:
        self.start = start
        self.end = end
        self.data_start = data_start
        self.sizes = sizes


def find_frames(index: ShardIndex, start: int, end: int) -> FrameSpan:
    """Return the frames that contain the bytes [start, end) of a shard's content."""
    first = int(np.searchsorted(index.frames[:, 1], start, side="right")) - 1
    stop = max(first + 1, int(np.searchsorted(index.frames[:, 1], end, side="left")))
    borders = [*map(tuple, index.frames[first : stop + 1].tolist())]
    if stop == len(index.frames):
        borders.append((index.size, None))
    sizes = [(b[0] - a[0], None if b[1] is None else b[1] - a[1]) for a, b in itertools.pairwise(borders)]
    return FrameSpan(borders[0][0], borders[-1][0], borders[0][1], sizes)


def decompress_frames(index: ShardIndex, span: FrameSpan, data: bytes, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a shard's content from its compressed frames.

    No more memory is taken than the index declares.

    Args:
        index: Index of the shard.
        span: Result of :func:`find_frames`.
        data: Bytes of these frames.
        start: Offset of the first byte in the content.
        end: Offset after the last one.

    Raises:
        ValueError: If the data are damaged, or are not those that the index describes.
        MissingDependency: If the package for the method is not installed.
    """
    decompress = _decompress_gzip if index.compression == "gzip" else _load_zstd()
    parts, position, offset = [], 0, span.data_start
    for size, data_size in span.sizes:
        limit = index.data_size - offset if data_size is None else data_size
        part = decompress(data[position : position + size], limit)
        if data_size is not None and len(part) != data_size:
            raise ValueError(f"a frame has {len(part)} decompressed bytes, and the index declares {data_size}")
        parts.append(part)
        position += size
        offset += len(part)
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    if span.data_start + len(content) < end:
        raise ValueError("the decompressed data ends too early")
    return content[start - span.data_start : end - span.data_start]


def _decompress_gzip(data: bytes, limit: int) -> bytes:
    """Decompress one or more gzip members, up to `limit` bytes. What follows is only checked if all is wanted."""
    parts, size = [], 0
    while data and size < limit:
        inflater = zlib.decompressobj(_GZIP_WINDOW_BITS)
        try:
            part = inflater.decompress(data, limit - size)
        except zlib.error as error:
            raise ValueError(f"the gzip data is damaged: {error}") from error
        if not part and not inflater.eof:
            raise ValueError("the gzip data is cut")
        parts.append(part)
        size += len(part)
        data = inflater.unused_data
        if not inflater.eof and size < limit:
            raise ValueError("the gzip data is cut")
        if not inflater.eof:
            _finish_gzip(inflater)
    return b"".join(parts)


def _finish_gzip(inflater: Any) -> None:
    """Verify the checksum of a member of which all content is there, if its trailer is."""
    try:
        inflater.decompress(inflater.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"the gzip data is damaged: {error}") from error


def _load_zstd() -> Callable[[bytes, int], bytes]:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingDependency("shards in .tar.zst need: pip install streamloader[zstd]") from error

    def decompress(data: bytes, limit: int) -> bytes:
        parts, size = [], 0
        while data and size < limit:
            decompressor = zstd.ZstdDecompressor()
            try:
                part = decompressor.decompress(data, limit - size)
            except zstd.ZstdError as error:
                raise ValueError(f"the Zstandard data is damaged: {error}") from error
            if not decompressor.eof and size + len(part) < limit:
                raise ValueError("the Zstandard data is cut")
            parts.append(part)
            size += len(part)
            data = decompressor.unused_data
        return b"".join(parts)

    return decompress
