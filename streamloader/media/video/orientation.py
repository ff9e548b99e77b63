"""Orientation of a video: the rotation and mirroring that its display matrix requests."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from streamloader.values import Array

__all__ = ["UPRIGHT", "Orientation"]

_MATRIX_BYTES: Final = 36


class Orientation(NamedTuple):
    """Steps that turn a decoded image upright: swap rows and columns, then reverse the rows, then the columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_display_matrix(cls, matrix: bytes) -> Orientation | None:
        """Return the orientation of a display matrix, or None if it is not a multiple of 90 degrees.

        The matrix is nine 32-bit numbers a b u c d v x y w: a pixel (p, q) is shown at (ap + cq + x, bp + dq + y)
        (ISO/IEC 14496-12, 6.2.2). Only the signs of a, b, c, d are used: scaling is left to ``size=``.
        """
        if len(matrix) < _MATRIX_BYTES:
            return None
        a, b, _, c, d = struct.unpack("=5i", matrix[:20])
        if a and d and not b and not c:
            return cls(False, d < 0, a < 0)
        if b and c and not a and not d:
            return cls(True, b < 0, c < 0)
        return None

    def apply_to_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the upright image. Applied to an upright size, it returns the stored size."""
        return (width, height) if self.transpose else (height, width)

    def apply_to_image(self, image: Array) -> Array:
        """Return an upright view of `image` (H, W, ...)."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Orientation()
