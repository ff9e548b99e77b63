"""Clips of an archive: their number, their frames, and their use in every kind of DataLoader worker."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from made_clips import as_rgb, linear_decode, make_clip
from torch.utils.data import DataLoader

import streamloader as sl
from streamloader.archive.archive import Archive, open_archive
from streamloader.archive.clips import ArchiveClips, Clip

LENGTHS = {"a": 23, "short": 4, "b": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return an archive of three videos in small chunks, and the frames of each."""
    folder = tmp_path_factory.mktemp("archive")
    paths = [make_clip(folder / f"{name}.mp4", frames=frames, gop=6) for name, frames in LENGTHS.items()]
    with Archive.create(folder / "archive") as archive:
        archive.add(
            paths, chunk_frames=7, jobs=0, name="{stem}", metadata=lambda path: {"first": path.endswith("a.mp4")}
        )
    return str(folder / "archive"), [as_rgb(linear_decode(path)) for path in paths]


@pytest.fixture
def archive(made):
    with open_archive(made[0]) as opened:
        yield opened


def reference(videos, window, stride, step):
    """Return every clip, by the simplest loop."""
    return [
        frames[start : start + (window - 1) * stride + 1 : stride]
        for frames in videos
        for start in range(0, len(frames) - (window - 1) * stride, step)
    ]


@pytest.mark.parametrize(("window", "stride", "step"), [(4, 1, None), (5, 3, 1), (1, 1, None), (8, 2, 5), (30, 1, 1)])
def test_clips_are_all_that_fit_into_one_video(made, archive, window, stride, step):
    clips = ArchiveClips(archive, window, stride, step=step)
    expected = reference(made[1], window, stride, step or window * stride)
    assert len(clips) == len(expected)
    for number, frames in enumerate(expected):
        clip = clips[number]
        assert (clip.dtype, tuple(clip.shape)) == (torch.uint8, (window, 48, 64, 3))
        assert clip.numpy().tobytes() == frames.tobytes(), number
    some = np.random.default_rng(0).permutation(len(clips))[:7].tolist()
    for number, clip in zip(some, clips.__getitems__(some), strict=True):
        assert clip.numpy().tobytes() == expected[number].tobytes(), number
    assert clips[-1].numpy().tobytes() == expected[-1].tobytes()


def test_the_position_of_a_clip(archive):
    clips = ArchiveClips(archive, 5, 2, step=4)
    assert clips.clip(0) == Clip("a", 0, range(0, 9, 2))
    assert clips.clip(3) == Clip("a", 12, range(12, 21, 2))
    assert clips.clip(4) == Clip("b", 0, range(27, 36, 2))  # "short" has no clip
    assert clips.clip(-1) == Clip("b", 20, range(47, 56, 2))


def test_numbers_out_of_range(archive):
    clips = ArchiveClips(archive, 10)
    assert len(clips) == 5
    for number in (5, -6):
        with pytest.raises(sl.FrameIndexError, match="5 clips") as outside:
            clips[number]
        assert isinstance(outside.value, IndexError)
    assert len(list(clips)) == 5
    assert clips.__getitems__([]) == []


def test_invalid_arguments(made, archive):
    for options in ({"window": 0}, {"window": 2, "stride": 0}, {"window": 2, "step": 0}, {"window": 2.5}):
        with pytest.raises(sl.ConfigError, match=list(options)[-1]):
            ArchiveClips(archive, **options)
    with pytest.raises(sl.StreamNotFound, match=r"31 frames .*longest of 3 has 30"):
        ArchiveClips(archive, 31)
    with pytest.raises(sl.StreamNotFound):
        ArchiveClips(archive, 1, where={"first": "perhaps"})


def test_videos_can_be_chosen(made):
    clips = ArchiveClips(made[0], 10, where={"first": True})
    assert [clips.clip(number).video for number in range(len(clips))] == ["a", "a"]
    clips.archive.close()


def test_a_transform_gets_one_clip_at_a_time(made):
    seen = []

    def transform(frames):
        seen.append(tuple(frames.shape))
        return frames.float().mean(dim=(1, 2, 3))

    with open_archive(made[0], transform=transform) as archive:
        clips = ArchiveClips(archive, 6)
        batch = clips.__getitems__([2, 0])
    assert seen == [(6, 48, 64, 3)] * 2
    expected = reference(made[1], 6, 1, 6)
    for clip, frames in zip(batch, (expected[2], expected[0]), strict=True):
        assert torch.equal(clip, torch.from_numpy(frames).float().mean(dim=(1, 2, 3)))


def test_videos_of_different_size_need_a_size(tmp_path):
    paths = [make_clip(tmp_path / "a.mp4", frames=4), make_clip(tmp_path / "b.mp4", frames=4, height=64)]
    with Archive.create(tmp_path / "archive") as archive:
        archive.add(paths, jobs=0)
        clips = ArchiveClips(archive, 4)
        assert [tuple(clip.shape) for clip in clips] == [(4, 48, 64, 3), (4, 64, 64, 3)]
        with pytest.raises(sl.FrameSizeError, match="size="):
            clips.__getitems__([0, 1])
    with open_archive(tmp_path / "archive", size=(24, 32)) as archive:
        both = ArchiveClips(archive, 4).__getitems__([0, 1])
        assert [tuple(clip.shape) for clip in both] == [(4, 24, 32, 3)] * 2


def in_loader(clips, **options):
    loader = DataLoader(clips, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5), **options)
    return [batch for batch in loader]  # noqa: C416 - a plain loop, as a user writes it


def test_a_shuffled_loader_gives_every_clip_once(made, archive):
    clips = ArchiveClips(archive, 4)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(5))
    batches = in_loader(clips)
    expected = reference(made[1], 4, 1, 4)
    flat = torch.cat(batches)
    assert sorted(clip.numpy().tobytes() for clip in flat) == sorted(frames.tobytes() for frames in expected)
    assert len(order) == len(flat)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_what_this_process_gives(archive, context):
    clips = ArchiveClips(archive, 4)
    here = in_loader(clips)  # so that the archive has connections and decoders when the workers start
    there = in_loader(clips, num_workers=2, multiprocessing_context=context)
    assert len(here) == len(there) == 5
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(clips[0], clips[0])  # this process is not affected


def test_it_can_be_pickled(archive):
    clips = ArchiveClips(archive, 4, 2, step=3)
    again = pickle.loads(pickle.dumps(clips))
    assert len(again) == len(clips)
    assert torch.equal(again[5], clips[5])
    again.archive.close()
