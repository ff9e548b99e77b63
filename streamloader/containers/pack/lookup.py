"""Find members of a pack by name, without an object of Python for each of them."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from mmap import mmap
from typing import Final, TypeAlias
from zlib import crc32

import numpy as np

from streamloader.values import Array

__all__ = ["PackBytes", "encode_name", "make_finder", "make_view"]

PackBytes: TypeAlias = bytes | memoryview | mmap

_EMPTY: Final = 0xFFFFFFFF  # slot without a row
_MAX_PROBES: Final = 64  # of names that are made to collide, which are found by bisection instead
_HASH_BITS: Final = 32


def make_finder(data: PackBytes, name_ends: Array, names_start: int, hashes: Array) -> Callable[[str], int | None]:
    """Build a hash table of rows, in which names of one home lie one after the other, and return its lookup.

    It takes 12 to 20 bytes for each member. If lookups would have to compare many names, because these were made to
    collide, they are found by bisection.

    Args:
        data: Bytes that contain the names.
        name_ends: Column of the index with the ends of the names.
        names_start: Offset of the names in `data`.
        hashes: Column of the index with the hashes of the names.
    """
    count = len(hashes)
    dtype = np.min_scalar_type(names_start + int(name_ends[-1]))
    bounds = make_view(name_ends.astype(dtype) + dtype.type(names_start))
    shift = max(0, _HASH_BITS - 1 - count.bit_length())
    order = np.argsort(hashes)
    homes = (hashes[order] >> shift).astype(np.int64)
    numbers = np.arange(count)
    positions = np.maximum.accumulate(homes - numbers) + numbers  # the first free slot from its home on
    if (positions - homes).max(initial=0) >= _MAX_PROBES:
        return _make_bisection(data, bounds, count)
    slots = np.full((1 << (_HASH_BITS - shift)) + _MAX_PROBES, _EMPTY, np.uint32)
    slots[positions] = order
    return _make_lookup(data, bounds, make_view(slots), shift)


def make_view(column: Array) -> memoryview:
    """Return a column as a memoryview, which yields numbers of Python, in a fraction of numpy's time."""
    return column.data


def encode_name(name: str) -> bytes:
    """Return a name as a pack stores it.

    Raises:
        UnicodeEncodeError: If it has surrogates that stand for no bytes.
    """
    return name.encode("utf-8", "surrogateescape")


# Closures, because reading the variables of one takes less time than reading attributes.


def _make_lookup(data: PackBytes, bounds: memoryview, slots: memoryview, shift: int) -> Callable[[str], int | None]:
    """Return a function that finds names in a hash table of rows."""
    get_hash, empty = crc32, _EMPTY

    def find(name: str, /) -> int | None:
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            if (escaped := _encode_or_none(name)) is None:
                return None
            encoded = escaped
        position = get_hash(encoded) >> shift
        while (row := slots[position]) != empty:
            if data[bounds[row] : bounds[row + 1]] == encoded:
                return row
            position += 1
        return None

    return find


def _make_bisection(data: PackBytes, bounds: memoryview, count: int) -> Callable[[str], int | None]:
    """Return a function that finds names by bisection, since they are in ascending order."""

    def get_name(row: int) -> bytes:
        return bytes(data[bounds[row] : bounds[row + 1]])

    def find(name: str, /) -> int | None:
        if (encoded := _encode_or_none(name)) is None:
            return None
        row = bisect.bisect_left(range(count), encoded, key=get_name)
        return row if row < count and get_name(row) == encoded else None

    return find


def _encode_or_none(name: str) -> bytes | None:
    """Return a name as a pack stores it. None if it has surrogates that stand for no bytes."""
    try:
        return encode_name(name)
    except UnicodeEncodeError:
        return None
