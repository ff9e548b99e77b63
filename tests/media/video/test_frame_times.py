"""Times of frames where timestamps are missing, repeated, disordered, or of a clock that jumps, against ffmpeg's."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from ffmpeg_program import make, run, shown_times
from made_clips import linear_decode, make_clip

import streamloader as sl
from streamloader.cli.main import main
from streamloader.media.video import indexer as indexer_module
from streamloader.media.video.frame_times import (
    NO_TIME,
    TimestampLog,
    correct_clock,
    find_frame_times,
)
from streamloader.media.video.index_blob import InvalidBlob, decode_index, encode_index
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader
from streamloader.testing import describe_streams, read_stream

TS = ("-c:v", "libx264", "-bf", "2", "-g", "25", "-output_ts_offset")
SOUND = ("-f", "lavfi", "-i", "sine=duration=2")


@pytest.fixture
def undecoded(monkeypatch):
    """Fail if a video is decoded as a whole for its index."""

    def refuse(*_, **__):
        raise AssertionError("the whole video is decoded")

    monkeypatch.setattr(indexer_module, "_index_by_decoding", refuse)


def seconds(index):
    return ((index.pts - index.pts[0]) * index.time_base).astype(float)


def check_frames(path, index=None):
    """Compare pictures with a linear decode: in order, after seeks, and as the compact form describes them."""
    index = index or index_video(str(path))
    right = [frame.to_ndarray(format="gray") for frame in linear_decode(path)]
    assert len(index) == len(right)
    for each in (index, decode_index(encode_index(index), None)):
        with contextlib.closing(FrameReader(str(path), each)) as reader:
            for number in (*range(len(right)), *range(len(right) - 1, -1, -7)):
                shown = reader.read_frame(number).to_ndarray(format="gray")
                assert np.array_equal(shown, right[number]), f"frame {number}"
    return index


def assert_times_of_ffmpeg(path, tolerance=1e-4):
    index = check_frames(path)
    truth = shown_times(path)
    assert np.abs(seconds(index) - truth).max() < tolerance
    step = float(np.median(np.diff(truth)))
    assert abs(float((index.end - int(index.pts[0])) * index.time_base) - (truth[-1] + step)) < max(tolerance, 1e-3)
    assert index.seekable
    return index


def seeks(path, index, number):
    """Return how many frames are decoded to read one frame of a new reader."""
    with contextlib.closing(FrameReader(str(path), index)) as reader:
        assert reader.seek(number)
        before = reader._next
        reader.read_frame(number)
        return before


# --- missing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_h264_in_avi_has_decoding_times_only(tmp_path, depth):
    source = make(tmp_path / "source.mp4", "-c:v", "libx264", "-bf", depth, "-g", 25, seconds=4)
    path = tmp_path / "copied.avi"
    run("-i", source, "-c", "copy", path)
    index = assert_times_of_ffmpeg(path)
    assert len(index.key_pts) == 4
    (info,) = describe_streams(sl.VideoStreams(path, fps=1))
    assert info.length == 4


@pytest.mark.parametrize("name", ["h264", "m2v", "m4v", "hevc", "avi", "flv", "mpg", "mjpeg"])
def test_formats_with_few_timestamps_or_none(tmp_path, name):
    options = {
        "h264": ("-c:v", "libx264", "-bf", 2), "m2v": ("-c:v", "mpeg2video", "-bf", 2),
        "m4v": ("-c:v", "mpeg4", "-bf", 2), "hevc": ("-c:v", "libx265", "-x265-params", "log-level=0"),
        "avi": ("-c:v", "mpeg4", "-bf", 2), "flv": ("-c:v", "libx264", "-bf", 2), "mpg": ("-c:v", "mpeg2video"),
        "mjpeg": ("-c:v", "mjpeg"),
    }[name]  # fmt: skip
    assert_times_of_ffmpeg(make(tmp_path / f"clip.{name}", *options, "-g", 10))


def test_a_raw_stream_is_sought_by_bytes(tmp_path):
    path = make(tmp_path / "raw.h264", "-c:v", "libx264", "-bf", 2, "-g", 10)
    index = check_frames(path)
    assert index.retiming.by_bytes
    assert seeks(path, index, 45) == 45


# --- repeated and disordered -----------------------------------------------------------------------------------------


def move_blocks(source, target, moves):
    """Change the times of blocks of a Matroska file, by number of the block, in milliseconds."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    for number, delta in moves.items():
        at = positions[number] + 1
        assert data[at - 1] == 0x81, "the number of the track"
        data[at : at + 2] = (int.from_bytes(data[at : at + 2], "big", signed=True) + delta).to_bytes(
            2, "big", signed=True
        )
    target.write_bytes(data)
    return target


@pytest.fixture(scope="module")
def webm(tmp_path_factory):
    options = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", 8, "-g", 25)
    return make(tmp_path_factory.mktemp("webm") / "source.webm", *options, seconds=12)


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ({201: -40}, {201: 8.001}),  # two frames share a millisecond
        ({201: -40, 202: -80}, {201: 8.001, 202: 8.002}),
        ({1: -40}, {1: 0.001}),
        ({299: -40}, {299: 11.921}),  # the last one
        ({100: -80}, {}),  # goes back: it has the place of a frame between its neighbours
        ({100: 3000}, {}),  # too late
        ({3: -40, 150: -40, 250: -40}, {3: 0.081, 150: 5.961, 250: 9.961}),
    ],
)
def test_a_local_fault_stays_local(webm, tmp_path, undecoded, moves, expected):
    path = move_blocks(webm, tmp_path / "moved.webm", moves)
    index = check_frames(path)
    times = np.arange(300) * 0.04
    for number, time in expected.items():
        times[number] = time
    assert np.abs(seconds(index) - times).max() < 1e-6
    assert len(index.key_pts) == 12
    assert index.seekable
    assert seeks(path, index, 290) == 290
    with contextlib.closing(FrameReader(str(path), index)) as reader:
        reader.read_frame(290)
        assert reader._next == 291
    (info,) = describe_streams(sl.VideoStreams(path, fps=1))
    assert info.length == 12


def test_repeated_times_of_b_frames_are_ordered_by_the_decoder(tmp_path):
    source = make(tmp_path / "b.mkv", "-c:v", "libx264", "-bf", 2, "-g", 25)
    path = move_blocks(source, tmp_path / "moved.mkv", {12: -40, 31: -40})
    index = check_frames(path)
    assert index.seekable
    assert np.abs(seconds(index) - np.arange(50) / 25).max() < 0.041
    assert (np.abs(seconds(index) - np.arange(50) / 25) > 1e-6).sum() <= 2


def test_frames_that_are_closer_than_a_tick_get_room(tmp_path):
    path = make_clip(tmp_path / "fast.mkv", frames=60, time_base=Fraction(1, 3000))
    index = check_frames(path)
    assert index.time_base < Fraction(1, 1000)
    assert np.abs(seconds(index) - shown_times(path)).max() < 1e-3
    assert (np.diff(seconds(index)) > 0).all()
    assert index.seekable


def test_all_levels_of_proof_agree(webm, tmp_path):
    path = str(move_blocks(webm, tmp_path / "moved.webm", {201: -40}))
    tables, frames = index_video(path), index_video(path, verify="frames")
    assert tables.pts.tolist() == frames.pts.tolist()
    assert (tables.time_base, tables.end, tables.retiming) == (frames.time_base, frames.end, frames.retiming)


# --- clocks ----------------------------------------------------------------------------------------------------------


def join(target, *parts):
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Recordings of 2 s by name: the time at which they start, with other properties."""
    folder = tmp_path_factory.mktemp("recordings")
    made = {}

    def get(name):
        if name not in made:
            start, _, kind = name.partition(" ")
            options, suffix, inputs = TS[:-1], "ts", ()
            if kind == "mpg":
                options, suffix = ("-c:v", "mpeg2video", "-bf", "2", "-g", "25"), "mpg"
            elif kind == "mpeg2":
                options = ("-c:v", "mpeg2video", "-bf", "2", "-g", "25")
            elif kind == "hevc":
                options = ("-c:v", "libx265", "-x265-params", "log-level=0:keyint=25")
            elif kind == "sound":
                inputs = SOUND
            size = "320x240" if kind == "large" else "64x48"
            made[name] = make(folder / f"{name}.{suffix}", *inputs, *options, "-output_ts_offset", start, size=size)
        return made[name]

    return get


@pytest.mark.parametrize(
    ("names", "jumps", "length"),
    [
        (["1000", "10"], 1, 4), (["10", "1000"], 1, 4), (["10", "10"], 1, 4), (["1000", "10", "5000", "10"], 3, 8),
        (["10", "11.5"], 1, 4), (["10", "17"], 0, 9), (["95442", "20"], 1, 4), (["1000 sound", "10 sound"], 1, 4),
        (["1000 hevc", "10 hevc"], 1, 4), (["1000 mpeg2", "10 mpeg2"], 1, 4), (["1000 mpg", "10 mpg"], 1, 4),
        (["10 hevc", "1000"], 1, None),
    ],
)  # fmt: skip
def test_joined_recordings(recordings, tmp_path, names, jumps, length):
    path = join(tmp_path / recordings(names[0]).with_stem("joined").name, *map(recordings, names))
    if length is None:  # another codec: whatever FFmpeg shows of it
        with contextlib.suppress(sl.StreamloaderError):
            index_video(str(path))
        return
    index = assert_times_of_ffmpeg(path)
    assert index.clock_jumps == jumps
    (info,) = describe_streams(sl.VideoStreams(path, fps=1))
    assert info.length == length


def test_a_clock_that_jumps_is_found_without_decoding(recordings, tmp_path, undecoded, caplog):
    path = join(tmp_path / "joined.ts", recordings("1000 large"), recordings("10 large"))
    with caplog.at_level(logging.WARNING, logger="streamloader"):
        (info,) = describe_streams(sl.VideoStreams(path))
    assert "joined.ts: the clock of the file jumps" in caplog.text
    assert info.length == 100
    assert seeks(path, index_video(str(path)), 95) == 95


def test_a_second_recording_that_begins_between_key_frames(recordings, tmp_path):
    data = recordings("10").read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(recordings("1000").read_bytes() + data[: 188 * 2] + data[len(data) // 188 // 2 * 188 :])
    index = check_frames(path, index_video(str(path), damaged="keep"))
    assert float((index.end - int(index.pts[0])) * index.time_base) < 5


@pytest.mark.parametrize("mode", ["copy", "encode"])
def test_archives_have_the_times_of_a_clock_without_jumps(recordings, tmp_path, mode, capsys):
    path, archive = join(tmp_path / "joined.ts", recordings("1000"), recordings("10")), tmp_path / "archive"
    assert main(["ingest", str(path), "--to", str(archive), "--mode", mode, "--jobs", "0", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(archive), "joined"]) == 0
    assert "jumps once" in capsys.readouterr().out
    right = [frame.to_ndarray(format="gray") for frame in linear_decode(path)]
    with sl.open_archive(str(archive), pix_fmt="gray") as opened:
        assert len(opened) == 100
        shown = np.asarray(opened.at([0.02, 2.5, 3.98]))[..., 0]
        if mode == "copy":
            assert all(np.array_equal(*pair) for pair in zip(shown, (right[0], right[62], right[99]), strict=True))
        (info,) = describe_streams(sl.ArchiveStreams(opened, fps=1))
        assert info.length == 4


@pytest.mark.parametrize("name", ["webm", "avi"])
def test_archives_of_repaired_times(webm, tmp_path, name):
    if name == "webm":
        path = move_blocks(webm, tmp_path / "moved.webm", {201: -40})
    else:
        path = tmp_path / "copied.avi"
        run("-i", make(tmp_path / "source.mp4", "-c:v", "libx264", "-bf", 2, "-g", 25), "-c", "copy", path)
    archive = tmp_path / "archive"
    assert main(["ingest", str(path), "--to", str(archive), "--jobs", "0", "--quiet"]) == 0
    right = [frame.to_ndarray(format="gray") for frame in linear_decode(path)]
    with sl.open_archive(str(archive), pix_fmt="gray") as opened:
        assert len(opened) == len(right)
        last = len(right) / 25 - 0.02
        assert np.array_equal(np.asarray(opened.at(last))[..., 0], right[-1])
        assert np.array_equal(np.asarray(opened[30])[..., 0], right[30])


def test_the_wrap_of_the_clock_is_no_jump(tmp_path):
    path = make(tmp_path / "wrap.ts", *TS, str(2**33 / 90000 - 1))
    assert assert_times_of_ffmpeg(path).clock_jumps == 0


@pytest.mark.parametrize("name", ["gap.mkv", "gap.mp4", "gap.avi"])
def test_a_gap_is_a_gap_where_the_clock_does_not_jump(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = make_clip(tmp_path / name, codec, frames=60, ticks=lambda number: number + (500 if number > 30 else 0))
    index = check_frames(path)
    assert index.clock_jumps == 0
    assert float((index.end - int(index.pts[0])) * index.time_base) == pytest.approx(22.4)


def test_a_clock_that_goes_back_in_any_container(webm, tmp_path):
    path = move_blocks(webm, tmp_path / "back.webm", dict.fromkeys(range(150, 300), -3000))
    index = check_frames(path)
    assert index.clock_jumps == 1
    assert np.abs(seconds(index) - np.arange(300) / 25).max() < 1e-6


# --- the rules -------------------------------------------------------------------------------------------------------


def times_of(pts, dts=None, durations=None, frame_packet=None, *, may_jump=False, time_base=Fraction(1, 1000)):
    log = TimestampLog(
        [NO_TIME if value is None else value for value in pts],
        [NO_TIME if value is None else value for value in (dts or [None] * len(pts))],
        durations or [0] * len(pts), [-1] * len(pts), [0],
    )  # fmt: skip
    clock = correct_clock(log, time_base, may_jump=may_jump)
    order = np.array(range(len(pts)) if frame_packet is None else frame_packet, np.int64)
    found = find_frame_times(clock, np.array(log.durations, np.int64), order, Fraction(40))
    assert (np.diff(found.times) > 0).all()
    return (found.times / found.scale).tolist(), len(clock.jumps)


@pytest.mark.parametrize(
    ("pts", "dts", "expected"),
    [
        ([None, 40, 80], [0, 40, 80], [0, 40, 80]),
        ([0, None, 80], [0, 40, 80], [0, 40, 80]),
        ([0, 40, None], [0, 40, 80], [0, 40, 80]),
        ([None, None, None], [100, 140, 190], [100, 140, 190]),
        ([0, None, None, 120], None, [0, 40, 80, 120]),
        ([None, 40, 80], None, [0, 40, 80]),
        ([0, 40, 40, 120], None, [0, 40, 41, 120]),
        ([0, 0, 0, 3], None, [0, 1, 2, 3]),
        ([0, 0, 1, 1], None, [0, 0.5, 1, 2]),
        ([0, 40, 9000, 120, 160], None, [0, 40, 80, 120, 160]),
        ([0, 40, 80, 80], None, [0, 40, 80, 81]),
        ([0, 40, 80, None], None, [0, 40, 80, 120]),
    ],
)
def test_times_of_few_packets(pts, dts, expected):
    assert times_of(pts, dts)[0] == expected


def test_b_frames_whose_packets_have_decoding_times_only():
    dts = [0, 40, 80, 120, 160, 200]
    assert times_of([None] * 6, dts, frame_packet=[0, 2, 3, 1, 5, 4])[0] == [40, 80, 120, 160, 200, 240]


def test_a_leap_of_days_is_no_gap():
    hour = 3_600_000
    times, _ = times_of([0, 40, 1000 * hour, 120, 160], [0, 40, 1000 * hour, 120, 160])
    assert times == [0, 40, 80, 120, 160]
    times, _ = times_of([0, 40, 20 * hour, 20 * hour + 40], [0, 40, 20 * hour, 20 * hour + 40])
    assert times == [0, 40, 20 * hour, 20 * hour + 40]


def test_a_compact_form_with_impossible_packets_is_refused(webm, tmp_path):
    index = index_video(str(move_blocks(webm, tmp_path / "moved.webm", {201: -40})))
    for change in (
        {"key_packet": index.retiming.key_packet[::-1].copy()},
        {"key_packet": index.retiming.key_packet + 1000},
        {"key_position": index.retiming.key_position - (1 << 40)},
    ):
        broken = replace(index, retiming=replace(index.retiming, **change))
        with pytest.raises(InvalidBlob):
            decode_index(encode_index(broken), None)


def test_steps_and_times_of_a_loader(webm, tmp_path):
    path = move_blocks(webm, tmp_path / "moved.webm", {201: -40})
    dataset = sl.VideoStreams(path, stride=50)
    (info,) = describe_streams(dataset)
    whole = read_stream(dataset, info)["data"]
    assert len(whole) == 6
    assert np.array_equal(read_stream(dataset, info, seek=4)["data"], whole[4:])
