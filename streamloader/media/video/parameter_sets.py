"""Read parameter sets of H.264 and HEVC: the size of frames, and what H.264 says about their number and order."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Final, NamedTuple

from streamloader.media.video.bit_reader import BitReader

__all__ = [
    "SequenceParameters",
    "find_parameter_sets",
    "is_upright",
    "nal_length_size",
    "read_parameter_sets",
    "split_units",
    "unescape",
]

_STARTS: Final = {  # of sequence parameter sets: nal_unit_type 7 of H.264, and 33 of HEVC in any layer
    "h264": re.compile(rb"\x00\x00\x01[\x07\x27\x47\x67\x87\xa7\xc7\xe7]"),
    "hevc": re.compile(rb"\x00\x00\x01[\x42\x43\xc2\xc3]"),
}
_DISPLAY_ORIENTATION: Final = 47  # payloadType of an SEI message
_MAX_UNITS: Final = 64  # before the first slice of a frame
_HIGH_PROFILES: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 144})  # those that FFmpeg knows
_EXTENDED_SAR: Final = 255
_ASPECTS: Final = {
    1: (1, 1), 2: (12, 11), 3: (10, 11), 4: (16, 11), 5: (40, 33), 6: (24, 11), 7: (20, 11), 8: (32, 11), 9: (80, 33),
    10: (18, 11), 11: (15, 11), 12: (64, 33), 13: (160, 99), 14: (4, 3), 15: (3, 2), 16: (2, 1),
}  # fmt: skip
_AVC_SEI: Final = (6,)  # nal_unit_type
_HEVC_SEI: Final = (39, 40)
_HEVC_SPS: Final = 33
_HEVC_LEVEL_BITS: Final = 8
_HEVC_PROFILE_BITS: Final = 88


class SequenceParameters(NamedTuple):
    """Parts of a sequence parameter set (ITU-T H.264, 7.3.2.1.1 and E.1.1; ITU-T H.265, 7.3.2.2.1).

    Attributes:
        height: Height of a frame in pixels, after cropping.
        width: Width of a frame in pixels, after cropping.
        is_progressive: Whether all pictures are frames. Fields may otherwise share a frame.
        allows_gaps: Whether frames may be missing, in place of which the decoder makes others.
        max_reordered: Maximum number of frames that precede a frame in decoding order and follow it in output order.
            None if the set does not say it.
        pixel_aspect: Width of a pixel divided by its height. None if the set does not say it. Not read for HEVC.
        order_bits: Sizes of frame_num and of pic_order_cnt_lsb in bits, or None if slices do not have the latter. Not
            read for HEVC.
    """

    height: int
    width: int
    is_progressive: bool = True
    allows_gaps: bool = False
    max_reordered: int | None = None
    pixel_aspect: Fraction | None = None
    order_bits: tuple[int, int] | None = None


def unescape(data: bytes) -> bytes:
    """Remove the bytes that prevent the emulation of start codes (7.3.1)."""
    return data.replace(b"\0\0\3", b"\0\0")


def nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Return the size in bytes of the length before each NAL unit, or 0 if start codes are used instead."""
    if not extradata or extradata[0] != 1:
        return 0
    offset = {"h264": 4, "hevc": 21}.get(codec, len(extradata))
    return (extradata[offset] & 3) + 1 if offset < len(extradata) else 0


def split_units(data: bytes | memoryview, length_size: int) -> Iterator[bytes]:
    """Yield each NAL unit that is not empty, as far as `data` has it.

    Args:
        data: Beginning of a packet.
        length_size: Size of the length fields in bytes. 0 if start codes are used instead.
    """
    data, offset = bytes(data), 0
    if not length_size:
        start = data.find(b"\0\0\1")
        while start >= 0:
            end = data.find(b"\0\0\1", start + 3)
            if unit := data[start + 3 : end if end >= 0 else None]:
                yield unit
            start = end
        return
    while offset + length_size < len(data):
        end = offset + length_size + int.from_bytes(data[offset : offset + length_size], "big")
        if unit := data[offset + length_size : end]:
            yield unit
        offset = end


def is_upright(codec: str, configuration: bytes, head: bytes) -> bool:
    """Return whether no SEI message before the first slice of H.264 or HEVC turns the picture.

    Args:
        codec: ``"h264"`` or ``"hevc"``.
        configuration: Codec parameters of the container.
        head: Beginning of the first packet.
    """
    for unit in islice(split_units(head, nal_length_size(codec, configuration)), _MAX_UNITS):
        kind = unit[0] & 0x1F if codec == "h264" else unit[0] >> 1 & 0x3F
        if 1 <= kind <= 5 if codec == "h264" else 0 <= kind < 32:
            return True
        if kind in (_AVC_SEI if codec == "h264" else _HEVC_SEI) and _has_orientation(
            unit[1 if codec == "h264" else 2 :]
        ):
            return False
    return False


def _has_orientation(messages: bytes) -> bool:
    """Return whether SEI messages contain a display orientation (ITU-T H.264, D.1.27), or are not understood."""
    data, offset = unescape(messages), 0
    while offset + 2 < len(data):  # the last bytes are the trailing bits
        values = []
        for _ in range(2):  # type and size of a message
            value = 0
            while offset < len(data) and data[offset] == 0xFF:
                value, offset = value + 0xFF, offset + 1
            if offset >= len(data):
                return True
            values.append(value + data[offset])
            offset += 1
        if values[0] == _DISPLAY_ORIENTATION:
            return True
        offset += values[1]
    return False


def read_parameter_sets(codec: str, configuration: bytes, head: bytes) -> list[SequenceParameters] | None:
    """Return all sequence parameter sets of the container, or else of the first packet. None if one is not understood.

    Args:
        codec: ``"h264"`` or ``"hevc"``.
        configuration: Contents of ``avcC`` or ``hvcC`` (ISO/IEC 14496-15, 5.3.3 and 8.3.3), or codec parameters with
            start codes, or nothing.
        head: Beginning of the first packet.
    """
    if configuration[:1] != b"\1":
        return find_parameter_sets(codec, configuration or head)
    return _read_sets(codec, (_split_avc if codec == "h264" else _split_hevc)(configuration))


def find_parameter_sets(codec: str, data: bytes) -> list[SequenceParameters] | None:
    """Return all sequence parameter sets in bytes with start codes, or None if one is not understood."""
    starts = [match.end() - 1 for match in _STARTS[codec].finditer(data)]
    units = [data[start : end if (end := data.find(b"\0\0\1", start)) >= 0 else None] for start in starts]
    return _read_sets(codec, units)


def _read_sets(codec: str, units: list[bytes]) -> list[SequenceParameters] | None:
    try:
        return [(_read_avc if codec == "h264" else _read_hevc)(unit) for unit in units]
    except ValueError:
        return None


def _split_avc(data: bytes) -> list[bytes]:
    sets, offset = [], 6
    for _ in range(data[5] & 31 if len(data) > 5 else 0):
        length = int.from_bytes(data[offset : offset + 2], "big")
        sets.append(data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return sets


def _split_hevc(data: bytes) -> list[bytes]:
    """Return the sequence parameter sets of ``hvcC``, and SEI units that turn the picture: sets of a wrong kind."""
    sets, offset = [], 23
    for _ in range(data[22] if len(data) > 22 else 0):
        kind, count = (data[offset] & 0x3F if offset < len(data) else 0), data[offset + 1 : offset + 3]
        offset += 3
        for _ in range(min(int.from_bytes(count, "big"), _MAX_UNITS)):
            length = int.from_bytes(data[offset : offset + 2], "big")
            unit = data[offset + 2 : offset + 2 + length]
            if kind == _HEVC_SPS or (kind in _HEVC_SEI and _has_orientation(unit[2:])):
                sets.append(unit)
            offset += 2 + length
    return sets


@functools.lru_cache(maxsize=64)
def _read_hevc(unit: bytes) -> SequenceParameters:
    if len(unit) < 2 or unit[0] >> 1 & 0x3F != _HEVC_SPS or unit[0] & 1 or unit[1] >> 3:
        raise ValueError("this is no parameter set of the base layer")
    bits = BitReader(unescape(unit[2:]))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + _HEVC_PROFILE_BITS + _HEVC_LEVEL_BITS)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.read(profile * _HEVC_PROFILE_BITS + level * _HEVC_LEVEL_BITS)
    bits.read_golomb()
    chroma = bits.read_golomb()
    if chroma > 3 or (chroma == 3 and bits.read(1)):
        raise ValueError("FFmpeg does not decode this chroma format")
    width, height = bits.read_golomb(), bits.read_golomb()
    size = _crop(bits, height, width, 2 if chroma == 1 else 1, 2 if chroma in (1, 2) else 1)
    for _ in range(3):
        bits.read_golomb()
    reordered = 0
    for _ in range(layers + 1 if bits.read(1) else 1):
        bits.read_golomb()
        reordered = bits.read_golomb()
        bits.read_golomb()
    return SequenceParameters(*size, max_reordered=reordered)


def _crop(bits: BitReader, height: int, width: int, unit_height: int, unit_width: int) -> tuple[int, int]:
    """Return (height, width) after the cropping that a parameter set declares in units of chroma samples."""
    if bits.read(1):
        left, right, top, bottom = (bits.read_golomb() for _ in range(4))
        height, width = height - (top + bottom) * unit_height, width - (left + right) * unit_width
        if width <= 0 or height <= 0:
            raise ValueError("nothing remains after cropping")
    return height, width


@functools.lru_cache(maxsize=64)  # the files of a data set often share theirs
def _read_avc(unit: bytes) -> SequenceParameters:
    bits = BitReader(unescape(unit[1:]))
    profile = bits.read(8)
    bits.read(16)
    bits.read_golomb()
    chroma, separate_planes = 1, 0
    if profile in _HIGH_PROFILES:
        chroma = bits.read_golomb()
        separate_planes = bits.read(1) if chroma == 3 else 0
        if chroma > 3 or separate_planes:
            raise ValueError("FFmpeg does not decode this chroma format")
        bits.read_golomb(), bits.read_golomb(), bits.read(1)
        if bits.read(1):
            _skip_scaling_matrices(bits, 12 if chroma == 3 else 8)
    frame_number_bits = bits.read_golomb() + 4
    order_type, order_bits = bits.read_golomb(), None
    if order_type == 0:
        order_bits = frame_number_bits, bits.read_golomb() + 4
    elif order_type == 1:
        bits.read(1), bits.read_golomb(), bits.read_golomb()
        for _ in range(min(bits.read_golomb(), 255)):
            bits.read_golomb()
    bits.read_golomb()
    allows_gaps = bool(bits.read(1))
    width, height = 16 * (bits.read_golomb() + 1), 16 * (bits.read_golomb() + 1)
    progressive = bits.read(1)
    if not progressive:
        height *= 2
        bits.read(1)
    bits.read(1)
    height, width = _crop(
        bits, height, width, (2 if chroma == 1 else 1) * (2 - progressive), 2 if chroma in (1, 2) else 1
    )
    pixel_aspect, max_reordered = _read_usability(bits) if bits.read(1) else (None, None)
    return SequenceParameters(height, width, bool(progressive), allows_gaps, max_reordered, pixel_aspect, order_bits)


def _skip_scaling_matrices(bits: BitReader, count: int) -> None:
    for number in range(count):
        if bits.read(1):
            last = following = 8
            for _ in range(16 if number < 6 else 64):
                if following:
                    following = (last + bits.read_signed()) % 256
                last = following or last


def _read_usability(bits: BitReader) -> tuple[Fraction | None, int | None]:
    """Return the shape of pixels and max_num_reorder_frames of the usability information (E.1.1), None if missing."""
    aspect = _read_aspect(bits) if bits.read(1) else None
    return aspect, _read_max_reordered(bits)


def _read_aspect(bits: BitReader) -> Fraction | None:
    """Return the shape of pixels (E.2.1, table E-1), or None if it is unspecified."""
    kind = bits.read(8)
    width, height = (bits.read(16), bits.read(16)) if kind == _EXTENDED_SAR else _ASPECTS.get(kind, (0, 0))
    return Fraction(width, height) if width and height else None


def _read_max_reordered(bits: BitReader) -> int | None:
    if bits.read(1):
        bits.read(1)
    if bits.read(1):
        bits.read(4)
        if bits.read(1):
            bits.read(24)
    if bits.read(1):
        bits.read_golomb(), bits.read_golomb()
    if bits.read(1):
        bits.read(65)
    has_delays = 0
    for _ in range(2):
        if bits.read(1):
            has_delays = 1
            _skip_buffer_model(bits)
    if has_delays:
        bits.read(1)
    bits.read(1)
    if not bits.read(1):
        return None
    bits.read(1)
    for _ in range(4):
        bits.read_golomb()
    return bits.read_golomb()


def _skip_buffer_model(bits: BitReader) -> None:
    """Skip the parameters of the hypothetical reference decoder (E.1.2)."""
    count = bits.read_golomb() + 1
    bits.read(8)
    for _ in range(min(count, 32)):
        bits.read_golomb(), bits.read_golomb(), bits.read(1)
    bits.read(20)
