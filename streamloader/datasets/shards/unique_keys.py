"""Find keys that occur twice among many, with 8 bytes of memory for each."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from typing import Final

import numpy as np

from streamloader.values import Array

__all__ = ["UniqueKeys", "make_default_key"]

_KEY_DIGITS: Final = 9
_MAX_RECENT: Final = 1 << 16
_DIGEST_BYTES: Final = 8


def make_default_key(number: int) -> str:
    """Return the key of a sample that has none: its number."""
    return f"{number:0{_KEY_DIGITS}}"


class UniqueKeys:
    """The keys of the samples that were written so far.

    A sample whose key is its own number, as by default, takes no memory. All others take 8 bytes, for a digest. Two
    different keys have the same digest, and so the second one is refused, with a probability of 1 in 37 million for a
    million keys, and of 1 in 3,700 for 100 million.
    """

    def __init__(self) -> None:
        self._starts = array("q")  # of the ranges of samples whose key is their number
        self._ends = array("q")
        self._recent: set[int] = set()
        self._sorted: list[Array] = []  # of falling sizes

    def find(self, key: str, number: int) -> bool:
        """Return whether another sample has this key.

        Args:
            key: Key.
            number: Number of the sample. Samples are added in their order.
        """
        if key != make_default_key(number) and self._find_numbered(key):
            return True
        if not self._recent and not self._sorted:
            return False
        digest = _digest(key)
        return digest in self._recent or any(_contains(digests, digest) for digests in self._sorted)

    def add(self, key: str, number: int) -> None:
        """Add the key of a sample. Arguments are those of :meth:`find`."""
        if key == make_default_key(number):
            if self._ends and self._ends[-1] == number:
                self._ends[-1] = number + 1
            else:
                self._starts.append(number)
                self._ends.append(number + 1)
            return
        self._recent.add(_digest(key))
        if len(self._recent) >= _MAX_RECENT:
            self._merge()

    def _find_numbered(self, key: str) -> bool:
        """Return whether this is the key of a sample whose key is its number."""
        if len(key) < _KEY_DIGITS or not (key.isascii() and key.isdigit()) or len(key) > 2 * _KEY_DIGITS:
            return False
        number = int(key)
        place = bisect_right(self._starts, number) - 1
        return key == make_default_key(number) and place >= 0 and number < self._ends[place]

    def _merge(self) -> None:
        """Sort the recent digests, and join arrays of similar size, so that there are few of them."""
        digests = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) <= 2 * len(digests):
            digests = np.sort(np.concatenate([self._sorted.pop(), digests]), kind="stable")
        self._sorted.append(digests)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest())


def _contains(digests: Array, digest: int) -> bool:
    place = int(np.searchsorted(digests, np.uint64(digest)))
    return place < len(digests) and int(digests[place]) == digest
