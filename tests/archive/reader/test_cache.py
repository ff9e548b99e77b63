"""What is kept, and what goes first."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from streamloader.archive.buffer_pool import ResultMemory
from streamloader.archive.reader.cache import FrameCache


def test_frames_of_a_group_stay_and_go_together():
    cache = FrameCache(10, 100)
    frames = [object() for _ in range(6)]
    for number in range(4):
        assert cache.add_frame("g", number, frames[number], 20)
    assert cache.add_frame("g", 3, frames[3], 20)  # it is there
    assert cache.bytes == 80
    assert cache.get_frames("g", [0, 3, 9]) == {0: frames[0], 3: frames[3]}
    assert not cache.add_frame("g", 5, frames[5], 21)  # a group of more than all may have is not begun anew
    cache.add_frame("h", 0, frames[4], 30)
    assert cache.get_frames("g", range(9)) == {}
    assert cache.get_frames("h", [0]) == {0: frames[4]}
    assert cache.bytes == 30


@pytest.mark.parametrize(("limit", "most"), [(0, 100), (10, 0)])
def test_nothing_is_kept_where_nothing_may_be(limit, most):
    cache = FrameCache(limit, most)
    assert not cache.add_frame("g", 0, object(), 1)
    assert cache.bytes == 0
    assert cache.get_frames("g", [0]) == {}


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
