"""What PyAV, FFmpeg and libswscale refuse about a file is an error of this package that names it, or no error."""

from __future__ import annotations

import errno

import av
import numpy as np
import pytest
from archive.ingest.archives import archive
from ffmpeg_program import make, run
from PIL import Image

import streamloader as sl
from streamloader.archive.ingest import add_videos
from streamloader.errors import StreamloaderError, UnreadableStream
from streamloader.media.video.decode_bytes import decode_video_bytes
from streamloader.media.video.remote import ReadInterrupted
from streamloader.media.video.source_errors import fence_foreign_errors
from streamloader.testing import describe_streams, read_stream

FRAMES, HEIGHT, WIDTH = 3, 48, 64
ORIENTATION, MAKER = 0x112, 0x10F  # EXIF tags
REFUSED = (8, 10, 11, 12, 13, 14, 15, 16, 17)  # colour matrices of ITU-T H.273


def play(path, **options):
    dataset = sl.VideoStreams(path, **options)
    (info,) = describe_streams(dataset)
    return read_stream(dataset, info)


def shown(path, pix_fmt="rgb24"):
    return np.frombuffer(run("-i", path, "-pix_fmt", pix_fmt, "-f", "rawvideo", "-"), np.uint8)


def time_lapse(folder, suffix, container, orientation):
    """A video of pictures with EXIF tags, as cameras and `ffmpeg -i %d.jpg -c copy` make them."""
    tags = Image.Exif()
    tags[MAKER], tags[ORIENTATION] = "Acme", orientation
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(FRAMES):
        picture = np.stack([x * 3 + number, y * 4, x + y + number * 10], -1).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number}.{suffix}", exif=tags)
    path = folder / f"lapse.{container}"
    run("-framerate", 25, "-i", folder / f"%d.{suffix}", "-c", "copy", path)
    return path


@pytest.mark.parametrize("orientation", [1, 5])
@pytest.mark.parametrize("container", ["mov", "avi", "mkv"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pictures_with_exif_tags_in_a_video(tmp_path, suffix, container, orientation):
    path = time_lapse(tmp_path, suffix, container, orientation)
    pictures = play(path)["data"]
    assert len(pictures) == FRAMES
    assert np.array_equal(pictures.reshape(-1), shown(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_exif_tags(tmp_path, orientation):
    path = time_lapse(tmp_path, "jpg", "mov", orientation)
    assert np.array_equal(play(path)["data"].reshape(-1), shown(path))
    assert np.array_equal(decode_video_bytes(path.read_bytes()).reshape(-1), shown(path))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A clip of each codec, and copies that declare other colour matrices."""
    folder = tmp_path_factory.mktemp("matrices")
    for name, options in {
        "h264": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
        "h264_444": ("-c:v", "libx264", "-pix_fmt", "yuv444p"),
        "hevc": ("-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p"),
    }.items():
        make(folder / f"{name}.mp4", *options, seconds=0.12)

    def declare(name, matrix):
        path = folder / f"{name}.{matrix}.mp4"
        codec = name.partition("_")[0]
        if not path.exists():
            filter_ = f"{codec}_metadata=matrix_coefficients={matrix}"
            run("-i", folder / f"{name}.mp4", "-c", "copy", "-bsf:v", filter_, path)
        return path

    return declare


@pytest.mark.parametrize(
    ("name", "matrix"), [*(("h264", matrix) for matrix in REFUSED), ("h264_444", 8), ("h264_444", 14), ("hevc", 8)]
)
def test_a_colour_matrix_that_cannot_be_converted(clips, name, matrix):
    """RGB is refused with a name, as ffmpeg refuses it. Luma and chroma are the same whatever the matrix is."""
    path, known = clips(name, matrix), clips(name, 6)
    for pix_fmt in ("rgb24", "rgbp"):
        for size in (None, (24, 32)):
            with pytest.raises(UnreadableStream, match=rf"{path}: it declares the colour matrix {matrix} \(") as caught:
                play(path, pix_fmt=pix_fmt, size=size)
            assert caught.value.address == str(path)
            assert 'pix_fmt="yuv420p" or "gray"' in str(caught.value)
    for pix_fmt, fields in {"gray": ("data",), "yuv420p": ("y", "u", "v")}.items():
        for size in (None, (24, 32)):
            played, expected = (play(each, pix_fmt=pix_fmt, size=size) for each in (path, known))
            for field in fields:
                assert np.array_equal(played[field], expected[field]), (pix_fmt, size, field)


def test_a_loader_goes_on_without_it(clips, tmp_path):
    bad, good = clips("h264", 8), clips("h264", 6)
    with sl.MultiStreamer(sl.VideoStreams([bad, good]), 1, 4, shuffle=False, on_error="skip") as loader:
        played = [stream for batch in loader for stream in batch.numpy()["stream"][batch.numpy()["valid"]].tolist()]
    assert played == [1] * FRAMES


def test_the_archive_takes_such_videos(clips, tmp_path):
    """Packets are copied, so that nothing needs the matrix; only playing RGB from it is refused."""
    path = clips("h264", 8)
    lapse = time_lapse(tmp_path, "jpg", "mov", 1)
    with archive(tmp_path) as catalog:
        report = add_videos(catalog, [path, lapse], jobs=0)
    assert [video.frames for video in report.added] == [FRAMES, FRAMES]
    assert report.notes == ()
    with sl.open_archive(str(tmp_path / "catalog.sqlite"), pix_fmt="gray") as gray:
        assert np.array_equal(gray[:FRAMES], play(path, pix_fmt="gray")["data"])
    with sl.open_archive(str(tmp_path / "catalog.sqlite")) as rgb:
        assert np.array_equal(rgb[FRAMES:], play(lapse)["data"])
        with pytest.raises(UnreadableStream, match=r"h264\.8\.mp4: it declares the colour matrix 8"):
            rgb[:FRAMES]


@pytest.mark.parametrize(
    "foreign",
    [
        ValueError("31 is not a valid Type"),
        KeyError("DISPLAYMATRIX"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
        OverflowError("value too large"),
        AttributeError("'NoneType' object has no attribute 'name'"),
        av.error.FFmpegError(1, "odd"),
        RuntimeError("PyAV"),
        TypeError("unsupported operand"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
)
def test_every_foreign_error_becomes_one_that_names_the_file(foreign):
    with (
        pytest.raises(UnreadableStream, match=r"^/videos/a.mp4 cannot be read: ") as caught,
        fence_foreign_errors("/videos/a.mp4"),
    ):
        raise foreign
    assert caught.value.__cause__ is foreign
    assert (caught.value.stream, caught.value.address) == ("/videos/a.mp4",) * 2


def test_errors_of_this_package_and_interrupts_pass():
    own = StreamloaderError("own")
    with pytest.raises(StreamloaderError) as caught, fence_foreign_errors("/videos/a.mp4"):
        raise own
    assert caught.value is own
    assert own.stream == "/videos/a.mp4"
    with pytest.raises(KeyboardInterrupt), fence_foreign_errors("/videos/a.mp4"):
        raise ReadInterrupted(KeyboardInterrupt())
