"""The geometry of CameraStreams: frames, poses, homographies and flow agree, each checked by casting rays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from image_data import make_pixels

import streamloader as sl
from streamloader.errors import ConfigError
from streamloader.streams.base import stream_rng
from streamloader.testing import describe_streams, read_stream

HEIGHT, WIDTH = 48, 64
ALL = ("homography", "flow", "pose", "visible")
OFF = {"max_rotation": 0, "max_translation": 0, "max_zoom": 0, "max_drift": 0}
# Frames may differ from exact interpolation by this much, in pixels of the image: some releases of OpenCV round
# positions to 1/32.
PLACE_TOLERANCE = 0.05


def make_map(height=400, width=600):
    """Return an image whose value at each place is that place: x, y and 1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def play(images, seed=0, number=0, size=(HEIGHT, WIDTH), **options):
    """Return the steps of one stream, and the camera matrix."""
    dataset = sl.CameraStreams(images, size, **{"ground_truth": ALL, "length": 30, **options})
    info = describe_streams(dataset)[number]
    return read_stream(dataset, info, rng=stream_rng(seed, 0, 0)), dataset.camera_matrix


def grid(height=HEIGHT, width=WIDTH):
    """Return the homogeneous pixels (H, W, 3) of a frame."""
    y, x = np.mgrid[0.0:height, 0.0:width]
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def cast_rays(pixels, pose, camera):
    """Return where the rays of pixels (..., 3) meet the plane z = 1, in the coordinates of the reference pose."""
    rotation, translation = pose[:, :3], pose[:, 3]
    centre = -rotation.T @ translation
    rays = pixels @ np.linalg.inv(camera).T @ rotation
    return centre + rays * ((1 - centre[2]) / rays[..., 2:])


def project(points, pose, camera):
    """Return the pixels (..., 2) at which a camera sees points."""
    seen = (points @ pose[:, :3].T + pose[:, 3]) @ camera.T
    return seen[..., :2] / seen[..., 2:]


def apply(homography, pixels):
    mapped = pixels @ homography.T
    return mapped[..., :2] / mapped[..., 2:]


def sample(values, points):
    """Return values (H, W, C) at points (..., 2) by bilinear interpolation, in double precision."""
    left, top = (np.clip(np.floor(points[..., axis]).astype(int), 0, values.shape[1 - axis] - 2) for axis in (0, 1))
    right, down = points[..., :1] - left[..., None], points[..., 1:] - top[..., None]
    values = values.astype(np.float64)
    above = values[top, left] * (1 - right) + values[top, left + 1] * right
    below = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def inside(points, margin=0.0):
    """Return which points are in a frame."""
    x, y = points[..., 0], points[..., 1]
    return (x >= margin) & (x <= WIDTH - 1 - margin) & (y >= margin) & (y <= HEIGHT - 1 - margin)


CASES = [
    {},
    {"max_rotation": (0.1, 0.5, 0.8), "fov": 35},
    {"border": "reflect", "max_translation": 1.5, "max_zoom": 1},
    {"camera_matrix": [[70, 3, 20], [0, 60, 30], [0, 0, 1]], "max_drift": 2},
    {"pix_fmt": None, "flow_to": "previous", "fps": 5, "speed": 0.7},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_frames_show_what_the_rays_of_the_poses_meet(options, seed):
    image = make_map()
    steps, camera = play([image], seed, **options)
    pairs = []
    for frame, pose, visible in zip(steps["data"], steps["pose"], steps["visible"], strict=True):
        places = frame[..., :2]
        # Where no border is mixed in. The image is scaled down, to 5 of its pixels at most in one.
        inner = visible & (places > 10).all(axis=-1) & (places < (589, 389)).all(axis=-1)
        pairs.append(np.stack([cast_rays(grid(), pose, camera)[inner][:, :2], places[inner]]))
    points, places = np.concatenate(pairs, axis=1).astype(np.float64)
    assert len(points) > 0.1 * steps["visible"].size
    scales = []
    for axis in (0, 1):  # the image lies upright on the plane, all the time
        scale, offset = np.polyfit(points[:, axis], places[:, axis], 1)
        assert np.abs(points[:, axis] * scale + offset - places[:, axis]).max() < PLACE_TOLERANCE
        scales.append(scale)
    assert scales[0] == pytest.approx(scales[1], rel=0.01)  # and is not stretched


@pytest.mark.parametrize("options", CASES)
def test_homographies_and_flow_are_those_of_the_poses(options):
    steps, camera = play([make_map()], 3, **options)
    pixels = grid()
    previous = options.get("flow_to") == "previous"
    for step in range(1, 30):
        source, target = (step, step - 1) if previous else (step - 1, step)
        expected = project(cast_rays(pixels, steps["pose"][source], camera), steps["pose"][target], camera)
        homography, flow = steps["homography"][source], steps["flow"][source]
        assert homography[2, 2] == 1
        np.testing.assert_allclose(apply(homography, pixels), expected, rtol=0, atol=1e-9)
        exact = expected - pixels[..., :2]
        np.testing.assert_allclose(flow, exact, rtol=2e-7, atol=1e-9)  # rounded once
    assert np.abs(steps["flow"]).max() > 0.3


def test_warping_by_the_flow_gives_the_other_frame():
    image = cv2.GaussianBlur(make_noise(80, 100), (0, 0), 3).astype(np.float32)
    steps, _ = play([image], 5, speed=0.5, fps=10)
    pixels = grid()[..., :2]
    errors = {"right": 0.0, "none": 0.0, "opposite": 0.0, "transposed": 0.0}
    for step in range(29):
        frame, following = steps["data"][step : step + 2]
        flow = steps["flow"][step]
        warps = {"right": flow, "none": 0 * flow, "opposite": -flow, "transposed": flow[..., ::-1]}
        seen = np.all([inside(pixels + warp) for warp in warps.values()], axis=0)
        for name, warp in warps.items():
            errors[name] += np.abs(sample(following, pixels + warp) - frame)[seen].mean() / 29
    assert errors["right"] < 0.03 * image.std()
    assert min(errors["none"], errors["opposite"], errors["transposed"]) > 0.1 * image.std()


@pytest.mark.parametrize("border", ["fit", "reflect", "repeat"])
def test_flow_leads_to_the_same_place_of_the_image(border):
    # The frames of the map tell where each pixel is, so they are compared by places, not by colours.
    steps, _ = play([make_map()], 6, border=border, max_translation=0.4)
    pixels = grid()[..., :2]
    for step in range(0, 29, 4):
        target = pixels + steps["flow"][step]
        seen = inside(target, 1)
        if border != "fit":  # the continued maps are not smooth at the seams
            here, there = (
                cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) for mask in steps["visible"][step : step + 2]
            )
            seen &= (here > 0) & (sample(there[..., None], target)[..., 0] > 0.999)
        assert seen.mean() > 0.3
        places = sample(steps["data"][step + 1], target)
        assert np.abs(places - steps["data"][step])[seen].max() < 2 * PLACE_TOLERANCE


def test_homographies_chain_and_so_does_the_flow():
    steps, camera = play([make_map()], 7, length=80)
    chain = np.eye(3)
    point = np.array([WIDTH / 2 - 3.25, HEIGHT / 2 + 2.5])
    start = np.array([*point, 1])
    for step in range(79):
        chain = steps["homography"][step] @ chain
        point = point + sample(steps["flow"][step], point)
        expected = project(cast_rays(start, steps["pose"][0], camera), steps["pose"][step + 1], camera)
        np.testing.assert_allclose(apply(chain, start), expected, atol=1e-8)
        if inside(point):
            np.testing.assert_allclose(point, expected, atol=2e-3)  # the flow is interpolated between pixels
    assert np.linalg.norm(expected - start[:2]) > 2


def test_flow_to_the_previous_step_is_the_inverse():
    forwards, _ = play([make_map()], 8, ground_truth=("homography", "flow"))
    backwards, _ = play([make_map()], 8, ground_truth=("homography", "flow"), flow_to="previous")
    assert np.array_equal(forwards["data"], backwards["data"])
    for step in range(29):
        product = backwards["homography"][step + 1] @ forwards["homography"][step]
        np.testing.assert_allclose(product / product[2, 2], np.eye(3), atol=1e-9)
    there = grid()[..., :2] + forwards["flow"][3]
    seen = inside(there)
    back = sample(backwards["flow"][4], there) + forwards["flow"][3]
    assert np.abs(back[seen]).max() < 1e-3


def test_ground_truth_leads_beyond_the_ends():
    # The first step of a stream that goes on backwards, and the last one, have their flow too: the motion continues.
    options = {**OFF, "max_drift": 1, "border": "reflect"}
    for flow_to in ("next", "previous"):
        steps, _ = play([make_map()], 2, flow_to=flow_to, **options)
        flow = steps["flow"]
        assert np.abs(flow[0]).max() > 0.1
        np.testing.assert_allclose(flow, np.broadcast_to(flow[0], flow.shape), atol=1e-5)  # a drift is steady


# --- motion ----------------------------------------------------------------------------------------------------------


def angles_of(poses):
    """Return the angle of rotation of each pose in radians."""
    return np.arccos(np.clip((np.trace(poses[:, :, :3], axis1=1, axis2=2) - 1) / 2, -1, 1))


def centres_of(poses):
    """Return the position of the camera in each pose."""
    return -np.einsum("nji,nj->ni", poses[:, :, :3], poses[:, :, 3])


def poses_of(seed, **options):
    options = {"ground_truth": "pose", "length": 2000, "size": (6, 8), "speed": (0.5, 2), **options}
    return play([np.zeros((8, 8), np.uint8)], seed, **options)[0]["pose"]


def test_poses_stay_within_their_limits_and_come_close_to_them():
    largest = np.zeros(3)
    for seed in range(12):
        poses = poses_of(seed, max_drift=0)
        rotations = poses[:, :, :3]
        np.testing.assert_allclose(
            rotations @ rotations.transpose(0, 2, 1), np.eye(3)[None].repeat(2000, 0), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotations), 1)
        centres = centres_of(poses)
        view_width = 2 * np.tan(np.radians(30))
        reached = (
            angles_of(poses),
            np.hypot(centres[:, 0], centres[:, 1]) / view_width,
            np.abs(np.log(1 - centres[:, 2])),
        )
        assert (reached[0] <= 0.25 + 1e-9).all()
        assert (reached[1] <= 0.2 + 1e-9).all()
        assert (reached[2] <= np.log(1.2) + 1e-9).all()
        largest = np.maximum(largest, [each.max() for each in reached])
    assert (largest > 0.8 * np.array([0.25, 0.2, np.log(1.2)])).all()


def test_limits_of_single_axes():
    for axis in range(3):
        limits = [0.0, 0.0, 0.0]
        limits[axis] = 0.3
        rotations = poses_of(axis, **{**OFF, "max_rotation": limits})[:, :, :3]
        assert np.allclose(rotations[:, axis, axis], 1)
        assert 0.1 < angles_of(rotations).max() <= 0.3 + 1e-9


def test_motion_is_smooth():
    poses = poses_of(0, speed=(0.05, 0.4), fps=100)
    rotation = np.arcsin(poses[:, 1, 2])  # about the x axis, nearly
    velocity, acceleration = np.diff(rotation) * 100, np.diff(rotation, 2) * 100**2
    assert np.abs(velocity).max() < 0.25 * 2 * np.pi * 0.4 * 1.1
    assert np.abs(acceleration).max() < 0.25 * (2 * np.pi * 0.4) ** 2 * 1.2
    assert np.abs(velocity).max() > 0.01


def test_the_drift_goes_from_the_first_step_to_the_last():
    centres = centres_of(poses_of(1, **{**OFF, "max_drift": 3}, length=50, border="reflect"))
    steps = np.diff(centres, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-12)
    view_width = 2 * np.tan(np.radians(30))
    assert 1.5 <= np.linalg.norm(centres[-1] - centres[0]) / view_width <= 3
    np.testing.assert_allclose(centres[0], -centres[-1], atol=1e-12)


def test_without_motion_all_frames_are_equal():
    steps, camera = play([make_map(90, 120)], **OFF, size=(30, 40))
    assert np.array_equal(steps["data"], np.broadcast_to(steps["data"][0], steps["data"].shape))
    np.testing.assert_allclose(steps["flow"], 0, atol=1e-9)
    np.testing.assert_allclose(steps["homography"], np.eye(3)[None].repeat(30, 0), atol=1e-9)
    # An image of the shape of the view and three times its size is averaged: the middles of 3 x 3 pixels are shown.
    x, y = np.arange(40) * 3 + 1, np.arange(30) * 3 + 1
    np.testing.assert_allclose(steps["data"][0][..., 0], np.broadcast_to(x, (30, 40)), atol=1e-3)
    np.testing.assert_allclose(steps["data"][0][..., 1], np.broadcast_to(y[:, None], (30, 40)), atol=1e-3)
    assert camera[0, 0] == pytest.approx(20 / np.tan(np.radians(30)))
    assert (camera[0, 2], camera[1, 2]) == (19.5, 14.5)


def test_a_camera_that_passes_what_it_sees_within_one_step():
    options = {"max_rotation": 0.75, "speed": (1.5, 2.6), "fps": 5, "border": "reflect", "length": 300}
    assert play([make_map()], ground_truth=(), **options)[0]["data"].any()
    dataset = sl.CameraStreams([make_map()], (HEIGHT, WIDTH), ground_truth="flow", **options)
    (info,) = describe_streams(dataset)
    with pytest.raises(ConfigError, match="moves so far within one step") as caught:
        read_stream(dataset, info)
    assert caught.value.stream == info.key
    step = caught.value.offset
    assert step > 0
    assert len(read_stream(dataset, info, steps=step)["flow"]) == step


# --- borders ---------------------------------------------------------------------------------------------------------


def make_noise(height=60, width=80):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", [(400, 600), (600, 400), (30, 2000), (2000, 30), (1, 1), (1, 50), (3, 4)])
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_a_camera_never_sees_beyond_a_fitted_image(shape, interpolation):
    image = np.full((*shape, 1), 77, np.uint8)
    for seed in range(3):
        steps, _ = play([image], seed, interpolation=interpolation, max_drift=1, length=12)
        assert steps["visible"].all()
        assert (steps["data"] == 77).all()


def test_a_fitted_image_is_used_up_to_its_edges():
    steps, _ = play([make_map(480, 640)], 4, max_drift=0, length=200, speed=2)
    seen = steps["data"][..., :2]
    low, high = seen.min(axis=(0, 1, 2)), seen.max(axis=(0, 1, 2))
    assert (low[0] < 8 and high[0] > 631) or (low[1] < 8 and high[1] > 471)


@pytest.mark.parametrize("border", ["constant", "edge", "reflect", "repeat"])
def test_what_is_around_an_image(border):
    image = make_noise()
    options = {"border": border, "border_value": 9, "max_drift": 4, "interpolation": "nearest"}
    steps, camera = play([image], 3, **options)
    visible = steps["visible"]
    assert 0.1 < visible.mean() < 0.9
    # The place of each pixel in the image: that covers the reference view, which has the same shape.
    scale = 80 / WIDTH
    for frame, pose, mask in zip(steps["data"], steps["pose"], visible, strict=True):
        points = project(cast_rays(grid(), pose, camera), np.eye(3, 4), camera)
        places = (points + 0.5) * scale - 0.5
        near = (np.abs(places % 1 - 0.5) < 1e-3).any(axis=-1)  # between two pixels, rounding decides
        x, y = np.rint(places[..., 0]).astype(int), np.rint(places[..., 1]).astype(int)
        covered = (x >= 0) & (x < 80) & (y >= 0) & (y < 60)
        assert np.array_equal(covered[~near], mask[~near])
        if border == "constant":
            expected = np.where(covered[..., None], image[y.clip(0, 59), x.clip(0, 79)], 9)
        elif border == "edge":
            expected = image[y.clip(0, 59), x.clip(0, 79)]
        elif border == "repeat":
            expected = image[y % 60, x % 80]
        else:
            expected = image[np.minimum(y % 120, 119 - y % 120), np.minimum(x % 160, 159 - x % 160)]
        assert np.array_equal(frame[~near], expected[~near])


def test_labels_are_not_mixed():
    labels = np.kron(np.random.default_rng(1).choice([3, 90, 255], (40, 50)), np.ones((20, 20))).astype(np.uint8)
    steps, _ = play([labels], 1, interpolation="nearest")
    assert set(np.unique(steps["data"])) == {3, 90, 255}
    mixed, _ = play([labels], 1)
    assert len(np.unique(mixed["data"])) > 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_types_of_images(dtype, channels):
    image = np.arange(50 * 70 * channels).reshape(50, 70, channels) % 251
    steps, _ = play([image.astype(dtype)], 1, length=2)
    assert steps["data"].shape == (2, HEIGHT, WIDTH, channels)
    assert steps["data"].dtype == dtype
    assert steps["data"].max() > 100


def test_averaged_images_do_not_flicker():
    # A fine pattern that is shrunk becomes gray; without averaging it would alias.
    checks = (np.indices((1200, 1600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    steps, _ = play([checks], 2)
    assert np.abs(steps["data"].astype(int) - 127).max() < 30
    aliased, _ = play([checks], 2, interpolation="nearest")
    assert np.abs(aliased["data"].astype(int) - 127).max() > 100


def test_large_views_have_the_same_flow_in_bands(monkeypatch):
    whole, _ = play([make_pixels(0)], 2, ground_truth="flow", length=3)
    monkeypatch.setattr("streamloader.media.image.plane._MAX_BAND_PRODUCTS", 7 * WIDTH)
    bands, _ = play([make_pixels(0)], 2, ground_truth="flow", length=3)
    np.testing.assert_allclose(bands["flow"], whole["flow"], rtol=2e-7, atol=1e-11)
    assert np.array_equal(bands["data"], whole["data"])
