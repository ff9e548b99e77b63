"""Colour matrices that a file may declare, but that libswscale does not know.

libswscale refuses every conversion of such frames. Only those that turn luma and chroma into RGB need the matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["describe_matrix", "ignore_unknown_matrix"]

_UNSPECIFIED: Final = 2
# MatrixCoefficients of ITU-T H.273 that libswscale refuses.
_REFUSED: Final = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "derived from the primaries, with non-constant luminance",
    13: "derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}


def describe_matrix(frame: VideoFrame) -> str | None:
    """Return the name of a frame's colour matrix if libswscale does not know it, otherwise None."""
    return _REFUSED.get(int(frame.colorspace))


@contextlib.contextmanager
def ignore_unknown_matrix(frame: VideoFrame) -> Iterator[None]:
    """Mark the colour matrix of a frame as unspecified in the context, if libswscale does not know it.

    This is for conversions that do not use the matrix: to luma, and from one YUV format to another.
    """
    matrix = int(frame.colorspace)
    if matrix not in _REFUSED:
        yield
        return
    frame.colorspace = _UNSPECIFIED
    try:
        yield
    finally:
        frame.colorspace = matrix
