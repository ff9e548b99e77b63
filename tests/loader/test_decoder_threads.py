"""Lanes that have cores to spare decode with several threads: the same batches, and no thread more than that."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import make_clip
from tiers import fast_first

import streamloader as sl
from streamloader.loader import multistreamer
from streamloader.media.video.reader import FrameReader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        make_clip(folder / f"{number}.mp4", frames=30 + number, gop=12)
    return folder


def play(folder, monkeypatch, threads, **options):
    monkeypatch.setattr(multistreamer, "threads_per_lane", lambda lanes: threads)
    with sl.MultiStreamer(sl.VideoStreams(folder), 2, 8, **options) as loader:
        return [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]


@pytest.mark.parametrize("workers", fast_first([0, 2]))
def test_batches_are_the_same(folder, monkeypatch, workers):
    one, three = (play(folder, monkeypatch, threads, num_workers=workers) for threads in (1, 3))
    assert len(one) == len(three) > 0
    for first, second in zip(one, three, strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_decoders_have_the_threads_of_the_loader(folder, monkeypatch):
    created = []
    real = FrameReader.__init__
    monkeypatch.setattr(
        FrameReader, "__init__", lambda self, *a, **k: created.append(k.get("threads", 1)) or real(self, *a, **k)
    )
    sl.MultiStreamer(sl.VideoStreams(folder), 1, 8).close()
    created.clear()
    play(folder, monkeypatch, 2)
    assert set(created) == {2}


def test_the_threads_depend_on_the_lanes(folder, monkeypatch):
    lanes = []
    monkeypatch.setattr(multistreamer, "threads_per_lane", lambda count: lanes.append(count) or 1)
    sl.MultiStreamer(sl.VideoStreams(folder), 5, 8, rank=1, world_size=2).close()
    assert lanes == [5]
