"""The compact form of a video index: a few bytes for constant frame durations and equal groups of pictures.

The form is a size in bytes, and zlib data of that size: a header of fixed size, the arrays, the byte ranges, the note.
An array is stored as its differences where these repeat, less their minimum, in the smallest type that holds them. The
arithmetic is modulo 2^64, so it is exact for all values. zlib's own checksum covers everything.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np

from streamloader.common.inflate import inflate
from streamloader.media.int_arrays import ARRAY_BYTES, IntReader, as_unsigned, differences, pack_ints, sum_up
from streamloader.media.video.clock_jumps import ClockJumps
from streamloader.media.video.frame_times import NO_TIME
from streamloader.media.video.index import Cropping, Retiming, VideoIndex
from streamloader.media.video.orientation import Orientation
from streamloader.media.video.remote import ByteSpans
from streamloader.stores.readahead import MAX_FILE_BYTES
from streamloader.values import Array

__all__ = ["InvalidBlob", "decode_index", "encode_index"]

_SIZE: Final = struct.Struct("<I")  # of the inflated data in bytes
# Flags; numerator and denominator of the time base; end; height; width; frames; key frames; byte ranges; note in bytes;
# video stream; video streams; cropping; numerator and denominator of the pixel aspect; clock jumps; retimed packets.
_HEADER: Final = struct.Struct("<HQQqIIIIIIII4IIIII")
_FLAGS: Final = ("has_pts", "seekable", "damaged")  # from bit 3 on; bits 0 to 2 are the orientation
_KEYS_ARE_FRAMES: Final = 1 << 6  # the key frames are numbers of frames, not timestamps
_IS_RETIMED: Final = 1 << 7
_SOUGHT_BY_BYTES: Final = 1 << 8  # key frames of retimed packets
_FLAG_BITS: Final = 9
_MAX_STREAMS: Final = 256
_MAX_ASPECT: Final = 1 << 31
_MAX_FRAMES: Final = 1 << 24  # as the indexer
_MAX_SPANS: Final = 1 << 16
_MAX_NOTE_BYTES: Final = 1 << 16
_MAX_TIMESTAMP: Final = 1 << 62  # so that sums and differences of timestamps fit into 64 bits
_MAX_SIDE: Final = 1 << 20  # pixels


class InvalidBlob(ValueError):
    """The bytes are not an index, or one with values that no video has. The text says what is wrong."""


def encode_index(index: VideoIndex) -> bytes:
    """Return the compact form of an index.

    Raises:
        InvalidBlob: If a value of a hostile file is too large for it.
    """
    keys = np.searchsorted(index.pts, index.key_pts)
    are_frames = bool(np.array_equal(index.pts[np.minimum(keys, len(index.pts) - 1)], index.key_pts))
    flags = sum(bit << number for number, bit in enumerate((*index.orientation, *(getattr(index, n) for n in _FLAGS))))
    note = index.note.encode("utf-8", "replace")[:_MAX_NOTE_BYTES]
    spans = np.array(index.initial_spans, np.int64).reshape(-1)
    retiming = index.retiming
    if retiming is not None:
        flags |= _IS_RETIMED | (_SOUGHT_BY_BYTES if retiming.by_bytes else 0)
    try:
        header = _HEADER.pack(
            flags | (_KEYS_ARE_FRAMES if are_frames else 0),
            index.time_base.numerator,
            index.time_base.denominator,
            index.end,
            index.height,
            index.width,
            len(index.pts),
            len(index.key_pts),
            len(spans) // 2,
            len(note),
            index.stream,
            index.video_streams,
            *index.cropping,
            index.pixel_aspect.numerator,
            index.pixel_aspect.denominator,
            len(index.clock),
            0 if retiming is None else len(retiming.packet_pts),
        )
    except struct.error as error:
        raise InvalidBlob(f"a value is out of range: {error}") from error
    parts = [
        header,
        *(pack_ints(differences(array)) for array in (index.pts, keys if are_frames else index.key_pts)),
        pack_ints(as_unsigned(index.key_seek) - as_unsigned(index.key_pts)),
        pack_ints(differences(spans)),
        *(
            pack_ints(differences(array))
            for array in (() if retiming is None else (_number_frames(index, retiming), *_key_columns(retiming)))
        ),
        *(pack_ints(differences(array)) for array in index.clock.columns()),
        note,
    ]
    body = b"".join(parts)
    return _SIZE.pack(len(body)) + zlib.compress(body)


def _number_frames(index: VideoIndex, retiming: Retiming) -> Array:
    """Return the number of the frame that each retimed packet shows, -1 for none, int64."""
    numbers = np.minimum(np.searchsorted(index.pts, retiming.packet_pts), len(index.pts) - 1).astype(np.int64)
    return np.where(index.pts[numbers] == retiming.packet_pts, numbers, -1)


def _key_columns(retiming: Retiming) -> tuple[Array, Array]:
    return retiming.key_packet, retiming.key_position


def decode_index(blob: bytes | memoryview, size: int | None) -> VideoIndex:
    """Return the index that :func:`encode_index` has encoded. All its values are possible for the video.

    Args:
        blob: Compact form of the index. Another user or program may have made it.
        size: Size of the video in bytes. None if it is unknown.

    Raises:
        InvalidBlob: If the bytes are not an index, or a value is not possible.
    """
    max_frames = _MAX_FRAMES if size is None else min(_MAX_FRAMES, size)
    try:
        index = _decode(blob, max_frames)
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        raise error if isinstance(error, InvalidBlob) else InvalidBlob(str(error)) from error
    if problem := _find_problem(index, size):
        raise InvalidBlob(problem)
    return index


def _decode(blob: bytes | memoryview, max_frames: int) -> VideoIndex:
    (body_bytes,) = _SIZE.unpack_from(blob)
    if body_bytes > _HEADER.size + 80 * max_frames + 16 * _MAX_SPANS + _MAX_NOTE_BYTES + 12 * ARRAY_BYTES:
        raise InvalidBlob("it declares more bytes than an index of this video can have")
    body = inflate(memoryview(blob)[_SIZE.size :], body_bytes)
    (
        flags, numerator, denominator, end, height, width, frames, keys, spans, note_bytes, stream, video_streams,
        *cropping, aspect_numerator, aspect_denominator, clock_jumps, packets,
    ) = _HEADER.unpack_from(body)  # fmt: skip
    if max(frames, keys, packets, clock_jumps) > max_frames or spans > _MAX_SPANS or note_bytes > _MAX_NOTE_BYTES:
        raise InvalidBlob("it declares more frames than its video has bytes, or other counts that no index has")
    if flags >> _FLAG_BITS:
        raise InvalidBlob("a flag is unknown")
    bits = [bool(flags >> number & 1) for number in range(3 + len(_FLAGS))]
    reader = IntReader(body, _HEADER.size)
    pts = sum_up(reader.read_ints(frames))
    key_pts = sum_up(reader.read_ints(keys))
    if flags & _KEYS_ARE_FRAMES:
        if keys and not 0 <= int(key_pts.min()) <= int(key_pts.max()) < frames:
            raise InvalidBlob("a key frame is none of the frames")
        key_pts = pts[key_pts]
    key_seek = (reader.read_ints(keys) + key_pts.view(np.uint64)).view(np.int64)
    bounds = sum_up(reader.read_ints(2 * spans)).tolist()
    retiming = None
    if flags & _IS_RETIMED:
        shown = sum_up(reader.read_ints(packets))
        if packets and not -1 <= int(shown.min()) <= int(shown.max()) < frames:
            raise InvalidBlob("a packet shows none of the frames")
        key_packet, key_position = (sum_up(reader.read_ints(keys)) for _ in range(2))
        packet_pts = np.where(shown >= 0, pts[np.maximum(shown, 0)], NO_TIME)
        retiming = Retiming(packet_pts, key_packet, key_position, bool(flags & _SOUGHT_BY_BYTES))
    elif packets or flags & _SOUGHT_BY_BYTES:
        raise InvalidBlob("it has packets without times")
    clock = ClockJumps(*(sum_up(reader.read_ints(clock_jumps)) for _ in range(4)))
    note = body[reader.offset :]
    if len(note) != note_bytes:
        raise InvalidBlob("its size is not that of its contents")
    return VideoIndex(
        pts, Fraction(numerator, denominator), end, key_pts, key_seek, height, width,
        orientation=Orientation(*bits[:3]),
        **dict(zip(_FLAGS, bits[3:], strict=True)),
        note=note.decode("utf-8"),
        initial_spans=tuple(zip(bounds[::2], bounds[1::2], strict=True)),
        retiming=retiming,
        stream=stream,
        video_streams=video_streams,
        cropping=Cropping(*cropping),
        pixel_aspect=Fraction(aspect_numerator, aspect_denominator),
        clock=clock,
    )  # fmt: skip


# --- validation ------------------------------------------------------------------------------------------------------


def _find_problem(index: VideoIndex, size: int | None) -> str:
    """Return what is impossible in an index, or "".

    Args:
        index: Index that was decoded.
        size: Size of the video in bytes. None if it is unknown.
    """
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (  # each relies on those before it
        ("its timestamps are not in order", lambda: _has_ordered_times(index)),
        ("a timestamp or its time base is out of range", lambda: _has_moderate_times(index)),
        ("its frame size is invalid", lambda: all(0 < side <= _MAX_SIDE for side in (index.height, index.width))),
        ("its cropping is invalid", lambda: all(side <= _MAX_SIDE for side in index.cropping)),
        ("its shape of pixels is invalid", lambda: _has_moderate_aspect(index)),
        ("its video stream is invalid", lambda: max(index.stream, index.video_streams - 1) < _MAX_STREAMS),
        ("its key frames are not packets", lambda: _has_valid_keys(index)),
        ("a jump of its clock is out of range", lambda: _has_moderate_jumps(index)),
        ("its first byte ranges are invalid", lambda: _are_valid_spans(index.initial_spans, size)),
    )
    return next((problem for problem, check in checks if not check()), "")


def _has_ordered_times(index: VideoIndex) -> bool:
    """Return whether times ascend. Compares neighbours, because their differences may exceed 64 bits."""
    pts, keys = index.pts, index.key_pts
    return len(pts) > 0 and bool((pts[1:] > pts[:-1]).all()) and bool((keys[1:] >= keys[:-1]).all())


def _has_moderate_times(index: VideoIndex) -> bool:
    """Return whether sums and differences of times fit into 64 bits."""
    bounds = [int(index.pts[0]), int(index.pts[-1])]
    for array in (index.key_pts, index.key_seek):
        bounds += [int(array.min()), int(array.max())] if len(array) else []
    return (
        all(-_MAX_TIMESTAMP <= bound <= _MAX_TIMESTAMP for bound in bounds)
        and int(index.pts[-1]) <= index.end <= _MAX_TIMESTAMP
        and 0 < index.time_base.numerator <= _MAX_TIMESTAMP
        and index.time_base.denominator <= _MAX_TIMESTAMP
    )


def _has_moderate_aspect(index: VideoIndex) -> bool:
    aspect = index.pixel_aspect
    return 0 < aspect.numerator < _MAX_ASPECT and aspect.denominator < _MAX_ASPECT


def _has_valid_keys(index: VideoIndex) -> bool:
    """Return whether the key frames of retimed packets are packets, in order, at possible positions."""
    retiming = index.retiming
    if retiming is None or not len(retiming.key_packet):
        return True
    numbers, positions = retiming.key_packet, retiming.key_position
    return bool(
        (numbers[1:] > numbers[:-1]).all()
        and int(numbers[0]) >= 0
        and int(numbers[-1]) < len(retiming.packet_pts)
        and int(positions.min()) >= -1
        and int(positions.max()) <= _MAX_TIMESTAMP
    )


def _has_moderate_jumps(index: VideoIndex) -> bool:
    """Return whether the jumps of the clock are at possible positions, and by possible times."""
    positions, *times = index.clock.columns()
    return not len(positions) or (
        -1 <= int(positions.min()) <= int(positions.max()) <= _MAX_TIMESTAMP
        and all(-_MAX_TIMESTAMP <= int(column.min()) <= int(column.max()) <= _MAX_TIMESTAMP for column in times)
    )


def _are_valid_spans(spans: ByteSpans, size: int | None) -> bool:
    """Return whether byte ranges ascend, end within a file of `size` bytes, and are small enough to be kept."""
    end = total = 0
    for start, stop in spans:
        if not end <= start < stop:
            return False
        end = stop
        total += stop - start
    return total <= MAX_FILE_BYTES and (size is None or end <= size)
