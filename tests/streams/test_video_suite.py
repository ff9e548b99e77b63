"""VideoStreams in the shipped suite, in the forms that differ in how they are played."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip

import streamloader as sl
from streamloader.testing import StreamSuite


class TestVideoFiles(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("clips")
        cls.paths = [
            make_clip(folder / "a.mp4", frames=13, gop=5),
            VARIANTS["no_pts.avi"](folder),
            VARIANTS["one_frame.mp4"](folder),
            VARIANTS["open_groups.mkv"](folder),
        ]

    def make_dataset(self):
        return sl.VideoStreams(self.paths)

    def expected(self):
        return [{"data": as_rgb(linear_decode(path))} for path in self.paths]


class TestVideosOfAnIndexFile(TestVideoFiles):
    resumes_like = "TestVideoFiles"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _index_file(cls, _files, tmp_path_factory):
        cls.index_file = tmp_path_factory.mktemp("index") / "index.sqlite"
        sl.index_videos(cls.paths, cls.index_file)

    def make_dataset(self):
        return sl.VideoStreams.from_index(self.index_file)


class TestPlanesOfVideoFiles(TestVideoFiles):
    resumes_like = "TestVideoFiles"

    def make_dataset(self):
        return sl.VideoStreams(self.paths, pix_fmt="yuv420p", size=(31, 41))

    def expected(self):
        return None


class TestChosenFrames(TestVideoFiles):
    resumes_like = "TestResampledFrames"

    def make_dataset(self):
        return sl.VideoStreams(self.paths, pix_fmt="gray", max_frames=9, stride=2, random_start=True, size=(24, 32))

    def expected(self):
        return None


class TestResampledFrames(TestVideoFiles):
    def make_dataset(self):
        return sl.VideoStreams(self.paths, fps=40, size=(24, 32))

    def expected(self):
        return None


def _flip_and_scale(frames, rng):
    frames = frames[:, :, ::-1] if rng.random() < 0.5 else frames
    return frames.astype(np.float32) * np.float32(rng.uniform(0.5, 1.5))


class TestTransformedFrames(TestVideoFiles):
    resumes_like = "TestVideoFiles"

    def make_dataset(self):
        return sl.VideoStreams(self.paths, transform=_flip_and_scale, size=(24, 32))

    def expected(self):
        return None
