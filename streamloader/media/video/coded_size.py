"""Find the size of the frames of a video in its parameter sets or its first frame, without a decoder."""

from __future__ import annotations

from typing import Final

from streamloader.media.video.bit_reader import BitReader
from streamloader.media.video.parameter_sets import SequenceParameters, is_upright, read_parameter_sets

__all__ = ["find_coded_size", "find_parameters"]

_VP8_SYNC: Final = b"\x9d\x01\x2a"
_MAX_HEADER_BYTES: Final = 32
_VP9_MARKER: Final = 2
_VP9_LAST_PROFILE: Final = 3
_VP9_SYNC: Final = 0x498342
_VP9_RGB: Final = 7  # color_space
_AV1_SEQUENCE_WITH_SIZE: Final = 0b00001_01  # obu_type 1 without extension, with a size; the reserved bit is left out
_AV1_LAST_LEVEL_WITHOUT_TIER: Final = 7


def find_parameters(codec: str, configuration: bytes, head: bytes) -> SequenceParameters | None:
    """Return the parameters of an H.264 or HEVC stream, or None if they are missing, not understood, or not unique.

    Args:
        codec: FFmpeg's name of the codec.
        configuration: Codec parameters of the container.
        head: Beginning of the first packet.
    """
    found = set(read_parameter_sets(codec, configuration, head) or ())
    return found.pop() if len(found) == 1 else None


def find_coded_size(codec: str, configuration: bytes, head: bytes) -> tuple[int, int] | None:
    """Return (height, width) of the frames, or None if only decoding shows it, or if an SEI message turns them.

    The arguments are those of :func:`find_parameters`.
    """
    if codec in ("h264", "hevc"):
        parameters = find_parameters(codec, configuration, head)
        if parameters is None or not is_upright(codec, configuration, head):
            return None
        return parameters.height, parameters.width
    try:
        if codec == "vp8":
            return _read_vp8(head)
        if codec == "vp9":
            return _read_vp9(BitReader(head[:_MAX_HEADER_BYTES]))
        return _read_av1(configuration) if codec == "av1" else None
    except ValueError:
        return None


def _read_vp8(head: bytes) -> tuple[int, int] | None:
    """Read the size in the header of a key frame (RFC 6386, 9.1)."""
    if len(head) < 10 or head[0] & 1 or head[3:6] != _VP8_SYNC:
        return None
    width, height = (int.from_bytes(head[start : start + 2], "little") & 0x3FFF for start in (6, 8))
    return (height, width) if height and width else None


def _read_vp9(bits: BitReader) -> tuple[int, int] | None:
    """Read the size in the uncompressed header of a key frame (VP9 bitstream specification, 6.2)."""
    if bits.read(2) != _VP9_MARKER:
        return None
    profile = bits.read(1) | bits.read(1) << 1
    bits.read(profile == _VP9_LAST_PROFILE)
    if bits.read(2):  # shows an earlier frame, or is no key frame
        return None
    bits.read(2)
    if bits.read(24) != _VP9_SYNC:
        return None
    bits.read(profile >= 2)
    if bits.read(3) == _VP9_RGB:
        bits.read(profile & 1)
    else:
        bits.read(1 + 3 * (profile & 1))
    width = bits.read(16) + 1
    return bits.read(16) + 1, width


def _read_av1(configuration: bytes) -> tuple[int, int] | None:
    """Read the maximum size in the sequence header of ``av1C`` (AV1 bitstream specification, 5.5.1).

    None if the stream has several layers, or a timing model.
    """
    if len(configuration) < 6 or configuration[4] >> 1 != _AV1_SEQUENCE_WITH_SIZE or configuration[5] & 0x80:
        return None
    bits = BitReader(configuration[6 : 6 + configuration[5]])
    bits.read(3)
    if bits.read(3) & 0b011:  # a reduced header, or timing information
        return None
    has_delay = bits.read(1)
    if bits.read(5 + 12):  # several operating points
        return None
    level = bits.read(5)
    bits.read(level > _AV1_LAST_LEVEL_WITHOUT_TIER)
    if has_delay and bits.read(1):
        bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width = bits.read(width_bits) + 1
    return bits.read(height_bits) + 1, width
