"""The index from tables and packets is that of a full decode, for every muxer and encoder setting, and plays."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import fields
from fractions import Fraction

import av
import numpy as np
import pytest
from made_clips import VARIANTS, copy_packets, make_clip, moving_frame, without_reorder_hint
from tiers import only_fast

from streamloader.errors import ConfigError, CorruptStream, StreamloaderError
from streamloader.media.video import indexer
from streamloader.media.video.frame_order import ends_with_slice, is_predictable
from streamloader.media.video.indexer import index_video
from streamloader.media.video.movie import read_movie
from streamloader.media.video.orientation import UPRIGHT
from streamloader.media.video.parameter_sets import find_parameter_sets, is_upright
from streamloader.media.video.reader import FrameReader

ENCODERS = {
    "default": "", "no_b_frames": "bframes=0", "pyramid": "bframes=6:b-pyramid=strict:ref=5",
    "open_groups": "open-gop=1:keyint=12:bframes=3", "interlaced": "interlaced=1", "bottom_first": "bff=1",
    "fake_interlaced": "fake-interlaced=1", "refresh": "intra-refresh=1:keyint=10", "slices": "slices=4",
    "buffer_model": "nal-hrd=cbr:vbv-maxrate=500:vbv-bufsize=500:bitrate=500", "picture_structure": "pic-struct=1",
    "blu_ray": "bluray-compat=1", "repeated_headers": "repeat-headers=1", "one_group": "keyint=infinite",
    "all_intra": "keyint=1", "delimiters": "aud=1", "lookahead": "sync-lookahead=0:rc-lookahead=0",
    "usability": "videoformat=pal:fullrange=on:colorprim=bt709:overscan=show:chromaloc=1:sar=4/3",
}  # fmt: skip
MUXERS = {
    "mp4": {}, "faststart.mp4": {"movflags": "faststart"}, "negative_offsets.mp4": {"movflags": "negative_cts_offsets"},
    "no_edits.mp4": {"use_editlist": "0"}, "coarse.mp4": {"video_track_timescale": "25"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}, "cmaf.mp4": {"movflags": "cmaf"},
    "mov": {}, "3gp": {}, "mkv": {}, "ts": {}, "m2ts": {},
}  # fmt: skip
COMBINATIONS = [
    (encoder, muxer)
    for encoder, muxer in itertools.product(ENCODERS, MUXERS)
    if muxer in ("mp4", "ts", "negative_offsets.mp4") or encoder in ("default", "open_groups", "interlaced")
]
SIZES = list(itertools.product(("yuv420p", "yuv422p", "yuv444p", "yuv420p10le"), ((34, 50), (46, 62), (90, 100))))


@pytest.fixture
def trusted(monkeypatch):
    """The names of the functions that gave an index without decoding more than a frame."""
    names = []
    for name in ("trust_movie", "trust_packets"):
        real = getattr(indexer, name)

        def record(*args, name=name, real=real):
            index = real(*args)
            if index is not None:
                names.append(name)
            return index

        monkeypatch.setattr(indexer, name, record)
    return names


def play(reader, frames):
    for number in range(frames):
        reader.read_frame(number)
    reader.check_end()


def assert_plays(path, *, ignored=()):
    """Compare the index with that of a full decode, and play all frames in order and backwards."""
    index, decoded = index_video(str(path)), index_video(str(path), verify="frames")
    for field in fields(index):
        if field.name not in ignored:
            assert np.array_equal(getattr(index, field.name), getattr(decoded, field.name)), field.name
    reader = FrameReader(str(path), index)
    try:
        play(reader, len(index))
        for number in range(len(index) - 1, -1, -7):
            frame = reader.read_frame(number)
            assert (frame.height, frame.width) == (index.height, index.width)
    finally:
        reader.close()


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_all_levels_give_the_same_index(tmp_path, name):
    # A hidden frame hides the end of the last frame from a full decode.
    assert_plays(VARIANTS[name](tmp_path), ignored=("end",) if name == "hidden_frames.webm" else ())


@pytest.mark.parametrize(
    ("encoder", "muxer"),
    only_fast(
        COMBINATIONS,
        [("pyramid", "mp4"), ("interlaced", "mp4"), ("default", "coarse.mp4"), ("open_groups", "negative_offsets.mp4"),
         ("default", "mov"), ("slices", "ts"), ("interlaced", "ts"), ("default", "fragments.mp4")],
    ),
)  # fmt: skip
def test_muxers_and_encoders(tmp_path, trusted, encoder, muxer):
    path = make_clip(
        tmp_path / f"clip.{muxer}", frames=24, options={"x264-params": ENCODERS[encoder]},
        container_options=MUXERS[muxer],
    )  # fmt: skip
    assert_plays(path)
    is_interlaced = encoder in ("interlaced", "bottom_first", "fake_interlaced")
    in_tables = muxer not in ("mkv", "ts", "m2ts", "fragments.mp4", "cmaf.mp4")
    expected = [] if is_interlaced else ["trust_movie" if in_tables else "trust_packets"]
    assert trusted == expected


@pytest.mark.parametrize(("pix_fmt", "size"), only_fast(SIZES, SIZES[::5]))
def test_sizes_and_formats_of_pixels(tmp_path, trusted, pix_fmt, size):
    for suffix in ("mp4", "mkv", "ts"):
        height, width = size
        assert_plays(
            make_clip(tmp_path / f"clip.{suffix}", frames=12, pix_fmt=pix_fmt, height=height, width=width)
        )  # fmt: skip
    assert trusted == ["trust_movie", "trust_packets", "trust_packets"]


def write_tracks(path, *, videos=1, sound="after", cover=False, metadata=None, options=None, delay=0):
    """Write a clip of one second with further tracks."""
    with av.open(str(path), "w", options=options or {}) as output:
        output.metadata.update(metadata or {})
        audio = output.add_stream("aac", rate=44100, layout="mono") if sound == "before" else None
        streams = [output.add_stream("libx264", rate=25) for _ in range(videos)]
        audio = output.add_stream("aac", rate=44100, layout="mono") if sound == "after" else audio
        if cover:
            streams.append(output.add_stream("mjpeg", rate=25))
            streams[-1].disposition = av.stream.Disposition.attached_pic
        for index, stream in enumerate(streams):
            is_cover = cover and index == videos
            stream.width, stream.height, stream.pix_fmt = 64, 48 + 16 * index, "yuvj420p" if is_cover else "yuv420p"
            stream.codec_context.gop_size = 10
        for number in range(25):
            for index, stream in enumerate(streams):
                if cover and index == videos and number:
                    continue
                frame = moving_frame(number + index, stream.height, 64, stream.pix_fmt)
                frame.pts, frame.time_base = number + delay, Fraction(1, 25)
                output.mux(stream.encode(frame))
            if audio is not None:
                samples = np.random.default_rng(number).normal(0, 0.1, (1, 1764)).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.rate, frame.pts = 44100, 1764 * number
                output.mux(audio.encode(frame))
        for stream in (*streams, *([audio] if audio is not None else [])):
            output.mux(stream.encode(None))
    return path


TRACKS = {
    "sound_before.mp4": {"sound": "before"}, "sound_after.mp4": {}, "delayed.mp4": {"delay": 13},
    "delayed.mov": {"delay": 13, "sound": "before"}, "timecode.mov": {"metadata": {"timecode": "01:02:03:04"}},
    "two_videos.mp4": {"videos": 2}, "two_videos.mkv": {"videos": 2}, "two_videos.ts": {"videos": 2},
    "cover.mp4": {"cover": True}, "cover.mkv": {"cover": True, "sound": "no"}, "sound.mkv": {}, "sound.ts": {},
    "delayed.ts": {"delay": 13}, "tags.mp4": {"metadata": {"title": "a title", "comment": "x" * 1000}},
}  # fmt: skip
TRUSTED_TRACKS = set(TRACKS)


@pytest.mark.parametrize("name", TRACKS)
def test_files_with_further_tracks(tmp_path, trusted, name):
    assert_plays(write_tracks(tmp_path / name, **TRACKS[name]))
    assert bool(trusted) == (name in TRUSTED_TRACKS)


CODECS = {
    "hevc.ts": ("libx265", {"options": {"x265-params": "log-level=0:bframes=4:b-pyramid=1"}}),
    "hevc.mov": ("libx265", {"options": {"x265-params": "log-level=0:bframes=4"}}),
    "hevc_cropped.mp4": ("libx265", {"options": {"x265-params": "log-level=0"}, "height": 46, "width": 62}),
    "av1.mkv": ("libsvtav1", {"options": {"preset": "11"}, "height": 64}),
    "vp9.mp4": ("libvpx-vp9", {"options": {"deadline": "realtime", "cpu-used": "8"}}),
    "vp9_hidden.webm": ("libvpx-vp9", {"options": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1"}}),
    "vp9_444.webm": (
        "libvpx-vp9",
        {"options": {"cpu-used": "8"}, "pix_fmt": "yuv444p", "height": 47, "width": 63},
    ),
    "vp8_odd.webm": ("libvpx", {"options": {"cpu-used": "8"}, "height": 47, "width": 63}),
    "hevc_cropped.mkv": ("libx265", {"options": {"x265-params": "log-level=0"}, "height": 46, "width": 62}),
    "prores.mov": ("prores_ks", {"pix_fmt": "yuv422p10le"}),
    "mjpeg.mp4": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "mpeg2.mp4": ("mpeg2video", {}),
    "rotated.mkv": ("libx264", {"rotation": 90}),
    "rotated.mov": ("libx264", {"rotation": 180}),
    "rotated_hevc.mp4": ("libx265", {"options": {"x265-params": "log-level=0"}, "rotation": -90}),
}


@pytest.mark.parametrize("name", only_fast(CODECS, [n for n in CODECS if n not in ("av1.mkv", "vp9_hidden.webm")]))
def test_codecs(tmp_path, trusted, name):
    codec, options = CODECS[name]
    assert_plays(make_clip(tmp_path / name, codec, frames=24, **options))
    assert bool(trusted) == (name != "mpeg2.mp4")
    assert (index_video(str(tmp_path / name)).orientation != UPRIGHT) == name.startswith("rotated")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("dropped", [5, 11])
def test_clips_that_begin_after_their_key_frame(tmp_path, suffix, dropped):
    """The decoder shows none of the frames before its first key frame, or only some."""
    source = make_clip(tmp_path / "whole.mkv", options={"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3"})
    path = tmp_path / f"cut.{suffix}"
    with av.open(str(source)) as container, av.open(str(path), "w") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        for number, packet in enumerate(container.demux(stream)):
            if packet.dts is not None and number >= dropped:
                packet.stream = copied
                output.mux(packet)
    assert_plays(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_without_a_declared_depth_of_reordering_frames_are_counted(tmp_path, trusted, suffix):
    assert_plays(copy_raw(without_reorder_hint(tmp_path), tmp_path / f"no_hint.{suffix}"))
    assert trusted == []


def copy_raw(source, target):
    """Copy a bare H.264 stream into a container, with the timestamps of its frames, which its own file lacks."""
    order = [frame.pts for frame in av.open(str(make_clip(target.with_name("times.mp4")))).decode(video=0)]
    with av.open(str(target.with_name("times.mp4"))) as times, av.open(str(source)) as container:
        stamps = [(packet.pts, packet.dts) for packet in times.demux(video=0) if packet.size]
        assert len(stamps) == len(order)
        with av.open(str(target), "w") as output:
            copied = output.add_stream_from_template(container.streams.video[0])
            for (pts, dts), packet in zip(stamps, (p for p in container.demux(video=0) if p.size), strict=True):
                packet.pts, packet.dts, packet.time_base = pts + 1024, dts + 1024, Fraction(1, 12800)
                packet.stream = copied
                output.mux(packet)
    return target


def find_box(data, *kinds):
    """Return (start, end) of the contents of a box in nested boxes."""
    start, end = 0, len(data)
    for kind in kinds:
        while data[start + 4 : start + 8] != kind:
            start += int.from_bytes(data[start : start + 4], "big")
            assert start < end
        start, end = start + 8, start + int.from_bytes(data[start : start + 4], "big")
    return start, end


TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def change(clip, path, position, data):
    whole = bytearray(clip.read_bytes())
    whole[position : position + len(data)] = data
    path.write_bytes(whole)
    return str(path)


def test_unusual_tables_are_left_to_ffmpeg(clip, tmp_path):
    """Each change leaves a file that FFmpeg reads, or refuses, in its own way."""
    data = clip.read_bytes()
    tables = {kind: find_box(data, *TABLES, kind)[0] for kind in (b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco")}
    edits = find_box(data, b"moov", b"trak", b"edts", b"elst")[0]
    huge = b"\xff\xff\xff\xff"
    assert read_movie(str(clip), 1000) is not None
    for name, position, new in [
        ("more durations", tables[b"stts"] + 8, struct.pack(">I", 41)),
        ("endless durations", tables[b"stts"] + 4, huge),
        ("negative duration", tables[b"stts"] + 12, b"\xff\xff\xfe\0"),
        ("endless offsets", tables[b"ctts"] + 4, huge),
        ("large offset", tables[b"ctts"] + 12, b"\x40\0\0\0"),
        ("no first key", tables[b"stss"] + 8, struct.pack(">I", 2)),
        ("key outside", tables[b"stss"] + 8 + 12, struct.pack(">I", 41)),
        ("endless sizes", tables[b"stsz"] + 8, huge),
        ("one size", tables[b"stsz"] + 4, struct.pack(">I", 1 << 20)),
        ("empty sample", tables[b"stsz"] + 12, bytes(4)),
        ("chunks of nothing", tables[b"stsc"] + 12, bytes(4)),
        ("endless chunks", tables[b"stsc"] + 12, huge),
        ("another entry", tables[b"stsc"] + 16, struct.pack(">I", 2)),
        ("outside", tables[b"stco"] + 8, struct.pack(">I", len(data))),
        ("edit at a later frame", edits + 12, struct.pack(">I", 1 << 13)),
        ("short edit", edits + 8, struct.pack(">I", 500)),
        ("edit without the last frame", edits + 8, struct.pack(">I", 1550)),
        ("slow edit", edits + 16, struct.pack(">I", 1 << 15)),
        ("table of another kind", tables[b"stss"] - 4, b"stps"),
    ]:
        path = change(clip, tmp_path / "changed.mp4", position, new)
        assert read_movie(path, 1000) is None, name
        try:
            index = index_video(path)
        except StreamloaderError:
            continue
        with av.open(path) as container:
            shown = [frame.pts for frame in container.decode(video=0)]
        assert len(index) == len(shown), name
        assert index.retiming is not None or index.pts.tolist() == shown, name


def insert_box(data, kinds, box):
    """Return `data` with one more box at the end of a box that nothing but boxes of ``moov`` follows."""
    data = bytearray(data)
    end = find_box(data, *kinds)[1]
    for depth in range(1, len(kinds) + 1):
        start = find_box(data, *kinds[:depth])[0] - 8
        data[start : start + 4] = struct.pack(">I", int.from_bytes(data[start : start + 4], "big") + len(box))
    return data[:end] + box + data[end:]


def test_groups_of_random_access_points_are_left_to_ffmpeg(clip, tmp_path):
    for kind, is_read in ((b"rap ", False), (b"roll", True)):
        box = struct.pack(">I4sI4sIII", 28, b"sbgp", 0, kind, 1, 40, 0)
        path = tmp_path / "grouped.mp4"
        path.write_bytes(insert_box(clip.read_bytes(), TABLES, box))
        assert (read_movie(str(path), 1000) is not None) == is_read
        assert_plays(path)


def test_a_track_without_frames_is_left_to_ffmpeg(tmp_path):
    path = write_tracks(tmp_path / "sound.mp4")
    data = path.read_bytes()
    assert read_movie(str(path), 1000) is not None
    sound = data.rindex(b"stts") + 8
    path.write_bytes(data[:sound] + bytes(4) + data[sound + 4 :])
    assert read_movie(str(path), 1000) is None


def test_frames_that_the_container_crops_are_decoded(clip, tmp_path, trusted):
    width = find_box(clip.read_bytes(), *TABLES, b"stsd")[0] + 8 + 8 + 24
    path = change(clip, tmp_path / "cropped.mp4", width, struct.pack(">H", 62))
    assert index_video(path).width == 62
    assert trusted == []
    assert_plays(path)


def test_the_last_frame_may_be_a_key_frame_that_others_follow(tmp_path, trusted):
    assert_plays(make_clip(tmp_path / "clip.mp4", frames=31, options={"x264-params": ENCODERS["open_groups"]}))
    assert trusted == ["trust_movie"]


def test_a_transport_stream_ends_with_a_whole_slice():
    slices = [b"\0\0\1\x09\xf0", b"\0\0\1\x41" + b"\x9a" * 20, b"\0\0\1\x41" + b"\x9a" * 80]
    for units, ends in [((0,), False), ((0, 1), False), ((0, 2), True), ((0, 1, 1), True), ((2,), True)]:
        assert ends_with_slice("h264", memoryview(b"".join(slices[unit] for unit in units))) is ends


def test_limits_are_left_to_ffmpeg(clip, tmp_path):
    assert read_movie(str(clip), 39) is None
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:-1])
    assert read_movie(str(tmp_path / "cut.mp4"), 1000) is None
    boxes = data + b"\0\0\0\x08free" * 300
    (tmp_path / "boxes.mp4").write_bytes(boxes)
    assert read_movie(str(tmp_path / "boxes.mp4"), 1000) is None


def test_a_turned_picture_is_left_to_the_decoder(clip, tmp_path):
    movie, head = read_movie(str(clip), 1000)
    assert is_upright("h264", movie.configuration, head)
    slices = b"\0\0\1\x65\x88" + bytes(8)
    for sei, upright in [
        ([47, 3, 0x40, 0, 0x10, 0x80], False), ([1, 1, 0, 47, 3, 0x40, 0, 0x10, 0x80], False), ([1, 1, 0, 0x80], True),
        ([255, 255, 255], False),
    ]:  # fmt: skip
        assert is_upright("h264", b"", b"\0\0\1\6" + bytes(sei) + slices) is upright
        hevc = b"\0\0\1\x4e\1" + bytes(sei) + b"\0\0\1\x26\1\xaf" + bytes(8)
        assert is_upright("hevc", b"", hevc) is upright
    assert not is_upright("h264", b"", slices[:3])
    assert is_predictable("h264", movie.configuration, head, movie.order)
    # A first frame that is no IDR, frames before it, and a deeper reordering than declared
    assert not is_predictable("h264", movie.configuration, head.replace(b"\x65\x88", b"\x61\x88", 1), movie.order)
    assert not is_predictable("h264", movie.configuration, head, np.array([1, 0, 2]))
    assert is_predictable("h264", movie.configuration, head, np.argsort([0, 3, 2, 1]))
    assert not is_predictable("h264", movie.configuration, head, np.argsort([0, 4, 3, 2, 1]))


def test_parameter_sets_that_end_early_are_not_understood(clip):
    movie, _ = read_movie(str(clip), 1000)
    length = int.from_bytes(movie.configuration[6:8], "big")
    unit = movie.configuration[8 : 8 + length]
    (parameters,) = find_parameter_sets("h264", b"\0\0\0\1" + unit + b"\0\0\0\1\x68")
    assert (parameters.height, parameters.width, parameters.max_reordered) == (48, 64, 2)
    for size in range(1, 12):
        assert find_parameter_sets("h264", b"\0\0\1" + unit[:size]) is None
    assert find_parameter_sets("h264", b"no unit") == []


def test_levels_are_checked(clip):
    with pytest.raises(ConfigError, match="verify must be one of 'tables', 'ends', 'frames', got 'all'"):
        index_video(str(clip), verify="all")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_each_level_proves(tmp_path, suffix):
    """A frame that is damaged where only a decoder sees it is found by the levels that decode it, or while playing."""
    path = make_clip(tmp_path / f"clip.{suffix}", frames=60, gop=20)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        middle, last = ((p.pos, p.size) for p in (packets[30], packets[-1]))
    data = path.read_bytes()
    for position, size in (middle, last):
        hurt = tmp_path / f"hurt.{suffix}"
        hurt.write_bytes(data[: position + 4] + b"\x1f" * (size - 4) + data[position + size :])
        index = index_video(str(hurt))
        assert len(index) == 60
        reader = FrameReader(str(hurt), index)
        try:
            with pytest.raises(CorruptStream):
                play(reader, 60)
        finally:
            reader.close()
        with pytest.raises(CorruptStream):
            index_video(str(hurt), verify="frames")
        if position == last[0]:
            with pytest.raises(CorruptStream):
                index_video(str(hurt), verify="ends")
        else:
            assert len(index_video(str(hurt), verify="ends")) == 60


def test_a_transport_stream_cut_anywhere_counts_what_decodes(tmp_path, trusted):
    data = make_clip(tmp_path / "whole.ts", frames=12).read_bytes()
    path = tmp_path / "cut.ts"
    for end in range(len(data) // 2, len(data), 188 * max(1, len(data) // 188 // 40)):
        for extra in (0, 100):
            path.write_bytes(data[: end + extra])
            with av.open(str(path)) as container:
                expected = [frame.pts for frame in container.decode(video=0)]
            index = index_video(str(path))
            assert index.pts.tolist() == expected, end + extra
    assert len(trusted) > 5


def test_copies_with_moved_times(clip, tmp_path, trusted):
    for number, shift in enumerate((-512, 512, 12345)):
        path = tmp_path / f"moved{number}.mp4"
        copy_packets(clip, path, shift=shift, options={"avoid_negative_ts": "disabled"})
        assert_plays(path)
    assert trusted == ["trust_movie"] * 2


@pytest.mark.parametrize("seed", only_fast(range(10), [0]))
def test_tables_that_were_hit_cost_no_more_than_their_file(clip, tmp_path, seed):
    """Random damage in ``moov`` gives a typed error, or an index whose frames the reader proves or refuses."""
    rng, data = random.Random(seed), clip.read_bytes()
    start = data.index(b"moov")
    for _ in range(60):
        hurt = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 4])):
            position = start + rng.randrange(len(data) - start)
            new = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", bytes(4), rng.randbytes(1)])
            hurt[position : position + len(new)] = new
        path = tmp_path / "hurt.mp4"
        path.write_bytes(hurt[: len(data)])
        found = read_movie(str(path), 1 << 24)
        assert found is None or len(found[0].pts) == 40
