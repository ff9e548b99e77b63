"""Find a name in many packs at once, without a Python object for each name."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from streamloader.containers.pack.format import make_view
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.served_pack import FILE_CHECKED, HIDDEN, READY, ServedPack
from streamloader.values import Array

__all__ = ["NameTable"]

_HASH_BITS: Final = 32
_KEY_BITS: Final = 64
_MAX_BUCKET_BITS: Final = 30


class NameTable:
    """Hash table of the members of many packs: 12 to 16 bytes for each member, and a lookup in about a microsecond.

    The keys are sorted numbers: the hash of a name in the upper bits, below it the location of the member, which is the
    number of the pack and the row. A table of buckets has the position of the first key for each value of the first
    bits of the hash.

    Args:
        packs: Packs.
        lock: Lock whose mutex is held by those who change the states of members.

    Attributes:
        packs: Packs. The number of a pack is its position.
    """

    def __init__(self, packs: Sequence[ServedPack], lock: DirectoryLock) -> None:
        self.packs = packs
        self._lock = lock
        self._row_bits = max((len(pack.states) for pack in packs), default=0).bit_length()
        self._location_bits = self._row_bits + len(packs).bit_length()
        self._dropped_bits = max(0, self._location_bits + _HASH_BITS - _KEY_BITS)  # for which a key has no room
        keys = self._make_keys()
        bucket_bits = min(max(len(keys) - 1, 0).bit_length(), _MAX_BUCKET_BITS, _HASH_BITS - self._dropped_bits)
        self._shift = _HASH_BITS - bucket_bits
        self._buckets = make_view(self._count_buckets(keys, bucket_bits))
        self._keys = make_view(keys)
        # What a lookup needs, in the order in which _find and read take it apart.
        self._parts = (
            *(self._keys, self._buckets, self._shift, self._dropped_bits, self._location_bits),
            *((1 << self._location_bits) - 1, self._row_bits, (1 << self._row_bits) - 1),
            [_get_columns(pack) for pack in packs],
        )

    def _make_keys(self) -> Array:
        keys = np.empty(sum(len(pack.states) for pack in self.packs), np.uint64)
        start = 0
        for number, pack in enumerate(self.packs):
            count, first = len(pack.states), number << self._row_bits
            part = keys[start : start + count]
            part[:] = pack.pack.index.hashes
            part >>= np.uint64(self._dropped_bits)
            part <<= np.uint64(self._location_bits)
            part |= np.arange(first, first + count, dtype=np.uint64)
            start += count
        keys.sort()
        return keys

    def _count_buckets(self, keys: Array, bucket_bits: int) -> Array:
        """Return the position of the first key of each bucket, and the number of keys."""
        shift = np.uint64(self._location_bits + self._shift - self._dropped_bits)
        counts = np.bincount((keys >> shift).astype(np.int64), minlength=1 << bucket_bits)
        buckets = np.zeros(len(counts) + 1, np.uint32 if len(keys) < 1 << _HASH_BITS else np.uint64)
        np.cumsum(counts, out=buckets[1:], dtype=buckets.dtype)
        return buckets

    # The next two methods are the same loop. Calling one from the other would take a third of the time of a lookup.

    def find(self, name: str) -> tuple[ServedPack, int] | None:
        """Return pack and row of the member with this name that is not hidden. None if there is none."""
        keys, buckets, shift, dropped_bits, location_bits, location_mask, row_bits, row_mask, columns = self._parts
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return None
        prefix = zlib.crc32(encoded)
        position, end = buckets[prefix >> shift], buckets[(prefix >> shift) + 1]
        prefix >>= dropped_bits
        while position < end:
            key = keys[position]
            if key >> location_bits == prefix:
                row = key & row_mask
                number = (key & location_mask) >> row_bits
                buffer, offset, ends, states, _, _, _ = columns[number]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and not states[row] & HIDDEN:
                    return self.packs[number], row
            position += 1
        return None

    def read(self, name: str) -> memoryview | None:
        """Return the content of the member with this name, if its file has been checked and it is not compressed.

        None says nothing: :meth:`find` tells whether there is such a member.
        """
        keys, buckets, shift, dropped_bits, location_bits, location_mask, row_bits, row_mask, columns = self._parts
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return None
        prefix = zlib.crc32(encoded)
        position, end = buckets[prefix >> shift], buckets[(prefix >> shift) + 1]
        prefix >>= dropped_bits
        while position < end:
            key = keys[position]
            if key >> location_bits == prefix:
                row = key & row_mask
                buffer, offset, ends, states, data, starts, checksums = columns[(key & location_mask) >> row_bits]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and data is not None:
                    view: memoryview = data[starts[row] : starts[row + 1]]
                    if states[row] == READY:
                        return view
                    if states[row] == FILE_CHECKED and zlib.crc32(view) == checksums[row]:
                        with self._lock.mutex:  # another thread may just have hidden it
                            states[row] |= READY
                        return view
            position += 1
        return None

    def find_all(self, name: str) -> list[tuple[ServedPack, int]]:
        """Return pack and row of all members with this name, hidden ones too."""
        hash_ = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        bucket, prefix = hash_ >> self._shift, hash_ >> self._dropped_bits
        keys = self._keys[self._buckets[bucket] : self._buckets[bucket + 1]]
        matches = [self._locate(key) for key in keys if key >> self._location_bits == prefix]
        return [(pack, row) for pack, row in matches if pack.pack.index.name(row) == name]

    def find_duplicates(self) -> Iterator[tuple[str, list[tuple[ServedPack, int]]]]:
        """Yield the names of several members that are not hidden, with pack and row of each."""
        hashes = np.asarray(self._keys) >> np.uint64(self._location_bits)
        for positions in _find_runs(np.flatnonzero(hashes[1:] == hashes[:-1]).tolist()):
            members: dict[str, list[tuple[ServedPack, int]]] = {}
            for position in positions:
                pack, row = self._locate(self._keys[position])
                if not pack.states[row] & HIDDEN:
                    members.setdefault(pack.pack.index.name(row), []).append((pack, row))
            yield from ((name, copies) for name, copies in members.items() if len(copies) > 1)

    def _locate(self, key: int) -> tuple[ServedPack, int]:
        location = key & ((1 << self._location_bits) - 1)
        return self.packs[location >> self._row_bits], location & ((1 << self._row_bits) - 1)


def _get_columns(pack: ServedPack) -> tuple[Any, ...]:
    """Return what a lookup needs of a pack. The bytes of its members are None if they cannot be read as they are."""
    data = memoryview(pack.buffer).toreadonly() if pack.is_stored else None
    checksums = make_view(pack.pack.index.checksums)
    return pack.buffer, pack.names_offset, pack.name_ends, pack.states, data, pack.starts, checksums


def _find_runs(equal_to_next: list[int]) -> Iterator[list[int]]:
    """Yield the positions of equal values, from the positions of those that equal the next one."""
    run: list[int] = []
    for position in equal_to_next:
        if run and run[-1] != position:
            yield run
            run = []
        if not run:
            run.append(position)
        run.append(position + 1)
    if run:
        yield run
