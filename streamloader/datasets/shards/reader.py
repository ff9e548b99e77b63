"""Read the raw samples of a lane, window by window: the next window is fetched while one is played."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import SampleBlock, SampleKind
from streamloader.datasets.shards.source import SampleSource
from streamloader.datasets.shards.window import WindowReader

__all__ = ["SHARD_SAMPLES", "LaneReader"]


class LaneReader:
    """The raw samples of one lane in one epoch.

    Args:
        source: Bytes of the samples.
        windows: Windows of the lane, from :meth:`streamloader.datasets.shards.order.EpochOrder.windows`.
    """

    def __init__(self, source: SampleSource, windows: Iterator[ShuffleWindow]) -> None:
        self._source = source
        self._windows = windows
        self._planned: ShuffleWindow | None = None  # an interrupted wait for an index must not lose it
        self._current: WindowReader | None = None
        self._next: WindowReader | None = None
        self._next_bytes: int | None = None  # of the budget that the next window has taken

    def plan(self) -> Collection[int]:
        """Return the shards that the next window needs."""
        if self._next is None and self._planned is None:
            self._planned = next(self._windows, None)
        return () if self._planned is None else [*dict.fromkeys(self._planned.shards.tolist())]

    def prefetch(self) -> None:
        """Start to fetch the next window, if it is in a store and the budget allows it."""
        if self._next is None:
            self._planned = self._planned or next(self._windows, None)
            self._next = None if self._planned is None else WindowReader(self._source, self._planned)
            self._planned = None
        if self._next is not None and self._next_bytes is None and self._next.is_remote:
            size = self._next.size
            if self._source.take_budget(self, size):
                self._next_bytes = size
                self._next.open()

    def read_block(self) -> SampleBlock | None:
        """Return the next samples. None at the end of the lane.

        Bad samples are errors in the block. The next call returns what follows it.
        """
        while self._current is None or self._current.is_played:
            if self._current is not None or self._next is None:
                self.prefetch()
            self._current, self._next = self._next, None
            if self._current is None:
                return None
            self._current.open()
            size, self._next_bytes = self._next_bytes, None
            if size is not None:
                self._source.return_budget(size)
            self.prefetch()
        return self._current.read_block()

    def close(self) -> None:
        """Cancel all transfers."""
        for window in (self._current, self._next):
            if window is not None:
                window.cancel()
        self._planned = self._current = self._next = None
        self._windows = iter(())


SHARD_SAMPLES: Final = SampleKind(SampleSource, LaneReader)
