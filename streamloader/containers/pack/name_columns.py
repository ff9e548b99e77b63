"""Check, hash, compare and separate many names at once, from the bytes of all of them."""

from __future__ import annotations

import functools
from typing import Final
from zlib import crc32

import numpy as np

from streamloader.values import Array

__all__ = ["MAX_COLUMNS", "describe_bad_parts", "hash_names", "separate_names"]

MAX_COLUMNS: Final = 64  # longest names that are hashed at once, which takes this many bytes for each name
_BYTE_VALUES: Final = 256
_SLASH: Final = ord("/")
_DOT: Final = ord(".")


def hash_names(names: Array, ends: Array) -> tuple[Array, bool]:
    """Return the CRC-32 of each name, and whether the names are in ascending order, each of them once.

    CRC-32 is linear: the one of a name is the exclusive or of what each of its bytes contributes, which depends on the
    number of bytes that follow, and of what its length contributes.

    Args:
        names: Bytes of the names, one after the other, without NUL.
        ends: Offsets at which the first name begins and each one ends. No name is empty or longer than
            :data:`MAX_COLUMNS`.
    """
    sizes = np.diff(ends)
    count, width = len(sizes), int(sizes.max())
    if count * width == len(names):
        left = right = names.reshape(count, width)
    else:
        columns, lengths = np.arange(width), sizes[:, None]
        left, right = np.zeros((2, count, width), np.uint8)
        left[columns < lengths] = names
        right[columns >= width - lengths.astype(np.int64)] = names
    contributions, of_lengths = _make_contributions(width)
    offsets = np.arange(0, _BYTE_VALUES * width, _BYTE_VALUES)[:, None]
    hashes: Array = np.bitwise_xor.reduce(contributions[right.T + offsets], axis=0) ^ of_lengths[sizes]
    texts = left.view(f"S{width}").reshape(count)  # compared byte by byte, and NUL, after the end of a name, is least
    return hashes, bool((texts[:-1] < texts[1:]).all())


@functools.lru_cache(maxsize=MAX_COLUMNS)
def _make_contributions(width: int) -> tuple[Array, Array]:
    """Return what each value of a byte contributes to a CRC-32 in each of `width` columns, and each length."""
    of_lengths = np.array([crc32(bytes(length)) for length in range(width + 1)], np.uint32)
    last = np.array([crc32(bytes([value])) for value in range(_BYTE_VALUES)], np.uint32) ^ of_lengths[1]
    columns = [last]
    while len(columns) < width:  # one more byte follows
        columns.append(last[columns[-1] & 0xFF] ^ (columns[-1] >> 8))
    return np.concatenate(columns[::-1]), of_lengths


def separate_names(names: Array, ends: Array) -> bytes:
    """Return names with NUL between them, which splits faster than it is cut.

    Args:
        names: Bytes of the names, one after the other, without NUL.
        ends: Offsets at which the first name begins and each one ends. There is at least one name.
    """
    sizes = np.diff(ends)
    count, width = len(sizes), int(sizes.max())
    if count * width == len(names):
        rows = np.zeros((count, width + 1), np.uint8)
        rows[:, :width] = names.reshape(count, width)
        return rows.tobytes()[:-1]
    is_name = np.ones(len(names) + count, np.bool_)
    is_name[ends[1:].astype(np.int64) - int(ends[0]) + np.arange(count)] = False
    separated = np.zeros(len(is_name), np.uint8)
    separated[is_name] = names
    return separated.tobytes()[:-1]


def describe_bad_parts(names: Array, ends: Array) -> str | None:
    """Return what is wrong with names that contain NUL, or have a part that is empty, "." or "..". None if none has.

    Args:
        names: Bytes of the names, one after the other.
        ends: 0, and the offset at which each name ends. No name is empty.
    """
    text = names.tobytes()
    if b"\0" not in text and b"/" not in text and not (names[ends[:-1]] == _DOT).any():  # as most names are
        return None
    size = len(names)
    slashes = np.flatnonzero(names == _SLASH)
    stops = np.zeros(size + 3, np.bool_)  # offsets at which a part can end
    stops[ends] = True
    if b"\0" in text or stops[slashes + 1].any():
        return "a name contains NUL, or ends in a slash"
    stops[slashes] = True
    begins = np.concatenate((ends[:-1].astype(np.int64), slashes + 1))
    firsts = names[begins]
    dots = begins[firsts == _DOT]
    is_double = ~stops[dots + 1] & (names[np.minimum(dots + 1, size - 1)] == _DOT) & stops[dots + 2]
    if (firsts == _SLASH).any() or (stops[dots + 1] | is_double).any():
        return "a name is absolute, or contains an empty, '.' or '..' part"
    return None
