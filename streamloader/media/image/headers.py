"""Read format, size and orientation from the first bytes of an image, in Python: no native code sees them.

Sources of the layouts: ITU-T T.81 and Exif 2.3 (JPEG), the PNG specification (third edition, with APNG), RFC 9649
(WebP), TIFF 6.0 and BigTIFF, the GIF89a specification, and BITMAPINFOHEADER (BMP).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from streamloader.media.video.orientation import UPRIGHT, Orientation

__all__ = [
    "PNG_SIGNATURE", "ImageFormat", "ImageHeader", "IncompleteImage", "InvalidImage", "iterate_chunks", "parse_header",
]  # fmt: skip

ImageFormat: TypeAlias = Literal["jpeg", "png", "webp", "gif", "tiff", "bmp"]

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_EXIF_SIGNATURE: Final = b"Exif\0\0"
_EXIF_ORIENTATIONS: Final = {
    2: Orientation(False, False, True),
    3: Orientation(False, True, True),
    4: Orientation(False, True, False),
    5: Orientation(True, False, False),
    6: Orientation(True, False, True),
    7: Orientation(True, True, True),
    8: Orientation(True, True, False),
}
_TAG_WIDTH, _TAG_HEIGHT, _TAG_ORIENTATION = 256, 257, 274
_TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INTEGER_TYPES: Final = {3: "H", 4: "I", 16: "Q"}  # SHORT, LONG and LONG8
_MAX_TAGS: Final = 4096
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08  # flags of VP8X


class InvalidImage(ValueError):
    """The bytes are not an image of an accepted format, or are malformed."""


class IncompleteImage(InvalidImage):
    """The bytes end before the searched part."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Properties of an image that its first bytes declare.

    Attributes:
        format: Format of the file.
        width: Width in pixels, as stored.
        height: Height in pixels, as stored.
        orientation: Rotation and mirroring that turns it upright.
        is_animation: Whether the file holds several frames, or may hold them (GIF).
        is_ycbcr: Whether a JPEG has a luma component (gray or YCbCr), and not RGB or CMYK components.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: Orientation = UPRIGHT
    is_animation: bool = False
    is_ycbcr: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) in pixels after `orientation` is applied."""
        return self.orientation.apply_to_size(self.height, self.width)


def parse_header(data: bytes) -> ImageHeader:
    """Return the header of an image.

    Args:
        data: File, or its first bytes.

    Raises:
        IncompleteImage: If `data` ends within the header. More bytes may help.
        InvalidImage: If the format is not accepted, or the header is malformed.
    """
    try:
        header = _find_parser(data)(data)
    except (struct.error, IndexError) as error:
        raise IncompleteImage(f"it ends within its header, after {len(data)} bytes") from error
    if header.width < 1 or header.height < 1:
        raise InvalidImage(f"it declares a size of {header.width}x{header.height} (width x height)")
    return header


def iterate_chunks(data: bytes, start: int, *, little_endian: bool) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of the content of each chunk of a PNG, or of a WebP (little-endian), in its order.

    Raises:
        IncompleteImage: If `data` ends within a chunk.
    """
    position = start
    while position < len(data):
        if len(data) < position + 8:
            raise IncompleteImage(f"it is truncated: it ends at byte {len(data)}, within a chunk")
        if little_endian:
            kind, size = struct.unpack_from("<4sI", data, position)
            end = position + 8 + size
            following = end + size % 2
        else:
            size, kind = struct.unpack_from(">I4s", data, position)
            end = position + 8 + size
            following = end + 4  # a checksum
        yield kind, position + 8, end
        if end > len(data):
            raise IncompleteImage(f"it is truncated: it ends at byte {len(data)}, within a chunk that ends at {end}")
        position = following


def _find_parser(data: bytes) -> Callable[[bytes], ImageHeader]:
    for signature, parse in _PARSERS.items():
        if data.startswith(signature):
            if signature == b"RIFF" and data[8:12] != b"WEBP"[: max(0, len(data) - 8)]:
                break
            return parse
    if len(data) < 8 and any(signature.startswith(data) for signature in _PARSERS):
        raise IncompleteImage(f"it has only {len(data)} bytes")
    raise InvalidImage("it is not a JPEG, PNG, WebP, GIF, TIFF or BMP image")


def _parse_jpeg(data: bytes) -> ImageHeader:
    position, orientation, has_adobe_rgb = 2, UPRIGHT, False
    while True:
        if data[position] != 0xFF:
            raise InvalidImage(f"it has no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes
            position += 1
            continue
        if marker in (0xD9, 0xDA):
            raise InvalidImage("it has no frame header before its pixels")
        (size,) = struct.unpack_from(">H", data, position + 2)
        content = position + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, content + 1)
            is_ycbcr = components == 1 or (components == 3 and not has_adobe_rgb)
            return ImageHeader("jpeg", width, height, orientation, is_ycbcr=is_ycbcr)
        if marker == 0xE1 and data[content : content + 6] == _EXIF_SIGNATURE:
            orientation = _parse_orientation(data[content + 6 : position + 2 + size])
        elif marker == 0xEE and data[content : content + 5] == b"Adobe":
            has_adobe_rgb = data[content + 11] == 0
        position += 2 + size


def _parse_png(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise InvalidImage("it has no IHDR chunk")
    orientation, is_animation = UPRIGHT, False
    for kind, start, end in iterate_chunks(data, len(PNG_SIGNATURE), little_endian=False):
        if kind == b"acTL":
            is_animation = struct.unpack_from(">I", data, start)[0] > 1
        elif kind == b"eXIf":
            orientation = _parse_orientation(data[start:end])
        elif kind == b"IDAT":
            return ImageHeader("png", width, height, orientation, is_animation)
    raise IncompleteImage(f"it ends at byte {len(data)}, before its pixels")


def _parse_webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        if len(kind) < 4:
            raise IncompleteImage(f"it has only {len(data)} bytes")
        raise InvalidImage("it begins with no chunk of WebP")
    flags, width, height = data[20], _read_uint24(data, 24) + 1, _read_uint24(data, 27) + 1
    orientation = UPRIGHT
    if flags & _WEBP_EXIF:  # it may be the last chunk
        for name, start, end in iterate_chunks(data, 12, little_endian=True):
            if name == b"EXIF":
                orientation = _parse_orientation(data[start:end].removeprefix(_EXIF_SIGNATURE))
    return ImageHeader("webp", width, height, orientation, bool(flags & _WEBP_ANIMATED))


def _parse_gif(data: bytes) -> ImageHeader:
    if data[4:6] not in (b"7a", b"9a"):
        raise InvalidImage("it is not a GIF of a known version")
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", width, height, is_animation=True)


def _parse_bmp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return ImageHeader("bmp", width, abs(height))


def _parse_tiff(data: bytes) -> ImageHeader:
    tags = _read_tags(data)
    orientation = _EXIF_ORIENTATIONS.get(tags.get(_TAG_ORIENTATION, 1), UPRIGHT)
    return ImageHeader("tiff", tags.get(_TAG_WIDTH, 0), tags.get(_TAG_HEIGHT, 0), orientation)


def _parse_orientation(exif: bytes) -> Orientation:
    """Return the orientation in Exif data. Malformed data has none, as in other readers."""
    try:
        return _EXIF_ORIENTATIONS.get(_read_tags(exif).get(_TAG_ORIENTATION, 1), UPRIGHT)
    except (struct.error, InvalidImage):
        return UPRIGHT


def _read_tags(data: bytes) -> dict[int, int]:
    """Return the tags of the first directory of a TIFF or BigTIFF whose values are single integers."""
    if data[:4] not in _TIFF_SIGNATURES:
        raise InvalidImage("it is not a TIFF")
    order = "<" if data[:1] == b"I" else ">"
    is_big = b"+" in data[:4]
    count_format, pointer_format = ("Q", "Q") if is_big else ("H", "I")
    (start,) = struct.unpack_from(order + pointer_format, data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + count_format, data, start)
    entry = struct.Struct(f"{order}HH{pointer_format}")  # tag, type and number of values, which its values follow
    start += struct.calcsize(order + count_format)
    tags = {}
    for number in range(min(count, _MAX_TAGS)):
        position = start + number * (entry.size + struct.calcsize(order + pointer_format))
        tag, kind, _ = entry.unpack_from(data, position)
        if kind in _INTEGER_TYPES:
            (tags[tag],) = struct.unpack_from(order + _INTEGER_TYPES[kind], data, position + entry.size)
    return tags


def _read_uint24(data: bytes, position: int) -> int:
    low, high = struct.unpack_from("<HB", data, position)
    return int(low | high << 16)


_PARSERS: Final[dict[bytes, Callable[[bytes], ImageHeader]]] = {
    b"\xff\xd8": _parse_jpeg,
    PNG_SIGNATURE: _parse_png,
    b"RIFF": _parse_webp,
    b"GIF8": _parse_gif,
    **dict.fromkeys(_TIFF_SIGNATURES, _parse_tiff),
    b"BM": _parse_bmp,
}
