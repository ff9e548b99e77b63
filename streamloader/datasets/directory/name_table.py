"""Find a name in many packs at once, without a Python object for each name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from streamloader.containers.pack.format import encode_name, make_view
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.served_pack import FILE_CHECKED, HIDDEN, READY, ServedPack
from streamloader.values import Array

__all__ = ["NameTable"]

_HASH_BITS: Final = 32
_MAX_BUCKET_BITS: Final = 30
_MAX_PROBES: Final = 64  # of the hashes in a bucket, which has one on average
_BLOCK_HASHES: Final = 1 << 12


class NameTable:
    """Hash table of the members of many packs: 12 to 16 bytes for each member, and a lookup in about a microsecond.

    It consists of pairs, the location of a member and the hash of its name, in ascending order of the hashes, and of a
    table of buckets: the position of the first hash for each value of the first bits. A location is the number of the
    pack and the row. A lookup finds both numbers of a pair in the same line of the processor's cache.

    Args:
        packs: Packs.
        lock: Lock whose mutex is held by those who change the states of members.

    Attributes:
        packs: Packs. The number of a pack is its position.
        find: Function that returns pack and row of the member with a name that is not hidden. None if there is none.
        read: Function that returns the content of the member with a name, if its file has been checked and it is not
            compressed. None says nothing: `find` tells whether there is such a member.
    """

    find: Callable[[str], tuple[ServedPack, int] | None]
    read: Callable[[str], memoryview | None]

    def __init__(self, packs: Sequence[ServedPack], lock: DirectoryLock) -> None:
        self.packs = packs
        self._row_bits = max((len(pack.states) for pack in packs), default=0).bit_length()
        pairs = self._sort_members()
        hashes = pairs[1::2]
        bucket_bits = min(max(len(hashes) - 1, 0).bit_length(), _MAX_BUCKET_BITS)
        self._shift = _HASH_BITS - bucket_bits
        buckets, longest = _find_buckets(hashes, self._shift)
        self._pairs, self._buckets = make_view(pairs), make_view(buckets)
        self._is_crowded = longest > _MAX_PROBES
        table = self._pairs, self._buckets, self._shift, self._row_bits
        columns = [_get_columns(pack) for pack in packs]
        self.find = _make_finder(*table, columns, packs)
        self.read = _make_reader(*table, columns, lock)
        if self._is_crowded:
            self.find, self.read = self._find_in_packs, _read_nothing

    def _sort_members(self) -> Array:
        """Return location and hash of all members, by hash and then by location.

        They are sorted in place, as the halves of one number: what was freed afterwards would often stay allocated.
        """
        count = sum(len(pack.states) for pack in self.packs)
        if self._row_bits + len(self.packs).bit_length() > _HASH_BITS:
            return self._sort_wide(count)
        keys = np.empty(count, np.uint64)
        start = 0
        for number, pack in enumerate(self.packs):
            rows, first = len(pack.states), number << self._row_bits
            part = keys[start : start + rows]
            part[:] = pack.pack.index.hashes
            part <<= np.uint64(_HASH_BITS)
            part |= np.arange(first, first + rows, dtype=np.uint64)
            start += rows
        keys.sort()
        return keys.view(np.uint32)  # the lower half is the first one

    def _sort_wide(self, count: int) -> Array:
        """Return the pairs as numbers of 64 bits, for locations that need more than 32."""
        pairs = np.empty((count, 2), np.uint64)
        start = 0
        for number, pack in enumerate(self.packs):
            rows, first = len(pack.states), number << self._row_bits
            pairs[start : start + rows, 0] = np.arange(first, first + rows, dtype=np.uint64)
            pairs[start : start + rows, 1] = pack.pack.index.hashes
            start += rows
        return pairs[np.argsort(pairs[:, 1], kind="stable")].reshape(-1)

    def find_all(self, name: str) -> list[tuple[ServedPack, int]]:
        """Return pack and row of all members with this name, hidden ones too."""
        if self._is_crowded:
            return self._find_all_in_packs(name)
        hash_ = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        bucket = hash_ >> self._shift
        positions = range(self._buckets[bucket], self._buckets[bucket + 1], 2)
        matches = [self._locate(position) for position in positions if self._pairs[position] == hash_]
        return [(pack, row) for pack, row in matches if pack.pack.index.name(row) == name]

    def _find_in_packs(self, name: str, /) -> tuple[ServedPack, int] | None:
        """Find a name in a table of names that are made to collide. Each pack finds such names by bisection."""
        found = self._find_all_in_packs(name)
        return next(((pack, row) for pack, row in found if not pack.states[row] & HIDDEN), None)

    def _find_all_in_packs(self, name: str) -> list[tuple[ServedPack, int]]:
        rows = [(pack, pack.pack.find(name)) for pack in self.packs]
        return [(pack, row) for pack, row in rows if row is not None]

    def find_duplicates(self) -> Iterator[tuple[str, list[tuple[ServedPack, int]]]]:
        """Yield the names of several members that are not hidden, with pack and row of each."""
        hashes = np.asarray(self._pairs)[1::2]
        for positions in _find_runs(np.flatnonzero(hashes[1:] == hashes[:-1]).tolist()):
            members: dict[str, list[tuple[ServedPack, int]]] = {}
            for position in positions:
                pack, row = self._locate(2 * position + 1)
                if not pack.states[row] & HIDDEN:
                    members.setdefault(pack.pack.index.name(row), []).append((pack, row))
            yield from ((name, copies) for name, copies in members.items() if len(copies) > 1)

    def _locate(self, position: int) -> tuple[ServedPack, int]:
        """Return pack and row of the member whose hash has this position."""
        location = self._pairs[position - 1]
        return self.packs[location >> self._row_bits], location & ((1 << self._row_bits) - 1)


def _find_buckets(hashes: Array, shift: int) -> tuple[Array, int]:
    """Return the position in the pairs of the first hash of each bucket, and that after the last one.

    Also return about how many hashes the longest bucket has: it is counted within blocks.
    """
    count = 1 << (_HASH_BITS - shift)
    buckets: Array = np.zeros(count + 1, np.uint32 if 2 * len(hashes) + 1 < 1 << _HASH_BITS else np.uint64)
    longest = 0
    for start in range(0, len(hashes), _BLOCK_HASHES):
        numbers = (hashes[start : start + _BLOCK_HASHES] >> np.uint64(shift)).astype(np.int64)
        counts = np.bincount(numbers - (first := int(numbers[0])))
        buckets[first + 1 : first + 1 + len(counts)] += counts.astype(buckets.dtype)
        longest = max(longest, int(counts.max()))
    np.cumsum(buckets, out=buckets, dtype=buckets.dtype)
    buckets *= 2
    buckets += 1
    return buckets, longest


def _read_nothing(name: str, /) -> None:
    """Say nothing about a name."""


# The next two functions return closures, because reading the variables of one takes less time than reading attributes.
# These have the same loop, because calling one from the other would take a third of the time of a lookup.


def _make_finder(
    pairs: memoryview,
    buckets: memoryview,
    shift: int,
    row_bits: int,
    columns: Sequence[tuple[Any, ...]],
    packs: Sequence[ServedPack],
) -> Callable[[str], tuple[ServedPack, int] | None]:
    """Return the function `find` of a table."""
    row_mask = (1 << row_bits) - 1

    def find(name: str, /) -> tuple[ServedPack, int] | None:
        if (encoded := _encode_or_none(name)) is None:
            return None
        hash_ = zlib.crc32(encoded)
        bucket = hash_ >> shift
        position, end = buckets[bucket], buckets[bucket + 1]
        while position < end:
            if pairs[position] == hash_:
                location = pairs[position - 1]
                row = location & row_mask
                buffer, offset, ends, states, _, _, _ = columns[location >> row_bits]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and not states[row] & HIDDEN:
                    return packs[location >> row_bits], row
            position += 2
        return None

    return find


def _make_reader(
    pairs: memoryview,
    buckets: memoryview,
    shift: int,
    row_bits: int,
    columns: Sequence[tuple[Any, ...]],
    lock: DirectoryLock,
) -> Callable[[str], memoryview | None]:
    """Return the function `read` of a table."""
    row_mask = (1 << row_bits) - 1
    get_hash, ready = zlib.crc32, READY

    def read(name: str, /) -> memoryview | None:
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            if (escaped := _encode_or_none(name)) is None:
                return None
            encoded = escaped
        hash_ = get_hash(encoded)
        bucket = hash_ >> shift
        position, end = buckets[bucket], buckets[bucket + 1]
        while position < end:
            if pairs[position] == hash_:
                location = pairs[position - 1]
                row = location & row_mask
                buffer, offset, ends, states, data, starts, checksums = columns[location >> row_bits]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and data is not None:
                    view: memoryview = data[starts[row] : starts[row + 1]]
                    if states[row] == ready:
                        return view
                    if states[row] == FILE_CHECKED and get_hash(view) == checksums[row]:
                        with lock.mutex:  # another thread may just have hidden it
                            states[row] |= READY
                        return view
            position += 2
        return None

    return read


def _encode_or_none(name: str) -> bytes | None:
    """Return a name as a pack stores it. None if it has surrogates that stand for no bytes."""
    try:
        return encode_name(name)
    except UnicodeEncodeError:
        return None


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
