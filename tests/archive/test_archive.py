"""Reading an archive as one array of frames: every kind of request gives the frames of a linear decode."""

from __future__ import annotations

import asyncio
import gc

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from archive_data import CLIPS, make_archive, reference
from hypothesis import HealthCheck, given, settings
from made_clips import VARIANTS

from streamloader.archive.archive import Archive, open_archive
from streamloader.errors import (
    CatalogExists,
    CatalogNotFound,
    ClosedError,
    ConfigError,
    FrameIndexError,
    FrameSizeError,
    VideoNotFound,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return folder, make_archive(folder, tuple(name for name in CLIPS if name != "rotated.mp4"))


@pytest.fixture(scope="module")
def whole(made):
    return np.concatenate(list(made[1].values()))


@pytest.fixture(params=[1, 2])
def archive(made, request):
    with open_archive(made[0] / "store", threads=request.param) as archive:
        yield archive


def test_all_frames_of_all_videos_are_those_of_a_linear_decode(archive, made, whole):
    assert len(archive) == len(whole)
    frames = archive[:]
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
    assert np.array_equal(frames.numpy(), whole)
    assert [video.name for video in archive.videos] == list(made[1])
    for name, expected in made[1].items():
        assert np.array_equal(archive[name][:].numpy(), expected)
        assert len(archive[name]) == len(expected)
    assert archive.stats()["retried"] == 0


@pytest.mark.parametrize(
    "which",
    [
        0,
        -1,
        59,
        slice(3, 9),
        slice(35, 85),
        slice(0, 120, 7),
        slice(50, 20, -3),
        slice(-5, None),
        slice(9, 3),
        [5, 5, 119, 0, 41, 5],
        np.array([7, 80, 6]),
        torch.tensor([118, 2]),
        range(38, 44),
        (1, -1),
    ],
)
def test_indexing_follows_numpy(archive, whole, which):
    wanted = (
        list(which) if isinstance(which, (range, tuple)) else np.asarray(which) if torch.is_tensor(which) else which
    )
    assert np.array_equal(archive[which].numpy(), whole[wanted])
    assert archive[which].shape == whole[wanted].shape


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(-120, 119), st.slices(120), st.lists(st.integers(0, 119))), max_size=8))
def test_any_sequence_of_requests_gives_the_right_frames(archive, whole, requests):
    for which in requests:
        expected = whole[which] if which != [] else whole[:0]
        assert np.array_equal(archive[which].numpy(), expected)


def test_a_batch_is_a_list_of_single_frames(archive, whole):
    numbers = [99, 3, 3, 64, 20]
    items = archive.__getitems__(numbers)
    assert [item.shape for item in items] == [whole.shape[1:]] * 5
    assert all(np.array_equal(item.numpy(), whole[number]) for item, number in zip(items, numbers, strict=True))


def test_iteration_yields_all_frames_and_decodes_each_packet_about_once(archive, whole):
    assert all(np.array_equal(frame.numpy(), whole[n]) for n, frame in enumerate(archive))
    stats = archive.stats()
    assert stats["frame_misses"] == len(whole)
    assert stats["packets"] <= len(whole) + 40  # chunks of open groups contain some packets of their neighbors


def test_successive_slices_continue_with_the_same_decoder(made, whole):
    with open_archive(made[0] / "store", cache_limit=0, threads=1) as archive:
        for start in range(0, 120, 4):
            assert np.array_equal(archive[start : start + 4].numpy(), whole[start : start + 4])
        stats = archive.stats()
        assert stats["resumed"] >= 15
        assert stats["packets"] <= len(whole) + 80
        assert archive[0:0].shape == (0, 48, 64, 3)


def test_single_frames_skip_disposable_packets(made, whole):
    with open_archive(made[0] / "store", cache_limit=0, threads=1) as archive:
        assert np.array_equal(archive[9].numpy(), whole[9])
        assert archive.stats()["packets"] < 10


def test_frames_are_cached_and_counted(made, whole):
    with open_archive(made[0] / "store", threads=1) as archive:
        archive[10:14]
        packets = archive.stats()["packets"]
        assert np.array_equal(archive[10:14].numpy(), whole[10:14])
        assert np.array_equal(archive[[13, 11]].numpy(), whole[[13, 11]])
        stats = archive.stats()
        assert stats["packets"] == packets
        assert (stats["frames"], stats["frame_hits"], stats["frame_misses"]) == (10, 6, 4)
        assert 0 < stats["cache_bytes"] <= 256 << 20
        assert stats["cache_entries"] >= 1


def test_backward_access_does_not_decode_a_group_per_frame(made, whole):
    with open_archive(made[0] / "store", threads=1) as archive:
        for number in range(39, -1, -1):
            assert np.array_equal(archive[number].numpy(), whole[number])
        assert archive.stats()["packets"] < 130  # it would be 220


def test_caches_stay_within_their_limits(made, whole):
    with open_archive(made[0] / "store", cache_limit=2, max_cache_bytes=20_000, threads=1) as archive:
        for number in (3, 50, 90, 3, 51, 4):
            assert np.array_equal(archive[number].numpy(), whole[number])
            assert archive.stats()["cache_entries"] <= 2
            assert archive.stats()["cache_bytes"] <= 20_000
    with pytest.raises(ConfigError, match="cache_limit"):
        Archive("x", cache_limit=-1)
    with pytest.raises(ConfigError, match="threads"):
        Archive("x", threads=0)


def test_a_result_is_not_overwritten_by_a_later_one(made, tmp_path):
    with open_archive(made[0] / "store", size=(480, 640)) as archive:
        first = archive[0:3]
        row, before = first[1], first.clone()
        view = first.numpy()[2]
        del first
        gc.collect()
        archive[60:63]
        assert torch.equal(row, before[1])
        assert np.array_equal(view, before[2].numpy())


def test_frames_are_found_by_time(archive, made):
    first = archive["b_frames"]
    assert [first.number_at(k / 25) for k in range(40)] == list(range(40))
    assert first.number_at(1.5999) == 39
    late = archive["variable_rate"]
    times = [(k * k + 3 * k) / 1000 for k in range(40)]
    assert [late.number_at(time) for time in times] == list(range(40))
    assert [late.number_at(time - 1e-4) for time in times[1:]] == list(range(39))
    start = late.video.start_ns / 1e9
    assert archive.number_at(start + times[7]) == late.start + 7
    assert torch.equal(archive.at(0.4), archive[10])
    assert torch.equal(first.at([0.0, 0.4]), first[[0, 10]])
    for wrong in (-0.1, 1.6, float("nan"), float("inf")):
        with pytest.raises((FrameIndexError, ConfigError)):
            first.at(wrong)
    with pytest.raises(FrameIndexError, match="lasts"):
        archive.at(archive.snapshot.duration_ns / 1e9)


def test_a_transform_gets_batches_of_frames(made, whole):
    seen = []

    def halves(frames):
        seen.append(tuple(frames.shape))
        return frames.permute(0, 3, 1, 2).float() / 2

    with open_archive(made[0] / "store", transform=halves) as archive:
        assert archive[5].shape == (3, 48, 64)
        assert np.array_equal(archive[2:4].numpy(), whole[2:4].transpose(0, 3, 1, 2) / np.float32(2))
        assert [item.shape for item in archive.__getitems__([1, 9])] == [(3, 48, 64)] * 2
        assert next(iter(archive)).shape == (3, 48, 64)
    assert seen == [(1, 48, 64, 3), (2, 48, 64, 3), (1, 48, 64, 3), (1, 48, 64, 3), (1, 48, 64, 3)]


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gray"])
def test_size_and_pixel_format(made, pix_fmt):
    folder, frames = made
    path = folder / "sources" / "b_frames.mp4"
    with open_archive(folder / "store", size=(30, 50), pix_fmt=pix_fmt) as archive:
        assert np.array_equal(archive["b_frames"][8:20].numpy(), reference(path, pix_fmt, (30, 50))[8:20])
    with pytest.raises(ConfigError, match="ArchiveStreams"):
        Archive(folder, pix_fmt="yuv420p")
    with pytest.raises(ConfigError, match="height, width"):
        Archive(folder, size=(0, 3))
    assert len(frames) == 3


def test_async_reads_do_not_block_the_event_loop(archive, whole):
    async def read():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        parts = await asyncio.gather(*(archive.frames(start, start + 40) for start in (0, 40, 80)))
        one = await archive.videos[0].get(-1)
        ticking.cancel()
        assert ticks > 10
        return torch.cat(parts), one

    frames, one = asyncio.run(read())
    assert np.array_equal(frames.numpy(), whole)
    assert np.array_equal(one.numpy(), whole[39])


def test_a_closed_archive_raises_closed_error(made):
    archive = open_archive(made[0] / "store")
    archive[3]
    archive.close()
    archive.close()
    with pytest.raises(ClosedError, match="open it again"):
        archive[3]


def test_missing_frames_and_videos_are_reported(archive):
    for which in (120, -121, [3, 120]):
        with pytest.raises(FrameIndexError, match="frames 0 to 119"):
            archive[which]
    with pytest.raises(IndexError, match="'b_frames' has frames 0 to 39"):
        archive["b_frames"][40]
    with pytest.raises(VideoNotFound, match="no video 'nobody'"):
        archive["nobody"]
    with pytest.raises(FrameIndexError, match="3 videos"):
        archive.videos[3]
    with pytest.raises(ConfigError, match="one video"):
        archive["b_frames"]["x"]
    with pytest.raises(FrameIndexError, match="no frame number 40"):
        archive.reader.decode(archive.videos[0].video, [0, 40])


def test_videos_of_different_size_are_named_unless_a_size_is_given(tmp_path):
    expected = make_archive(tmp_path, ("b_frames.mp4", "odd_size.mkv"))
    with open_archive(tmp_path / "store") as archive:
        assert archive[0:40].shape == (40, 48, 64, 3)
        with pytest.raises(FrameSizeError, match=r"'b_frames' is 48x64 .*'odd_size' is 47x63.* size="):
            archive[38:42]
        assert np.array_equal(archive["odd_size"][3:6].numpy(), expected["odd_size"][3:6])
        assert [tuple(frame.shape[:2]) for frame in archive][39:41] == [(48, 64), (47, 63)]
    with open_archive(tmp_path / "store", size=(24, 32)) as archive:
        assert archive[38:42].shape == (4, 24, 32, 3)


def test_an_open_archive_keeps_its_numbering_while_videos_are_added(tmp_path):
    first = make_archive(tmp_path, ("b_frames.mp4",))["b_frames"]
    (tmp_path / "more").mkdir()
    path = VARIANTS["rotated.mp4"](tmp_path / "more")
    with open_archive(tmp_path / "store") as archive, open_archive(tmp_path / "store") as other:
        assert len(archive) == 40
        other.add(str(path), chunk_frames=15, jobs=0, progress=False, name="turned", metadata={"camera": 3})
        assert len(other) == 80
        assert len(archive) == 40
        assert np.array_equal(archive[-1].numpy(), first[-1])
        with pytest.raises(VideoNotFound, match=r"refresh\(\)"):
            archive["turned"]
        assert archive.find({"camera": 3}) == []
        assert len(archive.refresh()) == 80
        matches = archive.find({"camera": 3})
        assert [(video.name, video.start, dict(video.metadata)) for video in matches] == [("turned", 40, {"camera": 3})]
        assert np.array_equal(matches[0][:].numpy(), reference(path))
        assert archive.count({"camera": 3}).frames == 40


def test_an_archive_can_be_moved_as_a_whole(tmp_path):
    expected = make_archive(tmp_path / "a", ("b_frames.mp4",))["b_frames"]
    (tmp_path / "a").rename(tmp_path / "b")
    with open_archive(tmp_path / "b" / "store") as archive:
        assert np.array_equal(archive[:].numpy(), expected)
    (tmp_path / "b" / "store" / "chunks").rename(tmp_path / "chunks")
    with open_archive(tmp_path / "b" / "store", places={0: str(tmp_path)}) as archive:
        assert np.array_equal(archive[7].numpy(), expected[7])
    with pytest.raises(ConfigError, match="the archive has 0:"):
        open_archive(tmp_path / "b" / "store", places={1: "/x"})


def test_empty_and_missing_archives(tmp_path):
    with Archive.create(tmp_path / "store") as archive:
        assert len(archive) == 0
        assert archive[:].shape == (0, 0, 0, 3)
        assert list(archive.videos) == []
        with pytest.raises(FrameIndexError, match="no frames"):
            archive[0]
    with pytest.raises(CatalogExists):
        Archive.create(tmp_path / "store")
    with pytest.raises(CatalogNotFound):
        open_archive(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="catalog="):
        Archive.create("ssh://box/videos")
    for wrong in ("", 3):
        with pytest.raises(ConfigError):
            Archive(wrong)
