"""VideoStreams: which frames, when, in which form; what is cached; what is refused."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import anyio
import anyio.to_thread
import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip
from polling import wait_until
from tiers import fast_first

from streamloader.errors import (
    ConfigError,
    CorruptStream,
    FrameSizeError,
    StreamFailed,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.media.video import index_cache
from streamloader.streams.base import stream_rng
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams, read_stream


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 frames of 48x64, B frames, a key frame every 10."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """The same with frames that stay longer and longer."""
    return VARIANTS["variable_rate.mp4"](tmp_path_factory.mktemp("clips"))


@pytest.fixture
def calls(monkeypatch):
    """The paths that are really indexed, not found in the cache."""
    made = []
    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", lambda path, **k: made.append(path) or real(path, **k))
    return made


def one(dataset):
    (info,) = describe_streams(dataset)
    return info


def times_of(dataset, info, count, rng=None):
    async def read_times():
        stream = await dataset.open(info, rng or stream_rng(0, 0, 0))
        out = np.full(count, -1.0)
        stream.times(0, out)
        await stream.aclose()
        return out.tolist()

    return anyio.run(read_times)


@pytest.mark.parametrize("name", fast_first(["bikes", "carphone_pristine", "carphone_distorted", "bigbuckbunny"]))
def test_real_clips_bit_for_bit(clips, name):
    dataset = VideoStreams(clips[name])
    info = one(dataset)
    frames = linear_decode(clips[name])
    assert info.length == len(frames)
    played = read_stream(dataset, info, block=16)["data"]
    assert len(played) == len(frames)
    for number, frame in enumerate(frames):
        assert np.array_equal(played[number], frame.to_ndarray(format="rgb24")), number
    assert times_of(dataset, info, len(frames)) == [
        float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames
    ]


def test_fields(clip):
    def fields(**keywords):
        dataset = VideoStreams(clip, **keywords)
        describe_streams(dataset)
        return {name: (field.shape, str(field.dtype), field.axes) for name, field in dataset.fields.items()}

    assert fields() == {"data": ((48, 64, 3), "uint8", "HWC")}
    assert fields(pix_fmt="gray", size=(10, 20)) == {"data": ((10, 20, 1), "uint8", "HWC")}
    assert fields(pix_fmt="rgbp") == {"data": ((3, 48, 64), "uint8", "CHW")}
    assert fields(pix_fmt="yuv420p", size=(11, 21)) == {
        "y": ((11, 21, 1), "uint8", "HWC"),
        "u": ((6, 11, 1), "uint8", "HWC"),
        "v": ((6, 11, 1), "uint8", "HWC"),
        "matrix": ((), "uint8", None),
        "range": ((), "uint8", None),
    }
    assert VideoStreams(clip, size=(10, 20)).fields["data"].shape == (10, 20, 3)  # known before index()
    with pytest.raises(ConfigError, match=r"size="):
        _ = VideoStreams(clip).fields


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gray"])
def test_scaling_is_that_of_pyav(clip, pix_fmt):
    dataset = VideoStreams(clip, size=(30, 50), pix_fmt=pix_fmt)
    played = read_stream(dataset, one(dataset))["data"]
    for frame, got in zip(linear_decode(clip), played, strict=True):
        wanted = frame.to_ndarray(format=pix_fmt, width=50, height=30).reshape(30, 50, -1)
        assert np.array_equal(got, wanted)


def test_planes(clip):
    dataset = VideoStreams(clip, pix_fmt="yuv420p")
    played = read_stream(dataset, one(dataset))
    for number, frame in enumerate(linear_decode(clip)):
        for name, plane in zip("yuv", frame.planes, strict=True):
            stored = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            assert np.array_equal(played[name][number, ..., 0], stored)


@pytest.mark.parametrize("size", [None, (30, 50), (32, 48)])
def test_planes_of_rgb(clip, size):
    """At full size those of rgb24; scaled, those of PyAV's planar RGB."""
    dataset = VideoStreams(clip, size=size, pix_fmt="rgbp")
    played = read_stream(dataset, one(dataset))["data"]
    height, width = size or (48, 64)
    for frame, got in zip(linear_decode(clip), played, strict=True):
        planar = frame.to_ndarray(format="gbrp", width=width, height=height)  # PyAV returns R, G, B
        assert np.array_equal(got, np.moveaxis(planar, -1, 0))
        if size is None:
            assert np.array_equal(got, np.moveaxis(frame.to_ndarray(format="rgb24"), -1, 0))


def test_rotated_video_is_upright(tmp_path):
    dataset = VideoStreams(VARIANTS["rotated.mp4"](tmp_path))
    info = one(dataset)
    assert dataset.fields["data"].shape == (64, 48, 3)
    frames = linear_decode(tmp_path / "rotated.mp4")
    assert frames[0].rotation == 90  # counter-clockwise
    assert np.array_equal(read_stream(dataset, info)["data"], np.rot90(as_rgb(frames), axes=(1, 2)))
    planar = VideoStreams(tmp_path / "rotated.mp4", pix_fmt="rgbp")
    planes = read_stream(planar, one(planar))["data"]
    assert np.array_equal(planes.transpose(0, 2, 3, 1), np.rot90(as_rgb(frames), axes=(1, 2)))
    small = VideoStreams(tmp_path / "rotated.mp4", size=(32, 24))
    wanted = np.rot90(as_rgb(frames, width=32, height=24), axes=(1, 2))
    assert np.array_equal(read_stream(small, one(small))["data"], wanted)


def plain_selection(pts, end, time_base, *, max_frames, stride, fps):
    """Which frames are shown, and when: written as the documentation says it."""
    start = pts[0] * time_base
    if fps is None:
        shown = [(number, p * time_base - start) for number, p in enumerate(pts)]
    else:
        shown, k = [], 0
        while k == 0 or start + Fraction(k) / fps < end * time_base:
            latest = max(number for number, p in enumerate(pts) if p * time_base <= start + Fraction(k) / fps)
            shown.append((latest, Fraction(k) / fps))
            k += 1
    return shown[::stride][:max_frames]


@pytest.mark.parametrize("fps", [None, 5, 25, 60, Fraction(30000, 1001), 7.5, "24000/1001", 0.1])
@pytest.mark.parametrize("stride", [1, 2, 7, 100])
@pytest.mark.parametrize("max_frames", [None, 1, 5, 1000])
def test_steps_are_those_of_the_rule(clip, uneven, fps, stride, max_frames):
    for path in (clip, uneven):
        index = index_cache.load_index(str(path))
        exact = None if fps is None else Fraction(fps)
        wanted = plain_selection(
            index.pts.tolist(), index.end, index.time_base, max_frames=max_frames, stride=stride, fps=exact
        )
        dataset = VideoStreams(path, max_frames=max_frames, stride=stride, fps=fps)
        info = one(dataset)
        assert info.length == len(wanted)
        numbers, times = dataset._selection.select_frames(index, 0.0)
        assert numbers.tolist() == [number for number, _ in wanted]
        assert times.tolist() == pytest.approx([float(time) for _, time in wanted], abs=1e-12)


@pytest.mark.parametrize(("fps", "stride"), [(None, 3), (10, 1), (60, 1), (60, 2), (3, 1)])
def test_selected_frames_are_read(uneven, fps, stride):
    pictures = as_rgb(linear_decode(uneven))
    index = index_cache.load_index(str(uneven))
    exact = None if fps is None else Fraction(fps)
    wanted = plain_selection(index.pts.tolist(), index.end, index.time_base, max_frames=60, stride=stride, fps=exact)
    dataset = VideoStreams(uneven, stride=stride, fps=fps, max_frames=60)
    info = one(dataset)
    numbers = [number for number, _ in wanted]
    assert np.array_equal(read_stream(dataset, info)["data"], pictures[numbers])
    assert np.array_equal(
        read_stream(dataset, info, seek=len(numbers) // 2)["data"], pictures[numbers[len(numbers) // 2 :]]
    )
    assert times_of(dataset, info, len(numbers)) == pytest.approx([float(time) for _, time in wanted], abs=1e-12)


def test_random_start_keeps_the_number_of_steps(clip):
    pictures = [picture.tobytes() for picture in as_rgb(linear_decode(clip))]
    for stride, max_frames, starts in ((1, 10, 31), (3, 10, 13), (1, 40, 1), (13, 4, 1), (12, 4, 4)):
        dataset = VideoStreams(clip, max_frames=max_frames, stride=stride, random_start=True)
        info = one(dataset)
        assert info.length == min(max_frames, math.ceil(40 / stride))
        seen = set()
        for epoch in range(25 if starts == 4 else 8):
            rng = stream_rng(1, epoch, 0)
            played = read_stream(dataset, info, rng=rng)["data"]
            numbers = [pictures.index(picture.tobytes()) for picture in played]
            assert numbers == list(range(numbers[0], numbers[0] + stride * info.length, stride))
            again = read_stream(dataset, info, block=3, rng=stream_rng(1, epoch, 0))["data"]
            assert np.array_equal(again, played)
            times = times_of(dataset, info, info.length, stream_rng(1, epoch, 0))
            assert times == pytest.approx([number / 25 for number in numbers])
            seen.add(numbers[0])
        assert max(seen) < starts
        assert len(seen) == starts if starts <= 4 else len(seen) > 4


def test_random_start_reaches_the_first_and_the_last_frame(clip):
    dataset = VideoStreams(clip, max_frames=10, random_start=True)
    index = index_cache.load_index(str(clip))
    assert dataset._selection.select_frames(index, 0.0)[0].tolist() == list(range(10))
    assert dataset._selection.select_frames(index, 1 - 2**-53)[0].tolist() == list(range(30, 40))


def test_transform_draws_once_for_a_stream(clip):
    def noisy(frames, rng):
        return frames[:, :20, :30].astype(np.float32) + rng.normal(size=(20, 30, 3)).astype(np.float32)

    dataset = VideoStreams(clip, transform=noisy)
    info = one(dataset)
    field = dataset.fields["data"]
    assert (field.shape, str(field.dtype), field.axes) == ((20, 30, 3), "float32", "HWC")
    pictures = as_rgb(linear_decode(clip))[:, :20, :30].astype(np.float32)
    whole = read_stream(dataset, info, block=40, rng=stream_rng(0, 0, 5))["data"]
    noise = whole - pictures
    assert np.ptp(noise, axis=0).max() < 1e-4, "the same for all frames"
    assert np.ptp(noise) > 1
    for block, seek in ((1, None), (7, None), (7, 13)):
        assert np.array_equal(
            read_stream(dataset, info, block, seek=seek, rng=stream_rng(0, 0, 5))["data"], whole[seek or 0 :]
        )
    assert not np.array_equal(read_stream(dataset, info, rng=stream_rng(0, 1, 5))["data"], whole)


def test_transform_may_return_numbers(clip):
    dataset = VideoStreams(clip, pix_fmt="gray", transform=lambda frames, rng: frames.mean(axis=(1, 2, 3)))
    info = one(dataset)
    assert (dataset.fields["data"].shape, dataset.fields["data"].axes) == ((), None)
    assert read_stream(dataset, info)["data"].shape == (40,)


def test_transforms_that_do_not_fit(clip):
    def fails(frames, rng):
        raise KeyError("nothing here")

    with pytest.raises(StreamFailed, match=r"KeyError: 'nothing here'"):
        describe_streams(VideoStreams(clip, transform=fails))
    with pytest.raises(ConfigError, match=r"one result for each of the 2 frames"):
        describe_streams(VideoStreams(clip, transform=lambda frames, rng: frames[0]))
    with pytest.raises(ConfigError, match=r"one field"):
        VideoStreams(clip, pix_fmt="yuv420p", transform=lambda frames, rng: frames)

    def changes(frames, rng):
        return frames if not frames.any() else frames.astype(np.float32)

    dataset = VideoStreams(clip, transform=changes)
    info = one(dataset)
    with pytest.raises(StreamFailed, match=r"shape and dtype of a step must not change") as caught:
        read_stream(dataset, info)
    assert (caught.value.stream, caught.value.offset) == (info.key, 0)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"size": (0, 5)}, "size must be"),
        ({"size": 224}, "size must be"),
        ({"size": (10.5, 20)}, "size must be"),
        ({"pix_fmt": "bgr24"}, "pix_fmt must be one of"),
        ({"max_frames": 0}, "max_frames must be"),
        ({"max_frames": True}, "max_frames must be"),
        ({"stride": 0}, "stride must be"),
        ({"stride": 1.5}, "stride must be"),
        ({"fps": 0}, "fps must be greater"),
        ({"fps": -25.0}, "fps must be greater"),
        ({"fps": "fast"}, "fps must be a number"),
        ({"fps": float("nan")}, "fps must be a number"),
        ({"fps": "1/0"}, "fps must be a number"),
        ({"random_start": True}, "random_start=True needs max_frames"),
        ({"damaged": "skip"}, "damaged must be"),
    ],
)
def test_arguments_that_cannot_work(keywords, words):
    with pytest.raises(ConfigError, match=words):
        VideoStreams("clip.mp4", **keywords)


def test_paths_patterns_and_directories(clip, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "a.MP4", "deep/c.mkv", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)

    def keys(paths):
        return [info.key for info in describe_streams(VideoStreams(paths))]

    assert keys(".") == ["./a.MP4", "./b.mp4", "./deep/c.mkv"]
    assert keys("*.mp4") == ["b.mp4"]
    assert keys("**/*.m*") == ["b.mp4", "deep/c.mkv"]
    assert keys(["b.mp4", tmp_path / "a.MP4", "b.mp4"]) == ["b.mp4", str(tmp_path / "a.MP4"), "b.mp4#2"]
    assert keys("notes.txt") == ["notes.txt"]  # named by hand: what is in it counts, not its name
    with pytest.raises(StreamNotFound, match="missing"):
        keys("missing.mp4")
    with pytest.raises(StreamNotFound, match="no file matches"):
        keys("*.webm")


def test_sizes_that_differ(clip, tmp_path):
    wide = make_clip(tmp_path / "wide.mp4", frames=3, width=80)
    with pytest.raises(FrameSizeError, match=r"48x64.*48x80.*size=") as caught:
        describe_streams(VideoStreams([clip, wide]))
    assert str(clip) in str(caught.value)
    assert str(wide) in str(caught.value)
    assert [info.length for info in describe_streams(VideoStreams([clip, wide], size=(20, 20)))] == [40, 3]


def test_one_bad_file_among_many_is_named(clip, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    (tmp_path / "worse.mp4").write_bytes(b"")
    with pytest.raises(UnreadableStream) as caught:
        describe_streams(VideoStreams([clip, tmp_path / "bad.mp4", clip, tmp_path / "worse.mp4"]))
    assert caught.value.stream == str(tmp_path / "bad.mp4")
    lines = caught.value.message.splitlines()
    assert lines[0] == "2 of 4 videos cannot be used:"
    assert lines[1].startswith(f"- {tmp_path}/bad.mp4 cannot be opened as a video: ")
    assert lines[2] == f"- {tmp_path}/worse.mp4 is empty (0 bytes)"
    assert [name for name, *_ in caught.value.details["failed"]] == [f"{tmp_path}/bad.mp4", f"{tmp_path}/worse.mp4"]
    with pytest.raises(UnreadableStream, match=r"bad\.mp4 cannot be opened") as caught:
        describe_streams(VideoStreams([clip, tmp_path / "bad.mp4"]))
    assert "\n" not in caught.value.message


def test_a_cancelled_index_stops_at_the_next_file(clip, tmp_path, monkeypatch):
    looked, started, go_on = [], threading.Event(), threading.Event()

    def slow(path, **keywords):
        looked.append(path)
        started.set()
        assert go_on.wait(60)
        return real(path, **keywords)

    real = index_cache.index_video
    monkeypatch.setattr(index_cache, "index_video", slow)
    paths = [tmp_path / f"{number}.mp4" for number in range(40)]
    for path in paths:
        path.hardlink_to(clip)

    async def cancel():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(VideoStreams(paths).index)
            await anyio.to_thread.run_sync(started.wait, 30)
            tasks.cancel_scope.cancel()

    before = set(threading.enumerate())
    anyio.run(cancel)
    go_on.set()
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert 0 < len(looked) <= os.cpu_count()
    monkeypatch.setattr(index_cache, "index_video", lambda path, **k: finished.append(path) or real(path, **k))
    finished = []
    describe_streams(VideoStreams(paths))  # what was done is kept
    assert sorted([*looked, *finished]) == sorted(map(str, paths))


def test_long_work_is_reported(clip, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("streamloader.streams.indexing._LOG_INTERVAL_S", -1.0)
    (tmp_path / "other.mp4").write_bytes(clip.read_bytes())
    with caplog.at_level(logging.INFO, logger="streamloader"):
        describe_streams(VideoStreams([tmp_path / "other.mp4"] * 2))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"indexed {count} of 2 videos" for count in (0, 2)]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="streamloader"):
        describe_streams(VideoStreams(tmp_path / "other.mp4"))
    assert not caplog.records, "nothing was to be done"


def test_damaged_files_are_refused_or_kept(tmp_path, caplog):
    data = VARIANTS["b_frames.mkv"](tmp_path).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptStream, match="is truncated"):
        describe_streams(VideoStreams(path))
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        dataset = VideoStreams(path, damaged="keep")
        info = one(dataset)
    assert f"using the {info.length} frames" in caplog.text
    assert 0 < info.length < 40
    played = read_stream(dataset, info)["data"]
    assert len(played) == info.length
    assert np.array_equal(played[:-1], as_rgb(linear_decode(tmp_path / "b_frames.mkv"))[: info.length - 1])
    assert np.array_equal(read_stream(dataset, info, seek=5)["data"], played[5:])


def test_damage_found_while_reading_is_raised_after_the_good_frames(clip, tmp_path, monkeypatch):
    """The steps before are delivered; then one error that names stream, file and frame."""
    path = tmp_path / "shorter.mp4"
    make_clip(path, frames=25)
    dataset = VideoStreams(path)
    info = one(dataset)
    lying = index_cache.load_index(str(clip))
    monkeypatch.setattr(index_cache, "load_index", lambda *a, **k: lying)
    longer = type(info)(info.key, 40, {**info.extra, "frames": 40})

    async def read():
        stream = await dataset.open(longer, stream_rng(0, 0, 0))
        counts, out = [], {"data": np.zeros((16, 48, 64, 3), np.uint8)}
        try:
            while True:
                counts.append(await stream.read_into(out))
        except CorruptStream as error:
            return counts, error
        finally:
            await stream.aclose()

    counts, error = anyio.run(read)
    assert counts == [16, 9]
    assert (error.stream, error.address, error.offset) == (info.key, str(path), 25)


def test_a_file_that_changed_is_refused(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.read_bytes())
    dataset = VideoStreams(path)
    info = one(dataset)
    make_clip(path, frames=12)
    with pytest.raises(CorruptStream, match="was changed since the loader was built") as caught:
        read_stream(dataset, info)
    assert caught.value.stream == info.key
    assert one(VideoStreams(path)).length == 12
    path.unlink()
    with pytest.raises(StreamNotFound):
        read_stream(dataset, info)


def test_what_is_stored_for_a_stream_is_small(clip):
    info = one(VideoStreams(clip))
    assert info.key == str(clip)
    assert info.extra == {
        "path": str(clip),
        "bytes": clip.stat().st_size,
        "modified": clip.stat().st_mtime_ns,
        "frames": 40,
        "pixel_aspect": 1.0,
    }


def test_cache_hit_miss_and_change(clip, tmp_path, monkeypatch, calls):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.read_bytes())
    assert one(VideoStreams(path)).length == 40
    assert calls == [str(path)]
    dataset = VideoStreams(path, size=(20, 20))
    read_stream(dataset, one(dataset))
    assert calls == [str(path)]
    os.utime(path, ns=(1, 1))
    assert one(VideoStreams(path)).length == 40
    assert len(calls) == 2
    make_clip(path, frames=7)
    assert one(VideoStreams(path)).length == 7
    assert len(calls) == 3


def test_the_cache_is_read_in_many_threads_at_a_time(clip, tmp_path, monkeypatch, calls):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    wanted = index_cache.load_index(str(clip)).pts.tobytes()
    with ThreadPoolExecutor(8) as pool:
        assert {found.pts.tobytes() for found in pool.map(index_cache.load_index, [str(clip)] * 2000)} == {wanted}
    assert len(calls) == 1


def test_a_cache_that_cannot_be_written_does_no_harm(clip, tmp_path, monkeypatch, calls):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "file"))
    dataset = VideoStreams(clip)
    info = one(dataset)
    assert len(read_stream(dataset, info)["data"]) == 40
    assert len(calls) == 2


def test_the_cache_returns_what_was_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    for name in ("rotated.mp4", "no_pts.avi", "open_groups.mkv"):
        path = str(VARIANTS[name](tmp_path))
        fresh, stored = index_cache.load_index(path), index_cache.load_index(path)
        for field in fresh.__dataclass_fields__:
            one_value, other = getattr(fresh, field), getattr(stored, field)
            assert np.array_equal(one_value, other), (name, field)
            assert type(one_value) is type(other)


def test_describing_the_data_set_imports_no_av():
    code = (
        "import sys, streamloader as sl; sl.VideoStreams('a.mp4', size=(2, 2)); "
        "assert not {'av', 'torch', 'platformdirs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
