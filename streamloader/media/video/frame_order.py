"""Judge from timestamps and parameter sets whether a decoder shows one frame per packet, in the order of timestamps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.media.video.coded_size import find_parameters
from streamloader.media.video.packets import is_clean_key
from streamloader.media.video.parameter_sets import nal_length_size, split_units

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["ends_with_slice", "is_predictable"]

_MAX_DEPTH: Final = 16  # of reordering in any codec: the timestamps of deeper ones are out of order
_MIN_SLICE_BYTES: Final = 64  # a shorter slice at the end of a transport stream may have lost its header


def is_predictable(codec: str, configuration: bytes, head: bytes, order: Array) -> bool:
    """Return whether the decoder is known to show one frame per packet, in the order of timestamps.

    It may not do that if frames precede the first key frame in the order of presentation, or if decoding cannot begin
    at the first frame. In H.264, fields may share a frame, gaps are filled, and without a declared reordering depth,
    FFmpeg guesses it.

    Args:
        codec: FFmpeg's name of the codec.
        configuration: Codec parameters of the container.
        head: Beginning of the first packet.
        order: Positions in decoding order, of the frames in the order of their distinct timestamps, int64.
    """
    if order[0] != 0 or not is_clean_key(codec, memoryview(head), nal_length_size(codec, configuration)):
        return False
    depth = int((np.maximum.accumulate(order) - np.arange(len(order))).max())  # of reordering
    if codec != "h264":
        return depth <= _MAX_DEPTH
    parameters = find_parameters(codec, configuration, head)
    if parameters is None or not parameters.is_progressive or parameters.allows_gaps:
        return False
    return depth <= (parameters.max_reordered or 0)


def ends_with_slice(codec: str, packet: memoryview) -> bool:
    """Return whether the last packet of a transport stream has a slice, so that the decoder shows a frame for it.

    If the file was cut, the end of the last unit may be missing.
    """
    units = [unit for unit in split_units(packet, 0) if unit]
    return any(
        1 <= unit[0] & 0x1F <= 5 if codec == "h264" else unit[0] >> 1 & 0x3F < 32
        for unit in (units if units and len(units[-1]) >= _MIN_SLICE_BYTES else units[:-1])
    )
