"""What is kept because it may be wanted again: decoded frames by group, and bytes of chunks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from streamloader.media.frames import VideoFrame

__all__ = ["Cache", "Counts", "FrameGroup", "Recent"]

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Counts:
    """What reading took so far.

    Attributes:
        frames: that were asked for.
        frame_hits: of them, those that were decoded already.
        frame_misses: of them, those that had to be decoded.
        packets: that were decoded.
        runs: begun at a key frame.
        continued: runs that went on where another had stopped.
        again: runs that did not come out as expected and were decoded once more, more slowly.
        byte_hits: bytes of chunks in stores that were there already.
        byte_misses: bytes of chunks that had to be read, from stores or local files.
        requests: reads of chunks.
        prefetched: bytes that were asked for ahead of their use.
        lookups: in the catalog.
    """

    frames: int = 0
    frame_hits: int = 0
    frame_misses: int = 0
    packets: int = 0
    runs: int = 0
    continued: int = 0
    again: int = 0
    byte_hits: int = 0
    byte_misses: int = 0
    requests: int = 0
    prefetched: int = 0
    lookups: int = 0


class FrameGroup:
    """Decoded frames of one group of pictures, by their numbers within the chunk."""

    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames: dict[int, VideoFrame] = {}


class _Entry:
    __slots__ = ("bytes", "value")

    def __init__(self, value: object, size: int) -> None:
        self.value = value
        self.bytes = size


class Cache:
    """Values that are kept up to a number and a number of bytes; what was not used for longest goes first.

    All methods can be called from several threads.

    Args:
        limit: entries at most.
        max_bytes: of all entries at most.
        dropped: is called with the key of each entry that has to go, while the cache is locked.
    """

    def __init__(self, limit: int, max_bytes: int, dropped: Callable[[Hashable], None] | None = None) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.bytes = 0
        self._dropped = dropped
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def get(self, key: Hashable) -> object | None:
        """Return what is kept under `key` and mark it as used; None if nothing is."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.value

    def put(self, key: Hashable, value: object, size: int) -> bool:
        """Keep a value, in the place of an older one; False if it has more bytes than all may have."""
        with self._lock:
            self.drop([key])
            if size > self.max_bytes or not self.limit:
                return False
            self._entries[key] = _Entry(value, size)
            self.bytes += size
            self._shrink()
            return True

    def add_frame(self, key: Hashable, number: int, frame: VideoFrame, size: int) -> bool:
        """Keep a frame in the group under `key`, which is made if there is none; False if the group is too large."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if not self.put(key, FrameGroup(), 0):
                    return False
                entry = self._entries[key]
            group = entry.value
            assert isinstance(group, FrameGroup)
            if number in group.frames:
                return True
            if entry.bytes + size > self.max_bytes:
                return False
            self._entries.move_to_end(key)
            group.frames[number] = frame
            entry.bytes += size
            self.bytes += size
            self._shrink()
            return True

    def frames(self, key: Hashable, numbers: Iterable[int]) -> dict[int, VideoFrame]:
        """Return those of these frames that are kept in the group under `key`, and mark it as used."""
        with self._lock:
            group = self.get(key)
            if not isinstance(group, FrameGroup):
                return {}
            return {number: group.frames[number] for number in numbers if number in group.frames}

    def drop(self, keys: Iterable[Hashable]) -> None:
        """Forget what is kept under these keys."""
        with self._lock:
            for key in keys:
                entry = self._entries.pop(key, None)
                if entry is not None:
                    self.bytes -= entry.bytes
                    if self._dropped is not None:
                        self._dropped(key)

    def clear(self) -> None:
        """Forget all."""
        self.drop(list(self._entries))

    def _shrink(self) -> None:
        while self._entries and (len(self._entries) > self.limit or self.bytes > self.max_bytes):
            self.drop([next(iter(self._entries))])


class Recent(Generic[K]):
    """Remembers the last few keys that it was told, with a number each. It can be used by several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._keys: OrderedDict[K, int] = OrderedDict()
        self._lock = threading.Lock()

    def swap(self, key: K, number: int) -> int | None:
        """Remember a number under a key; return the one before, None if there was none."""
        with self._lock:
            known = self._keys.pop(key, None)
            self._keys[key] = number
            if len(self._keys) > self._most:
                self._keys.popitem(last=False)
            return known

    def add(self, key: K) -> bool:
        """Remember a key; say whether it was known."""
        return self.swap(key, 0) is not None

    def take(self, key: K) -> bool:
        """Forget a key; say whether it was known."""
        with self._lock:
            return self._keys.pop(key, None) is not None
