"""Hashes of decoded frames: equal for equal pictures, whichever decoder produced them."""

from __future__ import annotations

import ctypes
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.video.format import VideoFormat

from streamloader.media.video.reformat import reformat_frame

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

__all__ = ["HASH_BYTES", "frame_hash", "rgb_hash"]

HASH_BYTES: Final = 8
_PALETTE_BYTES: Final = 1024
_BITS_PER_BYTE: Final = 8


def frame_hash(frame: VideoFrame) -> bytes:
    """Return the first 8 bytes of a SHA-256 of all samples of a frame, its format, its size, and its colour tags.

    The padding of rows is not hashed. The GIL is released while hashing.
    """
    digest = hashlib.sha256(
        f"{frame.format.name} {frame.width} {frame.height} {int(frame.colorspace)} {int(frame.color_range)} "
        f"{int(frame.color_primaries)} {int(frame.color_trc)} {frame.interlaced_frame}".encode()
    )
    layouts = _plane_layouts(frame.format.name, frame.width, frame.height)
    for plane, (row_bytes, rows) in zip(frame.planes, layouts, strict=True):
        digest.update(_unpadded_rows(plane, row_bytes, rows))
    return digest.digest()[:HASH_BYTES]


def rgb_hash(frame: VideoFrame, reformatter: VideoReformatter) -> bytes:
    """Return the first 8 bytes of a SHA-256 of the frame's pixels in RGB, as PyAV converts them."""
    rgb = reformat_frame(reformatter, frame, frame.width, frame.height, "rgb24")
    return hashlib.sha256(_unpadded_rows(rgb.planes[0], 3 * rgb.width, rgb.height)).digest()[:HASH_BYTES]


def _unpadded_rows(plane: Any, row_bytes: int, rows: int) -> Any:
    line = plane.line_size
    if line == row_bytes:
        return memoryview(plane)[: row_bytes * rows]
    if line == 0:  # a palette
        return memoryview(plane)[:_PALETTE_BYTES]
    if line < 0:  # stored bottom-up: the address of the plane is that of its first row
        memory = (ctypes.c_uint8 * (-line * rows)).from_address(plane.buffer_ptr + line * (rows - 1))
        padded = np.frombuffer(memory, np.uint8).reshape(rows, -line)[::-1]
    else:
        padded = np.frombuffer(memoryview(plane), np.uint8, line * rows).reshape(rows, line)
    return np.ascontiguousarray(padded[:, :row_bytes])


@lru_cache(maxsize=64)
def _plane_layouts(pix_fmt: str, width: int, height: int) -> tuple[tuple[int, int], ...]:
    """Return (bytes per row, rows) of each plane."""
    format_ = VideoFormat(pix_fmt, width, height)
    if format_.has_palette:
        return (width, height), (_PALETTE_BYTES, 1)
    planes = max(component.plane for component in format_.components) + 1
    if planes == 1:
        return (((width * format_.padded_bits_per_pixel + _BITS_PER_BYTE - 1) // _BITS_PER_BYTE, height),)
    layouts = []
    for plane in range(planes):
        components = [component for component in format_.components if component.plane == plane]
        row_bytes = sum(part.width * ((part.bits + _BITS_PER_BYTE - 1) // _BITS_PER_BYTE) for part in components)
        layouts.append((row_bytes, max(part.height for part in components)))
    return tuple(layouts)
