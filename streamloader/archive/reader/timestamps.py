"""When the frames of a video of an archive are shown: from the frame indexes of just those chunks that matter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from streamloader.errors import CatalogError, CorruptStream
from streamloader.media.chunks.format import ChunkIndex
from streamloader.media.video.selection import latest_ticks
from streamloader.values import Array

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, ChunkRow, VideoRow
    from streamloader.stores.io_thread import Shared

__all__ = ["VideoClock"]

_KEPT: Final = 64  # chunks whose times are remembered; 8 KB each for 1000 frames
_PAGE: Final = 64  # chunks that are looked up in one go


class VideoClock:
    """The times of the frames of one video; for one thread.

    Args:
        catalog: of the archive.
        video: in it.
    """

    def __init__(self, catalog: Shared[Catalog], video: VideoRow) -> None:
        self._catalog = catalog
        self._video = video
        self._pts: OrderedDict[int, Array] = OrderedDict()  # by number of the first frame of the chunk
        self._rows: list[ChunkRow] | None = None

    def seconds(self, numbers: Array) -> Array:
        """Return when frames (int64, ascending) are shown, in seconds after the first frame: float64.

        Raises:
            CatalogError: the catalog does not say.
            CorruptStream: what it says makes no sense; ``offset`` is the frame.
        """
        pts = np.empty(len(numbers), np.int64)
        at = 0
        while at < len(numbers):
            first, known = self._chunk_of(int(numbers[at]), int(numbers[-1]))
            stop = int(np.searchsorted(numbers, first + len(known)))
            pts[at:stop] = known[numbers[at:stop] - first]
            at = stop
        base = self._video.time_base
        return (pts - self._video.first_pts) * base.numerator / base.denominator

    def shown_at(self, steps: Array, fps: Fraction) -> Array:
        """Return the last frame that is shown not after each step (int64, ascending) of a rate: int64.

        Raises:
            CatalogError: see :meth:`seconds`.
            CorruptStream: the same.
        """
        ticks = latest_ticks(steps, self._video.time_base, fps) + self._video.first_pts
        rows = self._all_rows()
        begins = np.array([row.first_pts for row in rows], np.int64)
        places = np.searchsorted(begins, ticks, side="right") - 1
        numbers = np.empty(len(steps), np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(steps)]
        for begin in range(0, len(bounds) - 1, _PAGE):
            page = bounds[begin : begin + _PAGE + 1]
            chosen = [rows[int(places[start])] for start in page[:-1]]
            for row, known, start, stop in zip(chosen, self._learn(chosen), page, page[1:], strict=False):
                numbers[start:stop] = row.first + np.searchsorted(known, ticks[start:stop], side="right") - 1
        return numbers

    def _chunk_of(self, number: int, last: int) -> tuple[int, Array]:
        """Return the first frame of the chunk that holds `number`, and the ticks of its frames."""
        for first, known in self._pts.items():
            if first <= number < first + len(known):
                return first, known
        start = self._video.start
        catalog = self._catalog
        located = catalog.call(catalog.it.locate(start + number, start + last + 1))
        rows = [row for each in located for row in each.chunks if row.content == self._video.content][:_PAGE]
        if not rows or not rows[0].first <= number < rows[0].first + rows[0].frames:
            raise CatalogError(
                f"the catalog {catalog.it.url} does not say which chunk of video {self._video.name!r} holds frame "
                f"{number}",
                stream=self._video.name,
                offset=number,
            )
        return rows[0].first, self._learn(rows)[0]

    def _all_rows(self) -> list[ChunkRow]:
        if self._rows is None:
            catalog = self._catalog
            self._rows = catalog.call(catalog.it.chunks(self._video.content, 0, self._video.chunks))
            if [row.number for row in self._rows] != list(range(self._video.chunks)):
                raise CatalogError(
                    f"the catalog {catalog.it.url} has not all {self._video.chunks} chunks of video "
                    f"{self._video.name!r}",
                    stream=self._video.name,
                )
        return self._rows

    def _learn(self, rows: Sequence[ChunkRow]) -> list[Array]:
        """Return the ticks of the frames of each of these chunks, and remember them."""
        missing = [row for row in rows if row.first not in self._pts]
        known = {row.first: self._pts[row.first] for row in rows if row.first in self._pts}
        if missing:
            catalog = self._catalog
            encoded = catalog.call(catalog.it.indexes(self._video.content, [row.number for row in missing]))
            known |= {row.first: self._ticks(row, data) for row, data in zip(missing, encoded, strict=True)}
        for row in rows:
            self._pts[row.first] = known[row.first]
            self._pts.move_to_end(row.first)
        while len(self._pts) > _KEPT:
            self._pts.popitem(last=False)
        return [known[row.first] for row in rows]

    def _ticks(self, row: ChunkRow, data: bytes) -> Array:
        index = ChunkIndex.decode(data)
        if len(index) != row.frames:
            raise CorruptStream(
                f"chunk {row.number} of video {self._video.name!r}: its frame index has {len(index)} frames, the "
                f"catalog says {row.frames}",
                stream=self._video.name,
                offset=row.first,
            )
        return index.pts
