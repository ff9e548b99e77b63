"""A cache of decoded frames, grouped by the key frame they are decoded from, and of byte blocks of chunks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

from streamloader.common.lru import LruCache

if TYPE_CHECKING:
    from streamloader.media.video.reader import VideoFrame

__all__ = ["FrameCache", "FrameGroup"]


class FrameGroup:
    """Decoded frames of one group of pictures.

    Attributes:
        frames: Frames by their number within the chunk.
    """

    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames: dict[int, VideoFrame] = {}


class FrameCache(LruCache[Hashable, object]):
    """An LRU cache whose entries are groups of frames, which grow frame by frame, or any other value."""

    def add_frame(self, key: Hashable, number: int, frame: VideoFrame, size: int) -> bool:
        """Add a frame of `size` bytes to the group under `key`. The group is created if it does not exist.

        Returns:
            False if the group would exceed the limits. The frame is not added then.
        """
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
            self._evict()
            return True

    def get_frames(self, key: Hashable, numbers: Iterable[int]) -> dict[int, VideoFrame]:
        """Return those of the frames `numbers` that are in the group under `key`, and mark the group as used."""
        with self._lock:
            group = self.get(key)
            if not isinstance(group, FrameGroup):
                return {}
            return {number: group.frames[number] for number in numbers if number in group.frames}
