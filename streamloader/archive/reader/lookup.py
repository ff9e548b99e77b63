"""Which chunk holds a frame, and what has to be known of that chunk: asked of the catalog, and remembered."""

from __future__ import annotations

import asyncio
import bisect
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.common.lru import LruCache
from streamloader.errors import CatalogError, ConfigError, CorruptStream, FrameOutside, StreamloaderError
from streamloader.media.chunks.format import ChunkIndex, Coding

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, ChunkRow, Located, Snapshot, VideoRow
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.stores.io_thread import Shared

__all__ = ["Chunk", "Lookup"]

_ROWS: Final = 1 << 14  # chunks of which it is remembered where they are; about 1 KB each
_ALL: Final = 1 << 11  # chunks of an archive that are all looked up at once
_INDEXES: Final = 256  # chunks whose frame index is remembered; about 40 KB for 1000 frames
_INDEX_BYTES: Final = 32 << 20
_NEAR: Final = 1000  # frames between two that are looked up in one go
_AT_ONCE: Final = 32  # questions to the catalog
_SOME: Final = 32  # chunks that are looked at in one go to find a time
_SECOND: Final = 1_000_000_000  # nanoseconds


@dataclass(frozen=True, slots=True)
class Chunk:
    """All that is needed to read one chunk."""

    video: VideoRow
    row: ChunkRow
    index: ChunkIndex
    coding: Coding

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others."""
        return self.row.content, self.row.number


class Lookup:
    """The catalog of an archive as one reader sees it. All methods can be called from several threads.

    Args:
        catalog: of the archive.
        snapshot: how far the archive goes for this reader.
        counts: what is counted.
    """

    def __init__(self, catalog: Shared[Catalog], snapshot: Snapshot, counts: ReadCounts) -> None:
        self.catalog = catalog
        self.snapshot = snapshot
        self._counts = counts
        self._lock = threading.RLock()
        self._starts: list[int] = []  # number of the first frame of each known chunk, ascending
        self._rows: dict[int, tuple[VideoRow, ChunkRow]] = {}  # by that number
        self._codings: dict[str, Coding] = {}
        self._chunks = LruCache[tuple[str, int], Chunk](_INDEXES, _INDEX_BYTES)

    def rows(self, numbers: Sequence[int]) -> dict[int, tuple[VideoRow, ChunkRow, list[int]]]:
        """Return the chunks that hold frames of the archive (`numbers` ascending), by the number of their first frame.

        Each comes with those of `numbers` that it holds.
        """
        missing = self._gaps(numbers)
        if missing:
            self._learn(missing)
        found: dict[int, tuple[VideoRow, ChunkRow, list[int]]] = {}
        at = 0
        while at < len(numbers):
            known = self._known(numbers[at])
            if known is None:  # forgotten already, because so many were asked for
                self._learn([(numbers[at], numbers[at] + 1)])
                continue
            start, video, row = known
            stop = bisect.bisect_left(numbers, start + row.frames, at)
            found[start] = video, row, list(numbers[at:stop])
            at = stop
        return found

    def chunks(self, rows: Sequence[tuple[VideoRow, ChunkRow]]) -> list[Chunk]:
        """Return chunks with their indexes and codings."""
        found = [self._chunks.get((row.content, row.number)) for _, row in rows]
        missing = [pair for pair, chunk in zip(rows, found, strict=True) if chunk is None]
        if missing:
            fetched = {chunk.key: chunk for chunk in self._fetch(missing)}
            for number, (_, row) in enumerate(rows):
                found[number] = found[number] or fetched[row.content, row.number]
        return [chunk for chunk in found if chunk is not None]

    def frame_at(self, seconds: float, video: VideoRow | None) -> int:
        """Return the number (in the archive) of the frame that is shown at a time; see ArchiveReader.frame_at.

        Times are compared in whole nanoseconds, so that ``k / 25`` finds the frame that begins then, whatever the last
        bit of that number is.
        """
        if not math.isfinite(seconds):
            raise ConfigError(f"a time is a number of seconds, got {seconds!r}")
        at = round(Fraction(seconds) * _SECOND)
        if video is None:
            found = self.catalog.call(self.catalog.it.video_at(at)) if 0 <= at < self.snapshot.nanoseconds else None
            if found is None:
                raise FrameOutside(
                    f"the archive lasts {self.snapshot.nanoseconds / _SECOND} seconds, and shows nothing at {seconds}"
                )
            at = min(at - found.nanoseconds, found.duration - 1)
            video = found
        elif not 0 <= at < video.duration:
            raise FrameOutside(
                f"video {video.name!r} lasts {video.duration / _SECOND} seconds, and shows nothing at {seconds}",
                stream=video.name,
            )
        tick = _SECOND * video.time_base
        row = self._chunk_at(video, at, tick)
        index = self.chunks([(video, row)])[0].index
        pts = index.pts - video.first_pts
        low = int(np.searchsorted(pts, math.floor((at - 1) / tick), side="right")) - 1
        low = max(0, low)
        while low + 1 < len(pts) and round(int(pts[low + 1]) * tick) <= at:
            low += 1
        return video.start + row.first + low

    def _chunk_at(self, video: VideoRow, at: int, tick: Fraction) -> ChunkRow:
        """Return the last chunk that begins at or before this time, in nanoseconds after the video's first frame."""
        low, high = 0, video.chunks  # the one that is looked for is in [low, high)
        best: ChunkRow | None = None
        guess = video.chunks * at // max(1, video.duration)
        while low < high:
            start = min(max(guess - _SOME // 2, low), high - 1)
            rows = self.catalog.call(self.catalog.it.chunks(video.content, start, min(start + _SOME, high)))
            if not rows:
                raise CatalogError(
                    f"the catalog lacks chunks of video {video.name!r}: archive.check() says which",
                    stream=video.name,
                    offset=start,
                )
            begun = [row for row in rows if round((row.first_pts - video.first_pts) * tick) <= at]
            if len(begun) < len(rows):
                high = start
            if begun:
                best = begun[-1]
                if len(begun) < len(rows):
                    return best
                low = rows[-1].number + 1
            guess = (low + high) // 2
        if best is None:
            raise CatalogError(f"the catalog has no chunk of video {video.name!r} that begins at its start")
        return best

    def close(self) -> None:
        """Give the catalog back."""
        self.catalog.close()

    def _known(self, number: int) -> tuple[int, VideoRow, ChunkRow] | None:
        with self._lock:
            at = bisect.bisect_right(self._starts, number) - 1
            if at < 0:
                return None
            start = self._starts[at]
            video, row = self._rows[start]
            return (start, video, row) if number < start + row.frames else None

    def _gaps(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return spans of frames whose chunks are not known, merged where little lies between."""
        gaps: list[tuple[int, int]] = []
        at = 0
        while at < len(numbers):
            known = self._known(numbers[at])
            if known is not None:
                at = bisect.bisect_left(numbers, known[0] + known[2].frames, at)
                continue
            number = numbers[at]
            if gaps and number - gaps[-1][1] <= _NEAR:
                gaps[-1] = gaps[-1][0], number + 1
            else:
                gaps.append((number, number + 1))
            at += 1
        return gaps

    def _learn(self, spans: list[tuple[int, int]]) -> None:
        if self.snapshot.chunks <= _ALL:
            spans = [(0, self.snapshot.frames)]
        found = self.catalog.call(_locate(self.catalog.it, spans))
        with self._lock:
            self._counts.lookups += len(spans)
            if len(self._rows) > _ROWS:
                self._starts.clear()
                self._rows.clear()
            for located in found:
                for row in located.chunks:
                    start = located.video.start + row.first
                    if start not in self._rows:
                        self._rows[start] = located.video, row
                        bisect.insort(self._starts, start)

    def _fetch(self, rows: Sequence[tuple[VideoRow, ChunkRow]]) -> list[Chunk]:
        unknown = list(dict.fromkeys(row.coding for _, row in rows if row.coding not in self._codings))
        by_video: dict[str, list[tuple[VideoRow, ChunkRow]]] = {}
        for video, row in rows:
            by_video.setdefault(row.content, []).append((video, row))
        wanted = [(content, [row.number for _, row in group]) for content, group in by_video.items()]
        indexes, codings = self.catalog.call(_fetch(self.catalog.it, wanted, unknown))
        with self._lock:
            self._counts.lookups += len(wanted)
            self._codings.update({key: Coding.from_json(told) for key, told in zip(unknown, codings, strict=True)})
        chunks = []
        for group, encoded in zip(by_video.values(), indexes, strict=True):
            for (video, row), data in zip(group, encoded, strict=True):
                chunk = Chunk(video, row, _decoded(video, row, data), self._codings[row.coding])
                self._chunks.put(chunk.key, chunk, 8 * (5 * len(chunk.index.offset) + 2 * len(chunk.index)))
                chunks.append(chunk)
        return chunks


def _decoded(video: VideoRow, row: ChunkRow, data: bytes) -> ChunkIndex:
    try:
        index = ChunkIndex.decode(data)
        if len(index) != row.frames:
            raise CorruptStream(f"the frame index has {len(index)} frames, the catalog says {row.frames}")
    except StreamloaderError as error:
        raise CorruptStream(
            f"chunk {row.number} of video {video.name!r}: {error.message}", stream=video.name, offset=row.first
        ) from error
    return index


async def _locate(catalog: Catalog, spans: Sequence[tuple[int, int]]) -> list[Located]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(start: int, stop: int) -> list[Located]:
        async with turns:
            return await catalog.locate(start, stop)

    return [located for found in await asyncio.gather(*(one(*span) for span in spans)) for located in found]


async def _fetch(
    catalog: Catalog, wanted: Sequence[tuple[str, list[int]]], codings: Sequence[str]
) -> tuple[list[list[bytes]], list[Mapping[str, Any]]]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(content: str, numbers: list[int]) -> list[bytes]:
        async with turns:
            return await catalog.indexes(content, numbers)

    indexes = await asyncio.gather(*(one(content, numbers) for content, numbers in wanted))
    return list(indexes), list(await catalog.codings(codings)) if codings else []
