"""Keys that occur twice are found among many, in little memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.datasets.shards import unique_keys
from streamloader.datasets.shards.unique_keys import UniqueKeys, make_default_key

KEYS = st.one_of(st.none(), st.integers(0, 12).map(make_default_key), st.sampled_from(["a", "b", "1", "٣٣٣٣٣٣٣٣٣"]))


@given(st.lists(KEYS, max_size=30), st.integers(1, 4))
def test_it_knows_the_keys_that_were_added(keys, max_recent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique_keys, "_MAX_RECENT", max_recent)
        unique, added = UniqueKeys(), set()
        for key in keys:
            number = len(added)
            name = make_default_key(number) if key is None else key
            assert unique.find(name, number) == (name in added), (name, added)
            if name not in added:
                unique.add(name, number)
                added.add(name)


def test_keys_take_a_few_bytes_each():
    tracemalloc.start()
    try:
        unique = UniqueKeys()
        for number in range(20_000):
            unique.add(make_default_key(number), number)
        assert tracemalloc.get_traced_memory()[0] < 5_000
        for number in range(20_000, 90_000):
            unique.add(f"key {number}", number)
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()
    for key in ("key 20000", "key 60000", "key 89999", "000000000", "000019999"):
        assert unique.find(key, 90_000)
    for key in ("key 90000", "000020000", "19999"):
        assert not unique.find(key, 90_000)
