"""Streams of a lane that are prepared before it comes to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from streamloader.streams.base import Expected, StreamDataset
from streamloader.values import StreamInfo

__all__ = ["Ahead"]

_MOST: Final = 8  # streams that are prepared at a time


class Ahead:
    """Lets the data set prepare the streams that come next: one, and more where one was not ready when it was due.

    Args:
        dataset: whose streams they are.
        streams: all of them, by ordinal.

    Attributes:
        depth: how many to prepare.
    """

    def __init__(self, dataset: StreamDataset, streams: Sequence[StreamInfo]) -> None:
        self._dataset = dataset
        self._streams = streams
        self._prepared: dict[int, Expected | None] = {}  # by position in the lane's order
        # Most kinds of stream have nothing to prepare.
        self.depth = 0 if type(dataset).expect is StreamDataset.expect else 1

    async def prepare(self, upcoming: Iterable[tuple[int, int]]) -> None:
        """Have these streams prepared, given by position and ordinal, as far as they are not."""
        for position, ordinal in upcoming:
            if position not in self._prepared:
                self._prepared[position] = await self._dataset.expect(self._streams[ordinal])

    def take(self, position: int) -> Expected | None:
        """Return what opens the stream at `position`, if it was prepared; what lies before is given up."""
        for before in [at for at in self._prepared if at < position]:
            self._give_up(before)
        expected = self._prepared.pop(position, None)
        if expected is not None and not expected.ready:
            self.depth = min(2 * self.depth, _MOST)
        return expected

    def release(self) -> None:
        """Give up all that was prepared."""
        for position in list(self._prepared):
            self._give_up(position)

    def _give_up(self, position: int) -> None:
        expected = self._prepared.pop(position)
        if expected is not None:
            expected.release()
