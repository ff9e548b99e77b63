"""Plan how the selected frames of a video are decoded: from which key frames, and which packets are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from av.packet import Packet

    from streamloader.media.video.disposable import DisposableTest
    from streamloader.media.video.index import VideoIndex
    from streamloader.values import Array

__all__ = ["DecodePlan", "PacketFilter"]

_MIN_UNNEEDED_FRAMES: Final = 4  # decoding fewer frames is cheaper than starting again at the next key frame


class DecodePlan:
    """The frames of a video that will be read, in ascending order.

    Args:
        index: Index of the video, with timestamps.
        numbers: Numbers of the frames, int64, ascending.
    """

    def __init__(self, index: VideoIndex, numbers: Array) -> None:
        self._pts = index.pts
        self._numbers = np.unique(numbers)
        self._is_selected = np.zeros(len(index), bool)
        self._is_selected[self._numbers] = True
        self._key_frames = np.searchsorted(index.pts, index.key_pts) if index.seekable else np.zeros(0, np.int64)
        self._run_ends: dict[int, Array] = {}  # by number of keys to go back

    def find_frame(self, pts: int | None) -> int | None:
        """Return the number of the frame with this timestamp."""
        if pts is None:
            return None
        number = int(np.searchsorted(self._pts, pts))
        return number if number < len(self._pts) and self._pts[number] == pts else None

    def is_selected(self, number: int) -> bool:
        """Return whether a frame will be read."""
        return bool(self._is_selected[number])

    def next_selected(self, number: int) -> int:
        """Return the first selected frame from `number` on, or the number of frames of the video."""
        position = int(np.searchsorted(self._numbers, number))
        return int(self._numbers[position]) if position < len(self._numbers) else len(self._pts)

    def count_selected(self, first: int, last: int) -> int:
        """Return how many of the frames `first` to `last` are selected."""
        start, end = np.searchsorted(self._numbers, (first, last + 1))
        return int(end - start)

    def end_of_run(self, number: int, keys_back: int) -> int:
        """Return the last selected frame before decoding starts again at a key frame.

        Args:
            number: A selected frame, at which the run starts.
            keys_back: Number of key frames before the last one at which the decoding of a frame has to start.
        """
        ends = self._run_ends.get(keys_back)
        if ends is None:
            ends = self._run_ends[keys_back] = self._find_run_ends(keys_back)
        return int(ends[np.searchsorted(ends, number)])

    def _find_run_ends(self, keys_back: int) -> Array:
        numbers = self._numbers
        if not len(self._key_frames):
            return numbers[-1:]
        keys = np.searchsorted(self._key_frames, numbers[1:], side="right") - 1 - keys_back
        starts = np.where(keys >= 0, self._key_frames[np.maximum(keys, 0)], 0)
        restarts = starts - numbers[:-1] > _MIN_UNNEEDED_FRAMES
        ends: Array = numbers[np.append(np.flatnonzero(restarts), len(numbers) - 1)]
        return ends


class PacketFilter:
    """Leaves out packets that no frame of one run needs, and finds the end of the run.

    A frame may have two packets, one for each field, of which only the first has its timestamp.

    Args:
        plan: Frames to be read.
        first: First frame of the run.
        last: Last frame of the run.
        is_disposable: Test for packets that can be left out. None if no packet of the codec can.

    Attributes:
        following: The packet that was found to follow the run and was not decoded. None before the end of the run.
    """

    def __init__(self, plan: DecodePlan, first: int, last: int, is_disposable: DisposableTest | None) -> None:
        self.following: Packet[Any] | None = None
        self._plan = plan
        self._first, self._last = first, last
        self._missing = plan.count_selected(first, last)
        self._is_disposable = is_disposable
        self._left_out = False  # the last packet with the timestamp of a frame

    def ends_before(self, packet: Packet[Any]) -> bool:
        """Return whether all frames of the run were sent to the decoder before this packet."""
        if self._missing or self._plan.find_frame(packet.pts) is None:
            return False
        self.following = packet
        return True

    def leaves_out(self, packet: Packet[Any]) -> bool:
        """Return whether a packet does not have to be decoded. Called for each packet in decoding order."""
        number = self._plan.find_frame(packet.pts)
        needed = number is not None and self._first <= number <= self._last and self._plan.is_selected(number)
        disposable = self._is_disposable is not None and packet.size > 0 and self._is_disposable(memoryview(packet))
        if needed:
            self._missing -= 1
            self._left_out = False
        elif number is not None:
            self._left_out = disposable and not packet.has_sidedata("new_extradata")
        return self._left_out and disposable
