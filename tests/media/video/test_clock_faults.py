"""Faults of timestamps in real files, against ffmpeg: times, and pictures in order and sought. All levels agree."""

from __future__ import annotations

import contextlib
import struct

import av
import numpy as np
import pytest
from ffmpeg_program import make, run, shown_pictures, shown_times
from tiers import only_fast

import streamloader as sl
from streamloader.media.video.frame_order import are_plausible_times
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader
from streamloader.testing import describe_streams, read_stream

ENCODERS = {
    "h264": ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25"),
    "hevc": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=0:keyint=12:bframes=4"),
    "mpeg2": ("-c:v", "mpeg2video", "-bf", "2", "-g", "12"),
    "mpeg1": ("-c:v", "mpeg1video", "-bf", "2", "-g", "12"),
    "vp8": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "25"),
    "theora": ("-c:v", "libtheora", "-g", "12"),
    "mpeg4": ("-c:v", "mpeg4", "-bf", "1", "-b_strategy", "0", "-sc_threshold", "1000000000", "-g", "12"),
}
TICKS_PER_S = 90_000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that returns a clip of 2 s of a codec in a container."""
    folder = tmp_path_factory.mktemp("sources")

    def get(codec, suffix, *options):
        path = folder / f"{codec} {' '.join(map(str, options)).replace('/', '')}.{suffix}"
        return path if path.exists() else make(path, *ENCODERS[codec], *options)

    return get


def seconds(index):
    return ((index.pts - index.pts[0]) * index.time_base).astype(float)


def check(path, times=None, *, tolerance=1.1e-3):
    """Compare an index with ffmpeg's times, or those given, and pictures with ffmpeg's, in order and sought."""
    right = shown_pictures(path, 48, 64).astype(int)
    truth = shown_times(path) if times is None else np.array(times)
    index = index_video(str(path))
    assert len(index) == len(right) == len(truth)
    assert np.abs(seconds(index) - truth).max() < tolerance
    with contextlib.closing(FrameReader(str(path), index)) as reader:
        for number in (*range(len(right)), *range(len(right) - 1, -1, -7)):
            shown = reader.read_frame(number).to_ndarray(format="gray")
            assert np.abs(shown - right[number]).mean() < 1, f"frame {number}"  # ranges are rounded
    for level in ("ends", "frames"):
        other = index_video(str(path), verify=level)
        assert np.array_equal(seconds(other), seconds(index)), level
        assert (other.end - int(other.pts[0])) * other.time_base == (index.end - int(index.pts[0])) * index.time_base
    return index


# --- transport and program streams -----------------------------------------------------------------------------------


def write_stamp(value, mark):
    """Return a timestamp of a packet header of MPEG-2 systems (ISO/IEC 13818-1, 2.4.3.6)."""
    value &= (1 << 33) - 1
    parts = (mark << 4 | value >> 29 & 14 | 1, value >> 22 & 255, value >> 14 & 254 | 1, value >> 7 & 255)
    return bytes((*parts, value << 1 & 254 | 1))


def read_stamp(data):
    return (data[0] & 14) << 29 | data[1] << 22 | (data[2] & 254) << 14 | data[3] << 7 | data[4] >> 1


def with_stamps(path, target, change):
    """Write a copy in which `change` (number, pts, dts) gives (pts, dts) of each packet. None removes both."""
    data = bytearray(path.read_bytes())
    number, at = 0, data.find(b"\0\0\1\xe0")
    while at >= 0:
        if data[at + 6] & 0xC0 == 0x80 and data[at + 7] & 0x80:
            has_both = bool(data[at + 7] & 0x40)
            pts = read_stamp(data[at + 9 : at + 14])
            dts = read_stamp(data[at + 14 : at + 19]) if has_both else pts
            changed = change(number, pts, dts)
            if changed is None:
                data[at + 7] &= 0x3F
                data[at + 9 : at + 14 + 5 * has_both] = bytes([255]) * (5 + 5 * has_both)
            else:
                data[at + 9 : at + 14] = write_stamp(changed[0], 3 if has_both else 2)
                if has_both:
                    data[at + 14 : at + 19] = write_stamp(changed[1], 1)
            number += 1
        at = data.find(b"\0\0\1\xe0", at + 4)
    target.write_bytes(data)
    return target


def moved(by):
    """Return a change that adds `by` (number of the packet) seconds."""
    return lambda number, pts, dts: tuple(int(value + by(number) * TICKS_PER_S) for value in (pts, dts))


EVEN = [number / 25 for number in range(50)]
FAULTS = {  # name -> (change, times that differ from ffmpeg's, which may be out of order)
    "one is missing": (lambda number, *both: both if number != 30 else None, None),
    "ten are missing": (lambda number, *both: both if not 20 <= number < 30 else None, None),
    "that of a key frame is missing": (lambda number, *both: both if number != 25 else None, None),
    "two of three are missing": (lambda number, *both: None if number % 3 else both, None),
    "only the first one": (lambda number, *both: None if number else both, None),
    "one far ahead": (lambda number, pts, dts: (pts + 60 * TICKS_PER_S * (number == 30), dts), EVEN),
    "one minute ahead": (moved(lambda number: 60 * (number == 30)), None),
    "the last one is late": (moved(lambda number: 60 * (number == 49)), None),
    "a minute back": (moved(lambda number: -60 * (number == 30)), None),
    "jitter": (lambda number, pts, dts: (pts + (0, 900, -600, 300, 0)[number % 5], dts), None),
    "990 s ahead": (moved(lambda number: 990 * (number >= 25)), None),
    "990 s back": (moved(lambda number: -990 * (number >= 25)), None),
    "26 h ahead": (moved(lambda number: 93_600 * (number >= 25)), None),
    "between key frames": (moved(lambda number: 500 * (number >= 33)), None),
    "there and back": (moved(lambda number: 500 * (25 <= number < 40)), None),
    "every seven frames": (moved(lambda number: 100 * (number // 7)), None),
    "a gap": (moved(lambda number: 9 * (number >= 25)), None),
    "half the speed": (lambda _, pts, dts: (2 * pts, 2 * dts), None),
    "decoding times only": (lambda _, __, dts: (dts, dts), EVEN),
    "the same for all": (lambda *_: (900_000, 900_000), [number * 1e-6 for number in range(50)]),
}
FAST_FAULTS = [("two of three are missing", "h264.ts"), ("one far ahead", "h264.ts"), ("there and back", "mpeg2.ts")]


@pytest.mark.parametrize(
    ("fault", "name"),
    only_fast(
        [(f, n) for f in FAULTS for n in ("h264.ts", "mpeg2.ts", "hevc.ts", "mpeg2.mpg", "h264.m2ts")], FAST_FAULTS
    ),
)
def test_stamps_of_transport_and_program_streams(source, tmp_path, fault, name):
    codec, suffix = name.split(".")
    change, times = FAULTS[fault]
    if suffix == "mpg" and times is not None:
        pytest.skip("not each picture has a timestamp there")
    check(with_stamps(source(codec, suffix, "-output_ts_offset", 1000), tmp_path / name, change), times)


# --- Matroska --------------------------------------------------------------------------------------------------------


def with_blocks(path, target, change):
    """Write a copy in which `change` (number, time) gives the milliseconds that are added to the time of a block."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        blocks = [(packet.pos + 1, packet.pts) for packet in container.demux(video=0) if packet.size]
    for number, (at, pts) in enumerate(blocks):
        value = int.from_bytes(data[at : at + 2], "big", signed=True) + change(number, pts)
        data[at : at + 2] = value.to_bytes(2, "big", signed=True)
    target.write_bytes(data)
    return target


BLOCKS = {  # name -> (change, times)
    "one repeats another": (lambda number, _: -40 * (number == 30), None),
    "one far ahead": (lambda number, _: 20_000 * (number == 30), EVEN),
    "too early": (lambda number, _: -1500 * (number == 30), EVEN),
    "the last one is early": (lambda number, _: -1000 * (number == 49), EVEN),
    "the first one is late": (lambda number, _: 500 * (number == 0), EVEN),
    "jitter": (lambda number, _: (0, 7, -5, 3, 0)[number % 5], None),
    "a gap": (lambda number, _: 15_000 * (number >= 25), None),
    "back and on": (lambda number, _: -1000 * (number >= 25), EVEN),
    "the order of the pictures is another one": (lambda number, _: 50 * (number == 22) - 50 * (number == 23), EVEN),
}
FAST_BLOCKS = [("one far ahead", "h264.mkv"), ("back and on", "h264.mkv")]
FAST_BLOCKS += [("the order of the pictures is another one", "h264.mkv")]


@pytest.mark.parametrize(
    ("fault", "name"), only_fast([(f, n) for f in BLOCKS for n in ("h264.mkv", "hevc.mkv", "vp8.webm")], FAST_BLOCKS)
)
def test_blocks_of_matroska(source, tmp_path, fault, name):
    codec, suffix = name.split(".")
    change, times = BLOCKS[fault]
    if codec == "hevc" and fault.startswith("the order"):
        pytest.skip("the order of its pictures is not read")
    tolerance = 0.06 if fault.startswith("the order") else 1.1e-3
    check(with_blocks(source(codec, suffix), tmp_path / name, change), times, tolerance=tolerance)


# --- MP4 -------------------------------------------------------------------------------------------------------------


def with_offsets(path, target, change):
    """Write a copy in which `change` (number, offset) gives the composition offset of each frame."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"ctts")
    version, count = data[at + 4], int.from_bytes(data[at + 8 : at + 12], "big")
    runs = np.frombuffer(bytes(data[at + 12 : at + 12 + 8 * count]), ">u4").reshape(-1, 2)
    offsets = np.repeat(runs[:, 1], runs[:, 0])
    changed = np.array([change(number, int(offset)) for number, offset in enumerate(offsets)], ">u4")
    table = np.stack([np.ones(len(changed), ">u4"), changed], axis=1).tobytes()
    box = bytes([version, 0, 0, 0]) + len(changed).to_bytes(4, "big") + table
    grown = 12 + 8 * len(changed) - (12 + 8 * count) + 0
    data[at - 4 : at + 12 + 8 * count] = (8 + len(box)).to_bytes(4, "big") + b"ctts" + box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        start = data.rindex(name) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + grown).to_bytes(4, "big")
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("codec", only_fast(["h264", "hevc"], ["h264"]))
@pytest.mark.parametrize("number", only_fast([10, 30, 45], [30]))
def test_a_frame_of_mp4_far_ahead(source, tmp_path, codec, number):
    """The tables do not determine the order of its pictures then, so that it is decoded once."""
    clip = source(codec, "mp4", "-use_editlist", 0)
    far = with_offsets(clip, tmp_path / "far.mp4", lambda n, offset: offset + 10**6 * (n == number))
    index = check(far, [number / 25 for number in range(50)])
    assert index.seekable


def test_decoding_times_as_those_of_presentation_in_mp4(source, tmp_path):
    """As programs write that copy a bare stream into MP4."""
    path = with_offsets(source("h264", "mp4", "-use_editlist", 0), tmp_path / "copied.mp4", lambda *_: 1024)
    check(path, EVEN)


EDITS = {  # (seconds, first second or None for none, rate) of each part
    "a part": [(1, 0.5, 1)],
    "two parts": [(0.5, 0.08, 1), (0.5, 1.08, 1)],
    "the other way round": [(0.5, 1.08, 1), (0.5, 0.08, 1)],
    "three times the same": [(0.5, 0.08, 1)] * 3,
    "a frame that stays": [(0.5, 0.08, 1), (1, 0.58, 0), (1, 0.6, 1)],
    "nothing before": [(1.5, None, 1), (2, 0.08, 1)],
    "nothing between": [(0.5, 0.08, 1), (1, None, 1), (0.5, 1.08, 1)],
}


def with_edits(path, target, edits):
    """Write a copy with another edit list (ISO/IEC 14496-12, 8.6.6)."""
    data = bytearray(path.read_bytes())
    scales = [int.from_bytes(data[at + 16 : at + 20], "big") for at in map(data.rindex, (b"mvhd", b"mdhd"))]
    rows = [
        struct.pack(
            ">IiI", round(duration * scales[0]), -1 if start is None else round(start * scales[1]), round(rate * 65536)
        )
        for duration, start, rate in edits
    ]  # fmt: skip
    table = struct.pack(">I4sII", 16 + 12 * len(rows), b"elst", 0, len(rows)) + b"".join(rows)
    at = data.rindex(b"edts") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    data[at : at + size] = struct.pack(">I4s", 8 + len(table), b"edts") + table
    for name in (b"moov", b"trak"):
        start = data.rindex(name) - 4
        grown = int.from_bytes(data[start : start + 4], "big") + 8 + len(table) - size
        data[start : start + 4] = grown.to_bytes(4, "big")
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("codec", only_fast(["h264", "hevc"], ["h264"]))
@pytest.mark.parametrize("name", only_fast(EDITS, ["two parts", "a frame that stays"]))
def test_edit_lists(source, tmp_path, codec, name):
    """What they hide has timestamps too, which are no jumps of a clock."""
    index = check(with_edits(source(codec, "mp4"), tmp_path / "edited.mp4", EDITS[name]))
    assert not index.clock_jumps


@pytest.mark.parametrize("name", only_fast(["h264.mkv", "vp8.webm"], ["h264.mkv"]))
def test_files_written_one_after_the_other(source, tmp_path, name):
    """FFmpeg plays both, with a clock that begins again, but seeks in the first one only."""
    codec, suffix = name.split(".")
    path = tmp_path / name
    path.write_bytes(2 * source(codec, suffix).read_bytes())
    right = shown_pictures(path, 48, 64).astype(int)
    index = index_video(str(path))
    assert len(index) == len(right)
    with contextlib.closing(FrameReader(str(path), index)) as reader:
        for number in (*range(len(right) - 1, -1, -9), *range(40, 60), 0, 55):
            shown = reader.read_frame(number).to_ndarray(format="gray")
            assert np.abs(shown - right[number]).mean() < 1, number


@pytest.mark.parametrize("codec", only_fast(["h264", "hevc", "mpeg2"], []))
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_uneven_but_right_times_need_no_decoding(tmp_path, monkeypatch, codec, suffix):
    options = ("-vf", "select='not(between(mod(n,17),3,6))*not(eq(mod(n,11),4))'", "-fps_mode", "vfr", "-bf", "3")
    path = make(tmp_path / f"uneven.{suffix}", *ENCODERS[codec], *options, seconds=4)
    check(path)


def test_plausible_times_of_few_frames():
    def check_times(pts, keys, dts):
        return are_plausible_times(np.array(pts), np.argsort(pts, kind="stable"), np.array(keys), dts)

    pts, dts = np.array([0, 120, 40, 80, 240, 160, 200, 360, 280, 320]), np.arange(10) * 40 - 40
    uneven = np.array([0, 500, 20, 90, 600, 510, 580, 900, 700, 890])
    assert check_times(pts, [0], dts)
    assert check_times(pts, [0], None)
    assert check_times(2 * pts, [0], dts * 2 + 7)
    assert check_times(uneven, [0], np.append(-20, np.sort(uneven)[:-1]))
    assert not check_times(np.where(pts == 160, 4000, pts), [0], dts)
    assert not check_times(pts, [0, 5], dts)  # nothing before a key frame follows it
    assert check_times(np.arange(100) * 40, [0], np.cumsum(np.tile([1, 79], 50)))  # made up
    assert check_times([7], [0], np.array([0]))


# --- empty packets, delays and raw streams ---------------------------------------------------------------------------


def test_theora_repeats_pictures_by_empty_packets(source):
    path = source("theora", "ogv")
    index = check(path)
    assert len(index) < 50
    dataset = sl.VideoStreams(path, fps=25, pix_fmt="gray")
    (info,) = describe_streams(dataset)
    assert info.length == len(read_stream(dataset, info)["data"]) == 50


def test_an_empty_packet_at_the_end(tmp_path):
    source = "testsrc2=size=64x48:rate=1000:duration=0.04"
    run("-f", "lavfi", "-i", source, *ENCODERS["theora"], tmp_path / "end.ogv")
    assert len(check(tmp_path / "end.ogv")) < 40


def test_gaps_of_h264_in_avi(tmp_path):
    """Its times are those of decoding, later by what the decoder delays, which the first frames do not show."""
    options = ("-vf", "select='not(between(n,10,14))'", "-fps_mode", "vfr")
    path = make(tmp_path / "gap.avi", *ENCODERS["h264"], *options)
    check(path, [number / 25 for number in range(50) if not 10 <= number <= 14])


@pytest.mark.parametrize("suffix", ["m1v", "drc"])
def test_bare_streams_without_timestamps(tmp_path, suffix):
    options = {
        "m1v": ("-f", "mpeg1video", *ENCODERS["mpeg1"]),
        "drc": ("-f", "dirac", "-c:v", "vc2", "-strict", "-2", "-pix_fmt", "yuv420p"),
    }
    path = make(tmp_path / f"bare.{suffix}", *options[suffix])
    index = check(path, EVEN)
    assert float((index.end - int(index.pts[0])) * index.time_base) == pytest.approx(2)


def test_b_frames_packed_into_one_packet(source, tmp_path):
    """As DivX stores them in AVI: a frame and the B frame before it, then a place holder."""
    with av.open(str(source("mpeg4", "avi"))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    kinds = [packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 for packet in packets]
    packed, number = [], 0
    while number < len(packets):
        has_partner = kinds[number] != 2 and number + 1 < len(packets) and kinds[number + 1] == 2
        packed.append(packets[number] + (packets[number + 1] if has_partner else b""))
        if has_partner:
            packed.append(b"\0\0\1\xb6\x51\xe4\x40\x7f")
        number += 1 + has_partner
    at = packed[0].index(b"\0\0\1\xb6")
    packed[0] = packed[0][:at] + b"\0\0\1\xb2DivX503b1393p" + packed[0][at:]
    path = tmp_path / "packed.avi"
    with av.open(str(path), "w") as output, av.open(str(source("mpeg4", "avi"))) as container:
        stream = output.add_stream_from_template(container.streams.video[0])
        for time, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = (
                stream,
                time,
                time,
                container.streams.video[0].time_base,
            )
            output.mux(packet)
    check(path, EVEN)
