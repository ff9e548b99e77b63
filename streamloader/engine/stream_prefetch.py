"""Preparation of a lane's next streams while it still reads the current one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from streamloader.streams.base import PreparedStream, StreamDataset
from streamloader.values import StreamInfo

__all__ = ["StreamPrefetcher"]

_INITIAL_BYTES: Final = 512 << 10  # of all prepared streams of a lane
_INITIAL_STREAMS: Final = 8
_MAX_GROWTH: Final = 8
_UNKNOWN_BYTES: Final = _INITIAL_BYTES  # of a stream that does not state its memory


class StreamPrefetcher:
    """Has the dataset prepare the streams that come next.

    The prepared streams may take 512 KiB at first. There is always one, and there are at most 8, as many as a stream of
    unknown size counts for. Both limits double, up to 4 MiB and 64 streams, each time that a stream was not ready when
    it was due.

    Args:
        dataset: Dataset that prepares and opens the streams.
        streams: All streams of the dataset, by ordinal.

    Attributes:
        depth: Maximum number of streams to prepare. 0 where the dataset prepares none.
    """

    def __init__(self, dataset: StreamDataset, streams: Sequence[StreamInfo]) -> None:
        self._dataset = dataset
        self._streams = streams
        self._prepared: dict[int, PreparedStream | None] = {}  # by position in the lane's list
        self._growth = 1
        # Most kinds of stream have nothing to prepare.
        self._prepares = type(dataset).prepare is not StreamDataset.prepare

    @property
    def depth(self) -> int:
        """Maximum number of streams to prepare."""
        return _INITIAL_STREAMS * self._growth if self._prepares else 0

    async def prepare(self, upcoming: Iterable[tuple[int, int]]) -> None:
        """Prepare the streams with these positions and ordinals, except those that are prepared already.

        Args:
            upcoming: Positions and ordinals of up to `depth` streams, in their order. The last ones are left for later
                if all together would take too much memory.
        """
        remaining_bytes = _INITIAL_BYTES * self._growth
        for position, ordinal in upcoming:
            if remaining_bytes <= 0:
                return
            if position not in self._prepared:
                self._prepared[position] = await self._dataset.prepare(self._streams[ordinal])
            remaining_bytes -= _count_bytes(self._prepared[position])

    def take(self, position: int) -> PreparedStream | None:
        """Return the prepared stream at `position`, or None if none was prepared; release those before it."""
        for skipped in [other for other in self._prepared if other < position]:
            self._release_stream(skipped)
        prepared = self._prepared.pop(position, None)
        if prepared is not None and not prepared.ready:
            self._growth = min(2 * self._growth, _MAX_GROWTH)
        return prepared

    def release(self) -> None:
        """Release all prepared streams."""
        for position in list(self._prepared):
            self._release_stream(position)

    def _release_stream(self, position: int) -> None:
        prepared = self._prepared.pop(position)
        if prepared is not None:
            prepared.release()


def _count_bytes(prepared: PreparedStream | None) -> int:
    if prepared is None:  # a later stream may need preparation
        return 0
    return _UNKNOWN_BYTES if prepared.max_bytes is None else prepared.max_bytes
