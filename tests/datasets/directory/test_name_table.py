"""The table of all names: compared with a dictionary."""

from __future__ import annotations

import io
import itertools
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.containers.pack.build import PackBuilder
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.filenames import sort_names
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.name_table import NameTable
from streamloader.datasets.directory.served_pack import READY, ServedPack


def make_packs(names_of_packs, state=READY):
    """Return packs with these names. The content of each member is the number of its pack and its name."""
    packs = []
    for number, names in enumerate(names_of_packs):
        file = io.BytesIO()
        builder = PackBuilder(file)
        for name in sort_names(names):
            builder.add(name, content_of(number, name))
        builder.finish()
        packs.append(ServedPack(MappedPack.from_bytes(file.getvalue()), f"s{number}", state, has_file_sizes=True))
    return packs


def make_table(packs, kind=NameTable):
    return kind(packs, DirectoryLock("/nowhere", 0.0))


def content_of(number, name):
    return f"{number} ".encode() + name.encode("utf-8", "surrogateescape")


def look_up(table, name):
    """Return what :meth:`find` and :meth:`read` agree on: number of the pack and content, or None."""
    found = table.find(name)
    if found is None:
        assert table.read(name) is None
        return None
    pack, row = found
    assert pack.pack.index.name(row) == name
    assert (pack, row) in table.find_all(name)
    assert table.read(name) == pack.pack.view(row)
    return table.packs.index(pack), bytes(pack.pack.view(row))


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
    lambda name: name not in (".", "..")
)


@given(st.dictionaries(NAMES, st.integers(0, 4)), st.lists(NAMES))
def test_names_are_found_as_in_a_dictionary(numbers, others):
    table = make_table(make_packs([[name for name in numbers if numbers[name] == pack] for pack in range(5)]))
    assert list(table.find_duplicates()) == []
    for name in [*numbers, *others]:
        expected = (numbers[name], content_of(numbers[name], name)) if name in numbers else None
        assert look_up(table, name) == expected


def test_no_packs_have_no_names():
    for packs in ([], make_packs([[]]), make_packs([[], []])):
        table = make_table(packs)
        assert look_up(table, "a") is None
        assert table.find_all("a") == []
        assert list(table.find_duplicates()) == []
    assert make_table([]).find("\ud800") is None
    assert make_table([]).read("\ud800") is None


def find_collisions(count):
    """Return pairs of names with the same CRC-32."""
    names, seen = [], {}
    numbers = itertools.count()
    while len(names) < count:
        number = next(numbers)
        name = f"{number * 2654435761 % 2**32:08x}{number:08x}"
        other = seen.setdefault(zlib.crc32(name.encode()), name)
        if other != name:
            names.append((other, name))
    return names


@pytest.fixture(scope="module")
def collisions():
    return find_collisions(3)


def test_names_with_equal_hashes_are_told_apart(collisions):
    (first, second), *others = collisions
    packs = make_packs([[first, *(a for a, _ in others)], [second, *(b for _, b in others)]])
    table = make_table(packs)
    for a, b in collisions:
        assert look_up(table, a) == (0, content_of(0, a))
        assert look_up(table, b) == (1, content_of(1, b))
        assert len(table.find_all(a)) == 1
    assert list(table.find_duplicates()) == []
    packs[1].hide(table.find(second)[1])
    assert look_up(table, second) is None
    assert look_up(table, first) == (0, content_of(0, first))


def test_duplicates_are_found_among_equal_hashes(collisions):
    (a, b), (c, d), _ = collisions
    packs = make_packs([[a, b, c, "x"], [a, b, "x", "y"], [b, d, "x"]])
    table = make_table(packs)
    found = {name: [packs.index(pack) for pack, _ in copies] for name, copies in table.find_duplicates()}
    assert found == {a: [0, 1], b: [0, 1, 2], "x": [0, 1, 2]}
    packs[0].hide(table.find_all("x")[0][1])
    packs[1].hide(dict(table.find_all(a))[packs[1]])
    found = {name: [packs.index(pack) for pack, _ in copies] for name, copies in table.find_duplicates()}
    assert found == {b: [0, 1, 2], "x": [1, 2]}


def test_locations_of_more_than_32_bits():
    """With many packs and a large one, numbers of packs and rows take more than 32 bits."""
    packs = make_packs([[f"{number}" for number in range(300)], *([f"p{number}"] for number in range(99))])

    class Wide(NameTable):
        """A table whose rows have 30 bits, as if there were a pack with a billion members."""

        def __setattr__(self, name, value):
            super().__setattr__(name, 30 if name == "_row_bits" else value)

    table = make_table(packs, Wide)
    for number in range(300):
        assert look_up(table, f"{number}") == (0, content_of(0, f"{number}"))
    for number in range(99):
        assert look_up(table, f"p{number}") == (number + 1, content_of(number + 1, f"p{number}"))
    assert look_up(table, "q") is None
    assert list(table.find_duplicates()) == []


def test_hidden_members_are_not_found_and_can_be_shown_again():
    (pack,) = make_packs([["a", "b", "c"]])
    table = make_table([pack])
    _, row = table.find("b")
    pack.hide(row)
    pack.hide(row)
    assert len(pack) == 2
    assert look_up(table, "b") is None
    assert table.find_all("b") == [(pack, row)]
    assert [name for name, _ in pack.list_visible()] == ["a", "c"]
    pack.show(row, READY)
    assert len(pack) == 3
    assert look_up(table, "b") == (0, b"0 b")


def test_own_memory_is_small():
    rng = random.Random(0)
    packs = make_packs([[f"{rng.getrandbits(64):016x}.png" for _ in range(500)] for _ in range(20)])
    table = make_table(packs)
    assert table._slots.nbytes / 10_000 <= 12
    slots = np.asarray(table._slots)
    ends = np.flatnonzero(slots == table._layout.empty)
    assert np.diff(ends).max() < 200  # of slots that follow one another, and a lookup has to compare
