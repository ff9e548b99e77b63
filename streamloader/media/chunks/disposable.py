"""Find disposable packets: packets whose frames no other frame refers to, according to their headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from streamloader.media.video.packets import nal_length_size

__all__ = ["find_disposable_packets"]

_H264_SLICES: Final = range(1, 6)
_HEVC_SLICE_TYPES_END: Final = 32  # lower nal_unit_types are slices
_HEVC_SUBLAYER_NON_REFERENCE: Final = range(0, 16, 2)
_MPEG4_B_VOP: Final = 2
_MPEG2_B_PICTURE: Final = 3


def find_disposable_packets(codec: str, extradata: bytes, packets: Iterable[bytes]) -> list[bool]:
    """Return for each packet of a stream whether it can be left out without changing any other frame.

    Disposable are, in H.264, packets whose slices all have nal_ref_idc 0 (ITU-T H.264, 7.4.1); in HEVC, sub-layer
    non-reference pictures of the highest temporal sub-layer (H.265, 7.4.2.2); in MPEG-4 part 2 and MPEG-1/2, B
    pictures. For other codecs, no packet is known to be disposable.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: Codec parameters of the container, which specify how NAL units are separated.
        packets: All packets of the stream. The highest sub-layer is determined from them.
    """
    if codec == "h264":
        return [_is_disposable_h264(data, nal_length_size(codec, extradata)) for data in packets]
    if codec == "hevc":
        slices = [_hevc_slices(data, nal_length_size(codec, extradata)) for data in packets]
        highest = max((layer for headers in slices for _, layer in headers), default=0)
        return [
            bool(headers) and all(kind in _HEVC_SUBLAYER_NON_REFERENCE and layer == highest for kind, layer in headers)
            for headers in slices
        ]
    if codec == "mpeg4":
        return [[byte >> 6 for byte in _bytes_after(data, b"\0\0\1\xb6", 0)] == [_MPEG4_B_VOP] for data in packets]
    if codec in ("mpeg1video", "mpeg2video"):
        kinds = [[byte >> 3 & 7 for byte in _bytes_after(data, b"\0\0\1\0", 1)] for data in packets]
        return [bool(pictures) and set(pictures) == {_MPEG2_B_PICTURE} for pictures in kinds]
    return [False for _ in packets]


def _is_disposable_h264(data: bytes, length_size: int) -> bool:
    slices = [unit[0] for unit in _nal_headers(data, length_size) if unit[0] & 0x1F in _H264_SLICES]
    return bool(slices) and all(header & 0x60 == 0 for header in slices)


def _hevc_slices(data: bytes, length_size: int) -> list[tuple[int, int]]:
    """Return (nal_unit_type, nuh_temporal_id_plus1) of each slice."""
    headers = [unit for unit in _nal_headers(data, length_size) if len(unit) > 1]
    return [(unit[0] >> 1 & 0x3F, unit[1] & 7) for unit in headers if unit[0] >> 1 & 0x3F < _HEVC_SLICE_TYPES_END]


def _nal_headers(data: bytes, length_size: int) -> list[bytes]:
    """Return the first two bytes of each NAL unit."""
    headers = []
    if not length_size:
        offset = data.find(b"\0\0\1")
        while 0 <= offset < len(data) - 3:
            headers.append(data[offset + 3 : offset + 5])
            offset = data.find(b"\0\0\1", offset + 3)
        return headers
    offset = 0
    while offset + length_size < len(data):
        start = offset + length_size
        headers.append(data[start : start + 2])
        offset = start + int.from_bytes(data[offset:start], "big")
    return headers


def _bytes_after(data: bytes, start_code: bytes, distance: int) -> list[int]:
    """Return the byte that follows each start code at a distance in bytes."""
    result = []
    offset = data.find(start_code)
    while offset >= 0:
        offset += len(start_code)
        if offset + distance < len(data):
            result.append(data[offset + distance])
        offset = data.find(start_code, offset)
    return result
