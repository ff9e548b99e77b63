r"""Motion of a virtual camera in front of a plane: poses as functions of time, and the homographies that they induce.

Coordinates are those of the camera in its reference pose: x to the right, y down, z forward, in units of the distance
to the plane, which is at z = 1 and faces the camera. A point X of the reference pose is at R X + t for the camera in a
pose [R|t]. The pixel in column x and row y has its centre at (x, y), so a frame of width W begins at x = -0.5 and ends
at W - 0.5.

A plane with n\ :sup:`T` X + d = 0 induces the homography H = K (R - t n\ :sup:`T` / d) K\ :sup:`-1` from the pixels of
the reference pose to those of another pose (Hartley and Zisserman, Multiple View Geometry in Computer Vision, second
edition, section 13.1). Here n = (0, 0, -1) and d = 1. With H\ :sub:`a` and H\ :sub:`b` of two poses, H\ :sub:`b` H\
:sub:`a`\ :sup:`-1` maps the pixels of one to those of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["CameraMotion", "ImagePlacement", "MotionOptions", "PoseBlock", "make_camera_matrix", "parse_camera"]

_SINES: Final = 3  # that are added for each of the six degrees of freedom
_MIN_SHARE: Final = 0.5  # of its maximum that the amplitude of a stream has
_BLOCK_STEPS: Final = 64  # whose poses are computed at the same time, and always the same ones: results are bit-exact
_SURVEY_STEPS: Final = 1 << 13  # whose poses are computed at the same time to find what the camera sees
_MAX_OBLIQUENESS: Final = math.radians(80)  # of a ray to the normal of the plane
_MAX_ZOOM: Final = 9.0
_ROUNDING_PIXELS: Final = 1e-6
_MAX_IMAGE_SIDE: Final = (1 << 15) - 2  # of an image that OpenCV warps, in pixels
_PLANE_NORMAL: Final = np.array([0.0, 0.0, -1.0])
_AXES: Final = 3


@dataclass(frozen=True, slots=True)
class MotionOptions:
    """Limits of a camera's motion.

    Attributes:
        rotation: Maximum angle of rotation in radians: one number for the angle about any axis, or the maxima of the
            three components (about x, y and z) of the rotation vector.
        translation: Maximum distance from the middle parallel to the plane, in widths of the reference view.
        zoom: Maximum relative change of the distance to the plane. With 0.25, it is 1/1.25 to 1.25.
        drift: Maximum distance of the steady motion from the first to the last step, in widths of the reference view.
        speed: Minimum and maximum frequency of the sines, in Hz.
    """

    rotation: float | tuple[float, float, float]
    translation: float
    zoom: float
    drift: float
    speed: tuple[float, float]

    @classmethod
    def from_arguments(cls, rotation: Any, translation: Any, zoom: Any, drift: Any, speed: Any) -> Self:
        """Validate the user's arguments.

        Raises:
            ConfigError: If one of them is invalid. The message names valid values.
        """
        if isinstance(rotation, (Sequence, np.ndarray)) and np.ndim(rotation) and not isinstance(rotation, str):
            if len(rotation) != _AXES:
                raise ConfigError(f"max_rotation must be an angle in radians, or three of them, got {rotation!r}")
            x, y, z = (_as_amount("max_rotation", each) for each in rotation)
            angles: float | tuple[float, float, float] = (x, y, z)
        else:
            angles = _as_amount("max_rotation", rotation)
        if _as_amount("max_zoom", zoom) > _MAX_ZOOM:
            raise ConfigError(f"max_zoom must be at most {_MAX_ZOOM}, got {zoom!r}")
        if isinstance(speed, (int, float)):
            speed = (speed, speed)
        if not isinstance(speed, (tuple, list)) or len(speed) != 2 or not _is_number(*speed):  # noqa: PLR2004
            raise ConfigError(f"speed must be (minimum, maximum) in Hz, or one number, got {speed!r}")
        if not 0 < speed[0] <= speed[1] < math.inf:
            raise ConfigError(f"speed must be (minimum, maximum) in Hz with 0 < minimum <= maximum, got {speed!r}")
        return cls(
            angles,
            _as_amount("max_translation", translation),
            float(zoom),
            _as_amount("max_drift", drift),
            (float(speed[0]), float(speed[1])),
        )

    @property
    def largest_angle(self) -> float:
        """Upper bound of the angle of rotation in radians."""
        return math.hypot(*self.rotation) if isinstance(self.rotation, tuple) else self.rotation

    def find_density(self, camera: Array) -> float:
        """Return how many pixels of a frame show a unit of the plane at most, where the camera faces it."""
        return float(max(camera[0, 0], camera[1, 1])) * (1 + self.zoom)

    def check_view(self, camera: Array, height: int, width: int) -> None:
        """Check that a camera sees the plane in every pixel, and not too obliquely.

        Args:
            camera: Camera matrix (3, 3).
            height: Height of a frame in pixels.
            width: Width of a frame in pixels.

        Raises:
            ConfigError: If it may not.
        """
        rays = _frame_corners(height, width) @ np.linalg.inv(camera).T
        widest = float(np.arctan(np.hypot(rays[:, 0], rays[:, 1]) / rays[:, 2]).max())
        if widest + self.largest_angle > _MAX_OBLIQUENESS:
            raise ConfigError(
                f"the corners of the view are {widest:.2f} rad from its axis, and the camera rotates by up to "
                f"{self.largest_angle:.2f} rad, but their sum must be at most {_MAX_OBLIQUENESS:.2f} rad: otherwise "
                "the camera looks past the plane. Use a smaller max_rotation, or a smaller field of view"
            )

    def describe(self) -> dict[str, Any]:
        """Return the limits as plain values."""
        return {
            "max_rotation": list(self.rotation) if isinstance(self.rotation, tuple) else self.rotation,
            "max_translation": self.translation,
            "max_zoom": self.zoom,
            "max_drift": self.drift,
            "speed": list(self.speed),
        }


def _is_number(*values: object) -> bool:
    return all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)


def _as_amount(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= float(value) < math.inf:
        raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def make_camera_matrix(height: int, width: int, fov: float) -> Array:
    """Return the camera matrix K (3, 3) of a frame with square pixels and its principal point in the middle.

    Args:
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
        fov: Horizontal field of view in degrees, from the left edge of the frame to the right one.

    Raises:
        ConfigError: If `fov` is not between 0 and 180.
    """
    if not _is_number(fov) or not 0 < fov < 180:  # noqa: PLR2004
        raise ConfigError(f"fov must be an angle between 0 and 180 degrees, got {fov!r}")
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def parse_camera(matrix: Any) -> Array:
    """Return the user's camera matrix as float64 (3, 3).

    Raises:
        ConfigError: If it is not one: upper triangular with a positive diagonal, and 1 in its last row.
    """
    try:
        camera = np.array(matrix, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"camera_matrix must have 3 rows of 3 numbers, got {matrix!r}") from error
    is_camera = camera.shape == (_AXES, _AXES) and bool(np.isfinite(camera).all())
    if not is_camera or camera[1, 0] or camera[2].tolist() != [0, 0, 1] or min(camera[0, 0], camera[1, 1]) <= 0:
        raise ConfigError(
            "camera_matrix must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] in pixels with fx, fy > 0, "
            f"got {camera.tolist()}"
        )
    return camera


def _frame_corners(height: int, width: int) -> Array:
    """Return the corners of a frame in homogeneous pixels, float64 (4, 3). They are edges of pixels, not centres."""
    left, top, right, bottom = -0.5, -0.5, width - 0.5, height - 0.5
    return np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]])


@dataclass(frozen=True, eq=False, slots=True)
class PoseBlock:
    """Poses of consecutive steps, from `first` on. Step k is in row ``k - first``.

    Attributes:
        first: Number of the first step.
        poses: Matrix [R|t] of each step, float64 (n, 3, 4).
        homographies: Homography from the plane to the pixels of each step, float64 (n, 3, 3), of any scale.
        inverses: Inverses of the homographies, float64 (n, 3, 3).
    """

    first: int
    poses: Array
    homographies: Array
    inverses: Array

    def pose(self, step: int) -> Array:
        """Return the matrix [R|t] (3, 4) of a step."""
        return np.asarray(self.poses[step - self.first])

    def to_plane(self, step: int) -> Array:
        """Return the homography (3, 3) from the pixels of a step to the plane."""
        return np.asarray(self.inverses[step - self.first])

    def between(self, source: int, target: int) -> Array:
        """Return the homography (3, 3) from the pixels of step `source` to those of step `target`.

        Its last element is 1, unless that of the product is 0 or less: what the first pixel shows is then behind the
        camera in step `target`.
        """
        product = self.homographies[target - self.first] @ self.inverses[source - self.first]
        return np.asarray(product / product[2, 2] if product[2, 2] > 0 else product)


class CameraMotion:
    """The motion of one stream's camera: a pose for every step, also for those before the first and after the last.

    Each of the six degrees of freedom is a sum of sines of random frequencies and phases. Their amplitudes fall with
    the frequency, so that the motion is smooth. The distance to the plane changes in proportion. A steady drift in a
    random direction parallel to the plane is added.

    Args:
        options: Limits of the motion.
        camera: Camera matrix (3, 3).
        size: (height, width) of a frame in pixels.
        length: Number of steps, during which the drift goes its way.
        step_s: Seconds from one step to the next.
        rng: Source of amplitudes, frequencies and phases.
    """

    def __init__(
        self,
        options: MotionOptions,
        camera: Array,
        size: tuple[int, int],
        length: int,
        step_s: float,
        rng: np.random.Generator,
    ) -> None:
        self._camera, self._camera_inverse = camera, np.linalg.inv(camera)
        self._corners = _frame_corners(*size)
        self._length = length
        view_width = size[1] / camera[0, 0]
        shares = rng.uniform(_MIN_SHARE, 1, 7)
        direction = np.abs(rng.standard_normal(_AXES))
        direction /= np.linalg.norm(direction)
        rotation = np.array(options.rotation) if isinstance(options.rotation, tuple) else options.rotation * direction
        turn, heading = rng.uniform(0, 2 * np.pi, 2)
        translation = options.translation * view_width * shares[3] * np.array([np.cos(turn), np.sin(turn)])
        scale = shares[:3] if isinstance(options.rotation, tuple) else shares[0]
        self._amplitudes = np.concatenate([rotation * scale, translation, [math.log1p(options.zoom) * shares[4]]])
        frequencies = np.exp(rng.uniform(math.log(options.speed[0]), math.log(options.speed[1]), (6, _SINES)))
        self._weights = 1 / frequencies
        self._weights /= self._weights.sum(axis=1, keepdims=True)
        self._speeds = 2 * np.pi * frequencies * step_s  # radians per step
        self._phases = rng.uniform(0, 2 * np.pi, (6, _SINES))
        self._drift = options.drift * view_width * shares[5] * np.array([np.cos(heading), np.sin(heading)])
        self._block: PoseBlock | None = None

    def is_visible_after(self, homography: Array) -> bool:
        """Return whether all that a frame shows is in front of the camera in another step, given the homography."""
        return bool((self._corners @ homography[2]).min() > 0)

    def block_of(self, step: int) -> PoseBlock:
        """Return poses that include those of `step` and of the steps before and after it."""
        first = step // _BLOCK_STEPS * _BLOCK_STEPS - 1
        if self._block is None or self._block.first != first:
            self._block = self._compute(first, _BLOCK_STEPS + 2)
        return self._block

    def find_bounds(self, *, reference: bool = False) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what the camera sees of the plane.

        The region of a frame is convex, so that its corners bound it.

        Args:
            reference: Whether only the reference pose counts. By default, all steps do.
        """
        corners = self._corners
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for inverses in [self._camera_inverse[None]] if reference else self._survey():
            seen = corners @ inverses.transpose(0, 2, 1)
            points = seen[..., :2] / seen[..., 2:]
            low = np.minimum(low, points.min(axis=(0, 1)))
            high = np.maximum(high, points.max(axis=(0, 1)))
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def _survey(self) -> Iterator[Array]:
        for first in range(0, self._length, _SURVEY_STEPS):
            yield self._compute(first, min(_SURVEY_STEPS, self._length - first)).inverses

    def _compute(self, first: int, count: int) -> PoseBlock:
        steps = np.arange(first, first + count, dtype=np.float64)
        angles = self._speeds[..., None] * steps + self._phases[..., None]
        signals = self._amplitudes[:, None] * (self._weights[..., None] * np.sin(angles)).sum(axis=1)
        rotations = _rotate(signals[:3].T)
        way = steps / max(1, self._length - 1) - 0.5
        positions = np.empty((count, _AXES))  # of the camera
        positions[:, :2] = signals[3:5].T + way[:, None] * self._drift
        positions[:, 2] = 1 - np.exp(signals[5])
        translations = -(rotations * positions[:, None, :]).sum(axis=2)
        induced = rotations - translations[:, :, None] * _PLANE_NORMAL
        homographies = self._camera @ induced  # without K^-1: from points (x, y, 1) of the plane, not from pixels
        poses = np.concatenate([rotations, translations[:, :, None]], axis=2)
        return PoseBlock(first, poses, homographies, np.linalg.inv(homographies))


class ImagePlacement:
    """Places an image on the plane: upright, as small as covers a region, and with only the pixels that are needed.

    Args:
        bounds: Left, top, right and bottom of the region on the plane.
        shifts: Position of the region within the image, where that is wider or higher: x and y from 0 to 1.
        density: Pixels of the image that are needed for a unit of the plane.
        shrinks: Whether images with more pixels are scaled down.
    """

    def __init__(
        self,
        bounds: tuple[float, float, float, float],
        shifts: tuple[float, float],
        density: float,
        *,
        shrinks: bool,
    ) -> None:
        self._bounds = bounds
        self._shifts = shifts
        self._density = density
        self._shrinks = shrinks
        self._height = self._width = 0.0  # of the image on the plane

    def choose_size(self, height: int, width: int) -> tuple[int, int]:
        """Place an image of (height, width) pixels. Return the size to which it is to be scaled down."""
        left, top, right, bottom = self._bounds
        scale = max((right - left) / width, (bottom - top) / height)
        self._height, self._width = scale * height, scale * width
        return self._limit_side(height, self._height), self._limit_side(width, self._width)

    def map_to_image(self, height: int, width: int) -> Array:
        """Return the homography (3, 3) from the plane to the pixels of the placed image, scaled to (height, width)."""
        left, top, right, bottom = self._bounds
        x = left - self._shifts[0] * (self._width - (right - left))
        y = top - self._shifts[1] * (self._height - (bottom - top))
        across, down = width / self._width, height / self._height
        return np.array([[across, 0, -x * across - 0.5], [0, down, -y * down - 0.5], [0, 0, 1]])

    def _limit_side(self, pixels: int, side: float) -> int:
        needed = math.ceil(side * self._density - _ROUNDING_PIXELS) if self._shrinks else pixels
        return max(1, min(pixels, needed, _MAX_IMAGE_SIDE))


def _rotate(vectors: Array) -> Array:
    """Return the rotation matrix (n, 3, 3) of each rotation vector (n, 3) in radians, by Rodrigues' formula."""
    angles = np.sqrt((vectors * vectors).sum(axis=1))
    cross = np.zeros((len(vectors), _AXES, _AXES))
    cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0] = vectors.T
    cross -= cross.transpose(0, 2, 1)
    first = np.sinc(angles / np.pi)[:, None, None]  # sin(angle) / angle
    second = (np.sinc(angles / (2 * np.pi)) ** 2 / 2)[:, None, None]  # (1 - cos(angle)) / angle^2
    return np.asarray(np.eye(_AXES) + first * cross + second * (cross @ cross))
