"""Building chunks: each shows exactly the frames of the source, to readers of its index and to video players."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from ffmpeg_program import make
from made_clips import VARIANTS, make_clip, with_another_size, without_reorder_hint
from tiers import only_fast

from streamloader.errors import ClosedError, ConfigError, CorruptStream, StreamNotFound, UnreadableStream
from streamloader.media.chunks.build import CutPlan, CutSettings, build_chunk, plan_cuts
from streamloader.media.chunks.format import ChunkIndex, Coding
from streamloader.media.chunks.frame_hash import frame_hash
from streamloader.media.chunks.packet_decoder import PacketDecoder
from streamloader.media.chunks.remux import ChunkRejected, create_chunk_file
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import decode_frames
from streamloader.media.video.source import open_video

FAST = (
    "b_frames.mp4", "no_pts.avi", "open_groups.mp4", "no_key_frames.ts", "variable_rate.mkv", "edit_list.mp4",
    "hidden_frames.webm", "packed.avi", "mpeg2.ts", "hevc.mp4", "av1.mp4", "rotated.mp4", "palette.gif",
    "one_frame.mp4", "interlaced.ts",
)  # fmt: skip
EVEN = {"x264-params": "scenecut=0"}  # key frames exactly at the requested distance
REST = [name for name in VARIANTS if name not in FAST]


def linear(path):
    """Return the hash of each frame, decoded from the start."""
    container, stream = open_video(str(path))
    with contextlib.closing(container):
        return [frame_hash(frame) for frame in decode_frames(container, stream)]


def cut(path, folder, settings=None, **options):
    """Plan and build all chunks. Settings and plan are converted to JSON and back."""
    settings = CutSettings.from_json(json.loads(json.dumps((settings or CutSettings(**options)).to_json())))
    plan = CutPlan.from_json(json.loads(json.dumps(plan_cuts(str(path), settings).to_json())))
    folder.mkdir(exist_ok=True)
    return plan, [build_chunk(str(path), plan, settings, each.number, str(folder)) for each in plan.cuts]


class Reader:
    """Reads a chunk by its index and coding only, as a catalog returns them."""

    def __init__(self, made):
        self.data = Path(made.file).read_bytes()
        self.index = ChunkIndex.decode(made.index.encode())
        self.coding = Coding.from_json(json.loads(json.dumps(made.coding.to_json())))

    def packet(self, number):
        at, size = int(self.index.offset[number]), int(self.index.size[number])
        data = self.data[at : at + size]
        assert zlib.crc32(data) == self.index.crc[number]
        return data

    def decode(self, numbers):
        with contextlib.closing(PacketDecoder(self.coding)) as decoder:
            frames = [each for number in numbers for each in decoder.send(number, self.packet(number))]
            return {number: frame_hash(frame) for number, frame in frames + decoder.drain()}

    def all(self):
        found = self.decode(range(len(self.index.offset)))
        return [found[number] for number in self.index.frame_packet.tolist()]

    def one(self, frame):
        """Decode one frame from its key frame, without the other disposable packets."""
        key, wanted = int(self.index.key_packet[self.index.key_for(frame)]), int(self.index.frame_packet[frame])
        numbers = [n for n in range(key, wanted + 1) if n == wanted or not self.index.disposable[n]]
        return self.decode(numbers)[wanted]


def check(path, folder, *, every=1, exact=True, **options):
    plan, chunks = cut(path, folder, chunk_frames=13, **options)
    frames, index = linear(path), index_video(str(path))
    assert plan.frames == len(frames)
    assert [each.start for each in plan.cuts] == [0, *(each.end for each in plan.cuts[:-1])]
    assert plan.cuts[-1].end == len(frames)
    assert (plan.time_base, plan.end, (plan.height, plan.width)) == (index.time_base, index.end, index.upright_size)
    for each, made in zip(plan.cuts, chunks, strict=True):
        reader = Reader(made)
        assert reader.index.pts.tolist() == index.pts[each.start : each.end].tolist()
        assert reader.index.end == [*index.pts, index.end][each.end]
        assert made.bytes == len(reader.data)
        assert made.digest == "sha256:" + hashlib.sha256(reader.data).hexdigest()
        shown = reader.all()
        if exact:
            assert shown == frames[each.start : each.end]
        for frame in range(0, len(shown), every):
            assert reader.one(frame) == shown[frame]
    assert sorted(Path(made.file).name for made in chunks) == sorted(os.listdir(folder))
    return plan, chunks


def seen_by_players(made):
    with av.open(made.file) as container:
        return [frame_hash(frame) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", FAST)
def test_chunks_that_are_copied_show_the_frames_of_the_source(name, tmp_path):
    check(VARIANTS[name](tmp_path), tmp_path / "chunks")


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_chunks_that_are_copied_show_the_frames_of_the_rest(name, tmp_path):
    check(VARIANTS[name](tmp_path), tmp_path / "chunks")


@pytest.mark.parametrize(
    "name",
    only_fast(
        ["open_groups.mp4", "hevc_10_bit.mp4", "packed.avi", "palette.gif", "interlaced.ts"],
        fast=["open_groups.mp4", "hevc_10_bit.mp4"],
    ),
)
def test_lossless_chunks_show_the_frames_of_the_source(name, tmp_path):
    _, chunks = check(VARIANTS[name](tmp_path), tmp_path / "chunks", mode="lossless")
    assert {made.note for made in chunks} == {""}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_lossless_chunks_show_the_frames_of_all(name, tmp_path):
    check(VARIANTS[name](tmp_path), tmp_path / "chunks", mode="lossless", every=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_any_source_can_be_encoded(name, tmp_path):
    check(VARIANTS[name](tmp_path), tmp_path / "chunks", mode="encode", exact=False, every=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_verifying_only_the_edges_makes_the_same_chunks(name, tmp_path):
    check(VARIANTS[name](tmp_path), tmp_path / "chunks", verify="edges")


@pytest.mark.slow
def test_chunks_of_real_clips_show_their_frames(clips, tmp_path):
    for name, path in clips.items():
        frames = linear(path)
        plan, chunks = cut(path, tmp_path / name, chunk_frames=60)
        for each, made in zip(plan.cuts, chunks, strict=True):
            reader = Reader(made)
            assert made.note == ""
            assert reader.all() == frames[each.start : each.end]
            for frame in range(0, each.end - each.start, 7):
                assert reader.one(frame) == frames[each.start + frame]


def test_packets_stay_as_they_are(tmp_path):
    path = VARIANTS["open_groups.mp4"](tmp_path)
    _, chunks = cut(path, tmp_path / "chunks", chunk_frames=13)
    container, stream = open_video(str(path))
    with contextlib.closing(container):
        source = [bytes(packet) for packet in container.demux(stream) if packet.size]
    for made in chunks:
        reader = Reader(made)
        copied = [reader.packet(number) for number in range(len(reader.index.offset))]
        start = source.index(copied[0])
        assert copied == source[start : start + len(copied)]
        assert made.note == ""


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_groups.mp4", "rotated.mp4", "variable_rate.mp4", "mpeg4.mp4"])
def test_players_see_the_frames_of_the_chunk_and_no_others(name, tmp_path):
    path = VARIANTS[name](tmp_path)
    frames, index = linear(path), index_video(str(path))
    plan, chunks = cut(path, tmp_path / "chunks", chunk_frames=13)
    for each, made in zip(plan.cuts, chunks, strict=True):
        assert seen_by_players(made) == frames[each.start : each.end]
        again = index_video(made.file)
        assert again.orientation == index.orientation
        times = (again.pts * again.time_base).tolist()
        first = int(index.pts[each.start])
        assert times == [(int(at) - first) * index.time_base for at in index.pts[each.start : each.end]]


def test_disposable_packets_and_groups_are_found(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", frames=60, options=EVEN)
    _, (made,) = cut(path, tmp_path / "chunks")
    assert made.index.key_packet.tolist() == [0, 10, 20, 30, 40, 50]
    assert made.index.key_frame.tolist() == [0, 10, 20, 30, 40, 50]
    with av.open(str(path)) as container:
        kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    disposable_kinds = [
        kinds[frame] for frame, packet in enumerate(made.index.frame_packet.tolist()) if made.index.disposable[packet]
    ]
    assert set(disposable_kinds) == {"B"}
    assert len(disposable_kinds) > 10


def test_cuts_are_at_the_key_frames_nearest_to_the_wanted_length(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", frames=95, options=EVEN)
    tens = list(range(0, 95, 10))
    for wanted, firsts in ((1, tens), (10, tens), (14, tens[:-1]), (16, tens[:-1:2]), (1000, [0])):
        plan = plan_cuts(str(path), CutSettings(chunk_frames=wanted))
        assert [each.start for each in plan.cuts] == firsts


def test_chunks_without_a_key_frame_nearby_are_re_encoded_and_note_the_reason(tmp_path):
    still = {"x264-params": "scenecut=0:keyint=infinite"}
    path = make_clip(tmp_path / "long.mp4", frames=1100, height=16, width=16, options=still, gop=5000)
    plan, chunks = cut(path, tmp_path / "chunks", chunk_frames=100)
    frames = linear(path)
    assert [tuple(each)[1:] for each in plan.cuts] == [(at, at + 100) for at in range(0, 1100, 100)]
    assert chunks[0].note == chunks[1].note == ""
    for each, made in zip(plan.cuts, chunks, strict=True):
        assert Reader(made).all() == frames[each.start : each.end]
        assert each.number < 2 or made.note.startswith("re-encoded without loss: no key frame at frame")


def test_frames_of_another_size_begin_a_chunk(tmp_path):
    path = with_another_size(tmp_path)
    frames = linear(path)
    for mode in ("copy", "lossless"):
        plan, chunks = cut(path, tmp_path / mode, mode=mode, chunk_frames=40)
        assert [each.start for each in plan.cuts] == [0, 20]
        found = [digest for made in chunks for digest in Reader(made).all()]
        assert found == frames
        assert (chunks[0].coding.width, chunks[1].coding.width) == (64, 48)
    plan, chunks = cut(path, tmp_path / "encode", mode="encode")
    assert {made.coding.width for made in chunks} == {64}


def test_streams_that_do_not_tell_how_frames_are_reordered(tmp_path):
    path = without_reorder_hint(tmp_path)
    assert len(linear(path)) == 40
    _, chunks = check(path, tmp_path / "chunks")
    assert {made.note for made in chunks} == {""}


def test_the_same_input_gives_the_same_bytes_in_any_process_and_thread(tmp_path):
    path = VARIANTS["open_groups.mp4"](tmp_path)
    for settings in (CutSettings(chunk_frames=13), CutSettings(mode="encode", chunk_frames=13)):
        plan, chunks = cut(path, tmp_path / "one", settings)
        (tmp_path / "two").mkdir(exist_ok=True)
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(build_chunk, str(path), plan, settings, each.number, str(tmp_path / "two"))
                for each in reversed(plan.cuts)
            ]
            again = [job.result() for job in reversed(jobs)]
        assert [made.digest for made in again] == [made.digest for made in chunks]
        assert [made.index.encode() for made in again] == [made.index.encode() for made in chunks]
        assert [made.coding for made in again] == [made.coding for made in chunks]


def test_cutting_needs_no_torch(tmp_path):
    path = VARIANTS["one_frame.mp4"](tmp_path)
    program = (
        "import sys; from streamloader.media.chunks.build import *; s = CutSettings(); "
        f"p = plan_cuts({str(path)!r}, s); build_chunk({str(path)!r}, p, s, 0, {str(tmp_path)!r}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_encoding_at_another_rate_and_size(tmp_path):
    path = VARIANTS["rotated.mp4"](tmp_path)  # 40 frames at 25 a second; 64 x 48 as they are shown
    plan, chunks = cut(path, tmp_path / "chunks", mode="encode", chunk_frames=7, fps=10, size=(32, 24), gop=4)
    assert (plan.frames, plan.time_base, plan.first_pts, plan.end) == (16, Fraction(1, 10), 0, 16)
    assert (plan.height, plan.width) == (32, 24)
    assert [each.start for each in plan.cuts] == [0, 7, 14]
    with av.open(str(path)) as container:
        source = [frame.reformat(32, 24, "gray").to_ndarray().astype(int) for frame in container.decode(video=0)]
    for each, made in zip(plan.cuts, chunks, strict=True):
        assert (made.coding.height, made.coding.width) == (24, 32)
        assert made.index.pts.tolist() == list(range(each.start, each.end))
        assert np.diff([*made.index.key_frame, each.end - each.start]).max() <= 4
        with av.open(made.file) as container:
            frames = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
            assert container.duration / av.time_base == pytest.approx((each.end - each.start) / 10)
        for at, frame in enumerate(frames):
            near = [float(np.abs(frame - other).mean()) for other in source]
            assert int(np.argmin(near)) == (each.start + at) * 5 // 2


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "mpeg4"])
def test_encoding_with_other_codecs(codec, tmp_path):
    path = VARIANTS["b_frames.mp4"](tmp_path)
    _, chunks = check(path, tmp_path / "chunks", mode="encode", codec=codec, exact=False, every=5)
    assert {made.coding.codec for made in chunks} == {{"libx265": "hevc", "libvpx-vp9": "vp9"}.get(codec, codec)}


def test_an_encoder_that_refuses_is_a_typed_error_and_leaves_no_file(tmp_path):
    path = VARIANTS["b_frames.mp4"](tmp_path)
    with pytest.raises(ConfigError, match="libx264 cannot encode"):
        cut(path, tmp_path / "chunks", mode="encode", options={"profile": "baseline", "preset": "nonsense"})
    assert os.listdir(tmp_path / "chunks") == []


# --- sound ------------------------------------------------------------------------------------------------------------


def with_sound(path, codec="aac", frames=75):
    """Write three seconds of video with key frames 10 frames apart, and of a tone."""
    make_clip(path.with_name("mute.mp4"), frames=frames)
    with av.open(str(path.with_name("mute.mp4"))) as mute, av.open(str(path), "w") as output:
        video = output.add_stream_from_template(mute.streams.video[0])
        sound = output.add_stream(codec, rate=48000)
        for packet in mute.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
        wave = (np.sin(np.arange(48000 * frames // 25) / 20) * 8000).astype(np.int16)
        for at in range(0, len(wave), 960):
            block = av.AudioFrame.from_ndarray(wave[None, at : at + 960], format="s16", layout="mono")
            block.sample_rate, block.pts = 48000, at
            output.mux(sound.encode(block))
        output.mux(sound.encode(None))
    return path


def sounds(path):
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [
            (float(packet.pts * packet.time_base), bytes(packet)) for packet in container.demux(audio=0) if packet.size
        ]


@pytest.mark.parametrize(("name", "codec", "suffix"), [("a.mp4", "aac", "mp4"), ("a.mkv", "pcm_s16le", "mkv")])
def test_sound_is_dropped_or_kept(name, codec, suffix, tmp_path):
    path = with_sound(tmp_path / name, codec)
    plan, mute = cut(path, tmp_path / "mute", chunk_frames=30)
    assert [sounds(made.file) for made in mute] == [[], [], []]
    frames = linear(path)
    plan, loud = cut(path, tmp_path / "loud", chunk_frames=30, audio=True)
    kept = []
    for each, made in zip(plan.cuts, loud, strict=True):
        assert made.suffix == suffix
        assert Reader(made).all() == frames[each.start : each.end] == seen_by_players(made)
        found = sounds(made.file)
        kept += [(at + each.start / 25, data) for at, data in found]
    source = sounds(path)
    assert [data for _, data in kept] == [data for _, data in source]
    np.testing.assert_allclose([at for at, _ in kept], [at for at, _ in source], atol=0.03)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_damaged_files_are_refused(tmp_path):
    path = VARIANTS["b_frames.mkv"](tmp_path)
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(CorruptStream, match="is truncated"):
        plan_cuts(str(broken), CutSettings())
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(UnreadableStream):
        plan_cuts(str(tmp_path / "text.mp4"), CutSettings())
    with pytest.raises(StreamNotFound):
        plan_cuts(str(tmp_path / "nothing.mp4"), CutSettings())


@pytest.mark.parametrize("mode", ["copy", "lossless", "encode"])
def test_a_source_that_changes_is_detected_and_no_file_is_left(mode, tmp_path):
    path = make_clip(tmp_path / "clip.mp4")
    settings = CutSettings(mode=mode, chunk_frames=10)
    plan = plan_cuts(str(path), settings)
    make_clip(tmp_path / "clip.mp4", options={"crf": "40"})
    (tmp_path / "chunks").mkdir()
    with pytest.raises(CorruptStream, match="changed"):
        build_chunk(str(path), plan, settings, 2, str(tmp_path / "chunks"))
    assert os.listdir(tmp_path / "chunks") == []


def test_cancelled_work_stops_and_leaves_nothing(tmp_path):
    path = make_clip(tmp_path / "clip.mp4")
    settings = CutSettings(chunk_frames=10)
    stop = threading.Event()
    stop.set()
    with pytest.raises(ClosedError):
        plan_cuts(str(path), settings, stop.is_set)
    plan = plan_cuts(str(path), settings)
    (tmp_path / "chunks").mkdir()
    calls = []
    for limit in (0, 5, 12, 25):
        calls.clear()
        with pytest.raises(ClosedError):
            build_chunk(
                str(path),
                plan,
                settings,
                1,
                str(tmp_path / "chunks"),
                lambda limit=limit: calls.append(0) or len(calls) > limit,
            )
    assert os.listdir(tmp_path / "chunks") == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "cut"}, "mode"),
        ({"chunk_frames": 0}, "chunk_frames"),
        ({"chunk_frames": True}, "chunk_frames"),
        ({"codec": "libx264"}, "codec= needs mode='encode'"),
        ({"mode": "lossless", "fps": 5}, "fps= needs mode='encode'"),
        ({"mode": "encode", "codec": "pcm_s16le"}, "no video encoder 'pcm_s16le'"),
        ({"mode": "encode", "codec": "klingon"}, "no video encoder"),
        ({"mode": "encode", "size": (0, 4)}, "size"),
        ({"mode": "encode", "fps": -1}, "fps"),
        ({"mode": "encode", "gop": 0}, "gop"),
        ({"verify": "maybe"}, "verify"),
        ({"audio": "yes"}, "audio"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        CutSettings(**options)


def test_settings_survive_json():
    for settings in (CutSettings(), CutSettings("encode", fps="30000/1001", size=(3, 4), options={"crf": "9"})):
        assert CutSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(ConfigError):
        CutSettings.from_json({"mode": "copy", "colour": 1})


def _write_header(path, stream):
    with create_chunk_file(str(path), Fraction(1, 1000)) as output:
        output.add_stream_from_template(stream, opaque=True)
        output.start_encoding()


def test_a_refused_header_leaves_no_file_open(tmp_path):
    """PyAV leaves a file open that it opened itself, if the container refuses its header."""
    source = make(tmp_path / "raw.avi", "-c:v", "rawvideo", "-pix_fmt", "yuv420p", seconds=0.2)
    before = sorted(os.listdir("/proc/self/fd"))
    with av.open(str(source)) as container, pytest.raises(ChunkRejected, match="cannot be stored in MKV"):
        _write_header(tmp_path / "chunk.mkv", container.streams.video[0])
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_sound_that_repeats_itself_is_left_out(tmp_path):
    """A packet that begins before the one before it ends would be refused by MP4."""
    first, second = (
        make(
            tmp_path / f"{start}.ts", "-f", "lavfi", "-i", "sine=duration=1.5", "-c:v", "libx264", "-output_ts_offset",
            start, seconds=1,
        )
        for start in (1000, 1001)
    )  # fmt: skip
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    _, chunks = cut(path, tmp_path / "chunks", audio=True)
    with av.open(chunks[0].file) as container:
        times = [packet.pts for packet in container.demux(audio=0) if packet.size]
    assert times == sorted(set(times))
