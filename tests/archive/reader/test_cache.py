"""The cache of decoded frames, and the reuse of result buffers."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from streamloader.archive.buffer_pool import BufferPool
from streamloader.archive.reader.cache import FrameCache


def test_frames_of_a_group_are_evicted_together():
    cache = FrameCache(10, 100)
    frames = [object() for _ in range(6)]
    for number in range(4):
        assert cache.add_frame("g", number, frames[number], 20)
    assert cache.add_frame("g", 3, frames[3], 20)  # it is in the cache already
    assert cache.bytes == 80
    assert cache.get_frames("g", [0, 3, 9]) == {0: frames[0], 3: frames[3]}
    assert not cache.add_frame("g", 5, frames[5], 21)  # the group would exceed the limit
    cache.add_frame("h", 0, frames[4], 30)
    assert cache.get_frames("g", range(9)) == {}
    assert cache.get_frames("h", [0]) == {0: frames[4]}
    assert cache.bytes == 30


@pytest.mark.parametrize(("max_entries", "max_bytes"), [(0, 100), (10, 0)])
def test_nothing_is_cached_if_a_limit_is_zero(max_entries, max_bytes):
    cache = FrameCache(max_entries, max_bytes)
    assert not cache.add_frame("g", 0, object(), 1)
    assert cache.bytes == 0
    assert cache.get_frames("g", [0]) == {}


def _address(array):
    return array.__array_interface__["data"][0]


def test_a_buffer_is_reused_when_nothing_refers_to_it():
    pool = BufferPool(16 << 20)
    first = pool.allocate((2, 1024, 1024))
    address, view = _address(first), first[1, 10:20]
    del first
    gc.collect()
    other = pool.allocate((2, 1024, 1024))
    assert _address(other) != address  # a view of the first still exists
    del view
    gc.collect()
    assert _address(pool.allocate((2, 1024, 1000))) == address


def test_free_buffers_stay_within_the_limit():
    pool = BufferPool(3 << 20)
    arrays = [pool.allocate((2 << 20,)) for _ in range(3)]
    addresses = [_address(array) for array in arrays]
    del arrays
    gc.collect()
    assert [sum(map(len, pool._free))] == [2 << 20]
    assert _address(pool.allocate((2 << 20,))) in addresses
    pool.clear()
    gc.collect()
    assert not pool._free


def test_small_arrays_and_those_of_an_empty_pool_are_not_pooled():
    assert BufferPool(1 << 30).allocate((10,)).base is None
    array = BufferPool(0).allocate((2, 2 << 20))
    assert array.shape == (2, 2 << 20)
    assert array.dtype == np.uint8
    assert array.base is None
