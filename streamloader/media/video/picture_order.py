"""The order in which a decoder shows the frames of H.264, from the headers of their slices (ITU-T H.264, 8.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.media.video.bit_reader import BitReader
from streamloader.media.video.coded_size import find_parameters
from streamloader.media.video.frame_times import is_packet
from streamloader.media.video.packets import codec_name
from streamloader.media.video.parameter_sets import nal_length_size, split_units, unescape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamloader.media.video.packets import PacketTable
    from streamloader.media.video.parameter_sets import SequenceParameters
    from streamloader.values import Array

__all__ = ["confirm_order"]

_IDR: Final = 5  # nal_unit_type
_SLICES: Final = (1, _IDR)
_MAX_HEADER_BYTES: Final = 20  # of what is read of a slice
_MAX_UNITS_BYTES: Final = 64 << 10  # of a packet, before its first slice


def confirm_order(
    table: PacketTable,
    stream: VideoStream,
    reopen: Callable[[], AbstractContextManager[tuple[InputContainer, VideoStream]]],
) -> None:
    """Read the headers of all frames, if it is doubtful that they are shown in the order of the timestamps in `table`.

    It is not where the timestamps reorder frames that follow each other at the same distance, or where neither they nor
    the codec parameters reorder frames. The result is noted in `table`.

    Args:
        table: All packets of the video.
        stream: Video stream of an open file.
        reopen: Function that opens the file once more.

    Raises:
        CorruptStream: If the demuxer fails.
        StoreError: If the store fails to deliver bytes.
    """
    pts = np.array(table.pts, np.int64)
    order = np.argsort(pts, kind="stable")
    is_reordered = bool((np.diff(order) < 0).any())
    if codec_name(stream) != "h264" or (is_reordered and _has_steady_steps(pts[order])):
        return
    configuration = bytes(stream.codec_context.extradata or b"")
    parameters = find_parameters("h264", configuration, table.head)
    if parameters is None or parameters.order_bits is None or not (is_reordered or parameters.max_reordered):
        return
    with reopen() as (container, other):
        try:
            keys = _read_keys(container.demux(other), parameters, nal_length_size("h264", configuration))
        except ValueError:
            return
    shown = sorted(range(len(keys)), key=keys.__getitem__)
    table.exact = table.is_order_confirmed = shown == order.tolist()


def _has_steady_steps(times: Array) -> bool:
    """Return whether frames follow each other at about the same distance.

    Args:
        times: Timestamps of the frames in the order of presentation, int64 (frames,).
    """
    steps = np.diff(times)
    if not len(steps):
        return True
    usual = int(np.median(steps))
    return bool(2 * int(steps.min()) >= usual and 2 * int(steps.max()) <= 3 * usual)


def _read_keys(packets: Iterable[Any], parameters: SequenceParameters, length_size: int) -> list[tuple[int, int]]:
    """Return (number of the IDR picture before it, picture order count) of each frame.

    Raises:
        ValueError: If a header is not understood.
    """
    assert parameters.order_bits is not None
    cycle = 1 << parameters.order_bits[1]
    group = last = 0
    keys = []
    for packet in packets:
        if not is_packet(packet):
            continue
        unit = _find_slice(memoryview(packet)[:_MAX_UNITS_BYTES], length_size)
        count = _read_count(unit, parameters.order_bits)
        if unit[0] & 0x1F == _IDR:
            group, last = group + 1, 0
        count += (last - count + cycle // 2) // cycle * cycle
        if unit[0] & 0x60:  # a reference
            last = count
        keys.append((group, count))
    return keys


def _find_slice(data: memoryview, length_size: int) -> bytes:
    for unit in split_units(data, length_size):
        if unit[0] & 0x1F in _SLICES:
            return unit
    raise ValueError("the packet has no slice")


def _read_count(unit: bytes, order_bits: tuple[int, int]) -> int:
    """Read pic_order_cnt_lsb in the header of a slice of a frame (7.3.3)."""
    bits = BitReader(unescape(unit[1:_MAX_HEADER_BYTES]))
    for _ in range(3):
        bits.read_golomb()
    bits.read(order_bits[0])
    if unit[0] & 0x1F == _IDR:
        bits.read_golomb()
    return bits.read(order_bits[1])
