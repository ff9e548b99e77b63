"""Read the raw samples of a lane, window by window: the next ones are fetched while one is played."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Final

import numpy as np

from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import SampleBlock, SampleKind
from streamloader.datasets.shards.source import SampleSource
from streamloader.datasets.shards.window import WindowReader

__all__ = ["SHARD_SAMPLES", "LaneReader"]

_MAX_PLANNED: Final = 2  # windows whose indexes are read
_MAX_AHEAD: Final = 4  # windows that are fetched in advance, if they are small


class LaneReader:
    """The raw samples of one lane in one epoch.

    Args:
        source: Bytes of the samples.
        windows: Windows of the lane, from :meth:`streamloader.datasets.shards.order.EpochOrder.windows`.
    """

    def __init__(self, source: SampleSource, windows: Iterator[ShuffleWindow]) -> None:
        self._source = source
        self._windows = windows
        self._planned: deque[ShuffleWindow] = deque()  # an interrupted wait for an index must not lose them
        self._current: WindowReader | None = None
        self._ahead: deque[WindowReader] = deque()

    def plan(self) -> Collection[int]:
        """Return the shards that the next windows need."""
        while len(self._planned) < _MAX_PLANNED and (window := next(self._windows, None)) is not None:
            self._planned.append(window)
        return [*{shard: None for window in self._planned for shard in np.unique(window.shards).tolist()}]

    def prefetch(self) -> None:
        """Start to fetch the next windows, if they are in a store, as far as the budget allows it."""
        for window in self._ahead:
            if not window.plan.prefetch(self):
                return
        while self._may_look_ahead():
            opened = self._open_next()
            if opened is None or not opened.plan.prefetch(self):
                return

    def _may_look_ahead(self) -> bool:
        if not self._ahead:
            return True
        return self._ahead[-1].plan.is_remote and len(self._ahead) < _MAX_AHEAD

    def _open_next(self) -> WindowReader | None:
        """Find out where the samples of the next window lie. Return None at the end of the lane."""
        # The indexes for the window after it are read at the same time: nobody should wait for them later.
        self._source.prefetch_tables(self.plan())
        if not self._planned:
            return None
        window = WindowReader(self._source, self._planned[0])
        self._planned.popleft()
        self._ahead.append(window)
        return window

    def read_block(self) -> SampleBlock | None:
        """Return the next samples. None at the end of the lane.

        Bad samples are errors in the block. The next call returns what follows it.
        """
        while self._current is None or self._current.is_played:
            if not self._ahead and self._open_next() is None:
                self._current = None
                return None
            self._current = self._ahead.popleft()
            self._current.plan.start_playing()
            self.prefetch()
        return self._current.read_block()

    def close(self) -> None:
        """Cancel all transfers."""
        for window in (self._current, *self._ahead):
            if window is not None:
                window.cancel()
        self._planned.clear()
        self._ahead.clear()
        self._current = None
        self._windows = iter(())


SHARD_SAMPLES: Final = SampleKind(SampleSource, LaneReader)
