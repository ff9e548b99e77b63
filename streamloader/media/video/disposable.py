"""Find disposable packets: packets whose frames no other frame refers to, according to their headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeAlias

from streamloader.media.video.av1_headers import Av1Headers
from streamloader.media.video.parameter_sets import nal_length_size, split_units

__all__ = ["DisposableTest", "disposable_test", "find_disposable_packets"]

DisposableTest: TypeAlias = "Callable[[memoryview | bytes], bool]"

_H264_SLICES: Final = range(1, 6)
_H264_SEI: Final = 6
_H264_STATEFUL: Final = frozenset({7, 8, 10, 11, 13, 15})  # parameter sets, ends of sequence and stream
_HEVC_SLICE_TYPES_END: Final = 32  # lower nal_unit_types are slices
_HEVC_SUBLAYER_NON_REFERENCE: Final = range(0, 16, 2)
_HEVC_SPS: Final = 33
_HEVC_STATEFUL: Final = frozenset({32, 33, 34, 36, 37})  # parameter sets, ends of sequence and stream
_HEVC_SEI: Final = frozenset({39, 40})
_STATEFUL_SEI: Final = frozenset({6, 19})  # recovery point and film grain hold for later frames too
_HEVC_PARAMETER_SETS_OFFSET: Final = 22  # of the number of arrays in HEVCDecoderConfigurationRecord
_HEVC_UNKNOWN_LAYER: Final = 8  # above every nuh_temporal_id_plus1
_MPEG4_VOP: Final = 0xB6
_MPEG4_B_VOP: Final = 2
_MPEG4_USER_DATA: Final = 0xB2
_MPEG2_PICTURE: Final = 0x00
_MPEG2_B_PICTURE: Final = 3
_MPEG2_SLICES_END: Final = 0xB0  # lower start codes are pictures and slices
_MPEG2_USER_DATA: Final = 0xB2
_MPEG2_EXTENSION: Final = 0xB5
_MPEG2_QUANTIZER_EXTENSION: Final = 3


def find_disposable_packets(codec: str, extradata: bytes, packets: Iterable[bytes]) -> list[bool]:
    """Return for each packet of a stream whether it can be left out without changing any other frame.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: Codec parameters of the container.
        packets: All packets of the stream, in decoding order.
    """
    is_disposable = disposable_test(codec, extradata)
    return [is_disposable is not None and is_disposable(data) for data in packets]


def disposable_test(codec: str, extradata: bytes) -> DisposableTest | None:
    """Return a function that determines whether a packet can be left out without changing any other frame.

    Disposable are, in H.264, packets whose slices all have nal_ref_idc 0 (ITU-T H.264, 7.4.1); in HEVC, sub-layer
    non-reference pictures of the highest temporal sub-layer (H.265, 7.4.2.2); in AV1, frames that refresh no reference
    (AV1 specification, 5.9.2); in MPEG-4 part 2 and MPEG-1/2, B pictures. A packet with parameters that hold for later
    packets is not. The function must receive the packets in decoding order, since some declare how to read later ones.

    A frame of VP8 and VP9 that refreshes no reference still changes how the next one is decoded (probabilities,
    segments, motion vectors).

    Args:
        codec: FFmpeg's name of the codec.
        extradata: Codec parameters of the container.

    Returns:
        None if no packet of this codec is known to be disposable.
    """
    if codec == "h264":
        return partial(_is_disposable_h264, nal_length_size(codec, extradata))
    if codec == "hevc":
        return _HevcLayers(extradata).is_disposable
    if codec == "av1":
        return Av1Headers(extradata).is_disposable
    return {
        "mpeg4": _is_disposable_mpeg4,
        "mpeg1video": _is_disposable_mpeg2,
        "mpeg2video": _is_disposable_mpeg2,
    }.get(codec)


def _is_disposable_h264(length_size: int, data: memoryview | bytes) -> bool:
    has_slice = False
    for unit in split_units(data, length_size):
        kind = unit[0] & 0x1F
        if kind in _H264_SLICES:
            if unit[0] & 0x60:
                return False
            has_slice = True
        elif kind in _H264_STATEFUL or (kind == _H264_SEI and not _STATEFUL_SEI.isdisjoint(_sei_types(unit[1:]))):
            return False
    return has_slice


class _HevcLayers:
    """The highest temporal sub-layer that the sequence parameter sets of an HEVC stream declare.

    Args:
        extradata: Codec parameters of the container.
    """

    def __init__(self, extradata: bytes) -> None:
        self._length_size = nal_length_size("hevc", extradata)
        self._highest = 0  # nuh_temporal_id_plus1
        for unit in _hevc_parameter_sets(extradata) if self._length_size else split_units(extradata, 0):
            self._read_parameters(unit)
        self._highest = self._highest or _HEVC_UNKNOWN_LAYER

    def is_disposable(self, data: memoryview | bytes) -> bool:
        """Return whether a packet can be left out."""
        has_slice, disposable = False, True
        for unit in split_units(data, self._length_size):
            kind = unit[0] >> 1 & 0x3F
            if kind < _HEVC_SLICE_TYPES_END and len(unit) > 1:
                has_slice = True
                disposable &= kind in _HEVC_SUBLAYER_NON_REFERENCE and unit[1] & 7 == self._highest
            elif kind in _HEVC_STATEFUL:
                self._read_parameters(unit)
                disposable = False
            elif kind in _HEVC_SEI:
                disposable &= _STATEFUL_SEI.isdisjoint(_sei_types(unit[2:]))
        return has_slice and disposable

    def _read_parameters(self, unit: memoryview | bytes) -> None:
        """Read sps_max_sub_layers_minus1 of the base layer (H.265, 7.3.2.2.1)."""
        if len(unit) > 2 and unit[0] >> 1 & 0x3F == _HEVC_SPS and not (unit[0] & 1 or unit[1] & 0xF8):
            self._highest = max(self._highest, (unit[2] >> 1 & 7) + 1)


def _is_disposable_mpeg4(data: memoryview | bytes) -> bool:
    units = list(_units_after_start_codes(data))
    if any(code not in (_MPEG4_VOP, _MPEG4_USER_DATA) for code, _ in units):
        return False
    return [first >> 6 for code, first in units if code == _MPEG4_VOP] == [_MPEG4_B_VOP]


def _is_disposable_mpeg2(data: memoryview | bytes) -> bool:
    raw = bytes(data)
    has_picture = False
    for code, offset in _start_codes(raw):
        if code == _MPEG2_PICTURE:
            if raw[offset + 1 : offset + 2] == b"" or raw[offset + 1] >> 3 & 7 != _MPEG2_B_PICTURE:
                return False
            has_picture = True
        elif code == _MPEG2_EXTENSION:
            if raw[offset : offset + 1] == b"" or raw[offset] >> 4 == _MPEG2_QUANTIZER_EXTENSION:
                return False
        elif code >= _MPEG2_SLICES_END and code != _MPEG2_USER_DATA:
            return False
    return has_picture


def _hevc_parameter_sets(record: bytes) -> Iterator[bytes]:
    """Yield the NAL units of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1)."""
    offset = _HEVC_PARAMETER_SETS_OFFSET
    arrays = record[offset] if offset < len(record) else 0
    offset += 1
    for _ in range(arrays):
        units = int.from_bytes(record[offset + 1 : offset + 3], "big")
        offset += 3
        for _ in range(units):
            end = offset + 2 + int.from_bytes(record[offset : offset + 2], "big")
            yield record[offset + 2 : end]
            offset = end


def _sei_types(payload: memoryview | bytes) -> list[int]:
    """Return the payload types of an SEI message (ITU-T H.264, 7.3.2.3.1; H.265, 7.3.5)."""
    data = bytes(payload).replace(b"\0\0\3", b"\0\0")
    types = []
    offset = 0
    while offset + 1 < len(data):
        values = []
        for _ in ("type", "size"):
            value = 0
            while offset < len(data) and data[offset] == 0xFF:
                value += 0xFF
                offset += 1
            values.append(value + (data[offset] if offset < len(data) else 0))
            offset += 1
        types.append(values[0])
        offset += values[1]
    return types


def _start_codes(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield the value of each start code, and the offset of the byte after it."""
    offset = raw.find(b"\0\0\1")
    while 0 <= offset < len(raw) - 3:
        yield raw[offset + 3], offset + 4
        offset = raw.find(b"\0\0\1", offset + 3)


def _units_after_start_codes(data: memoryview | bytes) -> Iterator[tuple[int, int]]:
    """Yield the value of each start code, and the byte after it, or 0."""
    raw = bytes(data)
    for code, offset in _start_codes(raw):
        yield code, raw[offset] if offset < len(raw) else 0
