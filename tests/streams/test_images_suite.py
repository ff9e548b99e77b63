"""ImageStreams in the shipped suite, in the forms that differ in how they are played."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from image_data import encode_animation, make_pixels, write_folder
from range_server import served

import streamloader as sl
from streamloader.testing import StreamSuite


class TestImageFolders(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("images")
        cls.pixels = [write_folder(cls.folder / f"{count:02d}", count, first=count) for count in (9, 1, 14)]
        cls.pixels = [cls.pixels[1], cls.pixels[0], cls.pixels[2]]  # in the order of the folders

    def make_dataset(self):
        return sl.ImageStreams(self.folder)

    def expected(self):
        return [{"data": pixels} for pixels in self.pixels]


class TestImagesInZips(TestImageFolders):
    resumes_like = "TestImageFolders"

    def make_dataset(self):
        path = self.folder.parent / f"{self.folder.name}.zip"
        if not path.exists():
            with zipfile.ZipFile(path, "w") as file:
                for member in sorted(self.folder.rglob("*.png")):
                    file.write(member, member.relative_to(self.folder))
        return sl.ImageStreams(f"{path}!/")


@pytest.mark.slow
class TestImagesBehindHttp(TestImageFolders):
    resumes_like = "TestImageFolders"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, _files):
        with served(cls.folder) as cls.url:
            yield

    def make_dataset(self):
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.png"))
        return sl.ImageStreams([f"{self.url}/{name}" for name in names])


class TestChosenImages(TestImageFolders):
    resumes_like = "TestImageFolders"

    def make_dataset(self):
        return sl.ImageStreams(
            self.folder, (13, 17), "yuv420p", max_frames=6, random_start=True, fps=700, times="names", time_unit="ms"
        )

    def expected(self):
        return None


def _flip_and_scale(frames, rng):
    frames = frames[:, :, ::-1] if rng.random() < 0.5 else frames
    return frames.astype(np.float32) * np.float32(rng.uniform(0.5, 1.5))


class TestTransformedPhotos(TestImageFolders):
    resumes_like = "TestImageFolders"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("photos")
        for count in (5, 12):
            write_folder(cls.folder / f"{count:02d}", count, ending="jpg", height=64, width=96)

    def make_dataset(self):
        return sl.ImageStreams(self.folder, transform=_flip_and_scale, size=(24, 32))

    def expected(self):
        return None


class TestAnimations(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("animations")
        cls.frames = [[make_pixels(20 * kind + number) for number in range(6 + kind)] for kind in range(3)]
        for (name, format_, options), frames in zip(
            (("a.gif", "GIF", {}), ("b.png", "PNG", {}), ("c.webp", "WEBP", {"lossless": True})),
            cls.frames,
            strict=True,
        ):
            durations = [40 + 20 * number for number in range(len(frames))]
            (cls.folder / name).write_bytes(encode_animation(frames, format_, durations, **options))

    def make_dataset(self):
        return sl.ImageStreams(self.folder, streams="files")

    def expected(self):
        return None  # GIF has a palette
