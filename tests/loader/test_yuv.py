"""YUV batches become the RGB that FFmpeg makes of the same files."""

from __future__ import annotations

import itertools

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from ffmpeg_program import run
from made_clips import VARIANTS, as_rgb, linear_decode, make_clip, moving_frame

import streamloader as sl
from streamloader.loader import yuv
from streamloader.loader.yuv import yuv_to_rgb
from streamloader.media.video import swscale
from streamloader.testing import describe_streams, read_stream

LIMITED, FULL = 1, 2  # of FFmpeg
MATRICES = (1, 2, 4, 5, 6, 7, 9)


def noise_frame(height, width, matrix, color_range, low=0, high=256):
    random = np.random.default_rng((height, width, matrix, color_range))
    frame = av.VideoFrame(width, height, "yuv420p")
    frame.colorspace, frame.color_range = matrix, color_range
    for plane in frame.planes:
        plane.update(random.integers(low, high, plane.buffer_size, np.uint8).tobytes())
    return frame


def planes_of(*frames):
    """Return y, u and v of some frames of one size, each (n, 1, H, W)."""
    stored = [
        [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
        for frame in frames
    ]
    return [torch.from_numpy(np.stack(planes)[:, None]) for planes in zip(*stored, strict=True)]


def by_pyav(frame, height, width):
    done = VideoReformatter().reformat(frame, width, height, "rgb24", threads=1)
    return torch.from_numpy(done.to_ndarray()).permute(2, 0, 1)


def psnr(one, other):
    error = (one.double() - other.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def largest_difference(one, other):
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 63), (2, 16), (63, 64), (101, 80), (241, 320)])
def test_frames_are_those_of_swscale_to_the_bit(height, width):
    """Noise, so that every value meets every other; even and odd heights are converted in different ways."""
    for matrix, color_range in itertools.product(MATRICES, (LIMITED, FULL)):
        frame = noise_frame(height, width, matrix, color_range)
        (got,) = yuv_to_rgb(*planes_of(frame), matrix, color_range == FULL)
        assert torch.equal(got, by_pyav(frame, height, width)), (matrix, color_range)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (101, 33)])
def test_frames_of_odd_height_and_width_are_within_one_level(height, width):
    """Noise without extremes, for which swscale's integers overflow."""
    for matrix, color_range in itertools.product(MATRICES, (LIMITED, FULL)):
        frame = noise_frame(height, width, matrix, color_range, 30, 220)
        (got,) = yuv_to_rgb(*planes_of(frame), matrix, color_range == FULL)
        assert largest_difference(got, by_pyav(frame, height, width)) <= 1, (matrix, color_range)


@pytest.mark.parametrize("height", [96, 97])
def test_frames_larger_than_a_block_have_no_seams(monkeypatch, height):
    frames = [noise_frame(height, 80, 1, LIMITED), noise_frame(height, 80, 9, FULL)]
    for block_px in (1, 80 * 30, 80 * 100, 1 << 20):
        monkeypatch.setattr(yuv, "_BLOCK_PX", block_px)
        got = yuv_to_rgb(*planes_of(*frames), torch.tensor([1, 9]), torch.tensor([False, True]))
        for frame, rgb in zip(frames, got, strict=True):
            assert torch.equal(rgb, by_pyav(frame, height, 80)), block_px


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("bikes", {(224, 224): 53, (112, 113): 50, (408, 960): 54, (409, 961): 50}),
        ("carphone_pristine", {(96, 96): 46, (288, 352): 47}),
    ],
)
def test_scaled_frames_are_close_to_swscale(clips, name, lowest):
    frame = linear_decode(clips[name])[20]
    for size, expected in lowest.items():
        (got,) = yuv_to_rgb(*planes_of(frame), size=size)
        assert psnr(got, by_pyav(frame, *size)) >= expected, size


@pytest.mark.parametrize("size", [None, (24, 32), (21, 33)])
def test_leading_axes_and_channel_axes(size):
    """Two lanes of three steps, whose matrix and range differ, in the axes that layouts can give them."""
    kinds = [(1, 1), (9, 1), (6, 1), (7, 0), (2, 0), (5, 1)]
    frames = [noise_frame(48, 64, matrix, full + 1) for matrix, full in kinds]
    y, u, v = (plane.view(2, 3, *plane.shape[1:]) for plane in planes_of(*frames))
    matrix, full_range = (torch.tensor(codes, dtype=torch.uint8).view(2, 3) for codes in zip(*kinds, strict=True))
    expected = torch.stack(
        [yuv_to_rgb(*planes_of(frame), *kind, size=size)[0] for frame, kind in zip(frames, kinds, strict=True)]
    ).view(2, 3, 3, *(size or (48, 64)))
    got = yuv_to_rgb(y, u, v, matrix, full_range, size)
    assert torch.equal(got, expected)
    assert got.is_contiguous()
    for order, channel_axis in [((0, 1, 3, 4, 2), -1), ((0, 2, 1, 3, 4), 1), ((0, 2, 1, 3, 4), -4)]:
        turned = yuv_to_rgb(
            *(plane.permute(order) for plane in (y, u, v)), matrix, full_range, size, channel_axis=channel_axis
        )
        assert torch.equal(turned, expected.permute(order))
    time_first = yuv_to_rgb(*(plane.transpose(0, 1) for plane in (y, u, v)), matrix.t(), full_range.t(), size)
    assert torch.equal(time_first, expected.transpose(0, 1))
    assert torch.equal(yuv_to_rgb(y[1, 2], u[1, 2], v[1, 2], 5, 1, size), expected[1, 2])  # one frame
    by_lane = yuv_to_rgb(y, u, v, torch.tensor([[1], [7]]), torch.tensor([[True], [False]]), size)
    assert torch.equal(by_lane[0, 0], expected[0, 0])
    assert torch.equal(by_lane[1, 0], expected[1, 0])
    assert yuv_to_rgb(y[:0], u[:0], v[:0], matrix[:0], 1, size).shape == (0, *expected.shape[1:])


def test_unknown_matrices_are_bt_601():
    planes = planes_of(noise_frame(16, 16, 6, LIMITED))
    for matrix in (0, 2, 3, 11, 15, 255):
        assert torch.equal(yuv_to_rgb(*planes, matrix), yuv_to_rgb(*planes, 6))
        assert torch.equal(yuv_to_rgb(*planes, torch.tensor(matrix)), yuv_to_rgb(*planes, 6))


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (17, 17)])
def test_ycgco_is_that_of_its_definition(height, width, full_range):
    """ITU-T H.273, equations 46 to 51, in exact arithmetic. FFmpeg does not convert it."""
    torch.manual_seed(0)
    y, u, v = (torch.randint(0, 256, (1, 1, rows, columns), dtype=torch.uint8) for rows, columns in (
        (height, width), *[((height + 1) // 2, (width + 1) // 2)] * 2))  # fmt: skip
    u[:], v[:] = u[..., :1, :1], v[..., :1, :1]  # one colour, so that it does not matter how chroma is interpolated
    luma = y.double() if full_range else (y.double() - 16) * 255 / 219
    green, orange = ((plane[..., :1, :1].double() - 128) * (1 if full_range else 255 / 224) for plane in (u, v))
    expected = torch.cat([luma - green + orange, luma + green, luma - green - orange], dim=1).round().clamp(0, 255)
    for matrix in (8, torch.tensor([8])):
        got = yuv_to_rgb(y, u, v, matrix, full_range).double()
        assert (got - expected).abs().max() <= 3  # as libswscale rounds for any matrix
    mixed = yuv_to_rgb(*(plane.repeat(2, 1, 1, 1) for plane in (y, u, v)), torch.tensor([8, 1]), full_range)
    assert torch.equal(mixed[:1], yuv_to_rgb(y, u, v, 8, full_range))
    assert torch.equal(mixed[1:], yuv_to_rgb(y, u, v, 1, full_range))


def test_a_file_in_ycgco_is_converted_from_its_planes(tmp_path):
    run("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=5:duration=1", "-c:v", "libx264", tmp_path / "coded.mp4")
    path = tmp_path / "ycgco.mp4"
    run("-i", tmp_path / "coded.mp4", "-c", "copy", "-bsf:v", "h264_metadata=matrix_coefficients=8", path)
    with sl.MultiStreamer(sl.VideoStreams(path, pix_fmt="yuv420p"), 1, 5) as loader:
        (batch,) = loader
        assert set(batch["matrix"].flatten().tolist()) == {8}
        planes = [batch[name].movedim(-1, -3) if batch[name].shape[-1] == 1 else batch[name] for name in "yuv"]
        assert torch.equal(batch.rgb(), yuv_to_rgb(*planes, 8, 0))


@pytest.mark.skipif(not swscale.is_scaler_available(), reason="PyAV's libswscale cannot be called directly here")
def test_coefficients_are_those_of_the_library():
    libraries = swscale._load_libraries()
    assert libraries is not None
    for matrix in range(13):
        stored = np.ctypeslib.as_array(
            (np.ctypeslib.ctypes.c_int * 4).from_address(libraries[0].sws_getCoefficients(matrix))
        )
        red_v, green_v, blue_u, green_u = yuv._CHROMA.get(matrix, yuv._BT601)
        assert [red_v, blue_u, -green_u, -green_v] == stored.tolist()


def test_planes_that_do_not_fit():
    y, u, v = planes_of(noise_frame(16, 16, 6, LIMITED))
    for planes, more in [
        ((y, u, v[..., :4]), {}),
        ((y[0, 0], u[0, 0], v[0, 0]), {}),
        ((y, u, v), {"channel_axis": -1}),
        ((y, u, v), {"channel_axis": 7}),
        ((y.float(), u, v), {}),
        ((y.expand(1, 3, 16, 16), u, v), {}),
    ]:
        with pytest.raises(sl.ConfigError, match=r"expected planes of YUV 4:2:0 frames, uint8 \(..., 1, H, W\)"):
            yuv_to_rgb(*planes, **more)
    with pytest.raises(sl.ConfigError, match=r"must broadcast to the leading axes \(1,\), got \(2,\)"):
        yuv_to_rgb(y, u, v, torch.tensor([1, 2]))
    with pytest.raises(sl.ConfigError, match="matrix must be integers"):
        yuv_to_rgb(y, u, v, torch.tensor([1.0]))
    with pytest.raises(sl.ConfigError, match="size must be"):
        yuv_to_rgb(y, u, v, size=(0, 4))


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files whose matrix and range differ, in the file or by their codec, with odd sizes too."""
    folder = tmp_path_factory.mktemp("clips")

    def tag(matrix, color_range):
        def prepare(stream):
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range

        def picture(number):
            frame = moving_frame(number, 48, 64)
            frame.colorspace, frame.color_range = matrix, color_range
            return frame

        name = folder / f"{matrix}-{color_range}.mp4"
        return make_clip(name, frames=7, options={"qp": "0"}, picture=picture, prepare=prepare)

    return {
        (1, 0): tag(1, LIMITED),
        (9, 1): tag(9, FULL),
        (7, 0): tag(7, LIMITED),
        (6, 0): make_clip(folder / "plain.mp4", frames=11),
        (5, 1): make_clip(folder / "mjpeg.avi", "mjpeg", frames=6, pix_fmt="yuvj420p"),
    }


def test_each_step_carries_the_matrix_and_range_of_its_file(files):
    for coding, path in files.items():
        for size in (None, (24, 32)):
            dataset = sl.VideoStreams(path, size=size, pix_fmt="yuv420p")
            played = read_stream(dataset, describe_streams(dataset)[0])
            assert set(zip(played["matrix"].tolist(), played["range"].tolist(), strict=True)) == {coding}


@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [("vp9.webm", None, 0), ("odd_size.mkv", None, 1), ("rotated.mp4", None, 0), ("odd_size_444.mp4", (48, 64), 255)],
)
def test_rgb_of_a_file_is_that_of_pyav(tmp_path, name, size, tolerance):
    dataset = sl.VideoStreams(VARIANTS[name](tmp_path), size=size, pix_fmt="yuv420p")
    played = {key: torch.from_numpy(array) for key, array in read_stream(dataset, describe_streams(dataset)[0]).items()}
    got = yuv_to_rgb(*played.values(), channel_axis=-1)
    expected = as_rgb(linear_decode(tmp_path / name), **({} if size is None else {"height": 48, "width": 64}))
    if name == "rotated.mp4":
        expected = np.rot90(expected, axes=(1, 2))
    assert largest_difference(got, torch.from_numpy(expected.copy())) <= tolerance


def batches(paths, pix_fmt, **options):
    dataset = sl.VideoStreams(paths, pix_fmt=pix_fmt)
    with sl.MultiStreamer(dataset, 3, 4, seed=5, timeout=60.0, **options) as loader:
        yield from loader


@pytest.mark.parametrize("layout", ["BTCHW", "TBHWC", "BCTHW", None])
def test_a_batch_in_rgb_is_the_batch_of_rgb_frames(files, layout):
    """Streams of all kinds in one batch, and padding, which is black in both."""
    paths = list(files.values())
    padding = 0
    for got, expected in zip(
        batches(paths, "yuv420p", layout=layout), batches(paths, "rgb24", layout=layout), strict=True
    ):
        assert torch.equal(got.rgb(), expected.data)
        assert got.rgb().stride() == got.rgb().contiguous().stride() or layout != "BTCHW"
        padding += int((~got.valid).sum())
        moved = got.clone()
        assert torch.equal(moved.rgb((24, 32)), got.rgb((24, 32)))
    assert padding


def test_padding_is_black_in_an_unspecified_matrix(files):
    (batch, *_) = batches([files[1, 0]], "yuv420p")
    padding = ~batch.valid
    assert padding.sum() == 8
    assert batch["matrix"][padding].tolist() == [2] * 8
    assert batch["range"][padding].tolist() == [0] * 8
    assert not batch.rgb()[padding].any()
    assert not batch.rgb((40, 40))[padding].any()


def test_batches_without_planes_have_no_rgb(files):
    (batch, *_) = batches([files[1, 0]], "rgb24")
    with pytest.raises(
        sl.ConfigError, match=r"pix_fmt='yuv420p', but this batch has no field 'y', 'u', .*; it has data"
    ):
        batch.rgb()
