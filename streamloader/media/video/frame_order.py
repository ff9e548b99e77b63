"""Judge from timestamps and parameter sets whether a decoder shows one frame per packet, in the order of timestamps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.media.video.coded_size import find_parameters
from streamloader.media.video.packets import REORDERING_CODECS, is_clean_key
from streamloader.media.video.parameter_sets import nal_length_size, split_units

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["are_plausible_times", "ends_with_slice", "is_predictable", "may_reorder"]

_MAX_DEPTH: Final = 16  # of reordering in any codec: the timestamps of deeper ones are out of order
_MAX_EXTRA_DELAY: Final = 2  # of an encoder, beyond the reordering that it uses
_MAX_FAULTS: Final = 16  # in a short file; and one in as many frames. More are how the file was made
_MIN_SLICE_BYTES: Final = 64  # a shorter slice at the end of a transport stream may have lost its header


def is_predictable(
    codec: str, configuration: bytes, head: bytes, order: Array, *, is_order_confirmed: bool = False
) -> bool:
    """Return whether the decoder is known to show one frame per packet, in the order of timestamps.

    It may not do that if frames precede the first key frame in the order of presentation, or if decoding cannot begin
    at the first frame. In H.264, fields may share a frame, gaps are filled, and without a declared reordering depth,
    FFmpeg guesses it.

    Args:
        codec: FFmpeg's name of the codec.
        configuration: Codec parameters of the container.
        head: Beginning of the first packet.
        order: Positions in decoding order, of the frames in the order of their distinct timestamps, int64.
        is_order_confirmed: Whether this is the order in which the headers of the frames tell to show them. Otherwise,
            the timestamps may be those of decoding, if they reorder nothing although the codec parameters announce it.
    """
    if order[0] != 0 or not is_clean_key(codec, memoryview(head), nal_length_size(codec, configuration)):
        return False
    depth = int((np.maximum.accumulate(order) - np.arange(len(order))).max())  # of reordering
    parameters = find_parameters(codec, configuration, head) if codec in REORDERING_CODECS else None
    max_reordered = parameters.max_reordered if parameters is not None else None
    if not (depth or is_order_confirmed) and len(order) > (max_reordered or len(order)):
        return False
    if codec != "h264":
        return depth <= _MAX_DEPTH
    if parameters is None or not parameters.is_progressive or parameters.allows_gaps:
        return False
    return depth <= (max_reordered or 0)


def may_reorder(codec: str, configuration: bytes, head: bytes) -> bool:
    """Return whether frames may be shown in another order than that of decoding. The arguments are as above."""
    parameters = find_parameters(codec, configuration, head) if codec in REORDERING_CODECS else None
    return codec in REORDERING_CODECS and (parameters is None or parameters.max_reordered != 0)


def are_plausible_times(pts: Array, order: Array, keys: Array, dts: Array | None) -> bool:
    """Return whether timestamps may be those that an encoder has given to all frames of H.264 or HEVC.

    Nothing that precedes a key frame in decoding order follows it in the order of presentation. An encoder that delays
    its output by d frames shows frame k at the decoding timestamp of packet k + d, apart from a constant. A frame that
    has the timestamp of another changes that in few places. Where it changes in many, decoding timestamps were made in
    another way.

    Args:
        pts: Timestamps of the frames in decoding order, int64 (frames,).
        order: Positions of the frames in the order of their timestamps, int64 (frames,).
        keys: Positions of the key frames, ascending, int64 (keys,).
        dts: Decoding timestamps of the frames, ascending, int64 (frames,), or None if the container has none.
    """
    later = keys[keys > 0]
    if (np.maximum.accumulate(pts)[later - 1] >= pts[later]).any():
        return False
    if dts is None or len(pts) <= 1:
        return True
    times, count = pts[order], len(pts)
    if int(np.ptp(times - dts)) <= (int(times[-1]) - int(times[0])) // (2 * (count - 1)):
        return True  # less than half of a usual step
    tolerance = int(np.median(np.diff(times))) // 2
    depth = int((np.maximum.accumulate(order) - np.arange(count)).max())
    fewest = count
    for delay in range(min(depth + _MAX_EXTRA_DELAY + 1, count)):
        changes = int(np.count_nonzero(np.abs(np.diff(times[: count - delay] - dts[delay:])) > tolerance))
        if not changes:
            return True
        fewest = min(fewest, changes)
    return fewest > max(_MAX_FAULTS, count // _MAX_FAULTS)


def ends_with_slice(codec: str, packet: memoryview) -> bool:
    """Return whether the last packet of a transport stream has a slice, so that the decoder shows a frame for it.

    If the file was cut, the end of the last unit may be missing.
    """
    units = [unit for unit in split_units(packet, 0) if unit]
    return any(
        1 <= unit[0] & 0x1F <= 5 if codec == "h264" else unit[0] >> 1 & 0x3F < 32
        for unit in (units if units and len(units[-1]) >= _MIN_SLICE_BYTES else units[:-1])
    )
