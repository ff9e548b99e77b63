"""Read the headers of AV1 as far as to learn which packets refresh no reference frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from streamloader.media.video.bit_reader import BitReader

__all__ = ["Av1Headers"]

_SEQUENCE_HEADER: Final = 1  # obu_type
_FRAME_HEADERS: Final = frozenset({3, 6})
_CONFIGURATION_BYTES: Final = 4  # in "av1C", before the sequence header
_KEY_FRAME: Final = 0
_INTRA_ONLY_FRAME: Final = 2
_SWITCH_FRAME: Final = 3
_SELECT: Final = 2  # the choice is made in each frame
_TIERED_LEVELS_START: Final = 8  # higher levels have a tier
_MAX_HEADER_BYTES: Final = 64  # of what is read here


class _Sequence(NamedTuple):
    """What a sequence header declares about the headers of its frames.

    Attributes:
        screen_content_tools: seq_force_screen_content_tools.
        integer_mv: seq_force_integer_mv.
        order_hint_bits: Number of bits of order_hint.
    """

    screen_content_tools: int
    integer_mv: int
    order_hint_bits: int


class Av1Headers:
    """The headers of an AV1 stream (AV1 Bitstream & Decoding Process Specification, 5.3 to 5.9).

    Args:
        extradata: Codec parameters of the container: an AV1CodecConfigurationRecord, or nothing.
    """

    def __init__(self, extradata: bytes) -> None:
        self._sequence: _Sequence | None = None
        self._read_sequence_headers(extradata[_CONFIGURATION_BYTES:])

    def is_disposable(self, data: memoryview | bytes) -> bool:
        """Return whether no frame of a packet is a reference for later frames.

        A False answer may also mean that this is not known: with decoder models, numbered frames, and still pictures.
        """
        has_frame, disposable = False, True
        for kind, payload in _obus(data):
            if kind == _SEQUENCE_HEADER:
                self._sequence = _try_read_sequence(payload)
                disposable = False
            elif kind in _FRAME_HEADERS:
                has_frame = True
                disposable = (
                    disposable and self._sequence is not None and _try_refreshes_nothing(payload, self._sequence)
                )
        return has_frame and disposable

    def _read_sequence_headers(self, data: bytes) -> None:
        for kind, payload in _obus(data):
            if kind == _SEQUENCE_HEADER:
                self._sequence = _try_read_sequence(payload)


def _obus(data: memoryview | bytes) -> Iterator[tuple[int, memoryview | bytes]]:
    """Yield type and payload of each OBU."""
    offset = 0
    while offset < len(data):
        header = data[offset]
        offset += 2 if header & 4 else 1  # obu_extension_flag
        size = len(data) - offset
        if header & 2:  # obu_has_size_field
            size = shift = 0
            while offset < len(data):
                byte = data[offset]
                offset += 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        yield header >> 3 & 15, data[offset : offset + size]
        offset += size


def _try_read_sequence(payload: memoryview | bytes) -> _Sequence | None:
    try:
        return _read_sequence(payload)
    except ValueError:  # it is too short
        return None


def _read_sequence(payload: memoryview | bytes) -> _Sequence | None:
    """Read a sequence header (5.5). Return None if the headers of its frames are not understood here."""
    bits = BitReader(bytes(payload[:_MAX_HEADER_BYTES]))
    bits.read(4)  # seq_profile, still_picture
    if bits.read(1):  # reduced_still_picture_header
        return None
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval, followed by a number of variable length
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # decoder_model_info_present_flag
            return None
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):  # operating points
        bits.read(12)
        if bits.read(5) >= _TIERED_LEVELS_START:
            bits.read(1)
        if has_display_delay and bits.read(1):
            bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits + height_bits)
    if bits.read(1):  # frame_id_numbers_present_flag
        return None
    bits.read(7)  # use_128x128_superblock to enable_dual_filter
    has_order_hint = bits.read(1)
    if has_order_hint:
        bits.read(2)
    screen_content_tools = _SELECT if bits.read(1) else bits.read(1)
    integer_mv = _SELECT
    if screen_content_tools:
        integer_mv = _SELECT if bits.read(1) else bits.read(1)
    return _Sequence(screen_content_tools, integer_mv, bits.read(3) + 1 if has_order_hint else 0)


def _try_refreshes_nothing(payload: memoryview | bytes, sequence: _Sequence) -> bool:
    try:
        return _refreshes_nothing(payload, sequence)
    except ValueError:  # it is too short
        return False


def _refreshes_nothing(payload: memoryview | bytes, sequence: _Sequence) -> bool:
    """Return whether refresh_frame_flags of a frame header is 0 (5.9.2)."""
    bits = BitReader(bytes(payload[:_MAX_HEADER_BYTES]))
    if bits.read(1):  # show_existing_frame: takes no time to decode, and may refresh all references
        return False
    kind, is_shown = bits.read(2), bits.read(1)
    if kind in (_KEY_FRAME, _SWITCH_FRAME):
        return False
    if not is_shown:
        bits.read(1)  # showable_frame
    is_error_resilient = bits.read(1)
    bits.read(1)  # disable_cdf_update
    tools = bits.read(1) if sequence.screen_content_tools == _SELECT else sequence.screen_content_tools
    if tools and sequence.integer_mv == _SELECT:
        bits.read(1)
    bits.read(1 + sequence.order_hint_bits)  # frame_size_override_flag, order_hint
    if not (is_error_resilient or kind == _INTRA_ONLY_FRAME):
        bits.read(3)  # primary_ref_frame
    return bits.read(8) == 0
