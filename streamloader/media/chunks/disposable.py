"""Packets that no other packet needs: what their first bytes say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from streamloader.media.video.packets import nal_length_size

__all__ = ["spare_packets"]

_SLICES_H264: Final = range(1, 6)
_SLICES_HEVC: Final = 32
_NO_SUBLAYER_REFERENCE: Final = range(0, 16, 2)
_B_VOP: Final = 2
_B_PICTURE: Final = 3


def spare_packets(codec: str, extradata: bytes, packets: Iterable[bytes]) -> list[bool]:
    """Say of each packet of a stream whether it can be left out and all others still decode to the same.

    H.264: all slices have nal_ref_idc 0 (ITU-T H.264, 7.4.1). HEVC: sub-layer non-reference pictures of the highest
    temporal sub-layer (H.265, 7.4.2.2). MPEG-4 part 2 and MPEG-1/2: B pictures. Of other codecs none is known to be.

    Args:
        codec: FFmpeg's name of it.
        extradata: tells how NAL units are separated.
        packets: beginning to end: the highest sub-layer is that of these.
    """
    if codec == "h264":
        return [_is_spare_h264(data, nal_length_size(codec, extradata)) for data in packets]
    if codec == "hevc":
        slices = [_slices_hevc(data, nal_length_size(codec, extradata)) for data in packets]
        highest = max((layer for found in slices for _, layer in found), default=0)
        return [bool(found) and all(n in _NO_SUBLAYER_REFERENCE and t == highest for n, t in found) for found in slices]
    if codec == "mpeg4":
        return [[byte >> 6 for byte in _after(data, b"\0\0\1\xb6", 0)] == [_B_VOP] for data in packets]
    if codec in ("mpeg1video", "mpeg2video"):
        kinds = [[byte >> 3 & 7 for byte in _after(data, b"\0\0\1\0", 1)] for data in packets]
        return [bool(found) and set(found) == {_B_PICTURE} for found in kinds]
    return [False for _ in packets]


def _is_spare_h264(data: bytes, length_size: int) -> bool:
    slices = [unit[0] for unit in _unit_heads(data, length_size) if unit[0] & 0x1F in _SLICES_H264]
    return bool(slices) and all(head & 0x60 == 0 for head in slices)


def _slices_hevc(data: bytes, length_size: int) -> list[tuple[int, int]]:
    """Return type and temporal layer of each slice."""
    heads = [unit for unit in _unit_heads(data, length_size) if len(unit) > 1]
    return [(unit[0] >> 1 & 0x3F, unit[1] & 7) for unit in heads if unit[0] >> 1 & 0x3F < _SLICES_HEVC]


def _unit_heads(data: bytes, length_size: int) -> list[bytes]:
    """Return the first two bytes of each NAL unit."""
    heads = []
    if not length_size:
        at = data.find(b"\0\0\1")
        while 0 <= at < len(data) - 3:
            heads.append(data[at + 3 : at + 5])
            at = data.find(b"\0\0\1", at + 3)
        return heads
    at = 0
    while at + length_size < len(data):
        behind = at + length_size
        heads.append(data[behind : behind + 2])
        at = behind + int.from_bytes(data[at:behind], "big")
    return heads


def _after(data: bytes, code: bytes, offset: int) -> list[int]:
    """Return the byte `offset` bytes behind each start code."""
    found = []
    at = data.find(code)
    while at >= 0:
        at += len(code)
        if at + offset < len(data):
            found.append(data[at + offset])
        at = data.find(code, at)
    return found
