"""Draw what a camera sees of a planar image, and the optical flow that a homography induces."""

from __future__ import annotations

import functools
import math
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
_TOLERANCE_PIXELS: Final = 1e-12  # of the flow, as much as rounding of double precision amounts to
_NEGLIGIBLE_SLOPE: Final = 2.0**-60  # of depth, which double precision does not show
_MAX_NODES: Final = 16  # above which a division for each pixel takes less time
# Multiplications at a time. Their result fits into the cache, and libraries of linear algebra use one thread for so
# few, so that results do not depend on the number of their threads.
_MAX_BAND_PRODUCTS: Final = 1 << 17


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

    It is computed in double precision, and then rounded. In each column, it is a rational function of the row with a
    denominator that hardly changes in what a camera moves from one step to the next. So its polynomial through a few
    rows (the Chebyshev nodes, of which 5 to 8 are usual) is equal to it within `_TOLERANCE_PIXELS`, and one product of
    matrices evaluates that, several times as fast as a division for each pixel. Where too many rows would be needed,
    each pixel is divided.

    Args:
        height: Height of a view in pixels.
        width: Width of a view in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height = height
        self._columns = np.arange(float(width))
        self._band = np.empty(0)  # of rows before they are rounded, which stays in the processor's cache

    def write_into(self, out: Array, homography: Array) -> None:
        """Write the flow of one view.

        Args:
            out: Array for the flow, float32 (H, W, 2): right and down in pixels.
            homography: Homography (3, 3) from the pixels of this view to those of another one, in front of which the
                whole view is: its last row gives a positive number for each pixel.
        """
        width = len(self._columns)
        count = _count_nodes(homography, self._height, width)
        if count > min(_MAX_NODES, self._height):
            rows = max(1, _MAX_BAND_PRODUCTS // (2 * width))
            for top in range(0, self._height, rows):
                band = out[top : top + rows]
                band[...] = self._compute(homography, np.arange(float(top), top + len(band)))
            return
        nodes, weights = _interpolate_rows(self._height, count)
        flow = self._compute(homography, nodes).reshape(count, 2 * width)
        rows = max(1, _MAX_BAND_PRODUCTS // flow.size)
        if len(self._band) != rows:
            self._band = np.empty((rows, 2 * width))
        for top in range(0, self._height, rows):
            band = out[top : top + rows]
            computed = np.matmul(weights[top : top + rows], flow, out=self._band[: len(band)])
            band[...] = computed.reshape(band.shape)

    def _compute(self, homography: Array, rows: Array) -> Array:
        """Return the flow of some rows, which need not be whole numbers: float64 (rows, W, 2)."""
        flow = np.empty((len(rows), len(self._columns), 2))
        x, y = _map_pixels(homography, rows, self._columns)
        np.subtract(x, self._columns, out=flow[..., 0])
        np.subtract(y, rows[:, None], out=flow[..., 1])
        return flow


def _count_nodes(homography: Array, height: int, width: int) -> int:
    """Return how many Chebyshev nodes make the polynomial through the flow of a column equal to the flow.

    In a column, a coordinate of the flow is p(y) + C / (D + h y), with p of degree 1, and h the change of depth from
    row to row. Let the rows be -1 to 1, where the second part is C' / (1 + delta t). A polynomial through n nodes of
    the first kind, the zeros of T_n, differs from 1 / (1 + delta t) by T_n(t) / T_n(1 / delta) of its value, and T_n
    is at most 1 there, so C' / T_n(1 / delta) bounds the error (Mason and Handscomb, Chebyshev Polynomials, section
    6.3). C / (D + h y) is the coordinate of the mapped pixel less that of the vanishing point of the columns.
    """
    (a, b, c), (d, e, f), (g, h, i) = homography.tolist()
    right, bottom = width - 1, height - 1
    least, reach = math.inf, 0.0
    for x, y in ((0, 0), (right, 0), (0, bottom), (right, bottom)):  # the view is convex, so that its corners bound it
        depth = g * x + h * y + i
        if depth <= 0:
            return height + 1
        least = min(least, depth)
        reach = max(reach, abs(a * x + b * y + c) / depth, abs(d * x + e * y + f) / depth)
    half = abs(h) * bottom / 2  # change of depth from the middle row to the last one
    slope = half / (least + half)  # delta, where it is largest
    if slope < _NEGLIGIBLE_SLOPE:
        return 2
    reach += max(abs(b), abs(e)) / abs(h)
    return max(2, math.ceil(math.acosh(max(1.0, reach / _TOLERANCE_PIXELS)) / math.acosh(1 / slope)))


@functools.lru_cache(maxsize=32)
def _interpolate_rows(height: int, count: int) -> tuple[Array, Array]:
    """Return the Chebyshev nodes of the rows of a view, and the weights of their values in each row.

    Args:
        height: Number of rows.
        count: Number of nodes.

    Returns:
        Positions of the nodes in rows, float64 (count,), and weights, float64 (height, count).
    """
    middle = (height - 1) / 2
    nodes = np.cos((np.arange(count) + 0.5) * (np.pi / count))
    distances = (np.arange(float(height)) - middle)[:, None, None] / middle - nodes
    own = np.eye(count, dtype=bool)
    factors = np.where(own, 1, distances) / np.where(own, 1, nodes[:, None] - nodes)  # (height, count, count)
    weights = factors.prod(axis=2)
    positions = middle + middle * nodes
    positions.flags.writeable = weights.flags.writeable = False
    return positions, weights


def _map_pixels(homography: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Return the image of the pixels of a view under a homography: x and y, float64 (rows, columns)."""
    (a, b, c), (d, e, f), (g, h, i) = homography.tolist()
    x, y = columns, rows[:, None]
    depth = g * x + (h * y + i)
    return (a * x + (b * y + c)) / depth, (d * x + (e * y + f)) / depth
