"""The compact form of the index of a sound: a few bytes for each packet.

The form is a size in bytes, and zlib data of that size: a header of fixed size, three names, the arrays, the note.
zlib's own checksum covers everything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np

from streamloader.common.inflate import inflate
from streamloader.media.audio.index import (
    CHECKED_PACKETS,
    MAX_CHANNELS,
    MAX_PACKETS,
    MAX_RATE,
    MAX_SAMPLES,
    SAMPLE_DTYPES,
    AudioIndex,
)
from streamloader.media.int_arrays import IntReader, as_unsigned, differences, pack_ints, sum_up
from streamloader.values import Array

__all__ = ["InvalidAudioBlob", "decode_audio_index", "encode_audio_index"]

_SIZE: Final = struct.Struct("<I")  # of the inflated data in bytes
# Flags; rate; channels; numerator and denominator of the time base; packets; ranges; checksums; bytes of layout,
# format, codec and note.
_HEADER: Final = struct.Struct("<BIIQQIIIBBBH")
_HAS_EXACT_PTS: Final = 1
_IS_DAMAGED: Final = 2
_MAX_RANGES: Final = 1 << 20
_MAX_TIMESTAMP: Final = 1 << 62
_MAX_FRAME_SAMPLES: Final = 1 << 40  # one packet may hold much silence, but not more than days


class InvalidAudioBlob(ValueError):
    """The bytes are not an index, or one with values that no sound has. The text says what is wrong."""


def encode_audio_index(index: AudioIndex) -> bytes:
    """Return the compact form of an index.

    Raises:
        InvalidAudioBlob: If a value of a hostile file is too large for it.
    """
    names = [text.encode("utf-8", "replace")[:255] for text in (index.layout, index.format, index.codec)]
    note = index.note.encode("utf-8", "replace")[:0xFFFF]
    flags = (_HAS_EXACT_PTS if index.has_exact_pts else 0) | (_IS_DAMAGED if index.damaged else 0)
    try:
        header = _HEADER.pack(
            flags,
            index.rate,
            index.channels,
            index.time_base.numerator,
            index.time_base.denominator,
            len(index.pts),
            len(index.kept),
            len(index.checks),
            *map(len, names),
            len(note),
        )
    except struct.error as error:
        raise InvalidAudioBlob(f"a value is out of range: {error}") from error
    body = b"".join(
        [
            header,
            *names,
            pack_ints(differences(index.pts)),
            pack_ints(differences(index.offsets)),
            pack_ints(as_unsigned(index.sizes)),
            pack_ints(as_unsigned(index.samples)),
            pack_ints(differences(index.kept.reshape(-1))),
            index.checks.astype("<u4").tobytes(),
            note,
        ]
    )
    return _SIZE.pack(len(body)) + zlib.compress(body)


def decode_audio_index(blob: bytes | memoryview, size: int | None) -> AudioIndex:
    """Return the index that :func:`encode_audio_index` has encoded. All its values are possible for the file.

    Args:
        blob: Compact form of the index. Another user or program may have made it.
        size: Size of the file in bytes. None if it is unknown.

    Raises:
        InvalidAudioBlob: If the bytes are not an index, or a value is not possible.
    """
    max_packets = MAX_PACKETS if size is None else min(MAX_PACKETS, size)
    try:
        index = _decode(blob, max_packets)
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        raise error if isinstance(error, InvalidAudioBlob) else InvalidAudioBlob(str(error)) from error
    if problem := _find_problem(index):
        raise InvalidAudioBlob(problem)
    return index


def _decode(blob: bytes | memoryview, max_packets: int) -> AudioIndex:
    (body_bytes,) = _SIZE.unpack_from(blob)
    if body_bytes > _HEADER.size + 40 * max_packets + 16 * _MAX_RANGES + (1 << 17):
        raise InvalidAudioBlob("it declares more bytes than an index of this file can have")
    body = inflate(memoryview(blob)[_SIZE.size :], body_bytes)
    flags, rate, channels, numerator, denominator, packets, ranges, checks, *lengths = _HEADER.unpack_from(body)
    if packets > max_packets or ranges > _MAX_RANGES or checks > max_packets or flags >> 2:
        raise InvalidAudioBlob("it declares more packets than its file has bytes, or other counts that no index has")
    position, names = _HEADER.size, []
    for length in lengths[:3]:
        names.append(body[position : position + length].decode())
        position += length
    reader = IntReader(body, position)
    pts, offsets = (sum_up(reader.read_ints(packets)) for _ in range(2))
    sizes, samples = reader.read_ints(packets).view(np.int64), reader.read_ints(packets + 1).view(np.int64)
    kept = sum_up(reader.read_ints(2 * ranges)).reshape(-1, 2)
    crcs = np.frombuffer(body, "<u4", checks, reader.offset).astype(np.int64)
    note = body[reader.offset + 4 * checks :]
    if len(note) != lengths[3]:
        raise InvalidAudioBlob("its size is not that of its contents")
    layout, format_, codec = names
    return AudioIndex(
        rate,
        channels,
        layout,
        format_,
        codec,
        Fraction(numerator, denominator),
        pts,
        offsets,
        sizes,
        samples,
        kept,
        crcs,
        has_exact_pts=bool(flags & _HAS_EXACT_PTS),
        damaged=bool(flags & _IS_DAMAGED),
        note=note.decode("utf-8"),
    )


def _find_problem(index: AudioIndex) -> str:
    """Return what is impossible in an index, or ""."""
    flat = index.kept.reshape(-1)
    expected_checks = -(-(len(index.pts) + 1) // CHECKED_PACKETS)
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (  # each relies on those before it
        ("its sample rate or number of channels is out of range", lambda: _has_possible_form(index)),
        ("its time base is out of range", lambda: _has_possible_time_base(index)),
        ("a timestamp is out of range", lambda: _is_within(index.pts, -_MAX_TIMESTAMP, _MAX_TIMESTAMP)),
        ("an offset is out of range", lambda: _is_within(index.offsets, -1, _MAX_TIMESTAMP)),
        ("the size of a packet is out of range", lambda: _is_within(index.sizes, 0, _MAX_TIMESTAMP)),
        ("a packet has too many samples", lambda: _is_within(index.samples, 0, _MAX_FRAME_SAMPLES)),
        ("its ranges of samples are not in order", lambda: bool((np.diff(flat) >= 0).all())),
        ("it has more samples than its packets", lambda: _is_within(flat, 0, _count_decoded(index))),
        ("it has samples without channels", lambda: index.channels > 0 or not (len(flat) or len(index.pts))),
        ("its number of checksums is wrong", lambda: len(index.checks) in (0, expected_checks)),
    )
    return next((problem for problem, check in checks if not check()), "")


def _has_possible_form(index: AudioIndex) -> bool:
    if not index.channels:
        return index.rate == 0
    return 0 < index.rate <= MAX_RATE and index.channels <= MAX_CHANNELS and index.format in SAMPLE_DTYPES


def _has_possible_time_base(index: AudioIndex) -> bool:
    return 0 < index.time_base.numerator <= _MAX_TIMESTAMP and index.time_base.denominator <= _MAX_TIMESTAMP


def _count_decoded(index: AudioIndex) -> int:
    """Return the number of samples of all packets. The sum is first estimated: it may exceed 64 bits."""
    return int(index.samples.sum()) if float(index.samples.astype(np.float64).sum()) < MAX_SAMPLES else -1


def _is_within(values: Array, low: int, high: int) -> bool:
    return not len(values) or (low <= int(values.min()) and int(values.max()) <= high)
