"""Arrays of integers as few bytes: their differences, less the minimum of these, in the smallest type that holds them.

The arithmetic is modulo 2^64, so it is exact for all values.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from streamloader.values import Array

__all__ = ["ARRAY_BYTES", "IntReader", "as_unsigned", "differences", "pack_ints", "sum_up"]

_ARRAY: Final = struct.Struct("<Bq")  # bytes of one value, 0 if all are equal; minimum, which is added to each
_WIDTHS: Final = (1, 2, 4, 8)  # bytes of one value
ARRAY_BYTES: Final = _ARRAY.size  # in front of the values


def as_unsigned(values: Array) -> Array:
    """Return int64 values as uint64, modulo 2^64."""
    return np.ascontiguousarray(values, np.int64).view(np.uint64)


def differences(values: Array) -> Array:
    """Return the differences of neighbours modulo 2^64, uint64. The first is the one from 0, and comes last."""
    numbers = as_unsigned(values)
    result = np.empty_like(numbers)
    if len(numbers):
        np.subtract(numbers[1:], numbers[:-1], out=result[:-1])
        result[-1] = numbers[0]
    return result


def sum_up(values: Array) -> Array:
    """Return the values of :func:`differences`, int64."""
    numbers = np.empty_like(values)
    if len(numbers):
        numbers[0], numbers[1:] = values[-1], values[:-1]
        np.cumsum(numbers, out=numbers)
    return numbers.view(np.int64)


def pack_ints(values: Array) -> bytes:
    """Pack uint64 values. The last one has a place of its own, because it is the largest of differences."""
    if not len(values):
        return b""
    last = int(values[-1:].view(np.int64)[0])
    head = values[:-1]
    signed = head.view(np.int64)
    low = int(signed.min()) if len(head) else 0
    reduced = head - np.array(low, np.int64).view(np.uint64)
    top = int(reduced.max()) if len(head) else 0
    width = next((width for width in _WIDTHS if top < 1 << 8 * width), 8) if top else 0
    packed = _ARRAY.pack(width, low) + struct.pack("<q", last)
    return packed + reduced.astype(f"<u{width}").tobytes() if width else packed


class IntReader:
    """Reads packed arrays one after another.

    Attributes:
        offset: Offset of the next byte.
    """

    def __init__(self, body: bytes, offset: int) -> None:
        self._body = body
        self.offset = offset

    def read_ints(self, count: int) -> Array:
        """Return the next `count` values, uint64."""
        result = np.empty(count, np.uint64)
        if not count:
            return result
        width, low = _ARRAY.unpack_from(self._body, self.offset)
        (last,) = struct.unpack_from("<q", self._body, self.offset + _ARRAY.size)
        self.offset += _ARRAY.size + 8
        base = np.array(low, np.int64).view(np.uint64)
        if width:
            if width not in _WIDTHS:
                raise ValueError("the values of an array have an unknown type")
            values = np.frombuffer(self._body, f"<u{width}", count - 1, self.offset)
            self.offset += values.nbytes
            np.add(values, base, out=result[:-1], dtype=np.uint64)
        else:
            result[:-1] = base
        result[-1] = np.array(last, np.int64).view(np.uint64)
        return result
