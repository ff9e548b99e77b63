"""Display matrices: which way up a video is shown."""

from __future__ import annotations

import struct
from typing import NamedTuple

from streamloader.values import Array

__all__ = ["UPRIGHT", "Turn", "turn_of_matrix"]


class Turn(NamedTuple):
    """Swap rows and columns first, if `transpose`; then reverse the rows, and the columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after the turn, or before it: the swap is its own inverse."""
        return (width, height) if self.transpose else (height, width)

    def view(self, image: Array) -> Array:
        """Return a turned view of `image` (H, W, ...)."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Turn()


def turn_of_matrix(matrix: bytes) -> Turn | None:
    """Return the turn that a display matrix asks for; None where it is by no multiple of 90 degrees.

    The matrix is nine 32-bit numbers a b u c d v x y w: a pixel (p, q) is shown at (ap + cq + x, bp + dq + y)
    (ISO/IEC 14496-12, 6.2.2). Only the signs of a, b, c, d matter here: scaling is left to ``size=``.
    """
    if len(matrix) < 36:
        return None
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    if a and d and not b and not c:
        return Turn(False, d < 0, a < 0)
    if b and c and not a and not d:
        return Turn(True, b < 0, c < 0)
    return None
