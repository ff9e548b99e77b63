"""Colours are right, and direct conversion gives the same bytes as PyAV."""

from __future__ import annotations

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from made_clips import VARIANTS, flat_yuv, linear_decode, make_clip, moving_frame

from streamloader.media.video import convert, swscale
from streamloader.media.video.convert import Converter, OutputArray, plane_shapes
from streamloader.media.video.orientation import UPRIGHT, Orientation
from streamloader.media.video.reformat import view_plane
from streamloader.media.video.swscale import Scaler, ScalerConfig, is_scaler_available

LIMITED, FULL = 1, 2
# name -> number in ITU-T H.273, Kr, Kb
MATRICES = {
    "bt709": (1, 0.2126, 0.0722),
    "bt470bg": (5, 0.299, 0.114),
    "smpte170m": (6, 0.299, 0.114),
    "bt2020nc": (9, 0.2627, 0.0593),
}
COLOURS = [
    (81, 90, 240),
    (145, 54, 34),
    (41, 240, 110),
    (126, 128, 128),
    (210, 16, 146),
    (60, 160, 100),
    (16, 128, 128),
]


def to_rgb(colour, kr, kb, full):
    """ITU-T H.273, equations for MatrixCoefficients, 8 bits."""
    y, u, v = (float(n) for n in colour)
    luma, (blue, red) = (y / 255, ((u - 128) / 255, (v - 128) / 255))
    if not full:
        luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r = luma + 2 * (1 - kr) * red
    b = luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.round(np.array([r, g, b]) * 255), 0, 255)


def converted(frame, pix_fmt, height, width, orientation=UPRIGHT, *, allow_direct=True, rows=1):
    converter = Converter(pix_fmt, height, width, orientation, allow_direct=allow_direct)
    arrays = [np.full((rows, *shape), 77, np.uint8) for shape in plane_shapes(pix_fmt, height, width)]
    converter.convert_into(frame, converter.wrap_outputs(arrays), rows - 1)
    converter.close()
    return [array[rows - 1] for array in arrays]


@pytest.mark.parametrize("allow_direct", [True, False])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", MATRICES)
def test_flat_colours_are_those_of_the_formula(matrix, color_range, allow_direct):
    number, kr, kb = MATRICES[matrix]
    for colour in COLOURS:
        frame = flat_yuv(*colour)
        frame.colorspace, frame.color_range = number, color_range
        wanted = to_rgb(colour, kr, kb, color_range == FULL)
        for size in ((32, 48), (16, 64)):
            (picture,) = converted(frame, "rgb24", *size, allow_direct=allow_direct)
            assert np.abs(picture.astype(float) - wanted).max() <= 2, (colour, size)


@pytest.mark.parametrize("size", [(32, 48), (16, 32)])
def test_untagged_colours_are_those_of_standard_definition(size):
    for colour in COLOURS:
        wanted = to_rgb(colour, 0.299, 0.114, full=False)
        assert np.abs(converted(flat_yuv(*colour), "rgb24", *size)[0].astype(float) - wanted).max() <= 2
        wanted = to_rgb(colour, 0.299, 0.114, full=True)
        frame = flat_yuv(*colour, pix_fmt="yuvj420p")
        assert np.abs(converted(frame, "rgb24", *size)[0].astype(float) - wanted).max() <= 2


@pytest.mark.parametrize(("matrix", "color_range"), [(1, LIMITED), (6, LIMITED), (9, LIMITED), (1, FULL)])
def test_colours_of_a_file_are_its_own(tmp_path, matrix, color_range):
    """Encoded without loss, with matrix and range given only in the file."""

    def prepare(stream):
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range

    def picture(number):
        frame = flat_yuv(*COLOURS[number])
        frame.colorspace, frame.color_range = matrix, color_range
        return frame

    path = make_clip(
        tmp_path / "flat.mp4",
        frames=len(COLOURS),
        height=32,
        width=48,
        options={"qp": "0"},
        picture=picture,
        prepare=prepare,
    )
    _, kr, kb = next(row for row in MATRICES.values() if row[0] == matrix)
    for frame, colour in zip(linear_decode(path), COLOURS, strict=True):
        wanted = to_rgb(colour, kr, kb, color_range == FULL)
        assert np.abs(converted(frame, "rgb24", 32, 48)[0].astype(float) - wanted).max() <= 2


def test_gray_is_luma_over_the_whole_range():
    for y, wanted in ((16, 0), (126, 128), (235, 255)):
        frame = flat_yuv(y, 90, 200)
        frame.color_range = LIMITED
        for allow_direct in (True, False):
            assert (
                np.abs(converted(frame, "gray", 32, 48, allow_direct=allow_direct)[0].astype(int) - wanted).max() <= 1
            )
    frame = flat_yuv(77, 90, 200, pix_fmt="yuvj420p")
    assert (converted(frame, "gray", 32, 48)[0] == 77).all()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_planes_of_the_same_format_are_copied_unchanged(pix_fmt):
    frame = moving_frame(3, 47, 63, pix_fmt)
    planes = converted(frame, "yuv420p", 47, 63)
    for plane, got in zip(frame.planes, planes, strict=True):
        stored = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        assert np.array_equal(got[..., 0], stored)


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gbrp", "gray", "yuv420p"])
@pytest.mark.parametrize("size", [None, (24, 32), (96, 128), (37, 53), (48, 32), (20, 64)])
@pytest.mark.parametrize(
    "name", ["b_frames.mp4", "vp9.webm", "mjpeg.mov", "odd_size_444.mp4", "odd_size.mkv", "422.mkv", "hevc_10_bit.mp4",
             "interlaced.ts", "palette.gif", "mpeg2.ts"]
)  # fmt: skip
def test_direct_conversion_gives_the_same_bytes_as_pyav(made, name, size, pix_fmt):
    frames = linear_decode(made(name))[:12]
    height, width = size or (frames[0].height, frames[0].width)
    direct = Converter(pix_fmt, height, width)
    arrays = [np.empty((len(frames), *shape), np.uint8) for shape in plane_shapes(pix_fmt, height, width)]
    outputs = direct.wrap_outputs(arrays)
    reformatter = VideoReformatter()
    for row, frame in enumerate(frames):
        direct.convert_into(frame, outputs, row)
    direct.close()
    for row, frame in enumerate(frames):
        if pix_fmt == "yuv420p" and frame.format.name == "yuvj420p" and size is None:
            done = frame
        else:
            done = reformatter.reformat(frame, width, height, pix_fmt, threads=1)
        for array, plane in zip(arrays, done.planes, strict=True):
            wanted = np.frombuffer(plane, np.uint8).reshape(array.shape[1], plane.line_size)
            assert np.array_equal(array[row].reshape(array.shape[1], -1), wanted[:, : array.shape[2] * array.shape[3]])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    done = {}

    def make(name):
        if name not in done:
            done[name] = VARIANTS[name](folder)
        return done[name]

    return make


@pytest.mark.skipif(not is_scaler_available(), reason="PyAV's libswscale cannot be called directly here")
@pytest.mark.parametrize("pix_fmt", ["rgb24", "rgbp"])
@pytest.mark.parametrize(("size", "siting"), [((272, 640), None), ((224, 224), (0, 128)), ((136, 320), (0, 128))])
def test_ordinary_video_is_converted_directly(clips, pix_fmt, size, siting):
    """libswscale writes into the output, with the siting that FFmpeg's H.264 decoder reports."""
    converter = Converter(pix_fmt, *size)
    arrays = converter.split_planes([_aligned(4, *size, 3) if pix_fmt == "rgb24" else _aligned(4, 3, *size)])
    outputs = converter.wrap_outputs(arrays)
    for row, frame in enumerate(linear_decode(clips["bikes"])[:4]):
        converter.convert_into(frame, outputs, row)
    assert converter.is_direct
    assert converter._direct is not None
    assert converter._direct.siting == siting
    converter.close()


@pytest.mark.skipif(not is_scaler_available(), reason="PyAV's libswscale cannot be called directly here")
def test_flat_frames_decide_nothing():
    """A siting is not chosen while frames do not distinguish it from others: a later frame might."""
    converter = Converter("rgb24", 24, 32)
    outputs = converter.wrap_outputs([_aligned(1, 24, 32, 3)])
    for _ in range(20):
        converter.convert_into(flat_yuv(120, 100, 150, 48, 64), outputs, 0)
        assert not converter.is_direct
    for number in range(20):
        converter.convert_into(moving_frame(number, 48, 64), outputs, 0)
    assert converter.is_direct
    converter.close()


@pytest.mark.skipif(not is_scaler_available(), reason="PyAV's libswscale cannot be called directly here")
def test_a_scaler_that_differs_or_overruns_is_never_used(monkeypatch):
    frame = moving_frame(1, 48, 64)
    wanted = converted(frame, "rgb24", 48, 64, allow_direct=False)[0]
    real = Scaler.run
    convert._candidate_sitings.cache_clear()

    def one_bit_off(self, planes, targets):
        done = real(self, planes, targets)
        at = (targets[0][0], 48 * 64 * 3 - 1)
        memory = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * (at[1] + 1)).from_address(at[0]))
        memory[at[1]] ^= 1
        return done

    def one_byte_over(self, planes, targets):
        done = real(self, planes, targets)
        memory = (np.ctypeslib.ctypes.c_uint8 * (48 * 64 * 3 + 1)).from_address(targets[0][0])
        memory[48 * 64 * 3] ^= 0xFF
        return done

    for broken in (one_bit_off, one_byte_over, lambda *a: False):
        monkeypatch.setattr(Scaler, "run", broken)
        convert._candidate_sitings.cache_clear()
        converter = Converter("rgb24", 48, 64)
        memory = _aligned(2, 48, 64, 3)
        converter.convert_into(frame, converter.wrap_outputs([memory]), 0)
        assert not converter.is_direct
        assert np.array_equal(memory[0], wanted)
        assert not memory[1].any()
        converter.close()
    convert._candidate_sitings.cache_clear()


def test_without_the_library_frames_are_copied(monkeypatch, clips):
    frame = linear_decode(clips["carphone_pristine"])[5]
    with_it = converted(frame, "rgb24", 90, 100)
    monkeypatch.setattr(convert, "is_scaler_available", lambda: False)
    assert np.array_equal(converted(frame, "rgb24", 90, 100), with_it)
    monkeypatch.setattr(swscale, "_load_libraries", lambda: None)
    with pytest.raises(ValueError, match="not reachable"):
        Scaler(ScalerConfig("yuv420p", 64, 48, 2, 0, "rgb24", 64, 48))


def test_outputs_that_are_not_packed_or_aligned_are_filled_by_copying():
    frame = moving_frame(2, 48, 64)
    (wanted,) = converted(frame, "rgb24", 48, 64)
    wide = np.zeros((2, 48, 80, 3), np.uint8)
    crooked = np.zeros(2 * 48 * 64 * 3 + 64, np.uint8)
    start = -crooked.ctypes.data % 64 + 1
    for array in (wide[:, :, 8:72], crooked[start : start + 2 * 48 * 64 * 3].reshape(2, 48, 64, 3)):
        assert not OutputArray.wrap(array).direct
        converter = Converter("rgb24", 48, 64)
        converter.convert_into(frame, converter.wrap_outputs([array]), 1)
        assert np.array_equal(array[1], wanted)
        assert not array[0].any()
        converter.close()
    assert not wide[:, :, :8].any()
    assert not wide[:, :, 72:].any()


def test_a_frame_of_another_kind_in_between_changes_the_conversion():
    """Resolution, format and matrix may change within a file."""
    converter = Converter("rgb24", 48, 64)
    memory = _aligned(1, 48, 64, 3)
    outputs = converter.wrap_outputs([memory])
    other = moving_frame(4, 96, 128, "yuv444p")
    tagged = moving_frame(5, 48, 64)
    tagged.colorspace, tagged.color_range = 1, FULL
    for frame in (moving_frame(3, 48, 64), other, tagged, moving_frame(3, 48, 64)):
        converter.convert_into(frame, outputs, 0)
        assert np.array_equal(memory[0], converted(frame, "rgb24", 48, 64, allow_direct=False)[0])
    converter.close()


@pytest.mark.parametrize(
    "orientation", [Orientation(False, True, True), Orientation(True, True, False), Orientation(True, False, True)]
)
@pytest.mark.parametrize("pix_fmt", ["rgb24", "gray", "yuv420p"])
def test_frames_are_turned_upright_after_the_conversion(orientation, pix_fmt):
    frame = moving_frame(6, 48, 64)
    upright = converted(frame, pix_fmt, 24, 32)
    turned = converted(frame, pix_fmt, *orientation.apply_to_size(24, 32), orientation)
    for before, after in zip(upright, turned, strict=True):
        assert np.array_equal(after, orientation.apply_to_image(before))


def test_frames_stored_bottom_up_are_read_from_the_right_end():
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)

    class Plane:
        line_size = -18
        buffer_ptr = picture.ctypes.data + 3 * 18

    assert np.array_equal(view_plane(Plane, 4, 6, 3), picture[::-1])


def _aligned(*shape):
    size = int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].reshape(shape)


def test_the_library_that_pyav_has_loaded_is_called():
    if not is_scaler_available():
        pytest.skip("PyAV's libswscale cannot be called directly here")
    libraries = swscale._load_libraries()
    assert libraries is not None
    version = libraries[0].swscale_version()
    assert (version >> 16, version >> 8 & 255, version & 255) == av.library_versions["libswscale"]


def triangle_filter(samples, length, shift=0.0):
    """Return the matrix that scales bilinearly, with a triangle as wide as the scale where it shrinks."""
    scale = samples / length
    centre = (np.arange(length)[:, None] + 0.5) * scale - 0.5 + shift
    index = np.arange(-8, samples + 8)
    weights = np.maximum(0, 1 - np.abs(index - centre) / max(scale, 1))
    matrix = np.zeros((length, samples))
    np.add.at(matrix.T, np.clip(index, 0, samples - 1), weights.T)
    return matrix / matrix.sum(axis=1, keepdims=True)


def scaled_exactly(frame, height, width):
    """Scale a frame of BT.601 in limited range with real numbers. Its chroma is sited left, as in H.264."""
    y, u, v = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes)
    luma = (triangle_filter(len(y), height) @ y @ triangle_filter(y.shape[1], width).T - 16) / 219
    rows, columns = triangle_filter(len(u), height), triangle_filter(u.shape[1], width, 0.25).T
    blue, red = ((rows @ plane @ columns - 128) / 224 for plane in (u, v))
    r, b = luma + 1.402 * red, luma + 1.772 * blue
    return np.clip(255 * np.stack([r, (luma - 0.299 * r - 0.114 * b) / 0.587, b], axis=-1), 0, 255)


def test_planar_rgb_is_more_exact_than_packed_rgb_when_it_is_scaled(clips):
    frame = linear_decode(clips["bikes"])[20]
    exact = scaled_exactly(frame, 224, 224)
    packed = converted(frame, "rgb24", 224, 224)[0].astype(float)
    planar = np.concatenate(converted(frame, "gbrp", 224, 224), axis=-1)[..., [2, 0, 1]].astype(float)
    errors = [10 * np.log10(255**2 / np.square(one - other).mean()) for one, other in
              ((packed, exact), (planar, exact), (planar, packed))]  # fmt: skip
    assert 42 < errors[0] < 46
    assert errors[1] > 57
    assert errors[2] > 42
