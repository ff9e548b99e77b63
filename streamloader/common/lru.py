"""Bounded caches that evict the least recently used entry first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["LruCache", "RecentKeys"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruEntry(Generic[V]):
    """One value of an `LruCache`, with the number of bytes it is accounted for."""

    __slots__ = ("bytes", "value")

    def __init__(self, value: V, size: int) -> None:
        self.value = value
        self.bytes = size


class LruCache(Generic[K, V]):
    """A cache limited by its number of entries and by their bytes.

    When a limit is exceeded, the least recently used entry is evicted first. All methods are thread-safe.

    Args:
        max_entries: Maximum number of entries.
        max_bytes: Maximum number of bytes of all entries together.
        on_drop: Function called with the key of each entry that is removed, while the cache is locked. Optional.

    Attributes:
        bytes: Number of bytes of all entries.
    """

    def __init__(self, max_entries: int, max_bytes: int, on_drop: Callable[[K], None] | None = None) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._on_drop = on_drop
        self._entries: OrderedDict[K, LruEntry[V]] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value under `key` and mark it as recently used. Return None if there is no such entry."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.value

    def list_values(self) -> list[V]:
        """Return all values."""
        with self._lock:
            return [entry.value for entry in self._entries.values()]

    def put(self, key: K, value: V, size: int) -> bool:
        """Store a value of `size` bytes, replacing an older one.

        Returns:
            False if the value alone exceeds the limits. It is not stored then.
        """
        with self._lock:
            self.drop([key])
            if size > self.max_bytes or not self.max_entries:
                return False
            self._entries[key] = LruEntry(value, size)
            self.bytes += size
            self._evict()
            return True

    def drop(self, keys: Iterable[K]) -> None:
        """Remove the entries under these keys. Unknown keys are ignored."""
        with self._lock:
            for key in keys:
                entry = self._entries.pop(key, None)
                if entry is not None:
                    self.bytes -= entry.bytes
                    if self._on_drop is not None:
                        self._on_drop(key)

    def clear(self) -> None:
        """Remove all entries."""
        self.drop(list(self._entries))

    def _evict(self) -> None:
        while self._entries and (len(self._entries) > self.max_entries or self.bytes > self.max_bytes):
            self.drop([next(iter(self._entries))])


class RecentKeys(Generic[K]):
    """The most recently added keys, each with an integer. All methods are thread-safe.

    Args:
        max_keys: Maximum number of keys. The key that was added the longest time ago is forgotten first.
    """

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._values: OrderedDict[K, int] = OrderedDict()
        self._lock = threading.Lock()

    def replace(self, key: K, value: int) -> int | None:
        """Store `value` under `key`. Return the previous value, or None if the key is new."""
        with self._lock:
            previous = self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > self._max_keys:
                self._values.popitem(last=False)
            return previous

    def add(self, key: K) -> bool:
        """Add a key. Return whether it was present."""
        return self.replace(key, 0) is not None

    def discard(self, key: K) -> bool:
        """Remove a key. Return whether it was present."""
        with self._lock:
            return self._values.pop(key, None) is not None
