"""Names that are hashed, compared and separated many at once: as one by one."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from streamloader.containers.pack.name_columns import MAX_COLUMNS, hash_names, separate_names

NAMES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=MAX_COLUMNS),
        st.binary(min_size=3, max_size=3),
        st.integers(0, 10**6).map(lambda number: f"img_{number}.png".encode()),
    ).map(lambda name: name.replace(b"\0", b"0")),
    min_size=1,
)


def make_columns(names):
    ends = np.array(list(itertools.accumulate(map(len, names), initial=7)), np.uint32)  # as in the middle of an index
    return np.frombuffer(b"".join(names), np.uint8), ends


@given(NAMES, st.booleans())
@example([b"a", b"a"], False)
@example([b"a", b"ab", b"b"], False)
@example([b"ab", b"a"], False)
@example([b"\x7f", b"\x80", b"\xff"], False)
@example([b"x" * MAX_COLUMNS], False)
def test_names_are_hashed_and_compared_as_one_by_one(names, is_sorted):
    names = sorted(set(names)) if is_sorted else names
    hashes, is_ascending = hash_names(*make_columns(names))
    assert hashes.dtype == np.uint32
    assert hashes.tolist() == [zlib.crc32(name) for name in names]
    assert is_ascending == all(a < b for a, b in itertools.pairwise(names))


@given(NAMES)
def test_separated_names_are_the_names(names):
    assert separate_names(*make_columns(names)).split(b"\0") == names
