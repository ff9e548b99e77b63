"""Hashes of decoded frames: equal for equal pictures, whichever decoder produced them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import VideoReformatter

from streamloader.media.video.colour_matrix import ignore_unknown_matrix
from streamloader.media.video.reformat import reformat_frame

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["HASH_BYTES", "choose_canonical_format", "find_little_endian", "frame_hash", "rgb_hash"]

HASH_BYTES: Final = 8
_BILEVEL: Final = frozenset({"monob", "monow"})  # black and white, one bit per pixel
_SHARED_BYTES: Final = ("x2rgb", "x2bgr", "xv30", "v30x")  # formats of three samples of 10 bits in 32
_PALETTE_BYTES: Final = 1024
_BITS_PER_BYTE: Final = 8


def frame_hash(frame: VideoFrame) -> bytes:
    """Return the first 8 bytes of a SHA-256 of all samples of a frame, its format, its size, and its colour tags.

    The padding of rows is not hashed. Frames of RGB are hashed in one format for all whose samples it holds exactly
    (:func:`choose_canonical_format`), and without colour tags, most of which are about YUV: an unused byte of each
    pixel, and the order of the channels, are not visible. Samples of all formats are hashed in little-endian order. The
    GIL is released while hashing.
    """
    canonical = choose_canonical_format(frame.format.name)
    if canonical is not None:
        with ignore_unknown_matrix(frame):
            converted = frame
            if frame.format.name != canonical:
                converted = reformat_frame(VideoReformatter(), frame, frame.width, frame.height, canonical)
        digest = hashlib.sha256(f"{canonical} {frame.width} {frame.height} {frame.interlaced_frame}".encode())
        ((row_bytes, rows),) = _plane_layouts(canonical, frame.width, frame.height)
        digest.update(_unpadded_rows(converted.planes[0], row_bytes, rows))
        return digest.digest()[:HASH_BYTES]
    twin = find_little_endian(frame.format.name)
    colors = "" if frame.format.is_rgb else f"{int(frame.colorspace)} {int(frame.color_range)}"
    digest = hashlib.sha256(
        f"{twin or frame.format.name} {frame.width} {frame.height} {colors} {int(frame.color_primaries)} "
        f"{int(frame.color_trc)} {frame.interlaced_frame}".encode()
    )
    layouts = _plane_layouts(frame.format.name, frame.width, frame.height)
    for plane, (row_bytes, rows) in zip(frame.planes, layouts, strict=True):
        samples = _unpadded_rows(plane, row_bytes, rows)
        if twin is not None:
            samples = np.frombuffer(samples, f"u{_word_bytes(twin)}").byteswap().data
        digest.update(samples)
    return digest.digest()[:HASH_BYTES]


@lru_cache(maxsize=256)
def find_little_endian(pix_fmt: str) -> str | None:
    """Return the pixel format with the same samples in little-endian order, or None for one that is not big-endian.

    None is also returned for formats whose samples share their bytes with others.
    """
    twin = f"{pix_fmt[:-2]}le"
    if not pix_fmt.endswith("be") or pix_fmt.startswith(_SHARED_BYTES) or _word_bytes(pix_fmt) == 1:
        return None
    with contextlib.suppress(ValueError):  # there is no such format
        return str(VideoFormat(twin, 16, 16).name)
    return None


def _word_bytes(pix_fmt: str) -> int:
    """Return the number of bytes of a sample."""
    bits = max(component.bits for component in VideoFormat(pix_fmt, 16, 16).components)
    return (bits + _BITS_PER_BYTE - 1) // _BITS_PER_BYTE


@lru_cache(maxsize=256)
def choose_canonical_format(pix_fmt: str) -> str | None:
    """Return the packed format of RGB that holds all visible samples of a pixel format.

    Args:
        pix_fmt: FFmpeg's name of the pixel format.

    Returns:
        ``"rgb24"``, or ``"rgba"`` for formats with transparency, of up to 8 bits; ``"rgb48le"`` or ``"rgba64le"`` for
        whole numbers of 16 bits. None for YUV, gray, and RGB of other depths.
    """
    format_ = VideoFormat(pix_fmt, 16, 16)
    bits = max(component.bits for component in format_.components)
    if pix_fmt in _BILEVEL:
        return "rgb24"
    if format_.has_palette:
        return "rgba"
    if not format_.is_rgb or (format_.is_bit_stream and bits > _BITS_PER_BYTE):
        return None
    has_alpha = any(component.is_alpha for component in format_.components)
    if bits <= _BITS_PER_BYTE:
        return "rgba" if has_alpha else "rgb24"
    if bits == 2 * _BITS_PER_BYTE and "f" not in pix_fmt:  # "gbrpf16le" has floats
        return "rgba64le" if has_alpha else "rgb48le"
    return None


def rgb_hash(frame: VideoFrame, reformatter: VideoReformatter) -> bytes:
    """Return the first 8 bytes of a SHA-256 of the frame's pixels in RGB, as PyAV converts them.

    Frames whose colour matrix libswscale does not know cannot be converted; they are hashed as if it were unspecified.
    """
    with ignore_unknown_matrix(frame):
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
