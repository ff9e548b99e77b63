"""Every kind of clip through ingest and random access: the frames of a linear decode with PyAV, to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from made_clips import VARIANTS
from media_data import CLIPS

from streamloader.archive.archive import Archive, open_archive

# The fast tier has one clip of each difficulty. The others are slow.
_SAMPLE = {
    "b_frames.ts", "open_groups.mp4", "variable_rate.mkv", "edit_list.mp4", "packed.avi", "no_key_frames.mkv",
    "hidden_frames.webm", "hevc.mp4", "vp9.webm", "av1.mp4", "rotated.mp4", "interlaced.ts",
}  # fmt: skip
_CHUNK_FRAMES = 15  # the clips have 40 frames, so reads cross chunk boundaries


def _all(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _linear(path):
    """Return all frames (N, H, W, 3), upright, decoded by PyAV without streamloader."""
    import av

    with av.open(str(path)) as container:
        return np.stack(
            [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in container.decode(video=0)]
        )


def _archive(folder, path, **options):
    archive = Archive.create(folder / "store")
    with archive:
        report = archive.add(str(path), **{"chunk_frames": _CHUNK_FRAMES, "jobs": 0} | options)
    return folder / "store", report


def _same(found, expected, what):
    found = found.numpy()
    if found.shape == expected.shape and np.array_equal(found, expected):
        return
    wrong = [n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if not np.array_equal(a, b)]
    pytest.fail(f"{what}: {found.shape} for {expected.shape}, differing at {wrong[:10]}", pytrace=False)


def _compare(address, truth, seed, **options):
    """Read frames in every way, in an order drawn from `seed`."""
    dice = random.Random(seed)
    count = len(truth)
    with open_archive(address, **options) as archive:
        assert len(archive) == count
        for number in dice.sample(range(count), min(count, 40)):
            _same(archive[number], truth[number], f"frame {number}")
        for _ in range(8):
            start, stop = sorted(dice.choices(range(count + 1), k=2))
            step = dice.choice((1, 1, 2, 3, 7))
            _same(archive[start:stop:step], truth[start:stop:step], f"[{start}:{stop}:{step}]")
        some = dice.choices(range(count), k=20)
        _same(archive[some], truth[some], f"{some}")
    with open_archive(address, **options) as archive:  # a new one, with empty caches
        _same(archive[:], truth, "all")


@pytest.mark.parametrize("name", _all(VARIANTS, _SAMPLE))
def test_frames_of_every_kind_of_clip_are_those_of_a_linear_decode(name, tmp_path):
    path = VARIANTS[name](tmp_path)
    truth = _linear(path)
    address, report = _archive(tmp_path, path)
    assert [video.frames for video in report.added] == [len(truth)]
    _compare(address, truth, name)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_they_are_where_nothing_is_cached(name, threads, tmp_path):
    path = VARIANTS[name](tmp_path)
    address, _ = _archive(tmp_path, path)
    _compare(address, _linear(path), name, cache_limit=0, max_cache_bytes=0, prefetch=False, threads=threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_they_are_in_chunks_without_loss(name, tmp_path):
    path = VARIANTS[name](tmp_path)
    address, report = _archive(tmp_path, path, mode="lossless")
    assert report.added[0].mode == "lossless"
    _compare(address, _linear(path), name)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_frames", [7, 1000])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_real_clips_are_those_of_a_linear_decode(name, chunk_frames, clips, tmp_path):
    truth = _linear(clips[name])
    address, _ = _archive(tmp_path, clips[name], chunk_frames=chunk_frames)
    _compare(address, truth, name)


def test_frames_of_a_real_clip_are_those_of_a_linear_decode(clips, tmp_path):
    path = clips[min(CLIPS, key=lambda name: CLIPS[name].frames * CLIPS[name].width)]
    truth = _linear(path)
    address, _ = _archive(tmp_path, path, chunk_frames=50)
    with open_archive(address) as archive:
        for number in random.Random(5).sample(range(len(truth)), 10):
            _same(archive[number], truth[number], f"frame {number}")
        _same(archive[30:75], truth[30:75], "[30:75]")


def test_all_kinds_in_one_archive_keep_their_frames(tmp_path):
    """Videos of different codecs in one archive: numbers continue, and decoders are not mixed up."""
    names = ["b_frames.mp4", "mpeg4.avi", "hevc.mkv", "late_start.ts"]
    paths = [VARIANTS[name](tmp_path) for name in names]
    truth = np.concatenate([_linear(path) for path in paths])
    with Archive.create(tmp_path / "store") as archive:
        archive.add([str(path) for path in paths], chunk_frames=_CHUNK_FRAMES, jobs=0)
    _compare(tmp_path / "store", truth, "mixed")
