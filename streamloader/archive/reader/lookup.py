"""Find the chunks that contain frames, and load what is needed to read them from the catalog, with caches."""

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
from streamloader.errors import CatalogError, ConfigError, CorruptStream, FrameIndexError, StreamloaderError
from streamloader.media.chunks.format import ChunkIndex, Coding

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, ChunkRow, LocatedChunks, Snapshot, VideoRow
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.stores.io_thread import SharedResource

__all__ = ["Chunk", "ChunkLookup"]

_MAX_CACHED_ROWS: Final = 1 << 14  # about 1 KB each
_MAX_CHUNKS_LOADED_AT_ONCE: Final = 1 << 11  # the rows of an archive with no more chunks are loaded in one request
_MAX_CACHED_INDEXES: Final = 256  # about 40 KB each for chunks of 1000 frames
_MAX_CACHED_INDEX_BYTES: Final = 32 << 20
_MAX_GAP_FRAMES: Final = 1000  # frames with a gap of up to this many frames are located in one request
_MAX_CONCURRENT_REQUESTS: Final = 32
_CHUNKS_PER_PROBE: Final = 32  # chunks loaded by each step of a search by time
_NANOSECONDS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Everything that is needed to read one chunk.

    Attributes:
        video: Video that the chunk belongs to.
        row: Catalog row of the chunk.
        index: Frame index of the chunk.
        coding: Coding of its packets.
    """

    video: VideoRow
    row: ChunkRow
    index: ChunkIndex
    coding: Coding

    @property
    def key(self) -> tuple[str, int]:
        """The content of the video and the number of the chunk. It is unique."""
        return self.row.content, self.row.number


class ChunkLookup:
    """Looks up chunks in the catalog of an archive, on behalf of one reader. All methods are thread-safe.

    Args:
        catalog: Catalog of the archive.
        snapshot: Extent of the archive for this reader.
        counts: Counters to update.
    """

    def __init__(self, catalog: SharedResource[Catalog], snapshot: Snapshot, counts: ReadCounts) -> None:
        self.catalog = catalog
        self.snapshot = snapshot
        self._counts = counts
        self._lock = threading.RLock()
        self._starts: list[int] = []  # number of the first frame of each cached chunk, ascending
        self._rows: dict[int, tuple[VideoRow, ChunkRow]] = {}  # by that number
        self._codings: dict[str, Coding] = {}
        self._chunks = LruCache[tuple[str, int], Chunk](_MAX_CACHED_INDEXES, _MAX_CACHED_INDEX_BYTES)

    def locate(self, numbers: Sequence[int]) -> dict[int, tuple[VideoRow, ChunkRow, list[int]]]:
        """Return the chunks that contain frames of the archive, by the number of their first frame.

        Each chunk comes with those of `numbers` that it contains.

        Args:
            numbers: Numbers of frames in the archive, ascending.
        """
        missing = self._missing_spans(numbers)
        if missing:
            self._load_rows(missing)
        located: dict[int, tuple[VideoRow, ChunkRow, list[int]]] = {}
        position = 0
        while position < len(numbers):
            cached = self._find_row(numbers[position])
            if cached is None:  # evicted again, because the request spans very many chunks
                self._load_rows([(numbers[position], numbers[position] + 1)])
                continue
            start, video, row = cached
            end = bisect.bisect_left(numbers, start + row.frames, position)
            located[start] = video, row, list(numbers[position:end])
            position = end
        return located

    def load_chunks(self, rows: Sequence[tuple[VideoRow, ChunkRow]]) -> list[Chunk]:
        """Return chunks with their indexes and codings."""
        chunks = [self._chunks.get((row.content, row.number)) for _, row in rows]
        missing = [pair for pair, chunk in zip(rows, chunks, strict=True) if chunk is None]
        if missing:
            fetched = {chunk.key: chunk for chunk in self._fetch_chunks(missing)}
            for position, (_, row) in enumerate(rows):
                chunks[position] = chunks[position] or fetched[row.content, row.number]
        return [chunk for chunk in chunks if chunk is not None]

    def frame_at(self, seconds: float, video: VideoRow | None) -> int:
        """Return the number (in the archive) of the frame that is shown at a time. See `ArchiveReader.frame_at`.

        Times are compared in whole nanoseconds. So ``k / 25`` finds the frame that starts at that time, in spite of the
        rounding error of the division.
        """
        if not math.isfinite(seconds):
            raise ConfigError(f"a time must be a finite number of seconds, got {seconds!r}")
        time = round(Fraction(seconds) * _NANOSECONDS_PER_S)
        if video is None:
            catalog = self.catalog
            row = catalog.call(catalog.resource.get_video_at(time)) if 0 <= time < self.snapshot.duration_ns else None
            if row is None:
                raise FrameIndexError(
                    f"the archive lasts {self.snapshot.duration_ns / _NANOSECONDS_PER_S} seconds, and has no frame at "
                    f"{seconds}"
                )
            time = min(time - row.start_ns, row.duration_ns - 1)
            video = row
        elif not 0 <= time < video.duration_ns:
            raise FrameIndexError(
                f"video {video.name!r} lasts {video.duration_ns / _NANOSECONDS_PER_S} seconds, and has no frame at "
                f"{seconds}",
                stream=video.name,
            )
        tick = _NANOSECONDS_PER_S * video.time_base
        chunk_row = self._chunk_at(video, time, tick)
        index = self.load_chunks([(video, chunk_row)])[0].index
        pts = index.pts - video.first_pts
        low = int(np.searchsorted(pts, math.floor((time - 1) / tick), side="right")) - 1
        low = max(0, low)
        while low + 1 < len(pts) and round(int(pts[low + 1]) * tick) <= time:
            low += 1
        return video.start + chunk_row.first_frame + low

    def _chunk_at(self, video: VideoRow, time: int, tick: Fraction) -> ChunkRow:
        """Return the last chunk that starts at or before a time in nanoseconds after the video's first frame."""
        low, high = 0, video.chunks  # the chunk is in [low, high)
        best: ChunkRow | None = None
        guess = video.chunks * time // max(1, video.duration_ns)
        while low < high:
            start = min(max(guess - _CHUNKS_PER_PROBE // 2, low), high - 1)
            end = min(start + _CHUNKS_PER_PROBE, high)
            rows = self.catalog.call(self.catalog.resource.get_chunks(video.content, start, end))
            if not rows:
                raise CatalogError(
                    f"chunks of video {video.name!r} are missing in the catalog: archive.check() lists them",
                    stream=video.name,
                    offset=start,
                )
            started = [row for row in rows if round((row.first_pts - video.first_pts) * tick) <= time]
            if len(started) < len(rows):
                high = start
            if started:
                best = started[-1]
                if len(started) < len(rows):
                    return best
                low = rows[-1].number + 1
            guess = (low + high) // 2
        if best is None:
            raise CatalogError(f"the catalog has no chunk of video {video.name!r} that starts with its first frame")
        return best

    def close(self) -> None:
        """Release the catalog."""
        self.catalog.close()

    def _find_row(self, number: int) -> tuple[int, VideoRow, ChunkRow] | None:
        """Return the cached chunk that contains a frame, after the number of its first frame."""
        with self._lock:
            position = bisect.bisect_right(self._starts, number) - 1
            if position < 0:
                return None
            start = self._starts[position]
            video, row = self._rows[start]
            return (start, video, row) if number < start + row.frames else None

    def _missing_spans(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Return ranges of frames whose chunks are not cached. Ranges with a small gap between them are merged."""
        spans: list[tuple[int, int]] = []
        position = 0
        while position < len(numbers):
            cached = self._find_row(numbers[position])
            if cached is not None:
                position = bisect.bisect_left(numbers, cached[0] + cached[2].frames, position)
                continue
            number = numbers[position]
            if spans and number - spans[-1][1] <= _MAX_GAP_FRAMES:
                spans[-1] = spans[-1][0], number + 1
            else:
                spans.append((number, number + 1))
            position += 1
        return spans

    def _load_rows(self, spans: list[tuple[int, int]]) -> None:
        if self.snapshot.chunks <= _MAX_CHUNKS_LOADED_AT_ONCE:
            spans = [(0, self.snapshot.frames)]
        videos = self.catalog.call(_locate_spans(self.catalog.resource, spans))
        with self._lock:
            self._counts.lookups += len(spans)
            if len(self._rows) > _MAX_CACHED_ROWS:
                self._starts.clear()
                self._rows.clear()
            for located in videos:
                for row in located.chunks:
                    start = located.video.start + row.first_frame
                    if start not in self._rows:
                        self._rows[start] = located.video, row
                        bisect.insort(self._starts, start)

    def _fetch_chunks(self, rows: Sequence[tuple[VideoRow, ChunkRow]]) -> list[Chunk]:
        unknown = list(dict.fromkeys(row.coding for _, row in rows if row.coding not in self._codings))
        by_video: dict[str, list[tuple[VideoRow, ChunkRow]]] = {}
        for video, row in rows:
            by_video.setdefault(row.content, []).append((video, row))
        wanted = [(content, [row.number for _, row in group]) for content, group in by_video.items()]
        indexes, codings = self.catalog.call(_fetch_indexes(self.catalog.resource, wanted, unknown))
        with self._lock:
            self._counts.lookups += len(wanted)
            self._codings.update({key: Coding.from_json(coding) for key, coding in zip(unknown, codings, strict=True)})
        chunks = []
        for group, encoded in zip(by_video.values(), indexes, strict=True):
            for (video, row), data in zip(group, encoded, strict=True):
                chunk = Chunk(video, row, _decode_index(video, row, data), self._codings[row.coding])
                self._chunks.put(chunk.key, chunk, 8 * (5 * len(chunk.index.offset) + 2 * len(chunk.index)))
                chunks.append(chunk)
        return chunks


def _decode_index(video: VideoRow, row: ChunkRow, data: bytes) -> ChunkIndex:
    try:
        index = ChunkIndex.decode(data, frames=row.frames, chunk_bytes=row.bytes)
        if int(index.pts[0]) != row.first_pts:
            raise CorruptStream("the frame index is that of another chunk, by its first timestamp")
        return index
    except StreamloaderError as error:
        raise CorruptStream(
            f"chunk {row.number} of video {video.name!r}: {error.message}", stream=video.name, offset=row.first_frame
        ) from error


async def _locate_spans(catalog: Catalog, spans: Sequence[tuple[int, int]]) -> list[LocatedChunks]:
    limit = asyncio.Semaphore(_MAX_CONCURRENT_REQUESTS)

    async def locate(start: int, end: int) -> list[LocatedChunks]:
        async with limit:
            return await catalog.locate_frames(start, end)

    return [located for result in await asyncio.gather(*(locate(*span) for span in spans)) for located in result]


async def _fetch_indexes(
    catalog: Catalog, wanted: Sequence[tuple[str, list[int]]], codings: Sequence[str]
) -> tuple[list[list[bytes]], list[Mapping[str, Any]]]:
    """Return the encoded indexes of the chunks `wanted` (content and numbers), and the codings under these keys."""
    limit = asyncio.Semaphore(_MAX_CONCURRENT_REQUESTS)

    async def fetch(content: str, numbers: list[int]) -> list[bytes]:
        async with limit:
            return await catalog.get_indexes(content, numbers)

    indexes = await asyncio.gather(*(fetch(content, numbers) for content, numbers in wanted))
    return list(indexes), list(await catalog.get_codings(codings)) if codings else []
