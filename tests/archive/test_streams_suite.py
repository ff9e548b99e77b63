"""ArchiveStreams in the conformance suite, with options that change how steps are computed.

A small binding without options is with the other kinds of streams.
"""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip

from streamloader.archive.archive import Archive
from streamloader.archive.streams import ArchiveStreams
from streamloader.testing import StreamSuite

pytestmark = pytest.mark.slow


class TestArchiveStreams(StreamSuite):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _archive(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("archive")
        cls.paths = [
            make_clip(folder / "a.mp4", frames=13, gop=3),
            VARIANTS["one_frame.mp4"](folder),
            make_clip(folder / "b.mp4", frames=17, gop=4),
        ]
        cls.address = str(folder / "archive")
        with Archive.create(cls.address) as archive:
            archive.add(cls.paths, chunk_frames=6, jobs=0)

    def make_dataset(self):
        return ArchiveStreams(self.address)

    def expected(self):
        return [{"data": as_rgb(linear_decode(path))} for path in self.paths]


def _flip_and_scale(frames, rng):
    frames = frames[:, :, ::-1] if rng.random() < 0.5 else frames
    return frames.astype(np.float32) * np.float32(rng.uniform(0.5, 1.5))


class TestPlanes(TestArchiveStreams):
    resumes_like = "TestArchiveStreams"

    def make_dataset(self):
        return ArchiveStreams(self.address, pix_fmt="yuv420p", size=(31, 41))

    def expected(self):
        return None


class TestChosenFrames(TestArchiveStreams):
    resumes_like = "TestResampledFrames"

    def make_dataset(self):
        return ArchiveStreams(self.address, pix_fmt="gray", max_frames=5, stride=2, random_start=True, size=(24, 32))

    def expected(self):
        return None


class TestResampledFrames(TestArchiveStreams):
    def make_dataset(self):
        return ArchiveStreams(self.address, fps=40, size=(24, 32))

    def expected(self):
        return None


class TestTransformedFrames(TestArchiveStreams):
    resumes_like = "TestArchiveStreams"

    def make_dataset(self):
        return ArchiveStreams(self.address, transform=_flip_and_scale, size=(24, 32))

    def expected(self):
        return None
