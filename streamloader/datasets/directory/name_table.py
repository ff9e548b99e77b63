"""Find a name in many packs at once, without a Python object for each name."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.containers.pack.format import encode_name, make_view
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.served_pack import FILE_CHECKED, HIDDEN, READY, ServedPack
from streamloader.values import Array

__all__ = ["NameTable"]

_HASH_BITS: Final = 32
_SHORT_BITS: Final = 30  # of a number of Python with one digit, with which it computes in half the time
_LONG_BITS: Final = 64
_SLOTS_PER_MEMBER: Final = 1.5  # at least: their number is a power of two
_MAX_PROBES: Final = 1 << 8  # of slots, of which a lookup needs about two, and dozens in a table of many millions
_BLOCK_MEMBERS: Final = 1 << 12


class _Layout(NamedTuple):
    """How hash and location of a member make a slot, and where it lies.

    Attributes:
        home_bits: Number of bits of a hash that tell the first slot in which a member can lie: its lowest ones.
        tag_mask: Mask of the bits of a hash that are in the slot.
        row_bits: Number of bits of a row.
        location_bits: Number of bits of a location: those of the row, and above them those of the pack's number.
        empty: Slot without a member. No row has all bits set, so that no member has it.
    """

    home_bits: int
    tag_mask: int
    row_bits: int
    location_bits: int
    empty: int

    @property
    def home_mask(self) -> int:
        """Mask of the bits of a hash that tell the first slot."""
        return (1 << self.home_bits) - 1

    @property
    def row_mask(self) -> int:
        """Mask of the bits of a location that are the row."""
        return (1 << self.row_bits) - 1


class NameTable:
    """Hash table of the members of many packs: 6 to 12 bytes for each member, and a lookup in about a microsecond.

    A slot is a number of 30 bits: the location of a member, which is the number of its pack and the row, and above it
    as many bits of the hash of its name as fit. A member lies at its home, which other bits of the hash tell, or in the
    first free slot behind it. More than 2^30 locations have slots of 64 bits.

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
        count = sum(len(pack.states) for pack in packs)
        self._row_bits = max((len(pack.states) for pack in packs), default=0).bit_length()
        self._layout = self._lay_out(count)
        keys, locations = self._sort_members(count)
        self._equals = _find_equals(keys, locations)
        slots = _fill_slots(keys, locations, self._layout)
        self._is_crowded = slots is None
        if slots is None:  # names are made to collide
            self.find, self.read = self._find_in_packs, _read_nothing
            return
        self._slots = make_view(slots)
        columns = [_get_columns(pack) for pack in packs]
        self.find = _make_finder(self._slots, self._layout, columns, packs)
        self.read = _make_reader(self._slots, self._layout, columns, packs, lock)

    def _lay_out(self, count: int) -> _Layout:
        home_bits = min(_HASH_BITS, max(1, int(count * _SLOTS_PER_MEMBER).bit_length()))
        location_bits = self._row_bits + len(self.packs).bit_length()
        slot_bits = _SHORT_BITS if location_bits <= _SHORT_BITS else _LONG_BITS
        tag_mask = (1 << min(slot_bits, _HASH_BITS)) - 1 >> location_bits << location_bits
        return _Layout(home_bits, tag_mask, self._row_bits, location_bits, (1 << slot_bits) - 1)

    def _sort_members(self, count: int) -> tuple[Array, Array]:
        """Return key and location of all members, in their order. The key is the hash, with the bits of the home first.

        They are sorted in place, as the halves of one number, in memory that the system gets back.
        """
        if self._layout.location_bits > _HASH_BITS:
            return self._sort_wide(count)
        pairs: Array = np.frombuffer(mmap.mmap(-1, max(1, 8 * count)), np.uint64, count)
        for start, first, pack in self._list_packs():
            part = pairs[start : start + len(pack.states)]
            part[:] = _make_keys(pack.pack.index.hashes, self._layout)
            part <<= np.uint64(_HASH_BITS)
            part |= np.arange(first, first + len(part), dtype=np.uint64)
        pairs.sort()
        halves = pairs.view(np.uint32)  # the lower half is the first one
        return halves[1::2], halves[::2]

    def _sort_wide(self, count: int) -> tuple[Array, Array]:
        """Do the same with locations that need more than 32 bits."""
        keys, locations = np.empty(count, np.uint32), np.empty(count, np.uint64)
        for start, first, pack in self._list_packs():
            stop = start + len(pack.states)
            keys[start:stop] = _make_keys(pack.pack.index.hashes, self._layout)
            locations[start:stop] = np.arange(first, first + stop - start, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        return keys[order], locations[order]

    def _list_packs(self) -> Iterator[tuple[int, int, ServedPack]]:
        """Yield the number of members before each pack, the location of its first one, and the pack."""
        start = 0
        for number, pack in enumerate(self.packs):
            yield start, number << self._row_bits, pack
            start += len(pack.states)

    def find_all(self, name: str) -> list[tuple[ServedPack, int]]:
        """Return pack and row of all members with this name, hidden ones too."""
        if self._is_crowded:
            return self._find_all_in_packs(name)
        layout, matches = self._layout, []
        hash_ = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        position, tag = hash_ & layout.home_mask, hash_ & layout.tag_mask
        while (slot := self._slots[position]) != layout.empty:
            if (location := slot ^ tag) >> layout.location_bits == 0:
                matches.append(self._locate(location))
            position += 1
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
        locations, run_starts = self._equals
        for start, stop in pairwise([*run_starts.tolist(), len(locations)]):
            members: dict[str, list[tuple[ServedPack, int]]] = {}
            for location in locations[start:stop].tolist():
                pack, row = self._locate(location)
                if not pack.states[row] & HIDDEN:
                    members.setdefault(pack.pack.index.name(row), []).append((pack, row))
            yield from ((name, copies) for name, copies in members.items() if len(copies) > 1)

    def _locate(self, location: int) -> tuple[ServedPack, int]:
        """Return pack and row of a location."""
        return self.packs[location >> self._row_bits], location & ((1 << self._row_bits) - 1)


def _make_keys(hashes: Array, layout: _Layout) -> Array:
    """Return hashes with their lowest bits, which tell the home, before the other ones."""
    wide = hashes.astype(np.uint64)
    bits, rest = np.uint64(layout.home_bits), np.uint64(_HASH_BITS - layout.home_bits)
    keys: Array = ((wide << rest) & np.uint64((1 << _HASH_BITS) - 1)) | (wide >> bits)
    return keys


def _find_equals(keys: Array, locations: Array) -> tuple[Array, Array]:
    """Return the locations of the members with the same hash as another one, and where each such hash begins."""
    repeated = [np.empty(0, np.int64)]  # positions of those that equal the one before
    for start in range(1, len(keys), _BLOCK_MEMBERS):
        block = keys[start - 1 : start + _BLOCK_MEMBERS]
        repeated.append(np.flatnonzero(block[1:] == block[:-1]) + start)
    later = np.concatenate(repeated)
    firsts = later[np.diff(later, prepend=-1) != 1] - 1  # of each hash
    positions = np.sort(np.concatenate((firsts, later)))
    return locations[positions], np.searchsorted(positions, firsts)


def _fill_slots(keys: Array, locations: Array, layout: _Layout) -> Array | None:
    """Return the slots, of which the last one is empty. None if a member lies too far behind its home."""
    slots: Array = np.full(
        (1 << layout.home_bits) + _MAX_PROBES + 1,
        layout.empty,
        np.uint32 if layout.empty >> _HASH_BITS == 0 else np.uint64,
    )
    bits, rest = np.uint64(layout.home_bits), np.uint64(_HASH_BITS - layout.home_bits)
    last = -1  # position of the last member, less its number
    for start in range(0, len(keys), _BLOCK_MEMBERS):
        block = keys[start : start + _BLOCK_MEMBERS].astype(np.uint64)
        homes = (block >> rest).astype(np.int64)
        numbers = np.arange(start, start + len(block))
        positions = np.maximum(np.maximum.accumulate(homes - numbers), last)
        last = int(positions[-1])
        positions += numbers
        if int((positions - homes).max()) > _MAX_PROBES:
            return None
        hashes = (block << bits) | (block >> rest)
        slots[positions] = (hashes & np.uint64(layout.tag_mask)) | locations[start : start + _BLOCK_MEMBERS]
    return slots


def _read_nothing(name: str, /) -> None:
    """Say nothing about a name."""


# The next two functions return closures, because reading the variables of one takes less time than reading attributes.
# These have the same loop, because calling one from the other would take a third of the time of a lookup.


def _make_finder(
    slots: memoryview, layout: _Layout, columns: Sequence[tuple[Any, ...]], packs: Sequence[ServedPack]
) -> Callable[[str], tuple[ServedPack, int] | None]:
    """Return the function `find` of a table."""
    home_mask, tag_mask, row_mask = layout.home_mask, layout.tag_mask, layout.row_mask
    row_bits, limit, empty = layout.row_bits, 1 << layout.location_bits, layout.empty

    def find(name: str, /) -> tuple[ServedPack, int] | None:
        if (encoded := _encode_or_none(name)) is None:
            return None
        hash_ = zlib.crc32(encoded)
        position, tag = hash_ & home_mask, hash_ & tag_mask
        while (slot := slots[position]) != empty:
            if (location := slot ^ tag) < limit:
                number, row = location >> row_bits, location & row_mask
                buffer, offset, ends, states, _, _ = columns[number]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and not states[row] & HIDDEN:
                    return packs[number], row
            position += 1
        return None

    return find


def _make_reader(
    slots: memoryview,
    layout: _Layout,
    columns: Sequence[tuple[Any, ...]],
    packs: Sequence[ServedPack],
    lock: DirectoryLock,
) -> Callable[[str], memoryview | None]:
    """Return the function `read` of a table."""
    home_mask, tag_mask, row_mask = layout.home_mask, layout.tag_mask, layout.row_mask
    row_bits, limit, empty = layout.row_bits, 1 << layout.location_bits, layout.empty
    get_hash, ready, file_checked = zlib.crc32, READY, FILE_CHECKED

    def read(name: str, /) -> memoryview | None:
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            if (escaped := _encode_or_none(name)) is None:
                return None
            encoded = escaped
        hash_ = get_hash(encoded)
        position, tag = hash_ & home_mask, hash_ & tag_mask
        while (slot := slots[position]) != empty:
            if (location := slot ^ tag) < limit:
                row = location & row_mask
                buffer, offset, ends, states, data, starts = columns[location >> row_bits]
                if buffer[offset + ends[row] : offset + ends[row + 1]] == encoded and data is not None:
                    if states[row] == file_checked:
                        with lock.mutex:  # another thread may just have hidden it
                            packs[location >> row_bits].verify_block(row)
                    if states[row] == ready:
                        view: memoryview = data[starts[row] : starts[row + 1]]
                        return view
            position += 1
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
    data = pack.data if pack.is_stored else None
    return pack.buffer, pack.names_offset, pack.name_ends, pack.states, data, pack.starts
