"""Headers of images: sizes and orientations are those of Pillow, and no bytes make the parser fail otherwise."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_data import encode, encode_animation, make_pixels
from PIL import Image, ImageOps

from streamloader.media.image.headers import IncompleteImage, InvalidImage, parse_header
from streamloader.media.image.timing import read_times

PIXELS = make_pixels(1, 20, 30)
FILES = {
    "jpeg": encode(PIXELS, "JPEG"),
    "progressive": encode(PIXELS, "JPEG", progressive=True),
    "png": encode(PIXELS, "PNG"),
    "webp": encode(PIXELS, "WEBP"),
    "lossless webp": encode(PIXELS, "WEBP", lossless=True),
    "gif": encode(PIXELS, "GIF"),
    "tiff": encode(PIXELS, "TIFF"),
    "bmp": encode(PIXELS, "BMP"),
    "animated png": encode_animation([PIXELS, 255 - PIXELS], "PNG", [40, 60]),
    "animated webp": encode_animation([PIXELS, 255 - PIXELS], "WEBP", [40, 60]),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_and_sizes(name):
    header = parse_header(FILES[name])
    assert header.format == name.split()[-1].replace("progressive", "jpeg")
    assert (header.height, header.width) == (20, 30)
    assert header.is_animation == (name.startswith("animated") or name == "gif")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_are_those_of_exif(format_):
    for value in range(1, 9):
        exif = Image.Exif()
        exif[274] = value
        data = encode(PIXELS, format_, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert parse_header(data).upright_size == (upright.height, upright.width)


def test_a_header_after_a_long_comment_is_found():
    data = encode(PIXELS, "JPEG", comment=b"x" * 60_000)
    with pytest.raises(IncompleteImage):
        parse_header(data[:50_000])
    assert parse_header(data[:62_000]).width == 30


@pytest.mark.parametrize(
    "data", [b"", b"GIF8", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WAVEfmt ", b"junk" * 9, b"\xff\xd8\xff\xd9"]
)
def test_other_bytes_are_no_image(data):
    with pytest.raises(InvalidImage):
        parse_header(data)


@given(st.sampled_from(sorted(FILES)), st.data())
def test_damage_is_an_invalid_image_or_another_header(name, data):
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        header = parse_header(content)
        times = read_times(content, header, tolerant=data.draw(st.booleans()))
    except InvalidImage:
        return
    assert header.width > 0
    assert header.height > 0
    assert len(times) > 0
