"""Packets that are left out change no other frame; headers that hold for later packets keep their packet."""

from __future__ import annotations

import av
import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip
from tiers import only_fast

from streamloader.media.video.disposable import _HevcLayers, _sei_types, disposable_test
from streamloader.media.video.packets import codec_name

# Clips with disposable packets, and how many they have.
CLIPS = {
    "b_frames.mp4": 12, "b_frames.ts": 12, "open_groups.mkv": 13, "interlaced.ts": 12, "hevc.mp4": 10, "hevc.mkv": 10,
    "av1.mp4": 8, "mpeg4.mp4": 26, "mpeg2.ts": 26, "no_key_frames.mkv": 0, "vp9.webm": 0, "mjpeg.mov": 0,
}  # fmt: skip


def split_packets(path):
    """Return the stream's packets that are decoded without the disposable ones, and the timestamps of those."""
    container = av.open(str(path))
    stream = container.streams.video[0]
    is_disposable = disposable_test(codec_name(stream), stream.codec_context.extradata or b"")
    kept, left_out = [], []
    for packet in container.demux(stream):
        if is_disposable is not None and packet.size and is_disposable(memoryview(packet)):
            left_out.append(packet.pts)
        else:
            kept.append(packet)
    return container, kept, left_out


def check_other_frames(path, count):
    frames = linear_decode(path)
    container, kept, left_out = split_packets(path)
    assert len(left_out) == count
    shown = [frame for packet in kept for frame in packet.decode()]
    expected = [frame for frame in frames if frame.pts not in set(left_out)]
    assert [frame.pts for frame in shown] == [frame.pts for frame in expected]
    assert np.array_equal(as_rgb(shown), as_rgb(expected))
    container.close()


@pytest.mark.parametrize("name", only_fast(CLIPS, ["b_frames.ts", "hevc.mp4", "av1.mp4", "mpeg2.ts", "vp9.webm"]))
def test_the_other_frames_do_not_change(tmp_path, name):
    check_other_frames(VARIANTS[name](tmp_path), CLIPS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "options", "count"),
    [
        ("libx264", {"x264-params": "bframes=3:b-pyramid=normal:keyint=250:ref=5:weightp=2"}, None),
        ("libx264", {"x264-params": "bframes=16:b-adapt=0:b-pyramid=strict:keyint=30"}, None),
        (
            "libx264",
            {"x264-params": "bframes=3:b-pyramid=none:slices=4:nal-hrd=vbr:vbv-maxrate=900:vbv-bufsize=900"},
            None,
        ),
        ("libx265", {"x265-params": "log-level=0:temporal-layers=3:b-adapt=0:bframes=7:keyint=64"}, None),
        (
            "libx265",
            {"x265-params": "log-level=0:bframes=4:keyint=64:repeat-headers=1:hrd=1:vbv-maxrate=900:vbv-bufsize=900"},
            None,
        ),
        ("libsvtav1", {"preset": "10", "svtav1-params": "lp=1"}, None),
    ],
)
def test_the_other_frames_do_not_change_with_other_settings(tmp_path, codec, options, count):
    path = make_clip(tmp_path / "clip.mp4", codec, frames=90, height=96, width=128, gop=64, options=options)
    container, _, left_out = split_packets(path)
    container.close()
    assert len(left_out) > 10
    check_other_frames(path, len(left_out))


SLICE, REFERENCE, IDR = b"\x01\x88", b"\x41\x88", b"\x65\x88"
SEI_TIMING, SEI_RECOVERY, SEI_GRAIN = b"\x06\x01\x01\x00\x80", b"\x06\x06\x01\xc4\x80", b"\x06\x13\x01\xff\x80"


@pytest.mark.parametrize(
    ("units", "disposable"),
    [
        ([SLICE], True),
        ([b"\x09\x10", SEI_TIMING, SLICE, SLICE], True),
        ([SLICE, REFERENCE], False),
        ([REFERENCE], False),
        ([IDR], False),
        ([SEI_TIMING], False),
        ([SEI_RECOVERY, SLICE], False),
        ([SEI_GRAIN, SLICE], False),
        ([b"\x67\x64", SLICE], False),
        ([b"\x28\xee", SLICE], False),
        ([SLICE, b"\x0a"], False),
        ([], False),
    ],
)
def test_h264_headers(units, disposable):
    with_codes = b"".join(b"\0\0\0\1" + unit for unit in units)
    with_lengths = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    record = bytes([1, 0x64, 0, 0x1F, 0xFF, 0xE0])
    assert disposable_test("h264", b"")(with_codes) is disposable
    assert disposable_test("h264", record)(memoryview(with_lengths)) is disposable


def hevc_unit(kind, layer, payload=b"\x80"):
    return b"\0\0\1" + bytes([kind << 1, layer]) + payload


def sequence_parameters(sub_layers):
    return hevc_unit(33, 1, bytes([(sub_layers - 1) << 1 | 1, 0x01]))


def test_hevc_pictures_of_the_highest_sub_layer_only():
    one, three = (disposable_test("hevc", sequence_parameters(count)) for count in (1, 3))
    assert one(hevc_unit(0, 1))
    assert not one(hevc_unit(1, 1)), "a reference picture"
    assert not three(hevc_unit(0, 1)), "pictures of higher sub-layers may refer to it"
    assert three(hevc_unit(2, 3))
    assert not three(hevc_unit(2, 3) + hevc_unit(1, 3))
    assert not three(hevc_unit(34, 1) + hevc_unit(2, 3)), "a picture parameter set"
    unknown = disposable_test("hevc", b"")
    assert not unknown(hevc_unit(0, 1))


def test_hevc_parameters_in_the_stream_count():
    is_disposable = disposable_test("hevc", sequence_parameters(1))
    assert is_disposable(hevc_unit(0, 1))
    assert not is_disposable(sequence_parameters(2) + hevc_unit(20, 1))
    assert not is_disposable(hevc_unit(0, 1))
    assert is_disposable(hevc_unit(0, 2))


def test_hevc_parameters_of_a_container():
    sps = sequence_parameters(2)[3:]
    record = bytes([1]) + bytes(20) + bytes([3]) + bytes([1, 33, 0, 1]) + len(sps).to_bytes(2, "big") + sps
    assert _HevcLayers(record)._highest == 2
    assert _HevcLayers(record[:22])._highest == _HevcLayers(b"\x01")._highest == 8


def test_types_of_supplemental_information():
    assert _sei_types(b"\x05\x02ab\x06\x00\x80") == [5, 6]
    assert _sei_types(b"\xff\x01\x01x\x80") == [256]
    assert _sei_types(b"\x05\xff\x01" + bytes(256) + b"\x13\x01a\x80") == [5, 19]
    assert _sei_types(b"") == _sei_types(b"\x80") == []


@pytest.mark.parametrize(
    ("codec", "data", "disposable"),
    [
        ("mpeg4", b"\0\0\1\xb6\x90\0", True),
        ("mpeg4", b"\0\0\1\xb6\x50\0", False),  # a P picture
        ("mpeg4", b"\0\0\1\xb6\x90\0\0\0\1\xb6\x50\0", False),  # two in one packet
        ("mpeg4", b"\0\0\1\x20\0\0\0\1\xb6\x90\0", False),  # a video object layer
        ("mpeg2video", b"\0\0\1\0\0\x18\0\0\0\1\xb5\x8f\0\0\1\1\0", True),
        ("mpeg2video", b"\0\0\1\0\0\x10\0\0\0\1\1\0", False),  # a P picture
        ("mpeg2video", b"\0\0\1\0\0\x18\0\0\0\1\xb5\x3f\0\0\1\1\0", False),  # quantizer matrices
        ("mpeg2video", b"\0\0\1\xb3\0\0\0\0\1\0\0\x18\0\0\0\1\1\0", False),  # a sequence header
        ("mpeg2video", b"\0\0\1\0", False),
        ("mpeg1video", b"", False),
    ],
)
def test_headers_of_older_codecs(codec, data, disposable):
    assert disposable_test(codec, b"")(data) is disposable


def test_other_codecs_have_none():
    assert disposable_test("vp9", b"") is None
    assert disposable_test("mjpeg", b"") is None


def bits(*fields):
    text = "".join(f"{value:0{count}b}" for value, count in fields if count)
    return int(text + "1" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8), "big")


def av1_sequence(*, reduced=0, timing=(), frame_ids=0, order_hint_bits=7):
    """An OBU with a sequence header: 64x64, one operating point."""
    order_hint = [(1, 1), (0, 2)] if order_hint_bits else [(0, 1)]
    fields = [(0, 3), (0, 1), (reduced, 1), *(timing or [(0, 1)]), (0, 1), (0, 5), (0, 12), (8, 5), (0, 1)]
    fields += [(5, 4), (5, 4), (63, 6), (63, 6), (frame_ids, 1), (0, 7), *order_hint, (1, 1), (1, 1)]
    fields += [(order_hint_bits - 1, 3)] if order_hint_bits else []
    return obu(1, bits(*fields))


def obu(kind, payload):
    return bytes([kind << 3 | 2, len(payload)]) + payload


def av1_frame(refresh, *, kind=1, shown=1, resilient=0, existing=0, tools=0, order_hint_bits=7, obu_type=6):
    showable = [] if shown else [(0, 1)]
    motion = [(0, 1)] if tools else []
    primary = [] if resilient or kind == 2 else [(0, 3)]
    fields = [(existing, 1), (kind, 2), (shown, 1), *showable, (resilient, 1), (0, 1), (tools, 1), *motion, (0, 1)]
    return obu(obu_type, bits(*fields, (0, order_hint_bits), *primary, (refresh, 8), (0, 40)))


def test_av1_frames_that_refresh_nothing():
    is_disposable = disposable_test("av1", b"\x81\0\0\0" + av1_sequence())
    delimiter = obu(2, b"")
    for options in ({}, {"shown": 0}, {"resilient": 1}, {"tools": 1}, {"kind": 2}, {"obu_type": 3}):
        assert is_disposable(delimiter + av1_frame(0, **options)), options
        assert not is_disposable(delimiter + av1_frame(1, **options)), options
        assert not is_disposable(delimiter + av1_frame(128, **options)), options
    assert not is_disposable(av1_frame(0) + av1_frame(4)), "a hidden frame in the same packet"
    assert not is_disposable(av1_frame(0, kind=0)), "a key frame"
    assert not is_disposable(av1_frame(0, kind=3)), "a switch frame"
    assert not is_disposable(av1_frame(0, existing=1))
    assert not is_disposable(av1_sequence() + av1_frame(0))
    assert not is_disposable(delimiter)


def test_av1_sequences():
    frame = av1_frame(0, order_hint_bits=3)
    is_disposable = disposable_test("av1", b"")
    assert not is_disposable(frame), "without a sequence header"
    assert not is_disposable(av1_sequence(order_hint_bits=3) + av1_frame(255, kind=0))
    assert is_disposable(frame)
    timed = [(1, 1), (1, 32), (25, 32), (1, 1), (0b00101, 5), (0, 1)]
    assert disposable_test("av1", b"\x81\0\0\0" + av1_sequence(timing=timed))(av1_frame(0))
    for options in ({"reduced": 1}, {"frame_ids": 1}, {"timing": [*timed[:-1], (1, 1)]}):
        assert not disposable_test("av1", b"\x81\0\0\0" + av1_sequence(**options))(av1_frame(0)), options
    none = disposable_test("av1", b"\x81\0\0\0" + av1_sequence(order_hint_bits=0))
    assert none(av1_frame(0, order_hint_bits=0))
    assert not none(av1_frame(1, order_hint_bits=0))
