"""Preparation of a lane's next streams while it still reads the current one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from streamloader.streams.base import PreparedStream, StreamDataset
from streamloader.values import StreamInfo

__all__ = ["StreamPrefetcher"]

_MAX_PREPARED_STREAMS: Final = 8


class StreamPrefetcher:
    """Has the dataset prepare the streams that come next.

    At first, one stream is prepared ahead. The number doubles, up to 8, each time that a stream was not ready when it
    was due.

    Args:
        dataset: Dataset that prepares and opens the streams.
        streams: All streams of the dataset, by ordinal.

    Attributes:
        depth: Number of streams to prepare. 0 where the dataset prepares none.
    """

    def __init__(self, dataset: StreamDataset, streams: Sequence[StreamInfo]) -> None:
        self._dataset = dataset
        self._streams = streams
        self._prepared: dict[int, PreparedStream | None] = {}  # by position in the lane's list
        # Most kinds of stream have nothing to prepare.
        self.depth = 0 if type(dataset).prepare is StreamDataset.prepare else 1

    async def prepare(self, upcoming: Iterable[tuple[int, int]]) -> None:
        """Prepare the streams with these positions and ordinals, except those that are prepared already."""
        for position, ordinal in upcoming:
            if position not in self._prepared:
                self._prepared[position] = await self._dataset.prepare(self._streams[ordinal])

    def take(self, position: int) -> PreparedStream | None:
        """Return the prepared stream at `position`, or None if none was prepared; release those before it."""
        for skipped in [other for other in self._prepared if other < position]:
            self._release_stream(skipped)
        prepared = self._prepared.pop(position, None)
        if prepared is not None and not prepared.ready:
            self.depth = min(2 * self.depth, _MAX_PREPARED_STREAMS)
        return prepared

    def release(self) -> None:
        """Release all prepared streams."""
        for position in list(self._prepared):
            self._release_stream(position)

    def _release_stream(self, position: int) -> None:
        prepared = self._prepared.pop(position)
        if prepared is not None:
            prepared.release()
