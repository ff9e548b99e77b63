"""What is kept, and what goes first."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from streamloader.archive.buffer_pool import ResultMemory
from streamloader.archive.reader.cache import Cache, Recent


def test_the_least_used_goes_first_by_number():
    dropped = []
    cache = Cache(2, 1000, dropped.append)
    for key in "ab":
        assert cache.put(key, key.upper(), 1)
    assert cache.get("a") == "A"
    cache.put("c", "C", 1)
    assert dropped == ["b"]
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]
    assert cache.bytes == 2


def test_the_least_used_goes_first_by_bytes():
    cache = Cache(10, 100)
    for key in "abc":
        cache.put(key, key, 40)
    assert [cache.get(key) for key in "abc"] == [None, "b", "c"]
    assert cache.bytes == 80
    assert not cache.put("d", "d", 101)
    assert cache.bytes == 80
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


def test_what_replaces_another_counts_once():
    cache = Cache(10, 100)
    cache.put("a", 1, 60)
    cache.put("a", 2, 70)
    assert (cache.get("a"), cache.bytes, len(cache)) == (2, 70, 1)


def test_frames_of_a_group_stay_and_go_together():
    cache = Cache(10, 100)
    frames = [object() for _ in range(6)]
    for number in range(4):
        assert cache.add_frame("g", number, frames[number], 20)
    assert cache.add_frame("g", 3, frames[3], 20)  # it is there
    assert cache.bytes == 80
    assert cache.frames("g", [0, 3, 9]) == {0: frames[0], 3: frames[3]}
    assert not cache.add_frame("g", 5, frames[5], 21)  # a group of more than all may have is not begun anew
    cache.add_frame("h", 0, frames[4], 30)
    assert cache.frames("g", range(9)) == {}
    assert cache.frames("h", [0]) == {0: frames[4]}
    assert cache.bytes == 30


@pytest.mark.parametrize(("limit", "most"), [(0, 100), (10, 0)])
def test_nothing_is_kept_where_nothing_may_be(limit, most):
    cache = Cache(limit, most)
    assert not cache.put("a", 1, 1)
    assert not cache.add_frame("g", 0, object(), 1)
    assert cache.get("a") is None
    assert cache.bytes == 0
    assert cache.frames("g", [0]) == {}


def test_recent_keys_are_forgotten_in_order():
    recent = Recent(2)
    assert not recent.add("a")
    assert recent.add("a")
    assert recent.swap("b", 7) is None
    assert recent.swap("b", 8) == 7
    assert not recent.add("c")
    assert not recent.take("a")
    assert recent.take("b")
    assert not recent.take("b")


def _address(array):
    return array.__array_interface__["data"][0]


def test_memory_of_a_result_is_used_again_when_nothing_refers_to_it():
    memory = ResultMemory(16 << 20)
    first = memory.array((2, 1024, 1024))
    address, view = _address(first), first[1, 10:20]
    del first
    gc.collect()
    other = memory.array((2, 1024, 1024))
    assert _address(other) != address  # a view of the first is still there
    del view
    gc.collect()
    assert _address(memory.array((2, 1024, 1000))) == address


def test_no_more_memory_is_held_than_allowed():
    memory = ResultMemory(3 << 20)
    arrays = [memory.array((2 << 20,)) for _ in range(3)]
    addresses = [_address(array) for array in arrays]
    del arrays
    gc.collect()
    assert [sum(map(len, memory._free))] == [2 << 20]
    assert _address(memory.array((2 << 20,))) in addresses
    memory.clear()
    gc.collect()
    assert not memory._free


def test_small_results_and_those_of_no_memory_are_plain_arrays():
    assert ResultMemory(1 << 30).array((10,)).base is None
    array = ResultMemory(0).array((2, 2 << 20))
    assert array.shape == (2, 2 << 20)
    assert array.dtype == np.uint8
    assert array.base is None
