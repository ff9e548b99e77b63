"""CameraStreams in the shipped suite, with images of each kind and all fields."""

from __future__ import annotations

import numpy as np
import pytest
from image_data import encode, make_pixels
from range_server import served

import streamloader as sl
from streamloader.testing import StreamSuite

ALL = ("homography", "flow", "pose", "visible")


class TestCameras(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("images")
        for name, format_, height, width in (
            ("a.png", "PNG", 40, 60),
            ("b.jpg", "JPEG", 90, 50),
            ("c.bmp", "BMP", 7, 9),
        ):
            (cls.folder / name).write_bytes(encode(make_pixels(height, height, width), format_))

    def make_dataset(self):
        return sl.CameraStreams(self.folder, (12, 16), 9, ground_truth=ALL)

    def expected(self):
        return None


@pytest.mark.slow
class TestCamerasBehindHttp(TestCameras):
    resumes_like = "TestCameras"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, _files):
        with served(cls.folder) as cls.url:
            yield

    def make_dataset(self):
        return sl.CameraStreams([f"{self.url}/{name}" for name in ("a.png", "b.jpg", "c.bmp")], (12, 16), 9, views=2)


def _brighten(frames, rng):
    return frames.astype(np.float32) * np.float32(rng.uniform(0.5, 1.5))


class TestCamerasOfSteps(TestCameras):
    """With a transform of its own, and one of the images, which draws from the same stream's generator."""

    resumes_like = "TestCameras"

    def make_dataset(self):
        images = sl.ImageStreams(self.folder, (30, 40), streams="files", transform=_brighten)
        return sl.CameraStreams(
            images, (12, 16), 5, views=2, ground_truth="flow", flow_to="previous", border="constant", border_value=-1,
            transform=_brighten,
        )  # fmt: skip


class TestLongCameras(StreamSuite):
    """Longer than the block of poses that are computed at the same time."""

    resumes_like = "TestCameras"

    def make_dataset(self):
        arrays = [make_pixels(seed, 20, 30)[..., seed] for seed in range(2)]
        return sl.CameraStreams(arrays, (4, 5), 150, ground_truth=("homography", "pose"), motion_seed=4)
