"""Hostile files: what they declare and contain is limited, and they make FFmpeg open nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import hostile_media as hostile
import pytest
from made_clips import VARIANTS, make_clip
from tiers import fast_first

from streamloader.errors import (
    ConfigError,
    CorruptStream,
    MediaLimitExceeded,
    StreamloaderError,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.media.chunks.format import Coding
from streamloader.media.chunks.packet_decoder import PacketDecoder
from streamloader.media.chunks.plan import plan_cuts
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video import container as container_module
from streamloader.media.video.container import open_container
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.indexer import index_video
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.reader import FrameReader
from streamloader.streams.video import VideoStreams
from streamloader.testing import describe_streams, read_stream

PACKAGE = Path(container_module.__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=12)


def read_frames(reader, numbers):
    for number in numbers:
        reader.read_frame(number)


def write(path, data):
    path.write_bytes(data)
    return str(path)


def test_ffmpeg_reads_files_in_one_place():
    """All other calls of av.open write files."""
    calls = {
        (path.relative_to(PACKAGE).as_posix(), '"w"' in call)
        for path in PACKAGE.rglob("*.py")
        for call in re.findall(r"av\.open\([^)]*\)", path.read_text())
    }
    assert {path for path, writes in calls if not writes} == {"media/video/container.py"}
    assert {path for path, writes in calls if writes} == {"media/chunks/remux.py"}


@pytest.mark.parametrize(
    ("name", "picture", "found"),
    [
        ("png.mp4", hostile.png, "a PNG picture"),
        ("jpeg.mp4", hostile.jpeg, "a JPEG picture"),
        ("webp.mkv", hostile.webp, "a WebP picture"),
    ],
)
def test_pictures_are_no_videos(tmp_path, name, picture, found):
    path = write(tmp_path / name, picture(64, 48))
    with pytest.raises(UnreadableStream, match=rf"{name}.* it is {found}") as caught:
        index_video(path)
    assert caught.value.address == path


def test_a_gif_is_limited_by_its_screen(tmp_path):
    path = write(tmp_path / "gif.mp4", hostile.gif(hostile.HUGE, hostile.HUGE))
    with pytest.raises(MediaLimitExceeded, match=r"gif\.mp4 declares frames of 65535x65535 .*max_pixels=67108864"):
        index_video(path)


def declared(tmp_path, kind):
    if kind == "mp4":
        return str(hostile.lying_mp4(tmp_path, hostile.HUGE, hostile.HUGE))
    return write(tmp_path / "lying.mkv", hostile.matroska([("V_VP8", hostile.HUGE, hostile.HUGE)], [(1, bytes(50))]))


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_declared_sizes_are_checked_before_a_decoder_is_opened(tmp_path, kind, monkeypatch):
    path = declared(tmp_path, kind)
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(k["container_options"]) or real(*a, **k))
    with pytest.raises(
        MediaLimitExceeded, match=r"65535x65535 \(width x height\).*pass max_pixels=4294836225"
    ) as caught:
        index_video(path)
    assert [options.get("codec_whitelist") for options in opened] == ["none"]
    assert caught.value.details == {"limit": "max_pixels", "found": hostile.HUGE**2, "allowed": 1 << 26}
    assert caught.value.stream == caught.value.address == path


def test_the_limit_can_be_raised_and_lowered(clip):
    pixels = 48 * 64
    assert len(index_video(str(clip), max_pixels=pixels)) == 12
    with pytest.raises(MediaLimitExceeded, match=rf"64x48 .* max_pixels={pixels - 1} are allowed.*max_pixels={pixels}"):
        index_video(str(clip), max_pixels=pixels - 1)
    for wrong in (0, -1, True, 1.5, "8"):
        with pytest.raises(ConfigError, match="max_pixels must be a whole number"):
            VideoStreams(clip, max_pixels=wrong)
        with pytest.raises(ConfigError, match="max_pixels must be a whole number"):
            CutSettings(max_pixels=wrong)


def test_a_cached_index_is_limited_too(clip):
    assert len(load_index(str(clip))) == 12
    with pytest.raises(MediaLimitExceeded, match="64x48"):
        load_index(str(clip), max_pixels=1000)
    with pytest.raises(MediaLimitExceeded, match="64x48"):
        describe_streams(VideoStreams(clip, max_pixels=1000))


@pytest.mark.parametrize("size", [(3000, 2000), (400, 300)])
def test_pictures_in_a_container_that_declares_small_ones(tmp_path, size):
    """FFmpeg's own limit refuses the first size; the second one passes it, and is measured once it is decoded."""
    data = hostile._encode_picture("png", "rgb24", size[1], size[0])
    private = struct.pack("<IiiHH4sIiiII", 40, 64, 48, 1, 24, b"MPNG", 0, 0, 0, 0, 0)
    tracks = [("V_MS/VFW/FOURCC", 64, 48)]
    path = write(tmp_path / "png.mkv", hostile.matroska(tracks, [(1, data)] * 3, private=private))
    with pytest.raises(MediaLimitExceeded, match=r"png\.mkv.*max_pixels=10000 are allowed"):
        index_video(path, max_pixels=10_000)
    assert index_video(path).upright_size == size[::-1]


@pytest.mark.parametrize(
    ("width", "height", "found"), [(hostile.LARGE, hostile.LARGE, "16000x16000"), (8208, 8192, "8208x8192")]
)
def test_a_parameter_set_that_grows_in_the_middle(tmp_path, width, height, found):
    """The frames before it are not at fault, but the file as a whole is refused, damage or not."""
    path = str(hostile.growing_h264(tmp_path, width, height))
    for damaged in ("raise", "keep"):
        with pytest.raises(MediaLimitExceeded, match=rf"growing\.h264 has frames of {found} .*max_pixels=67108864"):
            index_video(path, damaged=damaged)


@pytest.mark.parametrize("suffix", ["flv", "mpg", "ts"])
def test_frames_that_grow_while_ffmpeg_opens_the_file(tmp_path, suffix, monkeypatch):
    """Streams appear late in these formats, so that FFmpeg decodes their first frames without a limit."""
    path = str(hostile.growing_in(tmp_path, suffix, 1600, 1200))
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(k["container_options"]) or real(*a, **k))
    with pytest.raises(MediaLimitExceeded, match="1600x1200"):
        index_video(path, max_pixels=100_000)
    assert {options.get("codec_whitelist") for options in opened} == {"none"}


def test_a_reader_refuses_frames_that_its_index_does_not_announce(tmp_path):
    """The file was exchanged, or is another one on this machine."""
    path = str(hostile.growing_h264(tmp_path, 1600, 1200))
    index = index_video(str(make_clip(tmp_path / "indexed.h264", frames=30)))
    index = replace(index, has_pts=False, retiming=None, seekable=False)  # frames are only counted
    reader = FrameReader(path, index, "the stream", max_pixels=100_000)
    try:
        read_frames(reader, range(15))
        with pytest.raises(MediaLimitExceeded, match="1600x1200") as caught:
            read_frames(reader, range(15, 30))
    finally:
        reader.close()
    assert (caught.value.stream, caught.value.offset) == ("the stream", 20)


def test_numbers_of_streams_are_limited(tmp_path):
    packets = [(1, bytes(50))]
    many = write(tmp_path / "many.mkv", hostile.matroska([("V_VP8", 64, 48)] * 5000, packets))
    with pytest.raises(MediaLimitExceeded, match=r"many\.mkv has 256 video streams.*copy the stream"):
        index_video(many)  # FFmpeg ignores the others
    mp4 = write(tmp_path / "many.mp4", hostile.with_many_tracks(make_clip(tmp_path / "one.mp4", frames=3), 300))
    with pytest.raises(MediaLimitExceeded, match=r"many\.mp4 has more than 256 streams"):
        index_video(mp4)
    some = write(tmp_path / "some.mkv", hostile.matroska([("V_VP8", 64, 48)] * 17, packets))
    with pytest.raises(MediaLimitExceeded, match=r"some\.mkv has 17 video streams, but at most 16") as caught:
        index_video(some)
    assert (caught.value.details["found"], caught.value.details["allowed"]) == (17, 16)


def test_large_codec_parameters_and_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(container_module, "_MAX_HEADER_BYTES", 1000)
    data = hostile.matroska([("V_VP8", 64, 48)], [(1, bytes(50))], private=bytes(1001))
    with pytest.raises(MediaLimitExceeded, match="1001 bytes of codec parameters, but at most 1000"):
        index_video(write(tmp_path / "private.mkv", data))
    monkeypatch.setattr(container_module, "_MAX_METADATA_CHARACTERS", 1000)
    tag = hostile.element(0x67C8, hostile.element(0x45A3, b"NAME") + hostile.element(0x4487, b"x" * 1001))
    tags = hostile.element(0x1254C367, hostile.element(0x7373, hostile.element(0x63C0, b"") + tag))
    data = hostile.matroska([("V_VP8", 64, 48)], [(1, bytes(50))], tags)
    with pytest.raises(MediaLimitExceeded, match="characters of metadata, but at most 1000"):
        index_video(write(tmp_path / "tags.mkv", data))


def test_headers_and_attachments_are_limited(tmp_path, monkeypatch):
    """FFmpeg loads them whole when it opens a file."""
    monkeypatch.setattr(container_module, "_MAX_OPENING_BYTES", 1 << 20)
    packets = [(1, hostile._encode_picture("mjpeg", "yuvj420p"))] * 3
    for size, refused in ((100_000, False), (2 << 20, True)):
        extra = hostile.attachment("font.ttf", "font/ttf", bytes(size))
        path = write(tmp_path / f"{size}.mkv", hostile.matroska([("V_MJPEG", 64, 48)], packets, extra))
        if not refused:
            assert len(index_video(path)) == 3
            continue
        with pytest.raises(MediaLimitExceeded, match=r"large headers or attachments, but at most 1048576 bytes"):
            index_video(path)


def test_times_that_leap_make_no_endless_streams(tmp_path):
    path = write(tmp_path / "leaping.mkv", hostile.leaping([0, 1 << 40], 40))
    (whole,) = describe_streams(VideoStreams(path))
    assert whole.length == 2
    with pytest.raises(CorruptStream, match=r"leaping\.mkv has 2 frames, and \d{11} steps at fps=25"):
        describe_streams(VideoStreams(path, fps=25))
    with pytest.raises(CorruptStream, match=r"leaping\.mkv has 2 frames"):
        plan_cuts(path, CutSettings("encode", fps=25))
    dataset = VideoStreams(path, fps=25, max_frames=4)  # nothing is allocated for the others
    (info,) = describe_streams(dataset)
    assert len(read_stream(dataset, info)["data"]) == info.length == 4


def test_times_that_exceed_all_numbers_are_damage(tmp_path):
    path = write(tmp_path / "late.mkv", hostile.leaping([0, 1 << 62], (1 << 63) - 1))
    with pytest.raises(CorruptStream, match=r"late\.mkv is damaged: its timestamps are impossible"):
        index_video(path)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify tells which files are opened")
def test_files_that_name_others_open_none_of_them(tmp_path, clip):
    attacks = hostile.naming_files(tmp_path, clip)
    for name, path in attacks.items():
        with hostile.watch_opened(tmp_path) as opened:
            with pytest.raises(StreamloaderError) as caught:
                index_video(str(path))
            assert opened() <= {name}, name
        assert isinstance(caught.value, UnreadableStream), name
        assert str(path) in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify tells which files are opened")
def test_attachments_and_references_are_not_followed(tmp_path, clip):
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{tmp_path / 'canary.mp4'}\n#EXT-X-ENDLIST\n".encode()
    (tmp_path / "canary.mp4").write_bytes(clip.read_bytes())
    picture = hostile._encode_picture("mjpeg", "yuvj420p")
    extra = hostile.attachment("list.m3u8", "application/x-mpegurl", playlist)
    cover = hostile.attachment("cover.png", "image/png", hostile.png(30_000, 30_000))
    data = hostile.matroska([("V_MJPEG", 64, 48)], [(1, picture)] * 3, extra, cover)
    path = write(tmp_path / "attached.mkv", data)
    referring = bytearray(clip.read_bytes())  # the data reference of the track becomes one to another file
    start = referring.index(b"url \0\0\0\1")
    referring[start : start + 8] = b"alis\0\0\0\0"
    mp4 = write(tmp_path / "referring.mp4", bytes(referring))
    with hostile.watch_opened(tmp_path) as opened:
        assert len(index_video(path)) == 3
        assert opened() == {"attached.mkv"}
        with contextlib.suppress(StreamloaderError):
            index_video(mp4)
        assert opened() <= {"referring.mp4"}


@pytest.mark.parametrize(
    "name", ["concat:{0}|{0}", "subfile,,start,0,end,0,,:{0}", "data:video/mp4;base64,AAAA", "pipe:0"]
)
def test_paths_are_no_protocols(clip, name):
    with pytest.raises((StreamNotFound, UnreadableStream)):
        index_video(name.format(clip))


def test_names_with_signs_of_patterns_and_protocols_are_plain_names(clip, tmp_path):
    for name in ("a%d.mp4", "b:c.mp4", "file:d.mp4", "e*.mp4", "concat:f|g.mp4"):
        path = tmp_path / name
        path.write_bytes(clip.read_bytes())
        assert len(index_video(str(path))) == 12, name


def test_only_regular_files_are_opened(tmp_path):
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/zero", tmp_path):
        with pytest.raises(UnreadableStream, match="is not a file"):
            index_video(str(path))
        with pytest.raises((UnreadableStream, OSError)):
            open_container(str(path), PixelLimit())


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_no_honest_format_is_refused(name, tmp_path_factory):
    """All formats of the other tests are accepted by name: the list of containers has them."""
    path = VARIANTS[name](tmp_path_factory.mktemp("honest"))
    with open_container(str(path), PixelLimit()) as opened:
        assert not set(opened.format.name.split(",")).isdisjoint(container_module.ALLOWED_CONTAINERS)


def test_decoders_of_chunks_are_limited(clip):
    with pytest.raises(MediaLimitExceeded, match=r"chunk 7 declares frames of 65535x65535"):
        PacketDecoder(Coding("h264", b"", hostile.HUGE, hostile.HUGE), name="chunk 7")
    with av.open(str(clip)) as opened:
        stream = opened.streams.video[0]
        coding = Coding("h264", bytes(stream.codec_context.extradata), 16, 16, tag="avc1")
        packets = [bytes(packet) for packet in opened.demux(stream) if packet.size]
    decoder = PacketDecoder(coding, name="chunk 7", max_pixels=1000)
    with pytest.raises(MediaLimitExceeded, match=r"chunk 7 has frames of 64x48") as caught:
        [decoder.send(number, packet) for number, packet in enumerate(packets)]
    decoder.close()
    assert caught.value.details["allowed"] == 1000


def test_ingest_has_the_limits_of_its_settings(tmp_path, clip):
    with pytest.raises(MediaLimitExceeded, match="64x48"):
        plan_cuts(str(clip), CutSettings(max_pixels=1000))
    assert CutSettings(max_pixels=1000).to_json() == CutSettings().to_json()  # it is no property of the chunks
    path = str(hostile.growing_h264(tmp_path, 1600, 1200))
    with pytest.raises(MediaLimitExceeded, match="1600x1200"):
        plan_cuts(path, CutSettings(max_pixels=100_000))


def mutate(data, rng, name):
    """Overwrite a few bytes, most often in the tables."""
    data = bytearray(data)
    start = data.index(b"moov") if name.endswith((".mp4", ".mov")) and rng.random() < 0.8 else 0
    length = len(data) - start if start or rng.random() < 0.4 else min(len(data), 1500)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        position = start + rng.randrange(length)
        new = rng.choice(
            [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", bytes(4), rng.randbytes(1), rng.randbytes(4)]
        )
        data[position : position + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize("seed", fast_first(range(20)))
def test_damage_of_any_kind_is_a_typed_error(tmp_path, seed):
    rng = random.Random(seed)
    for name in (
        "b_frames.mp4",
        "b_frames.mkv",
        "fragments.mp4",
        "no_pts.avi",
        "b_frames.ts",
        "b_frames.flv",
        "vp9.webm",
    ):
        whole = VARIANTS[name](tmp_path).read_bytes()
        for _ in range(4):
            path = write(tmp_path / f"mutated_{name}", mutate(whole, rng, name))
            for damaged in ("raise", "keep"):
                with contextlib.suppress(StreamloaderError):
                    index_video(path, damaged=damaged)


PROGRAM = """
import sys
from streamloader.errors import StreamloaderError
from streamloader.media.video.indexer import index_video
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
before = peak()
for path in sys.argv[1:]:
    try:
        index_video(path)
    except StreamloaderError as error:
        print(type(error).__name__, (peak() - before) >> 20)
    else:
        print("nothing", (peak() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")
def test_no_memory_is_allocated_for_refused_frames(tmp_path):
    """Each of these files costs hundreds of megabytes to gigabytes where sizes are not limited."""
    bombs = [
        write(tmp_path / "png.mp4", hostile.png(30_000, 30_000)),
        write(tmp_path / "gif.mp4", hostile.gif(30_000, 30_000)),
        declared(tmp_path, "mkv"),
        declared(tmp_path, "mp4"),
        str(hostile.growing_h264(tmp_path, hostile.LARGE, hostile.LARGE)),
        write(tmp_path / "vp8.mkv", hostile.matroska([("V_VP8", 64, 48)], [(1, hostile.webp(16383, 16383)[20:])] * 4)),
        write(
            tmp_path / "jpeg.mkv",
            hostile.matroska([("V_MJPEG", 64, 48)], [(1, hostile.jpeg(hostile.LARGE, hostile.LARGE))] * 4),
        ),
        write(tmp_path / "many.mkv", hostile.matroska([("V_VP8", 8192, 8192)] * 200, [(1, bytes(50))])),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *bombs], capture_output=True, text=True, timeout=120, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == len(bombs)
    assert all(kind in {"UnreadableStream", "MediaLimitExceeded", "CorruptStream"} for kind, _ in lines), done.stdout
    assert int(lines[-1][1]) < 250, done.stdout  # MiB, with the tables of H.264 that precede its refusal
