"""The LRU cache evicts the least recently used entries, and recent keys are forgotten in order."""

from __future__ import annotations

import pytest

from streamloader.common.lru import LruCache, RecentKeys


def test_least_recently_used_entry_is_evicted_by_count():
    dropped = []
    cache = LruCache(2, 1000, dropped.append)
    for key in "ab":
        assert cache.put(key, key.upper(), 1)
    assert cache.get("a") == "A"
    cache.put("c", "C", 1)
    assert dropped == ["b"]
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]
    assert cache.bytes == 2


def test_least_recently_used_entry_is_evicted_by_bytes():
    cache = LruCache(10, 100)
    for key in "abc":
        cache.put(key, key, 40)
    assert [cache.get(key) for key in "abc"] == [None, "b", "c"]
    assert cache.bytes == 80
    assert not cache.put("d", "d", 101)
    assert cache.bytes == 80
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


def test_replaced_entry_is_counted_once():
    cache = LruCache(10, 100)
    cache.put("a", 1, 60)
    cache.put("a", 2, 70)
    assert (cache.get("a"), cache.bytes, len(cache)) == (2, 70, 1)


@pytest.mark.parametrize(("max_entries", "max_bytes"), [(0, 100), (10, 0)])
def test_nothing_is_stored_if_a_limit_is_zero(max_entries, max_bytes):
    cache = LruCache(max_entries, max_bytes)
    assert not cache.put("a", 1, 1)
    assert cache.get("a") is None
    assert cache.bytes == 0


def test_recent_keys_are_forgotten_in_order():
    recent = RecentKeys(2)
    assert not recent.add("a")
    assert recent.add("a")
    assert recent.replace("b", 7) is None
    assert recent.replace("b", 8) == 7
    assert not recent.add("c")
    assert not recent.discard("a")
    assert recent.discard("b")
    assert not recent.discard("b")
