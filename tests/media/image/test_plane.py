"""The flow of homographies, compared with the same division in extended precision."""

import os
import subprocess
import sys

import numpy as np
import pytest

from streamloader.media.image import plane
from streamloader.media.image.plane import FlowWriter
from streamloader.streams.camera_motion import CameraMotion, MotionOptions, make_camera_matrix

HALF_ULP = 2.0**-24  # of a float32, relative to its value

# Rotation, translation, zoom, drift and speed of cameras, the last of which turns by half a radian a step and more.
MOTIONS = {
    "usual": (0.25, 0.2, 0.2, 0.2, (0.05, 0.4)),
    "still": (0, 0, 0, 0, (0.05, 0.4)),
    "parallel to the image": (0, 0.5, 0, 0.2, (1, 4)),
    "about the optical axis": ((0, 0, 0.5), 0.2, 0.2, 0.2, (1, 4)),
    "about the vertical axis": ((0, 0.4, 0), 0, 0, 0, (0.5, 2)),
    "about the horizontal axis": ((0.4, 0, 0), 0, 0, 0, (0.5, 2)),
    "fast": (0.6, 0.2, 0.2, 0.2, (3, 5)),
}


def make_homographies(motion, height, width, count=8):
    """Return homographies between consecutive steps, in front of which the whole view is."""
    camera = make_camera_matrix(height, width, 60)
    options = MotionOptions.from_arguments(*motion)
    homographies = []
    for seed in range(count):
        course = CameraMotion(options, camera, (height, width), 100, 1 / 25, np.random.default_rng(seed))
        steps = range(0, 60, 60 // count)
        homographies += [course.block_of(step).between(step, step + 1) for step in steps]
    return [homography for homography in homographies if course.is_visible_after(homography)]


def write_flow(homography, height, width):
    flow = np.full((height, width, 2), np.nan, np.float32)
    FlowWriter(height, width).write_into(flow, homography)
    return flow


def divide(homography, height, width):
    """Return the flow in extended precision."""
    x, y = np.arange(width, dtype=np.longdouble), np.arange(height, dtype=np.longdouble)[:, None]
    first, second, depth = (row[0] * x + row[1] * y + row[2] for row in homography.astype(np.longdouble))
    return np.stack([first / depth - x, second / depth - y], axis=-1)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (67, 5), (3, 200), (1, 9), (9, 1), (1, 1)])
def test_flow_is_rounded_once(motion, height, width):
    for homography in make_homographies(motion, height, width):
        exact = divide(homography, height, width)
        error = np.abs(write_flow(homography, height, width) - exact)
        assert (error <= HALF_ULP * np.abs(exact) + 1e-11).all()


def test_views_that_end_near_the_vanishing_line_have_exact_flow():
    # The depth of the last row is a small part of that of the first one, so the polynomial would have too many nodes.
    for share in (0.5, 0.1, 1e-3, 1e-6):
        homography = np.array([[1.1, 0.1, 3], [0.05, 0.9, -2], [1e-4, -(1 - share) / 40, 1]])
        exact = divide(homography, 41, 30)
        error = np.abs(write_flow(homography, 41, 30) - exact)
        # Half a unit, and the rounding of the depth.
        assert (error <= (HALF_ULP + 2.0**-50 / share) * np.abs(exact) + 1e-11).all()


@pytest.mark.parametrize("change", [0, 5e-324, 1e-300, 1e-20, 1e-12, -1e-9])
def test_depth_that_hardly_changes(change):
    homography = np.array([[1, 0.25, 3], [0.125, 1, -2], [1e-4, change, 1]])
    exact = divide(homography, 40, 30)
    assert (np.abs(write_flow(homography, 40, 30) - exact) <= HALF_ULP * np.abs(exact) + 1e-11).all()


def test_bands_do_not_change_the_flow(monkeypatch):
    for motion in (MOTIONS["usual"], MOTIONS["fast"]):
        for homography in make_homographies(motion, 48, 64, 2):
            whole = write_flow(homography, 48, 64)
            with monkeypatch.context() as patch:
                patch.setattr(plane, "_MAX_BAND_PRODUCTS", 7 * 5 * 2 * 64)
                bands = write_flow(homography, 48, 64)
            np.testing.assert_allclose(bands, whole, rtol=2e-7, atol=1e-11)


def test_flow_does_not_depend_on_the_threads_of_linear_algebra():
    program = (
        "import hashlib, numpy as np\n"
        "from streamloader.media.image.plane import FlowWriter\n"
        "out = np.empty((480, 640, 2), np.float32)\n"
        "FlowWriter(480, 640).write_into(out, np.array([[1, .01, 2], [-.01, 1.02, 1], [1e-5, 3e-5, 1]]))\n"
        "print(hashlib.sha256(out).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {f"{name}_NUM_THREADS": threads for name in ("OPENBLAS", "MKL", "OMP")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in "12"
    }
    assert len(digests) == 1
