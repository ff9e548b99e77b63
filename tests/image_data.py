"""Images for tests, made with Pillow, and what they decode to."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def make_pixels(seed, height=24, width=32):
    """Return smooth RGB pixels (H, W, 3) that differ for each seed."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = (rows * 5 + seed * 29) % 256
    green = (columns * 4 + seed * 53) % 256
    return np.stack([red, green, (red + green) // 2], axis=-1).astype(np.uint8)


def encode(pixels, format_="PNG", **options):
    """Return an image file of these pixels (an array, or an image of Pillow)."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def encode_animation(frames, format_, durations, **options):
    """Return an animation file. `durations` are in milliseconds."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, format_, save_all=True, append_images=images[1:], duration=durations, loop=0, **options)
    return buffer.getvalue()


def write_folder(folder, count, *, first=0, ending="png", height=24, width=32, **options):
    """Write numbered images into a folder, and return their pixels (n, H, W, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    format_ = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}[ending]
    pixels = [make_pixels(first + number, height, width) for number in range(count)]
    for number, image in enumerate(pixels, first):
        (folder / f"{number:05d}.{ending}").write_bytes(encode(image, format_, **options))
    return np.stack(pixels)


def psnr(one, other):
    """Return the peak signal-to-noise ratio of two arrays of uint8 in dB."""
    error = np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))
