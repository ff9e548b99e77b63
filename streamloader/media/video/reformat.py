"""Convert frames with PyAV, except where its result is wrong or there is none.

FFmpeg 8, as PyAV 18 calls it, converts some big-endian RGB formats to ``rgb24`` as if they were little-endian. Frames
in these formats have their bytes swapped first, which is exact. Of some widths, it leaves the last columns of planar
RGB unwritten. Such frames are converted to ``rgb24`` first, with the same arithmetic. The slow tests compare all raw
pixel formats with the ffmpeg program.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import av.error
import numpy as np
from av.video.frame import VideoFrame

from streamloader.errors import UnreadableStream

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

    from streamloader.values import Array

__all__ = ["reformat_frame", "view_plane"]

# Formats of two bytes a pixel that are converted wrongly -> the same with the bytes of each pixel swapped.
_SWAPPED: Final = {
    "rgb565be": "rgb565le", "rgb555be": "rgb555le", "bgr565be": "bgr565le", "bgr555be": "bgr555le",
}  # fmt: skip
# Formats from which planes of RGB are converted 16 columns at a time, where half of them or less are left at the end.
_BLOCK_FORMATS: Final = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuva420p", "yuva422p"})
_BLOCK_COLUMNS: Final = 16
_ABORTING: Final = frozenset({"yaf32be", "yaf32le"})  # libswscale ends the process
_COLORS: Final = ("colorspace", "color_range", "color_primaries", "color_trc")


def reformat_frame(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, pix_fmt: str
) -> VideoFrame:
    """Return a frame scaled to a size (bilinear) and converted to a pixel format, with its own colours.

    Args:
        reformatter: PyAV's reformatter, used in one thread at a time.
        frame: Frame to convert.
        width: Width of the result in pixels.
        height: Height of the result in pixels.
        pix_fmt: FFmpeg's name of the pixel format of the result.

    Raises:
        UnreadableStream: If FFmpeg cannot convert frames of this kind.
    """
    if frame.format.name in _SWAPPED and frame.format.name != pix_fmt:
        frame = _swap_bytes(frame)
    try:
        if frame.format.name in _ABORTING:
            raise ValueError("FFmpeg has no conversion for it")
        if pix_fmt == "gbrp" and (frame.width, frame.height) == (width, height) and _loses_columns(frame):
            frame = reformatter.reformat(frame, width, height, "rgb24", threads=1)
        return reformatter.reformat(frame, width, height, pix_fmt, threads=1)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UnreadableStream(
            f"frames of the pixel format {frame.format.name} (colour matrix {int(frame.colorspace)}, range "
            f"{int(frame.color_range)}) cannot be converted to {pix_fmt}: {getattr(error, 'strerror', None) or error}. "
            "Convert the video with another program first"
        ) from error


def _loses_columns(frame: VideoFrame) -> bool:
    """Return whether FFmpeg does not write the last columns of a frame that it converts to planar RGB."""
    return frame.format.name in _BLOCK_FORMATS and 1 <= frame.width % _BLOCK_COLUMNS <= _BLOCK_COLUMNS // 2


def _swap_bytes(frame: VideoFrame) -> VideoFrame:
    """Return a frame of two bytes a pixel whose bytes are swapped, in the pixel format that has them so."""
    swapped = VideoFrame(frame.width, frame.height, _SWAPPED[frame.format.name])
    pixels = view_plane(frame.planes[0], frame.height, frame.width, 2)
    target = swapped.planes[0]
    rows: Array = np.zeros((frame.height, target.line_size), np.uint8)
    rows[:, : 2 * frame.width] = pixels[..., ::-1].reshape(frame.height, 2 * frame.width)
    target.update(rows.tobytes())
    for name in _COLORS:
        setattr(swapped, name, int(getattr(frame, name)))
    swapped.pts = frame.pts
    if frame.time_base is not None:
        swapped.time_base = frame.time_base
    return swapped


def view_plane(plane: Any, height: int, width: int, channels: int) -> Array:
    """Return the pixels of a plane as (H, W, C) without copying. The view keeps the frame alive."""
    line = plane.line_size
    if line < 0:  # stored bottom-up: the address is that of the last row in memory
        memory = (ctypes.c_uint8 * (-line * height)).from_address(plane.buffer_ptr + line * (height - 1))
        rows = np.frombuffer(memory, np.uint8).reshape(height, -line)[::-1].copy()
    else:
        rows = np.frombuffer(plane, np.uint8, line * height).reshape(height, line)
    return rows[:, : width * channels].reshape(height, width, channels)
