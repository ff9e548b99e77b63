"""Programs of users of `sl.compat.StreamDataset` run as they are: texts, videos, and their own collate functions."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from group_data import TEXTS, TextStreams, VideoStreams, simulate
from made_clips import make_clip
from tiers import fast_first

import streamloader as sl

DEADLINE = 60.0


def collate_fn(data):
    return data["data"]


def make_text_dataset(words, num_iter=10, num_tbins=12, num_workers=1, batchsize=8, max_frames=100, start_epoch=0):
    array_dims = (num_tbins, 1)
    make_env = partial(
        TextStreams, stream_files=words, num_batches=num_iter, max_frames=max_frames, num_tbins=num_tbins
    )
    return sl.MultiStreamer.from_env(
        make_env,
        array_dims,
        batchsize=batchsize,
        max_q_size=4,
        num_workers=num_workers,
        collate_fn=collate_fn,
        epoch=start_epoch,
        dtype=np.uint8,
        main_thread=0,
        pin_memory=0,
    )


@pytest.mark.parametrize("num_workers", [1, 2, 0])
def test_the_text_example(num_workers):
    dataset = make_text_dataset(TEXTS, num_workers=num_workers)
    assert len(dataset) == 10
    read = []
    with dataset:
        for batch in dataset:
            assert (type(batch).__mro__[1], batch.dtype, batch.shape) == (np.ndarray, np.uint8, (8, 12, 1))
            read.append(["".join([chr(item) for item in batch[i]]) for i in range(len(batch))])
    assert len(read) == 10
    assert read[0] == [f"{letter}_0;{letter}_1;{letter}_2;" for letter in "abcdefgh"]
    assert read[1] == [f"{letter}_3;{letter}_4;{letter}_5;" for letter in "abcdefgh"]
    for row, text in zip(zip(*read, strict=True), TEXTS, strict=False):
        assert "".join(row) == text[:120]


@pytest.mark.parametrize("num_workers", fast_first([2, 1, 0]))
def test_texts_follow_each_other_and_nothing_of_earlier_batches_stays(num_workers):
    """Texts of 1 to 27 steps: what the end of a text leaves free is zero, whatever the slot of the ring held."""
    texts = [chr(97 + number) * (7 * number + 5) for number in range(27)]
    make_env = partial(TextStreams, stream_files=texts, num_batches=30, num_tbins=7)
    with make_text_dataset(texts, 30, 7, num_workers) as dataset:
        for epoch in range(2):
            expected = simulate(make_env, (7, 1), 8, num_workers, epoch)
            got = [batch.copy() for batch in dataset]
            assert len(got) == 30
            assert [batch.tobytes() for batch in got] == [batch.tobytes() for batch in expected]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [str(make_clip(folder / f"{number}.mp4", frames=7 + 3 * number, height=48, width=64)) for number in range(6)]


def collate_video(data):
    batch, resets = data["data"], data["resets"]
    batch = torch.from_numpy(batch).permute(1, 0, 4, 2, 3).contiguous()
    resets = torch.cat([torch.from_numpy(item) for item in resets]).permute(1, 0).float()
    return {"data": batch, "resets": resets, "names": data["filenames"], "iter": data["iter"]}


@pytest.mark.parametrize("num_workers", fast_first([2, 1]))
def test_the_video_example(num_workers, videos):
    make_env = partial(
        VideoStreams, stream_files=videos, num_batches=5, height=24, width=32, max_frames=100, num_tbins=1
    )
    got = {}
    for run in range(2):
        with sl.MultiStreamer.from_env(
            make_env, (4, 24, 32, 1), 4, 4, num_workers, collate_video, 3, np.uint8, 0, 0, timeout=DEADLINE
        ) as loader:
            for epoch in (3, 4):
                assert loader.epoch == epoch
                got[run, epoch] = list(loader)
    assert [batch["iter"] for batch in got[0, 3]] == [[number] * num_workers for number in range(5)]
    for epoch in (3, 4):
        for one, other in zip(got[0, epoch], got[1, epoch], strict=True):  # the global generators are seeded
            assert one["data"].equal(other["data"])
            assert one["names"] == other["names"]
    played = {epoch: [batch["names"] for batch in got[0, epoch]] for epoch in (3, 4)}
    assert played[3] != played[4]
    for epoch in (3, 4):
        rows = 4 // num_workers
        for worker in range(num_workers):
            part = slice(worker * rows, (worker + 1) * rows)
            names = {name for batch in played[epoch] for name in batch[part]}
            others = {name for batch in played[epoch] for name in [*batch[: part.start], *batch[part.stop :]]}
            assert not names & others
        assert torch.cat([batch["resets"] for batch in got[0, epoch]]).shape == (20, 4)
        assert all(batch["data"].shape == (4, 4, 1, 24, 32) and batch["data"].any() for batch in got[0, epoch])


@pytest.mark.parametrize("num_workers", fast_first([2, 0]))
def test_the_frames_of_the_video_example(num_workers, videos):
    class InOrder(VideoStreams):
        def reset_streams(self):
            shuffle, random.shuffle = random.shuffle, lambda files: None
            try:
                super().reset_streams()
            finally:
                random.shuffle = shuffle

    make_env = partial(InOrder, stream_files=videos, num_batches=9, height=24, width=32, num_tbins=4)
    expected = simulate(make_env, (4, 24, 32, 1), 4, num_workers, 0)
    with sl.MultiStreamer.from_env(
        make_env, (4, 24, 32, 1), 4, num_workers=num_workers, collate_fn=collate_fn, timeout=DEADLINE
    ) as loader:
        got = [batch.copy() for batch in loader]
    assert [batch.tobytes() for batch in got] == [batch.tobytes() for batch in expected]
    assert any(not batch[:, 1:].any(axis=(2, 3, 4)).all() for batch in got)  # windows after the end of a video


# --- the base class ------------------------------------------------------------------------------------------


class Group(sl.compat.StreamDataset):
    def reset_streams(self):
        self.streams = [self.stream_files[number % len(self.stream_files)] for number in range(self.num_streams)]


@pytest.mark.parametrize(("count", "workers", "streams"), [(27, 2, 4), (27, 1, 8), (8, 4, 2), (100, 3, 5), (3, 2, 4)])
def test_each_item_belongs_to_one_worker(count, workers, streams):
    groups = [Group(range(count), worker, workers, streams) for worker in range(workers)]
    assert sorted(item for group in groups for item in group.stream_files) == list(range(count))
    if count >= workers * streams:
        assert [item for group in groups for item in group.streams] == list(range(workers * streams))


def test_attributes_and_defaults():
    group = Group(range(5))
    assert (group.worker_id, group.num_workers, group.num_streams, group.num_batches, group.num_tbins) == (
        0,
        1,
        3,
        100,
        1,
    )
    assert (group.stream_iter, group.iter, group.epoch, len(group), group.streams) == (0, 0, 0, 100, [0, 1, 2])
    assert TextStreams(TEXTS, epoch=7).epoch == 7
    for workers in (0, 1):  # a group without streams keeps all items, in a list of its own
        files = [3, 1, 2]
        empty = Group(files, num_workers=workers, num_streams=0, num_batches=4)
        assert (empty.stream_files, empty.streams, len(empty)) == (files, [], 4)
        assert empty.stream_files is not files


def test_a_worker_without_items():
    with pytest.raises(sl.ConfigError, match="worker 0 of 3 has nothing to play, because there are 2 items"):
        Group(range(2), 0, 3, 1)

    class Procedural(Group):
        def reset_streams(self):
            self.streams = [None] * self.num_streams

    assert Procedural([], 1, 3, 2).streams == [None, None]


def test_methods_to_be_written():
    with pytest.raises(NotImplementedError, match="StreamDataset has no method reset_streams"):
        sl.compat.StreamDataset(range(5))
    group = Group(range(5))
    with pytest.raises(NotImplementedError, match="Group has no method reload_stream"):
        group.reload_stream(0)
    with pytest.raises(NotImplementedError, match="Group has no method __call__"):
        group({})


def test_it_is_reached_by_its_name_and_is_another_class_than_the_one_of_datasets():
    assert sl.compat.StreamDataset is not sl.StreamDataset
    assert sl.compat.__name__ == "streamloader.compat"
