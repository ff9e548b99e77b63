"""Timestamps of the frames of an archived video, from the frame indexes of the chunks that are needed."""

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
    from streamloader.stores.io_thread import SharedResource

__all__ = ["FrameTimes"]

_MAX_CACHED_CHUNKS: Final = 64  # 8 KB each for 1000 frames
_CHUNKS_PER_REQUEST: Final = 64


class FrameTimes:
    """The times of the frames of one video. For use by one thread.

    Args:
        catalog: Catalog of the archive.
        video: Video of the archive.
    """

    def __init__(self, catalog: SharedResource[Catalog], video: VideoRow) -> None:
        self._catalog = catalog
        self._video = video
        self._pts: OrderedDict[int, Array] = OrderedDict()  # by number of the first frame of the chunk
        self._rows: list[ChunkRow] | None = None

    def seconds(self, numbers: Array) -> Array:
        """Return when frames are shown, in seconds after the first frame of the video: float64 (N,).

        Args:
            numbers: Numbers of frames within the video, int64 (N,), ascending.

        Raises:
            CatalogError: If the catalog does not contain their chunks.
            CorruptStream: If the frame index of a chunk is damaged. ``offset`` is the frame.
        """
        pts = np.empty(len(numbers), np.int64)
        position = 0
        while position < len(numbers):
            first, ticks = self._ticks_around(int(numbers[position]), int(numbers[-1]))
            end = int(np.searchsorted(numbers, first + len(ticks)))
            pts[position:end] = ticks[numbers[position:end] - first]
            position = end
        base = self._video.time_base
        return (pts - self._video.first_pts) * base.numerator / base.denominator

    def frames_at_steps(self, steps: Array, fps: Fraction) -> Array:
        """Return for each step of a frame rate the last frame shown at or before it: int64 (N,).

        Args:
            steps: Numbers of steps, int64 (N,), ascending. Step k is at k / `fps` seconds.
            fps: Frame rate in steps per second.

        Raises:
            CatalogError: If the catalog does not contain all chunks of the video.
            CorruptStream: If the frame index of a chunk is damaged. ``offset`` is the frame.
        """
        ticks = latest_ticks(steps, self._video.time_base, fps) + self._video.first_pts
        rows = self._load_all_rows()
        chunk_starts = np.array([row.first_pts for row in rows], np.int64)
        chunk_numbers = np.searchsorted(chunk_starts, ticks, side="right") - 1
        numbers = np.empty(len(steps), np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(chunk_numbers)) + 1).tolist(), len(steps)]
        for first_bound in range(0, len(bounds) - 1, _CHUNKS_PER_REQUEST):
            page = bounds[first_bound : first_bound + _CHUNKS_PER_REQUEST + 1]
            chosen = [rows[int(chunk_numbers[start])] for start in page[:-1]]
            for row, pts, start, end in zip(chosen, self._load_ticks(chosen), page, page[1:], strict=False):
                numbers[start:end] = row.first_frame + np.searchsorted(pts, ticks[start:end], side="right") - 1
        return numbers

    def _ticks_around(self, number: int, last: int) -> tuple[int, Array]:
        """Return the first frame of the chunk that contains frame `number`, and the ticks of the chunk's frames.

        The chunks up to frame `last` are loaded in the same request.
        """
        for first, ticks in self._pts.items():
            if first <= number < first + len(ticks):
                return first, ticks
        start = self._video.start
        catalog = self._catalog
        located = catalog.call(catalog.resource.locate_frames(start + number, start + last + 1))
        rows = [row for each in located for row in each.chunks if row.content == self._video.content]
        rows = rows[:_CHUNKS_PER_REQUEST]
        if not rows or not rows[0].first_frame <= number < rows[0].first_frame + rows[0].frames:
            raise CatalogError(
                f"the catalog {catalog.resource.url} has no chunk of video {self._video.name!r} that contains "
                f"frame {number}",
                stream=self._video.name,
                offset=number,
            )
        return rows[0].first_frame, self._load_ticks(rows)[0]

    def _load_all_rows(self) -> list[ChunkRow]:
        if self._rows is None:
            catalog = self._catalog
            self._rows = catalog.call(catalog.resource.get_chunks(self._video.content, 0, self._video.chunks))
            are_numbered = all(row.number == number for number, row in enumerate(self._rows))
            if len(self._rows) != self._video.chunks or not are_numbered:
                raise CatalogError(
                    f"the catalog {catalog.resource.url} does not have all {self._video.chunks} chunks of video "
                    f"{self._video.name!r}",
                    stream=self._video.name,
                )
        return self._rows

    def _load_ticks(self, rows: Sequence[ChunkRow]) -> list[Array]:
        """Return the ticks of the frames of each of these chunks, and cache them."""
        missing = [row for row in rows if row.first_frame not in self._pts]
        ticks = {row.first_frame: self._pts[row.first_frame] for row in rows if row.first_frame in self._pts}
        if missing:
            catalog = self._catalog
            encoded = catalog.call(catalog.resource.get_indexes(self._video.content, [row.number for row in missing]))
            ticks |= {
                row.first_frame: self._decode_ticks(row, data) for row, data in zip(missing, encoded, strict=True)
            }
        for row in rows:
            self._pts[row.first_frame] = ticks[row.first_frame]
            self._pts.move_to_end(row.first_frame)
        while len(self._pts) > _MAX_CACHED_CHUNKS:
            self._pts.popitem(last=False)
        return [ticks[row.first_frame] for row in rows]

    def _decode_ticks(self, row: ChunkRow, data: bytes) -> Array:
        try:
            return ChunkIndex.decode(data, frames=row.frames, chunk_bytes=row.bytes).pts
        except CorruptStream as error:
            raise CorruptStream(
                f"chunk {row.number} of video {self._video.name!r}: {error.message}",
                stream=self._video.name,
                offset=row.first_frame,
            ) from error
