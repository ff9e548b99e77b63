"""Draw what a camera sees of a planar image, and the optical flow that a homography induces."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["BORDERS", "INTERPOLATIONS", "Border", "FlowWriter", "Interpolation", "PlaneRenderer", "shrink_image"]

Border: TypeAlias = Literal["fit", "reflect", "repeat", "edge", "constant"]
Interpolation: TypeAlias = Literal["nearest", "linear", "cubic"]

# OpenCV's names. "fit" needs a border only for the outer half of the outermost pixels.
BORDERS: Final = {
    "fit": "BORDER_REPLICATE",
    "reflect": "BORDER_REFLECT",
    "repeat": "BORDER_WRAP",
    "edge": "BORDER_REPLICATE",
    "constant": "BORDER_CONSTANT",
}
INTERPOLATIONS: Final = {"nearest": "INTER_NEAREST", "linear": "INTER_LINEAR", "cubic": "INTER_CUBIC"}
_EDGE_TOLERANCE_PIXELS: Final = 1e-6  # for rounding, where the image ends exactly at the edge of a view
_MAX_BAND_PIXELS: Final = 1 << 18  # of the flow that are computed at the same time: 8 MiB of coordinates


@dataclass(frozen=True, eq=False, slots=True)
class PlaneRenderer:
    """Draws views of one image with OpenCV, in one thread at a time.

    Attributes:
        image: Pixels (H, W, C) or (H, W), of a type that OpenCV scales: uint8, uint16, int16, float32 or float64.
        size: (height, width) of a view in pixels.
        interpolation: Interpolation between the pixels of the image.
        border: Kind of surroundings of the image.
        border_value: Value of all channels around the image for ``border="constant"``.
    """

    image: Array
    size: tuple[int, int]
    interpolation: Interpolation
    border: Border
    border_value: float

    def draw_into(self, out: Array, to_image: Array) -> None:
        """Draw one view into `out`, (H, W, C).

        Args:
            out: Array for the view, of the dtype of the image.
            to_image: Homography (3, 3) from the pixels of the view to those of the image.
        """
        import cv2

        flags = getattr(cv2, INTERPOLATIONS[self.interpolation]) | cv2.WARP_INVERSE_MAP
        border = getattr(cv2, BORDERS[self.border])
        size = self.size[::-1]
        result = cv2.warpPerspective(
            self.image, to_image, size, dst=out, flags=flags, borderMode=border, borderValue=(self.border_value,) * 4
        )
        if not np.shares_memory(result, out):  # OpenCV allocates what it cannot use
            out[...] = result.reshape(out.shape)

    def mark_into(self, out: Array, to_image: Array) -> None:
        """Write into `out`, bool (H, W), whether each pixel of a view shows the image, and not what is around it."""
        rows, columns = self.size
        corners = self._covers(*_map_pixels(to_image, np.array([0, rows - 1.0]), np.array([0, columns - 1.0])))
        if corners.all():  # the view is convex, and so is the image
            out[...] = True
        else:
            out[...] = self._covers(*_map_pixels(to_image, np.arange(float(rows)), np.arange(float(columns))))

    def _covers(self, x: Array, y: Array) -> Array:
        """Return whether points, in pixels of the image, are in it. Those at its edge are."""
        height, width = self.image.shape[:2]
        across = abs(x - (width - 1) / 2) <= width / 2 + _EDGE_TOLERANCE_PIXELS
        down = abs(y - (height - 1) / 2) <= height / 2 + _EDGE_TOLERANCE_PIXELS
        return np.asarray(across & down)


def shrink_image(image: Array, height: int, width: int) -> Array:
    """Return `image` (H, W, C) scaled down to a size, each pixel the mean of the area that it covers."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(scaled).reshape(height, width, *image.shape[2:])


class FlowWriter:
    """Writes the optical flow that homographies induce: H(x) - x for each pixel x, in one thread at a time.

    It is computed in double precision, and then rounded.

    Args:
        height: Height of a view in pixels.
        width: Width of a view in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        rows = min(height, max(1, _MAX_BAND_PIXELS // width))
        self._grid = _make_grid(rows, width)
        self._mapped = np.empty_like(self._grid)

    def write_into(self, out: Array, homography: Array) -> None:
        """Write the flow of one view.

        Args:
            out: Array for the flow, float32 (H, W, 2): right and down in pixels.
            homography: Homography (3, 3) from the pixels of this view to those of another one.
        """
        import cv2

        rows = len(self._grid)
        for top in range(0, len(out), rows):
            band = out[top : top + rows]
            points = self._grid[: len(band)]
            # Both in coordinates of the band, so that one grid serves all of them.
            moved = _shift(-top) @ homography @ _shift(top) if top else homography
            mapped = cv2.perspectiveTransform(points, moved, dst=self._mapped[: len(band)])
            flow = cv2.subtract(mapped, points, dst=band, dtype=cv2.CV_32F)
            if flow is not band and not np.shares_memory(flow, band):
                band[...] = flow


def _shift(rows: int) -> Array:
    return np.array([[1.0, 0, 0], [0, 1, rows], [0, 0, 1]])


@functools.lru_cache(maxsize=8)
def _make_grid(height: int, width: int) -> Array:
    """Return the coordinates (x, y) of all pixels, float64 (H, W, 2)."""
    y, x = np.mgrid[0.0:height, 0.0:width]
    grid = np.stack([x, y], axis=-1)
    grid.flags.writeable = False
    return grid


def _map_pixels(homography: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Return the image of the pixels of a view under a homography: x and y, float64 (rows, columns)."""
    (a, b, c), (d, e, f), (g, h, i) = homography
    x, y = columns, rows[:, None]
    depth = g * x + (h * y + i)
    return (a * x + (b * y + c)) / depth, (d * x + (e * y + f)) / depth
