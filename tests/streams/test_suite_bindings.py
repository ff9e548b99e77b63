"""Every kind of stream is bound to the shipped suite, in each of the forms it has."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from article_site import article_site
from image_data import encode, make_pixels, write_folder
from made_clips import as_rgb, linear_decode, make_clip
from made_sounds import ffmpeg_decode, make_sound
from optional_torch import needs_torch

import streamloader as sl
from streamloader.errors import MissingDependency
from streamloader.streams.base import stream_rng
from streamloader.testing import StreamSuite, read_stream

TEXTS = ["", "a", "Ein Wort: größer.", "0123456789" * 15]


def code_points(text):
    return [1000 + ord(character) for character in text]


def as_bytes(texts):
    return [{"data": np.frombuffer(text.encode(), np.uint8)} for text in texts]


def as_tokens(texts):
    return [{"data": np.array(code_points(text), np.int64)} for text in texts]


class Bound(StreamSuite):
    """A binding says of which kind its dataset is, so that none of the package goes without one.

    Where another binding of the same kind is resumed in every run, `resumes_like` names it: then only the slow tier
    resumes this one.
    """

    kind: str
    resumes_like: str | None = None

    def test_is_of_the_kind_that_it_says(self):
        assert type(self.make_dataset()).__name__ == self.kind


class TestTextFiles(Bound):
    kind = "TextStreams"

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path, monkeypatch):
        (tmp_path / "texts" / "deep").mkdir(parents=True)
        names = ["texts/a.txt", "texts/b.txt", "texts/c.TXT", "texts/deep/d.txt"]
        for name, text in zip(names, TEXTS, strict=True):
            Path(tmp_path, name).write_bytes(text.encode())
        monkeypatch.chdir(tmp_path)  # so that the paths are relative

    def make_dataset(self):
        return sl.TextStreams("texts")

    def expected(self):
        return as_bytes(TEXTS)


class TestTokensOfFiles(TestTextFiles):
    resumes_like = "TestTextFiles"

    def make_dataset(self):
        return sl.TextStreams("texts", code_points, fill=-1)

    def expected(self):
        return as_tokens(TEXTS)


class TestLongTextFiles(Bound):
    """Longer than what is read ahead, so that blocks cross its border, or are longer than it."""

    kind = "TextStreams"
    resumes_like = "TestTextFiles"
    texts = (bytes(range(100)), b"x" * 5, b"y" * 6)

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("streamloader.streams.text_files._READ_AHEAD_BYTES", 5)
        self.paths = [tmp_path / f"{number}.bin" for number in range(3)]
        for path, text in zip(self.paths, self.texts, strict=True):
            path.write_bytes(text)

    def make_dataset(self):
        return sl.TextStreams(self.paths)

    def expected(self):
        return [{"data": np.frombuffer(text, np.uint8)} for text in self.texts]


class TestTexts(Bound):
    kind = "TextStreams"
    resumes_like = "TestTextFiles"

    def make_dataset(self):
        return sl.TextStreams.from_texts(TEXTS)

    def expected(self):
        return as_bytes(TEXTS)


class TestTokensOfTexts(Bound):
    kind = "TextStreams"
    resumes_like = "TestTextFiles"

    def make_dataset(self):
        return sl.TextStreams.from_texts(TEXTS, code_points)

    def expected(self):
        return as_tokens(TEXTS)


def random_walk(item, rng):
    position = np.zeros(2)
    for _ in range(item):
        position += rng.normal(size=2)  # in place: the array of a step may be reused for the next
        yield position


class TestGenerators(Bound):
    kind = "IterStreams"
    replays = True

    def make_dataset(self):
        return sl.IterStreams([9, 0, 1, 30], random_walk, fields=sl.Field((2,), "float32"), lengths=lambda item: item)

    def expected(self):
        walks = [stream_rng(0, 0, 0).normal(size=(length, 2)).cumsum(axis=0) for length in (9, 0, 1, 30)]
        return [{"data": walk.astype(np.float32)} for walk in walks]

    def test_randomness_comes_from_the_rng(self):
        dataset, infos = self._index_dataset()
        one, other = (read_stream(dataset, infos[3], rng=stream_rng(seed, 0, 0))["data"] for seed in (1, 2))
        assert not np.array_equal(one, other)


class TestAsyncGenerators(Bound):
    kind = "IterStreams"
    resumes_like = "TestGenerators"
    lengths_known = False
    replays = True

    def make_dataset(self):
        async def count(item, rng):
            for step in range(item):
                yield {"number": step, "noise": rng.random(3)}

        fields = {"number": sl.Field((), "int32"), "noise": sl.Field((3,), "float64")}
        return sl.IterStreams((5, 0, 17), count, fields=fields)

    def expected(self):
        return [
            {"number": np.arange(length, dtype=np.int32), "noise": stream_rng(0, 0, 0).random((length, 3))}
            for length in (5, 0, 17)
        ]


class TestArrays(Bound):
    kind = "IterStreams"
    resumes_like = "TestGenerators"
    shapes = ((5, 4, 3), (0, 4, 3), (31, 4, 3))

    def arrays(self):
        return [np.arange(np.prod(shape), dtype=np.int16).reshape(shape) for shape in self.shapes]

    def make_dataset(self):
        arrays = self.arrays()
        return sl.IterStreams(
            range(3), lambda item: arrays[item], fields=sl.Field((4, 3), "uint16"), lengths=[5, 0, 31]
        )

    def expected(self):
        return [{"data": array.astype(np.uint16)} for array in self.arrays()]


class TestColumns(Bound):
    kind = "IterStreams"
    resumes_like = "TestGenerators"

    def columns(self, item):
        return {"frame": np.full((item, 2, 2), item, np.uint8), "action": np.linspace(0, 1, item, dtype=np.float32)}

    def make_dataset(self):
        fields = {"frame": sl.Field((2, 2), "uint8", axes="HW"), "action": sl.Field((), "float32")}
        return sl.IterStreams([4, 1, 23], self.columns, fields=fields, lengths=[4, 1, 23])

    def expected(self):
        return [self.columns(item) for item in (4, 1, 23)]


class TestLists(Bound):
    kind = "IterStreams"
    resumes_like = "TestGenerators"

    def make_dataset(self):
        return sl.IterStreams(["abc", "", "defgh"], lambda item: [ord(c) for c in item], fields=sl.Field(), lengths=len)

    def expected(self):
        return as_bytes(["abc", "", "defgh"])


class TestIterators(Bound):
    """Neither a generator nor a sequence: something that can only be iterated."""

    kind = "IterStreams"
    resumes_like = "TestGenerators"
    replays = True

    def make_dataset(self):
        return sl.IterStreams([7, 3, 0], lambda item: map(float, range(item)), fields=sl.Field((), "float64"))

    lengths_known = False

    def expected(self):
        return [{"data": np.arange(item, dtype=np.float64)} for item in (7, 3, 0)]


class TestSounds(Bound):
    kind = "AudioStreams"
    resumes_like = "TestSounds of test_audio.py"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _sounds(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("sounds")
        cls.paths = [make_sound(folder / f"{count}.flac", "flac", samples=count) for count in (4000, 100, 2048)]

    def make_dataset(self):
        return sl.AudioStreams(self.paths, block=256, dtype="int16")

    def expected(self):
        return [as_blocks(ffmpeg_decode(path, "int16"), 256) for path in self.paths]


def as_blocks(samples, block):
    steps = -(-len(samples) // block)
    padded = np.concatenate([samples, np.zeros((steps * block - len(samples), samples.shape[1]), samples.dtype)])
    lengths = np.minimum(block, len(samples) - np.arange(steps) * block)
    return {"data": padded.reshape(steps, block, -1), "length": lengths.astype(np.int32)}


class TestVideos(Bound):
    kind = "VideoStreams"
    resumes_like = "TestVideoFiles of test_video_suite.py"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _clips(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("clips")
        cls.paths = [make_clip(folder / "one.mp4", frames=25, gop=6), folder / "again.mp4"]
        cls.paths[1].symlink_to(cls.paths[0])

    def make_dataset(self):
        return sl.VideoStreams(self.paths, max_frames=20)


class TestImages(Bound):
    kind = "ImageStreams"
    resumes_like = "TestImageFolders of test_images_suite.py"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _images(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("images")
        cls.pixels = [write_folder(cls.folder / name, count, ending="bmp") for name, count in (("a", 7), ("b", 1))]

    def make_dataset(self):
        return sl.ImageStreams(self.folder)

    def expected(self):
        return [{"data": pixels} for pixels in self.pixels]


class TestCameras(Bound):
    kind = "CameraStreams"
    resumes_like = "TestCameras of test_camera_suite.py"

    def make_dataset(self):
        return sl.CameraStreams([make_pixels(1), make_pixels(2, 60, 40)], (6, 8), 7, ground_truth="flow")


class TestFoundStreams(Bound):
    kind = "FoundStreams"
    resumes_like = "TestVideos and TestImages"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _files(cls, tmp_path_factory):
        cls.folder = tmp_path_factory.mktemp("mixed")
        make_clip(cls.folder / "a.mp4", frames=9)
        write_folder(cls.folder / "frames", 6)
        (cls.folder / "single.jpg").write_bytes(encode(make_pixels(3), "JPEG"))

    def make_dataset(self):
        return sl.find_streams(self.folder, size=(24, 32))


@needs_torch
class TestArchives(Bound):
    kind = "ArchiveStreams"
    resumes_like = "TestArchiveStreams of archive/test_streams_suite.py"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _archive(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("archive")
        cls.paths = [make_clip(folder / f"{frames}.mp4", frames=frames, gop=3) for frames in (13, 1, 17)]
        cls.address = str(folder / "archive")
        with sl.Archive.create(cls.address) as archive:
            archive.add(cls.paths, chunk_frames=6, jobs=0)

    def make_dataset(self):
        return sl.ArchiveStreams(self.address)

    def expected(self):
        return [{"data": as_rgb(linear_decode(path))} for path in self.paths]


class TestArticles(Bound):
    kind = "ArticleStreams"
    resumes_like = "TestArticles of articles/test_suite.py"
    lengths_known = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _site(cls, tmp_path_factory):
        cls.folder = str(tmp_path_factory.mktemp("articles"))
        with article_site() as cls.site:
            cls.texts = cls.site.put_articles(2)
            yield

    def make_dataset(self):
        return sl.ArticleStreams(self.site.urls(range(2)), cache_dir=self.folder, delay_s=0.0)

    def expected(self):
        return as_bytes(self.texts)


def kinds_of_the_package():
    """Every dataset of streams that the package holds, public or not, in whatever module of it."""
    for module in pkgutil.walk_packages(sl.__path__, "streamloader."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(MissingDependency):  # Ray, which only the slow tests have
                importlib.import_module(module.name)
    found, ahead = set(), [sl.StreamDataset]
    while ahead:
        subclasses = ahead.pop().__subclasses__()
        ahead += subclasses
        found |= {it for it in subclasses if it.__module__.startswith("streamloader.") and not inspect.isabstract(it)}
    return {it.__name__ for it in found if not it.__module__.startswith("streamloader.testing")}


@needs_torch
def test_every_kind_is_bound():
    kinds = kinds_of_the_package()
    assert kinds >= {"IterStreams", "TextStreams", "VideoStreams"}
    suites = [it for it in globals().values() if isinstance(it, type) and issubclass(it, Bound) and it is not Bound]
    assert {suite.kind for suite in suites} == kinds
