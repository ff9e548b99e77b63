"""Animations: frames and times are those of the file."""

from __future__ import annotations

import numpy as np
import pytest
from image_data import encode_animation, make_pixels, psnr

from streamloader.errors import CorruptStream
from streamloader.media.image.animation import AnimationReader
from streamloader.media.image.headers import InvalidImage, parse_header
from streamloader.media.image.timing import read_times

FRAMES = [make_pixels(seed) for seed in range(5)]
DELAYS = [40, 100, 10, 20, 250]


def open_reader(data, frames):
    return AnimationReader(data, parse_header(data), frames, name="a", stream="key", max_pixels=1 << 20)


def milliseconds(times):
    return [*(times.pts / 1e6).tolist(), times.end / 1e6]


@pytest.mark.parametrize(("format_", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
def test_frames_and_times(format_, options):
    data = encode_animation(FRAMES, format_, DELAYS, **options)
    times = read_times(data, parse_header(data))
    shown = [100 if format_ == "GIF" and delay < 20 else delay for delay in DELAYS]  # as FFmpeg and browsers do
    assert milliseconds(times) == pytest.approx([sum(shown[:end]) for end in range(6)])
    reader = open_reader(data, 5)
    for number in (0, 1, 2, 3, 4, 1, 4, 0, 0, 3):
        got = reader.read_frame(number).to_ndarray()
        assert psnr(got, FRAMES[number]) > (20 if format_ == "GIF" else 98), number
    reader.close()


def test_a_still_image_for_other_programs_is_no_frame():
    data = encode_animation(FRAMES, "PNG", 50, default_image=True)
    times = read_times(data, parse_header(data))
    assert milliseconds(times) == pytest.approx([0, 50, 100, 150, 200])
    reader = open_reader(data, 4)
    assert np.array_equal(reader.read_frame(0).to_ndarray(), FRAMES[1])
    reader.close()


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF"])
def test_a_truncated_file_has_the_frames_before(format_):
    data = encode_animation(FRAMES, format_, DELAYS)
    cut = data[: len(data) * 2 // 3]
    with pytest.raises(InvalidImage, match="truncated"):
        read_times(cut, parse_header(cut))
    assert 0 < len(read_times(cut, parse_header(cut), tolerant=True)) < 5


def test_padding_between_blocks_of_a_gif_is_no_damage():
    data = encode_animation(FRAMES, "GIF", DELAYS)
    padded = data[:-1] + b"\0\0" + data[-1:]
    assert milliseconds(read_times(padded, parse_header(padded))) == milliseconds(read_times(data, parse_header(data)))


def test_damage_is_an_error_that_names_the_frame():
    data = bytearray(encode_animation(FRAMES, "PNG", DELAYS))
    position = data.index(b"fdAT") + 20  # of frame 1
    data[position : position + 4] = b"\xff" * 4
    reader = open_reader(bytes(data), 5)
    assert np.array_equal(reader.read_frame(0).to_ndarray(), FRAMES[0])
    with pytest.raises(CorruptStream, match="damaged at frame 1") as caught:
        reader.read_frame(1)
    assert caught.value.offset == 1
    reader.close()
