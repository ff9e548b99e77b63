"""Take PIL images apart into plain values, and build them again with exactly the same pixels.

The pixels are those of ``Image.tobytes()``: rows from top to bottom, without padding; multi-band pixels interleaved.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from streamloader.errors import MissingDependency

__all__ = ["MalformedImage", "PackedImage", "pack_image", "unpack_image"]

_PIXEL_BYTES: Final = {
    "L": 1,
    "P": 1,
    "LA": 2,
    "La": 2,
    "PA": 2,
    "I;16": 2,
    "I;16L": 2,
    "I;16B": 2,
    "I;16N": 2,
    "RGB": 3,
    "YCbCr": 3,
    "LAB": 3,
    "HSV": 3,
    "RGBA": 4,
    "RGBa": 4,
    "RGBX": 4,
    "CMYK": 4,
    "I": 4,
    "F": 4,
}  # and "1", with 8 pixels in a byte
_PALETTE_COLOR_BYTES: Final = {"RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4}
_MAX_COLORS: Final = 256
_MAX_SIDE: Final = (1 << 31) - 1
_MAX_EMPTY_SIDE: Final = (1 << 16) - 1  # each row takes memory, also if it has no pixels


class MalformedImage(Exception):
    """There is no such image, or it cannot be encoded."""


class PackedImage(NamedTuple):
    """An image as plain values.

    Attributes:
        mode: Mode of the image, such as "RGB".
        width: Width in pixels.
        height: Height in pixels.
        palette_mode: Mode of the colors of the palette. Empty for images without a palette.
        palette: Colors of the palette.
        info: Entries of the image's ``info``.
        pixels: Pixels, see above.
    """

    mode: str
    width: int
    height: int
    palette_mode: str
    palette: bytes
    info: dict[Any, Any]
    pixels: bytes


def pack_image(image: Any) -> PackedImage:
    """Take an image apart. Of an animation, that is the current frame.

    Raises:
        MalformedImage: If the mode of the image cannot be encoded.
    """
    image.load()
    palette_mode, palette = "", b""
    if image.mode in ("P", "PA"):
        palette_mode = image.im.getpalettemode()
        palette = image.im.getpalette(palette_mode, palette_mode)
    width, height = image.size
    pixels = image.tobytes()
    _check_image(image.mode, (width, height), pixels, palette_mode, palette)
    return PackedImage(image.mode, width, height, palette_mode, palette, dict(image.info), pixels)


def unpack_image(
    mode: str, size: tuple[int, int], pixels: bytes, palette_mode: str, palette: bytes, info: dict[Any, Any]
) -> Any:
    """Build an image. Nothing is allocated before all sizes have been checked.

    Raises:
        MalformedImage: If the values do not describe an image.
        MissingDependency: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover - the tests have it
        raise MissingDependency("images need Pillow: pip install streamloader[images]") from error
    _check_image(mode, size, pixels, palette_mode, palette)
    try:
        image = Image.frombytes(mode, size, pixels)
        if palette_mode:
            image.putpalette(palette, palette_mode)
    except (ValueError, TypeError, OverflowError, MemoryError, OSError):
        raise MalformedImage(f"Pillow has no image of mode {mode!r} and size {size}") from None
    image.info = info
    return image


def _check_image(mode: str, size: tuple[int, int], pixels: bytes, palette_mode: str, palette: bytes) -> None:
    width, height = size
    if not (0 <= width <= _MAX_SIDE and 0 <= height <= _MAX_SIDE):
        raise MalformedImage(f"an image of the impossible size {size}")
    if not width * height and max(size) > _MAX_EMPTY_SIDE:
        raise MalformedImage(f"an image without pixels of the size {size}")
    if mode != "1" and mode not in _PIXEL_BYTES:
        raise MalformedImage(f"the mode {mode[:20]!r} is not supported")
    needed = height * ((width + 7) // 8) if mode == "1" else width * height * _PIXEL_BYTES[mode]
    if len(pixels) != needed:
        raise MalformedImage(f"an image of mode {mode} and size {size} with {len(pixels)} bytes of pixels")
    if (mode in ("P", "PA")) != bool(palette_mode):
        raise MalformedImage(f"an image of mode {mode} {'with' if palette_mode else 'without'} a palette")
    if palette_mode:
        color_bytes = _PALETTE_COLOR_BYTES.get(palette_mode)
        if color_bytes is None or len(palette) % color_bytes or len(palette) > _MAX_COLORS * color_bytes:
            raise MalformedImage(f"a palette of mode {palette_mode[:20]!r} with {len(palette)} bytes")
