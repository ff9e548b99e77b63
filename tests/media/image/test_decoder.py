"""Still images are decoded to the pixels of Pillow, upright, at any size, and damage is an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from image_data import encode, make_pixels, psnr
from PIL import Image, ImageOps

from streamloader.errors import CorruptStream, FrameSizeError, MediaLimitExceeded, UnreadableStream
from streamloader.media.image.decoder import EncodedImage, ImageDecoder

PIXELS = make_pixels(2, 96, 128)
SHAPES = {"rgb24": "{0} {1} 3", "gray": "{0} {1} 1", "rgbp": "3 {0} {1}"}


def decode(data, size=(96, 128), pix_fmt="rgb24", *, scales=True, max_pixels=1 << 20):
    """Return the pixels (H, W, C) of one image."""
    decoder = ImageDecoder(pix_fmt, *size, max_pixels, scales=scales)
    shape = [int(part) for part in SHAPES[pix_fmt].format(*size).split()]
    out = np.zeros((2, *shape), np.uint8)
    try:
        decoder.convert_into(
            EncodedImage(data, "a.img", "key", 7), decoder.wrap_outputs(decoder.split_planes([out])), 1
        )
    finally:
        decoder.close()
    assert not out[0].any()
    return out[1].transpose(1, 2, 0) if pix_fmt == "rgbp" else out[1]


def smooth(size):
    return np.asarray(Image.fromarray(PIXELS).resize(size[::-1], Image.Resampling.BILINEAR))


FORMATS = [
    ("JPEG", {"quality": 97, "subsampling": 0}),
    ("JPEG", {"quality": 97, "subsampling": 0, "progressive": True}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_deflate"}),
    ("TIFF", {"big_tiff": True}),
    ("BMP", {}),
]


@pytest.mark.parametrize(("format_", "options"), FORMATS)
def test_pixels_are_those_of_the_file(format_, options):
    data = encode(PIXELS, format_, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for pix_fmt in ("rgb24", "rgbp"):
        got = decode(data, pix_fmt=pix_fmt, scales=False)
        assert psnr(got, expected) > (48 if format_ == "JPEG" else 98), pix_fmt
    assert psnr(decode(data, pix_fmt="gray")[..., 0], Image.fromarray(PIXELS).convert("L")) > 36


@pytest.mark.parametrize("size", [(96, 128), (48, 64), (40, 51), (30, 30), (12, 16), (5, 7), (100, 200)])
def test_sizes(size):
    image = Image.fromarray(PIXELS).filter(__import__("PIL.ImageFilter").ImageFilter.GaussianBlur(4))
    expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    for format_, options in (("JPEG", {"quality": 97}), ("PNG", {})):
        for pix_fmt in ("rgb24", "rgbp"):
            got = decode(encode(image, format_, **options), size, pix_fmt)
            assert psnr(got, expected) > 28, (format_, pix_fmt)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_colours_of_all_kinds(mode, format_):
    image = Image.fromarray(PIXELS).convert(mode)
    try:
        data = encode(image, format_, **({"quality": 97} if format_ in ("JPEG", "WEBP") else {}))
    except (OSError, ValueError, KeyError):
        pytest.skip("Pillow cannot write it")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert psnr(decode(data), expected) > (15 if mode == "1" and format_ in ("JPEG", "WEBP") else 25)


def test_planes_of_a_jpeg_are_those_of_its_decoder():
    data = encode(PIXELS, "JPEG", quality=97, subsampling="4:2:0")
    decoder = ImageDecoder("yuv420p", 96, 128, 1 << 20, scales=False)
    planes = [np.zeros((1, *shape, 1), np.uint8) for shape in ((96, 128), (48, 64), (48, 64))]
    decoder.convert_into(EncodedImage(data, "a", "key", 0), decoder.wrap_outputs(planes), 0)
    decoder.close()
    assert decoder.coding == (5, 1)  # BT.601 and full range, as JFIF says
    luma, *chroma = (np.asarray(plane) for plane in Image.open(io.BytesIO(data)).convert("YCbCr").split())
    assert psnr(planes[0][0, ..., 0], luma) > 45
    for plane, expected in zip(planes[1:], chroma, strict=True):
        assert psnr(plane[0, ..., 0], expected[::2, ::2]) > 30


def test_sixteen_bits_are_scaled_and_not_cut():
    wide = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    for format_ in ("PNG", "TIFF"):
        got = decode(encode(wide, format_))
        assert np.abs(got[..., 0].astype(int) - PIXELS[..., 0]).max() <= 1, format_


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(format_):
    for value in range(1, 9):
        exif = Image.Exif()
        exif[274] = value
        data = encode(PIXELS, format_, exif=exif, **({"quality": 97} if format_ in ("JPEG", "WEBP") else {}))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        size = (expected.height, expected.width)
        for pix_fmt in ("rgb24", "rgbp"):
            assert psnr(decode(data, size, pix_fmt, scales=False), expected) > 30, (value, pix_fmt)
        half = decode(data, (size[0] // 2, size[1] // 2))
        assert psnr(half, expected.resize((size[1] // 2, size[0] // 2), Image.Resampling.BOX)) > 22, value


@pytest.mark.parametrize(("format_", "options"), FORMATS)
@pytest.mark.parametrize("size", [(96, 128), (24, 32)])
def test_a_truncated_image_is_an_error(format_, options, size):
    data = encode(PIXELS, format_, **options)
    for end in (len(data) // 2, len(data) - 20):
        with pytest.raises(CorruptStream, match=r"a\.img cannot be decoded: .*damaged=") as caught:
            decode(data[:end], size)
        assert (caught.value.stream, caught.value.address, caught.value.offset) == ("key", "a.img", 7)


def test_images_do_not_depend_on_those_before_them():
    decoder = ImageDecoder("rgb24", 96, 128, 1 << 20, scales=False)
    out = np.zeros((3, 96, 128, 3), np.uint8)
    outputs = decoder.wrap_outputs([out])
    for row, seed in enumerate((3, 4, 3)):
        decoder.convert_into(EncodedImage(encode(make_pixels(seed, 96, 128)), "a", "key", row), outputs, row)
    decoder.close()
    assert [np.array_equal(out[row], make_pixels(seed, 96, 128)) for row, seed in enumerate((3, 4, 3))] == [True] * 3


def test_padding_that_cameras_write_is_no_damage():
    data = encode(PIXELS, "JPEG")
    assert np.array_equal(decode(data[:-2] + b"\0\0\0" + data[-2:]), decode(data))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_large_images_are_refused_before_they_are_decoded(format_):
    with pytest.raises(MediaLimitExceeded, match="max_pixels"):
        decode(encode(PIXELS, format_), max_pixels=96 * 128 - 1)
    decode(encode(PIXELS, format_), max_pixels=96 * 128)


def test_a_bomb_is_refused_by_its_header():
    data = bytearray(encode(PIXELS, "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(MediaLimitExceeded):
        decode(bytes(data))


def test_the_limit_of_pillow_is_no_damage(monkeypatch):
    """It is lower than `max_pixels` can be."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 128 // 3)
    with pytest.raises(MediaLimitExceeded, match="limit of Pillow"):
        decode(encode(PIXELS, "TIFF"))


def test_other_sizes_are_an_error_if_images_are_not_scaled():
    for format_ in ("JPEG", "PNG"):
        with pytest.raises(FrameSizeError, match=r"a\.img is 96x128 .*others are 96x127.*size="):
            decode(encode(PIXELS, format_), (96, 127), scales=False)


def test_other_types_of_pixels_are_refused():
    with pytest.raises(UnreadableStream, match="8 or 16 bits"):
        decode(encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"))
