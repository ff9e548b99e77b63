"""Raw and lossless sources of RGB: every one of them is stored without loss of a visible sample."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from archive.ingest.archives import archive, assert_whole
from ffmpeg_program import run
from tiers import only_fast

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.errors import UnreadableStream
from streamloader.media.chunks.frame_hash import choose_canonical_format, find_little_endian
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.indexer import index_video
from streamloader.media.video.reader import FrameReader

HEIGHT, WIDTH = 48, 66
SOURCES = {
    "avi": ("rawvideo bgr24", "rawvideo pal8", "rawvideo rgb555le", "huffyuv rgb24", "huffyuv bgra", "ffvhuff rgb24",
            "utvideo gbrp", "utvideo gbrap", "magicyuv gbrp", "zmbv bgr0", "zmbv pal8", "zmbv rgb565le", "msrle pal8",
            "bmp bgr24", "targa bgr24", "zlib bgr24", "xwd bgr24", "jpegls rgb24"),
    "mov": ("rawvideo rgb24", "rawvideo argb", "rawvideo rgb48be", "rawvideo pal8", "qtrle rgb24", "qtrle rgb555be",
            "qtrle argb", "png rgb24", "png pal8", "png rgb48be", "png monob", "tiff rgb24", "r210 gbrp10le",
            "rpza rgb555le", "smc pal8"),
    "nut": ("rawvideo rgb24", "rawvideo bgr24", "rawvideo rgb0", "rawvideo rgb555le", "rawvideo rgb565le",
            "rawvideo monob", "rawvideo bgr8", "rawvideo abgr", "rawvideo rgba64le"),
    "flv": ("flashsv bgr24",),
    "apng": ("apng rgb24",),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rgb")
    for container, kinds in SOURCES.items():
        for kind in kinds:
            codec, pix_fmt = kind.split()
            run(
                "-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=0.2", "-c:v", codec, "-pix_fmt",
                pix_fmt, folder / f"{codec}-{pix_fmt}.{container}",
            )  # fmt: skip
    return folder


def test_they_are_stored_without_loss(sources, tmp_path):
    """Compared with what ffmpeg shows of the sources, and not only with hashes of this package."""
    paths = sorted(sources.iterdir())
    assert len(paths) == sum(map(len, SOURCES.values()))
    with archive(tmp_path) as catalog:
        report = add_videos(catalog, paths, jobs=2, name="{name}")
        assert_whole(catalog)
    assert [video.name for video in report.added] == [path.name for path in paths]
    with sl.open_archive(str(tmp_path / "catalog.sqlite")) as reader:
        start = 0
        for video, path in zip(report.added, paths, strict=True):
            shown = run("-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
            expected = np.frombuffer(shown, np.uint8).reshape(-1, HEIGHT, WIDTH, 3).astype(int)
            stored = np.asarray(reader[start : start + video.frames]).astype(int)
            start += video.frames
            assert stored.shape == expected.shape, path.name
            # FFmpeg expands 5, 6 and 10 bits to 8 in two ways, which differ in the last bit.
            limit = 1 if any(depth in path.name for depth in ("555", "565", "gbrp10", "48", "64")) else 0
            assert np.abs(stored - expected).max() <= limit, path.name


@pytest.mark.parametrize(
    ("pix_fmt", "expected"),
    [
        *((name, "rgb24") for name in ("rgb24", "bgr24", "bgr0", "0rgb", "gbrp", "rgb555le", "bgr8", "monob")),
        *((name, "rgba") for name in ("rgba", "argb", "gbrap", "pal8")),
        ("rgb48be", "rgb48le"), ("gbrp16le", "rgb48le"), ("bgra64le", "rgba64le"),
        *((name, None) for name in ("yuv420p", "gray", "gbrp10le", "gbrpf32le", "gbrpf16le", "yuva444p", "gray16le")),
    ],
)  # fmt: skip
def test_formats_in_which_visible_samples_are_compared(pix_fmt, expected):
    assert choose_canonical_format(pix_fmt) == expected


DEEP = ("png gray16be mov", "png ya16be mov", "png gray16be avi", "rawvideo gray10be nut", "rawvideo yuv420p10be nut",
        "rawvideo gbrp10be nut", "rawvideo gbrap12be nut", "rawvideo yuv444p16be nut", "jpeg2000 pal8 mov",
        "rawvideo nv12 nut", "rawvideo yuyv422 nut", "rawvideo uyvy422 avi", "v210 yuv422p10le mov")  # fmt: skip


@pytest.mark.parametrize("kind", only_fast(DEEP, DEEP[:2]))
@pytest.mark.parametrize("mode", ["copy", "lossless"])
def test_other_samples_are_stored_without_loss_too(tmp_path, kind, mode):
    """The samples of all bits, as ffmpeg reads them from the source and from the chunk."""
    codec, pix_fmt, container = kind.split()
    path = tmp_path / f"clip.{container}"
    run(
        "-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=0.2", "-c:v", codec, "-pix_fmt", pix_fmt,
        path,
    )  # fmt: skip
    with archive(tmp_path) as catalog:
        add_videos(catalog, path, CutSettings(mode=mode), jobs=0)
        assert_whole(catalog)
    (chunk,) = (tmp_path / "one").glob("chunks/*/*/*")
    samples = [
        run("-i", each, "-fps_mode", "passthrough", "-pix_fmt", pix_fmt, "-f", "rawvideo", "-")
        for each in (path, chunk)
    ]
    assert len(samples[0]) > HEIGHT * WIDTH
    assert samples[0] == samples[1]


def write_changing_tags(folder):
    """Write a bare H.264 stream whose second half declares the full range. The first half declares none."""
    size = f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=0.4"
    run("-f", "lavfi", "-i", size, "-c:v", "libx264", "-preset", "ultrafast", folder / "a.h264")
    filter_ = "h264_metadata=video_full_range_flag=1"
    run("-i", folder / "a.h264", "-c", "copy", "-bsf:v", filter_, folder / "b.h264")
    path = folder / "both.h264"
    path.write_bytes((folder / "a.h264").read_bytes() + (folder / "b.h264").read_bytes())
    return path


def test_colour_tags_may_change_in_the_middle(tmp_path):
    """An encoder cannot change them, so that a chunk ends there."""
    path = write_changing_tags(tmp_path)
    for mode in ("lossless", "copy"):
        with archive(tmp_path / mode) as catalog:
            (video,) = add_videos(catalog, path, CutSettings(mode=mode), jobs=0).added
            assert_whole(catalog)
        assert (video.frames, video.chunks) == (20, 2)
        shown = run("-i", path, "-fps_mode", "passthrough", "-pix_fmt", "gray", "-f", "rawvideo", "-")
        with sl.open_archive(str(tmp_path / mode / "catalog.sqlite"), pix_fmt="gray") as reader:
            assert np.asarray(reader[:]).tobytes() == shown
        for threads in (1, 2):
            with sl.open_archive(str(tmp_path / mode / "catalog.sqlite"), pix_fmt="gray", threads=threads) as reader:
                for number in (15, 0, 12, 3):  # the same decoder, once more
                    assert np.asarray(reader[number]).tobytes() == shown[number * WIDTH * HEIGHT :][: WIDTH * HEIGHT]


@pytest.mark.parametrize("container", ["h264", "mp4", "ts", "mkv"])
def test_seeks_carry_no_colour_tags_back(tmp_path, container):
    """FFmpeg's decoders show frames without tags with those of the packets that they have decoded before."""
    path = write_changing_tags(tmp_path)
    if container != "h264":
        run("-r", "25", "-i", path, "-c", "copy", tmp_path / f"both.{container}")
    path = path.with_suffix(f".{container}")
    with contextlib.closing(FrameReader(str(path), index_video(str(path)))) as reader:
        shown = {number: reader.read_frame(number).color_range for number in (0, 15, 0, 12, 3, 19, 9)}
    assert {number: int(tag) for number, tag in shown.items()} == {0: 0, 3: 0, 9: 0, 12: 2, 15: 2, 19: 2}


@pytest.mark.parametrize(
    ("pix_fmt", "expected"),
    [
        ("gray16be", "gray16le"), ("yuv420p10be", "yuv420p10le"), ("gbrpf32be", "gbrpf32le"), ("gray16le", None),
        ("gray", None), ("rgb565be", None), ("x2rgb10be", None),
    ],
)  # fmt: skip
def test_samples_have_one_order_of_bytes(pix_fmt, expected):
    assert find_little_endian(pix_fmt) == expected


def test_what_cannot_be_stored_names_the_mode_that_can(tmp_path):
    path = tmp_path / "float.mov"
    run(
        "-f", "lavfi", "-i", f"testsrc2=size={WIDTH}x{HEIGHT}:rate=25:duration=0.2", "-c:v", "exr", "-pix_fmt",
        "gbrpf32le", path,
    )  # fmt: skip
    with archive(tmp_path) as catalog:
        with pytest.raises(UnreadableStream, match=r"without loss.*mode='encode'"):
            add_videos(catalog, path, jobs=1)
        assert add_videos(catalog, path, CutSettings(mode="encode"), jobs=1).added[0].frames == 5
