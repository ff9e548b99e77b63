"""The index lists exactly the frames that the decoder shows; seeking finds every frame; damaged files are detected."""

from __future__ import annotations

import random
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from made_clips import VARIANTS, as_rgb, copy_packets, linear_decode, make_clip, moving_frame, with_audio_only

from streamloader.errors import CorruptStream, StreamNotFound, UnreadableStream
from streamloader.media.video import indexer as index_module
from streamloader.media.video.indexer import index_video
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.packets import _vp9_shows_frame
from streamloader.media.video.parameter_sets import nal_length_size, split_units
from streamloader.media.video.reader import FrameReader
from streamloader.media.video.structure import declared_size

# Videos of which at most one frame is decoded for the index, and videos whose frames are counted: a matter of speed.
FROM_TABLES = {
    "422.mkv", "av1.mp4", "b_frames.mkv", "b_frames.mp4", "b_frames.ts", "fragments.mp4", "hevc.mkv", "hevc.mp4",
    "hevc_10_bit.mp4", "hidden_frames.webm", "late_start.mkv", "late_start.mp4", "late_start.ts", "mjpeg.mov",
    "no_key_frames.mkv", "no_key_frames.ts", "odd_size.mkv", "odd_size_444.mp4", "one_frame.mp4", "open_groups.mkv",
    "open_groups.mp4", "rotated.mp4", "variable_rate.mkv", "variable_rate.mp4", "vp9.webm",
}  # fmt: skip
# Videos whose packets are given other timestamps than those that FFmpeg reports: it reports none, or wrong ones.
RETIMED = {"no_pts.avi", "no_pts.h264", "packed.avi"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    done = {}

    def make(name):
        if name not in done:
            done[name] = VARIANTS[name](folder)
        return done[name]

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_index_and_every_frame_are_those_of_the_decoder(made, name, monkeypatch):
    path = made(name)
    trusted = []
    for trust in ("trust_movie", "trust_packets"):
        real = getattr(index_module, trust)
        monkeypatch.setattr(index_module, trust, lambda *a, real=real: trusted.append(real(*a)) or trusted[-1])
    frames = linear_decode(path)
    pictures = as_rgb(frames)
    index = index_video(str(path))
    assert len(index) == len(frames)
    assert any(index is not None for index in trusted) == (name in FROM_TABLES)
    assert index.seekable
    assert (index.retiming is not None) == (name in RETIMED)
    if index.retiming is None:
        assert index.pts.tolist() == [frame.pts for frame in frames]
        assert index.time_base == frames[0].time_base
    assert (index.height, index.width) == pictures.shape[1:3]

    reader = FrameReader(str(path), index)
    try:
        for number in range(len(index)):
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], pictures[number]), f"frame {number} in order"
        reader.check_end()
        order = list(range(len(index)))
        random.Random(7).shuffle(order)
        for number in order:
            assert np.array_equal(as_rgb([reader.read_frame(number)])[0], pictures[number]), (
                f"frame {number} after a seek"
            )
    finally:
        reader.close()


def test_real_clips_are_indexed_as_they_decode(clips):
    for name, frames in {
        "bikes": 250,
        "bigbuckbunny": 132,
        "carphone_pristine": 120,
        "carphone_distorted": 120,
    }.items():
        index = index_video(str(clips[name]))
        assert index.pts.tolist() == [frame.pts for frame in linear_decode(clips[name])]
        assert len(index) == frames


def test_frames_cut_off_by_an_edit_list_are_not_shown(made):
    assert len(index_video(str(made("edit_list.mp4")))) == 33


def test_a_clip_that_begins_between_key_frames(made, tmp_path):
    """Leading packets that the decoder drops are not counted, though container and codec are of the exact kind."""
    path = tmp_path / "middle.mkv"
    with av.open(str(made("open_groups.mkv"))) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        for number, packet in enumerate(container.demux(stream)):
            if packet.dts is not None and number >= 11:
                packet.stream = copied
                output.mux(packet)
    frames = linear_decode(path)
    assert 0 < len(frames) < 29
    assert index_video(str(path)).pts.tolist() == [frame.pts for frame in frames]


def _read_all(reader, frames):
    for number in range(frames):
        reader.read_frame(number)


def test_a_reader_notices_that_the_file_is_not_what_was_indexed(made, tmp_path):
    index = index_video(str(made("b_frames.mp4")))
    shorter = make_clip(tmp_path / "shorter.mp4", frames=30)
    reader = FrameReader(str(shorter), index, "clip")
    try:
        with pytest.raises(CorruptStream, match=r"ends after 30 frames.*40") as caught:
            _read_all(reader, 40)
    finally:
        reader.close()
    assert (caught.value.stream, caught.value.address, caught.value.offset) == ("clip", str(shorter), 30)

    longer = make_clip(tmp_path / "longer.mp4", frames=41)
    reader = FrameReader(str(longer), index)
    try:
        reader.read_frame(39)
        with pytest.raises(CorruptStream, match=r"more than the 40 frames"):
            reader.check_end()
    finally:
        reader.close()

    other = make_clip(tmp_path / "other.mp4", ticks=lambda k: k if k < 25 else k + 1)
    reader = FrameReader(str(other), index)
    try:
        with pytest.raises(CorruptStream, match=r"at frame 25") as caught:
            _read_all(reader, 40)
    finally:
        reader.close()
    assert caught.value.offset == 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_truncated_file_raises_or_is_kept(made, tmp_path, suffix, share):
    source = whole = made("b_frames" + suffix)
    if suffix == ".mp4":  # with its index in front, so that it can be opened
        whole = copy_packets(source, tmp_path / "whole.mp4", options={"movflags": "faststart"})
    data = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptStream, match=r"is truncated: \d+ frames") as caught:
        index_video(str(path))
    details = caught.value.details
    assert details["size"] == int(len(data) * share)
    assert details["declared_frames"] == (40 if suffix == ".mp4" else 0)
    assert 0 < details["found_frames"] < 40
    assert 0 < details["byte"] <= details["size"]
    assert 'damaged="keep"' in str(caught.value)

    index = index_video(str(path), damaged="keep")
    assert index.damaged
    assert 0 < len(index) <= details["found_frames"]
    pictures = as_rgb(linear_decode(source))
    reader = FrameReader(str(path), index)
    try:
        for number in (*range(len(index)), 0, len(index) - 1, len(index) // 2):
            frame = as_rgb([reader.read_frame(number)])[0]
            # The last packet may be truncated, so its frame is not compared.
            assert number == len(index) - 1 or np.array_equal(frame, pictures[number])
        reader.read_frame(len(index) - 1)
        reader.check_end()
    finally:
        reader.close()


def test_an_mp4_without_its_index_says_where_it_ends(made, tmp_path):
    data = made("b_frames.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    for damaged in ("raise", "keep"):
        with pytest.raises(UnreadableStream, match=r"is truncated: it declares \d+ bytes") as caught:
            index_video(str(path), damaged=damaged)
        assert caught.value.offset == len(data) // 2


def test_a_transport_stream_that_was_cut_counts_what_decodes(made, tmp_path):
    data = made("b_frames.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[: len(data) // 2])
    assert index_video(str(path)).pts.tolist() == [frame.pts for frame in linear_decode(path)]


def test_damage_inside_is_never_silently_another_count(made, tmp_path):
    """After any damage, the index matches the decoder, or a typed error is raised."""
    data = bytearray(made("b_frames.mkv").read_bytes())
    path = tmp_path / "hit.mkv"
    hits = random.Random(3)
    refused = agreed = 0
    for _ in range(40):
        hurt = bytearray(data)
        for _ in range(4):
            hurt[hits.randrange(64, len(hurt))] ^= 1 << hits.randrange(8)
        path.write_bytes(hurt)
        try:
            index = index_video(str(path))
            reader = FrameReader(str(path), index)
            try:
                for number in range(len(index)):
                    reader.read_frame(number)
                reader.check_end()
            finally:
                reader.close()
        except (CorruptStream, UnreadableStream):
            refused += 1
            continue
        agreed += 1
        assert len(index) == len(linear_decode(path))
    assert refused + agreed == 40
    assert agreed > 0


def test_files_that_are_not_videos(tmp_path):
    (tmp_path / "garbage.mp4").write_bytes(random.Random(1).randbytes(50_000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    with_audio_only(tmp_path / "sound.mp4")
    for name, words in {
        "garbage.mp4": "cannot be opened",
        "empty.mp4": "is empty",
        "text.mp4": "cannot be opened",
        "list.m3u8": "cannot be opened",
        "sound.mp4": "contains no video .only: audio",
        ".": "is not a file",
    }.items():
        with pytest.raises(UnreadableStream, match=words) as caught:
            index_video(str(tmp_path / name))
        assert caught.value.address == str(tmp_path / name)
    with pytest.raises(StreamNotFound, match="no such video file") as missing:
        index_video(str(tmp_path / "missing.mp4"))
    assert isinstance(missing.value, FileNotFoundError)


def test_ffmpeg_says_nothing_on_standard_error(made, tmp_path, capfd):
    data = made("b_frames.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptStream):
        index_video(str(tmp_path / "cut.mkv"))
    index_video(str(made("no_pts.avi")))
    assert capfd.readouterr() == ("", "")


def test_names_that_look_like_protocols_are_plain_files(tmp_path, monkeypatch):
    make_clip(tmp_path / "concat:a|b.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(index_video("concat:a|b.mp4")) == 3


def test_decoding_begins_before_a_recovery_point_and_at_a_real_key_frame(made, monkeypatch):
    for name, clean in {
        "b_frames.mp4": True,
        "b_frames.ts": True,
        "hevc.mkv": True,
        "open_groups.mp4": False,
        "no_key_frames.ts": False,
    }.items():
        path = str(made(name))
        index = index_video(path)
        reader = FrameReader(path, index)
        tried = []
        real = reader._seek_from_key
        monkeypatch.setattr(
            reader, "_seek_from_key", lambda at, number, real=real, tried=tried: tried.append(at) or real(at, number)
        )
        number = int(np.searchsorted(index.pts, index.key_pts[2])) + 2
        assert reader.seek(number)
        assert tried == ([2] if clean else [2, 1]), name
        assert reader.read_frame(number).pts == index.pts[number]
        assert reader.seek(number)
        assert tried == ([2, 2] if clean else [2, 1, 1]), f"{name}: the kind of its key frames is known now"
        reader.close()


def test_frames_that_differ_after_a_seek_are_counted_instead(made):
    """A container whose times shift after a seek would otherwise give the wrong frame under the right pts."""
    path = str(made("mpeg4.avi"))
    index = index_video(path)
    right = {number: zlib.crc32(frame.to_ndarray(format="gray")) for number, frame in enumerate(linear_decode(path))}
    assert index_module._is_seekable(path, index, {10: right[10], 25: right[25]})
    assert not index_module._is_seekable(path, index, {10: right[10], 25: right[26]})
    assert not index_module._is_seekable(path, index, {})


def test_durations_time_frames_without_timestamps(made):
    index = index_video(str(made("no_pts.h264")))
    assert (index.pts * index.time_base).tolist() == [Fraction(number, 25) for number in range(40)]
    assert index.end * index.time_base == Fraction(40, 25)


def test_the_last_frame_has_its_own_length(tmp_path):
    path = make_clip(tmp_path / "long_end.mkv", ticks=lambda k: 40 * k, time_base=Fraction(1, 1000), frames=10)
    index = index_video(str(path))
    assert (index.end - int(index.pts[0])) * index.time_base == Fraction(10, 25)


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((1, 0, 0, 1), Orientation(False, False, False)),
        ((-1, 0, 0, -1), Orientation(False, True, True)),
        ((-1, 0, 0, 1), Orientation(False, False, True)),
        ((1, 0, 0, -1), Orientation(False, True, False)),
        ((0, 1, -1, 0), Orientation(True, False, True)),
        ((0, -1, 1, 0), Orientation(True, True, False)),
        ((0, 1, 1, 0), Orientation(True, False, False)),
        ((0, -1, -1, 0), Orientation(True, True, True)),
    ],
)
def test_display_matrices_move_pixels_as_the_format_says(matrix, orientation):
    a, b, c, d = matrix
    packed = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], np.int32).tobytes()
    assert Orientation.from_display_matrix(packed) == orientation
    image = np.arange(6).reshape(2, 3)
    where = {(a * x + c * y, b * x + d * y): image[y, x] for y in range(2) for x in range(3)}
    left, top = min(x for x, _ in where), min(y for _, y in where)
    upright = orientation.apply_to_image(image)
    assert upright.shape == orientation.apply_to_size(2, 3)
    for (x, y), value in where.items():
        assert upright[y - top, x - left] == value


def test_a_display_matrix_at_another_angle_is_ignored():
    half = round(0.7071 * 65536)
    assert (
        Orientation.from_display_matrix(np.array([half, half, 0, -half, half, 0, 0, 0, 1 << 30], np.int32).tobytes())
        is None
    )
    assert Orientation.from_display_matrix(b"short") is None


@pytest.mark.parametrize(
    ("first", "rest", "shown"),
    [
        (0b10_0_0_0_0_1_0, b"\x49", True),  # profile 0, key frame, shown
        (0b10_0_0_0_0_0_0, b"\x49", False),  # profile 0, key frame, hidden
        (0b10_0_0_0_1_0_0, b"\x00", False),  # an inter frame, hidden
        (0b10_0_0_1_000, b"\x00", True),  # shows a frame that was decoded before
        (0b10_1_1_0_0_0_1, b"\x49", True),  # profile 3 has one more bit in front
        (0b10_1_1_0_0_0_0, b"\x49", False),
        (0b10_0_0_0_0_0_0, b"\x01\x02\xc1", True),  # ends like a superframe
    ],
)
def test_vp9_headers_mark_hidden_frames(first, rest, shown):
    assert _vp9_shows_frame(memoryview(bytes([first]) + rest)) is shown


def test_nal_units_in_both_notations():
    assert list(split_units(memoryview(b"\0\0\0\2\x06\xff\0\0\0\0\0\0\0\1\x65"), 4)) == [b"\x06\xff", b"\x65"]
    assert list(split_units(memoryview(b"\0\0\0\1\x67\x11\0\0\1\0\0\1\x65\x22"), 0)) == [b"\x67\x11", b"\x65\x22"]
    assert nal_length_size("h264", bytes([1, 0, 0, 0, 0xFF, 0])) == 4
    assert nal_length_size("h264", b"\0\0\0\1\x67") == 0
    assert nal_length_size("vp9", None) == 0


def test_declared_sizes(made, tmp_path):
    for name in ("b_frames.mp4", "b_frames.mkv", "vp9.webm", "mpeg4.avi", "fragments.mp4", "mjpeg.mov"):
        path = made(name)
        assert declared_size(str(path)) == path.stat().st_size, name
        cut = tmp_path / name
        cut.write_bytes(path.read_bytes()[:-10])
        assert declared_size(str(cut)) == path.stat().st_size, name
    assert declared_size(str(made("b_frames.ts"))) is None


def test_every_frame_of_a_moving_picture_is_different():
    pictures = as_rgb(moving_frame(number, 48, 64) for number in range(60))
    assert len({picture.tobytes() for picture in pictures}) == 60
