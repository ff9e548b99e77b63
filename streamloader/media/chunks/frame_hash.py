"""Digests of decoded frames: the same for the same picture, whatever decoded it."""

from __future__ import annotations

import ctypes
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.video.format import VideoFormat

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

__all__ = ["DIGEST", "pixel_digest", "rgb_digest"]

DIGEST: Final = 8  # bytes of a digest
_PALETTE: Final = 1024
_BYTE: Final = 8


def pixel_digest(frame: VideoFrame) -> bytes:
    """Return 8 bytes that tell this frame from any other: all its samples, its format, its size, and its colour tags.

    Rows are hashed without what pads them. The interpreter is not locked meanwhile.
    """
    told = hashlib.sha256(
        f"{frame.format.name} {frame.width} {frame.height} {int(frame.colorspace)} {int(frame.color_range)} "
        f"{int(frame.color_primaries)} {int(frame.color_trc)} {frame.interlaced_frame}".encode()
    )
    lines = _lines(frame.format.name, frame.width, frame.height)
    for plane, (length, rows) in zip(frame.planes, lines, strict=True):
        told.update(_rows(plane, length, rows))
    return told.digest()[:DIGEST]


def rgb_digest(frame: VideoFrame, reformatter: VideoReformatter) -> bytes:
    """Return 8 bytes of the digest of what the frame looks like: its pixels in RGB, as PyAV converts them."""
    done = reformatter.reformat(frame, frame.width, frame.height, "rgb24", threads=1)
    return hashlib.sha256(_rows(done.planes[0], 3 * done.width, done.height)).digest()[:DIGEST]


def _rows(plane: Any, length: int, rows: int) -> Any:
    line = plane.line_size
    if line == length:
        return memoryview(plane)[: length * rows]
    if line == 0:  # a palette
        return memoryview(plane)[:_PALETTE]
    if line < 0:  # from the last row to the first: the plane's address is that of the first
        memory = (ctypes.c_uint8 * (-line * rows)).from_address(plane.buffer_ptr + line * (rows - 1))
        stored = np.frombuffer(memory, np.uint8).reshape(rows, -line)[::-1]
    else:
        stored = np.frombuffer(memoryview(plane), np.uint8, line * rows).reshape(rows, line)
    return np.ascontiguousarray(stored[:, :length])


@lru_cache(maxsize=64)
def _lines(pix_fmt: str, width: int, height: int) -> tuple[tuple[int, int], ...]:
    """Return (bytes of a row, rows) of each plane."""
    format_ = VideoFormat(pix_fmt, width, height)
    if format_.has_palette:
        return (width, height), (_PALETTE, 1)
    planes = max(component.plane for component in format_.components) + 1
    if planes == 1:
        return (((width * format_.padded_bits_per_pixel + _BYTE - 1) // _BYTE, height),)
    lines = []
    for plane in range(planes):
        inside = [component for component in format_.components if component.plane == plane]
        length = sum(part.width * ((part.bits + _BYTE - 1) // _BYTE) for part in inside)
        lines.append((length, max(part.height for part in inside)))
    return tuple(lines)
