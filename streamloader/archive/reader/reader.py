"""Frames of an archive by number, as the decoder gives them: exactly those, and only the work that they take.

No torch is needed here. The torch face is :mod:`streamloader.archive.archive`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.archive.location import catalog_url, placed, shared_by
from streamloader.archive.reader.batch import Reading, Take
from streamloader.archive.reader.cache import FrameCache
from streamloader.archive.reader.chunk_bytes import ChunkStores
from streamloader.archive.reader.decoders import Decoders, keep_forever
from streamloader.archive.reader.lookup import Lookup
from streamloader.archive.reader.stats import ReadCounts
from streamloader.errors import ClosedError, ConfigError, FrameOutside, VideoNotFound
from streamloader.redaction import redact

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, Header, Snapshot, VideoRow
    from streamloader.media.video.reader import VideoFrame
    from streamloader.stores.io_thread import Shared
    from streamloader.values import Array

__all__ = ["CACHE_BYTES", "CACHE_LIMIT", "ArchiveReader", "default_threads"]

CACHE_LIMIT: Final = 256  # groups of decoded frames, and spans of bytes
CACHE_BYTES: Final = 256 << 20
_THREADS: Final = 8  # more do not make one reader faster


def default_threads() -> int:
    """Return how many threads a reader takes where nobody says: one for each core, but one in a DataLoader's worker."""
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_THREADS, cores)


class ArchiveReader:
    """Random access to the decoded frames of an archive.

    One reader serves many threads. It can be pickled, and used after a fork: it then connects anew, and keeps the
    numbering that it had.

    Args:
        address: url of the catalog, or the folder of a local archive.
        places: number or url of a place -> the address by which this machine reaches it.
        storage_options: of the stores of the places, see :func:`streamloader.stores.registry.options_for`.
        catalog_options: of the catalog, such as ``client=``.
        cache_limit: groups of decoded frames, and spans of bytes from stores, that are kept at most.
        max_cache_bytes: of memory that these take at most.
        prefetch: fetch what is next where access is sequential.
        threads: that decode at the same time; None: one for each core, and one in workers of a DataLoader.

    Raises:
        ConfigError: the arguments make no sense.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        places: Mapping[int | str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        catalog_options: Mapping[str, Any] | None = None,
        cache_limit: int = CACHE_LIMIT,
        max_cache_bytes: int = CACHE_BYTES,
        prefetch: bool = True,
        threads: int | None = None,
    ) -> None:
        for name, value, least in (("cache_limit", cache_limit, 0), ("max_cache_bytes", max_cache_bytes, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ConfigError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
        self._url = catalog_url(address)
        self._places = dict(places or {})
        self._storage_options = None if storage_options is None else dict(storage_options)
        self._catalog_options = dict(catalog_options or {})
        self._cache_limit = cache_limit
        self._max_cache_bytes = max_cache_bytes
        self._prefetch = bool(prefetch)
        self._threads = threads
        self._snapshot: Snapshot | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._live: _Live | None = None
        self._closed = False
        _readers.add(self)

    @property
    def url(self) -> str:
        """The url of the catalog, without secrets."""
        return redact(self._url)

    @property
    def storage_options(self) -> Mapping[str, Any] | None:
        """Of the stores of the places."""
        return self._storage_options

    @property
    def snapshot(self) -> Snapshot:
        """How far the archive goes for this reader: what was in it when it was first asked, or refreshed."""
        if self._snapshot is None:
            return self._now().snapshot
        return self._snapshot

    @property
    def header(self) -> Header:
        """What is known of the archive as a whole."""
        return self._now().header

    @property
    def catalog(self) -> Shared[Catalog]:
        """The catalog, in the I/O thread."""
        return self._now().catalog

    def refresh(self) -> Snapshot:
        """See what was added to the archive meanwhile. Numbers of frames do not change."""
        live = self._now()
        snapshot = live.catalog.call(live.catalog.it.snapshot())
        live.lookup.snapshot = live.snapshot = self._snapshot = snapshot
        return snapshot

    # --- videos ------------------------------------------------------------------------------------------------------

    def video(self, number: int) -> VideoRow:
        """Return a video by its number.

        Raises:
            VideoNotFound: there is none.
        """
        live = self._now()
        row = live.catalog.call(live.catalog.it.video(number)) if 0 <= number < self.snapshot.videos else None
        if row is None:
            raise VideoNotFound(f"the archive has {self.snapshot.videos} videos, and none of number {number}")
        return row

    def named(self, name: str) -> VideoRow:
        """Return a video by its name.

        Raises:
            VideoNotFound: there is none.
        """
        live = self._now()
        row = live.catalog.call(live.catalog.it.named(name))
        if row is None or not 0 <= row.number < self.snapshot.videos:
            late = "" if row is None else ", which was added after it was opened: refresh() shows it"
            raise VideoNotFound(f"the archive {self.url} has no video {name!r}{late}", stream=name)
        return row

    def find(self, where: Mapping[str, Any] | None = None, start: int = 0, stop: int | None = None) -> list[VideoRow]:
        """Return the videos whose metadata match, in order; see :mod:`streamloader.archive.catalog.query`."""
        stop = self.snapshot.videos if stop is None else min(stop, self.snapshot.videos)
        live = self._now()

        async def collect() -> list[VideoRow]:
            async with contextlib.aclosing(live.catalog.it.find(where, start=start, stop=stop)) as found:
                return [row async for row in found]

        return live.catalog.call(collect())

    def count(self, where: Mapping[str, Any] | None = None) -> Snapshot:
        """Return how many videos match, with the sums of their frames, chunks and times."""
        live = self._now()
        return live.catalog.call(live.catalog.it.count(where, stop=self.snapshot.videos))

    def frame_at(self, seconds: float, video: VideoRow | None = None) -> int:
        """Return the number (in the archive) of the frame that is shown at a time.

        Args:
            seconds: since the beginning of the video, or of the archive, all videos played one after the other.
            video: None: the whole archive.

        Raises:
            FrameOutside: nothing is shown then.
        """
        return self._now().lookup.frame_at(seconds, video)

    # --- frames ------------------------------------------------------------------------------------------------------

    def decode(self, video: VideoRow, numbers: Sequence[int] | Array) -> Iterator[VideoFrame]:
        """Yield frames of one video, in the order asked for, each when it is wanted.

        Ascending numbers cost no more than decoding on; bytes of what comes next are fetched meanwhile.

        Args:
            video: of this archive.
            numbers: of frames within the video.

        Raises:
            FrameOutside: the video has no such frame.
            CorruptStream: a chunk does not hold what the catalog says; ``offset`` is the frame of the video.
            StoreError: bytes of a chunk could not be had.
            CatalogError: the catalog could not be read.
        """
        wanted = np.asarray(numbers, np.int64)
        outside = (wanted < 0) | (wanted >= video.frames)
        if outside.any():
            number = int(wanted[outside][0])
            raise FrameOutside(
                f"video {video.name!r} has frames 0 to {video.frames - 1}, and none of number {number}",
                stream=video.name,
                offset=number,
            )
        return self._now().reading.stream(wanted + video.start)

    def each(self, numbers: Array, take: Take) -> None:
        """Call ``take(place, video, frame)`` for each frame, from several threads at once and in any order.

        Args:
            numbers: int64, ascending, each once: of frames of the archive.
            take: gets the frame's place in `numbers`, its video, and the frame.

        Raises:
            FrameOutside: see :meth:`decode`, for these and further errors.
        """
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < self.snapshot.frames:
            number = int(numbers[0] if numbers[0] < 0 else numbers[-1])
            raise FrameOutside(
                f"the archive has {self.snapshot.frames} frames, and none of number {number}", offset=number
            )
        self._now().reading.each(numbers, take)

    def videos_of(self, numbers: Array) -> list[VideoRow]:
        """Return the videos that hold these frames of the archive (ascending, not empty), in order."""
        rows = self._now().lookup.rows(numbers.tolist())
        return list({video.number: video for video, _, _ in rows.values()}.values())

    # --- life --------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Return what reading took in this process so far: see :class:`ReadCounts`, and what the cache holds."""
        live = self._live
        if live is None or live.pid != os.getpid():
            return dataclasses.asdict(ReadCounts()) | {"cache_entries": 0, "cache_bytes": 0}
        return dataclasses.asdict(live.counts) | {"cache_entries": len(live.cache), "cache_bytes": live.cache.bytes}

    def another(self, threads: int | None = None) -> ArchiveReader:
        """Return one more reader of the same archive, with the same numbering and nothing else in common.

        Args:
            threads: that decode at the same time in that one; None for as many as this one was told.
        """
        reader = copy.copy(self)
        reader._threads = threads or self._threads  # noqa: SLF001
        return reader

    def close(self) -> None:
        """Free decoders and memory, and give stores and catalog back. Safe to call twice; later use is an error."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
        if live is not None:
            if live.pid == os.getpid():
                live.close()
            else:
                keep_forever(live)

    def _now(self) -> _Live:
        live = self._live
        if live is not None and live.pid == os.getpid():
            return live
        with self._lock:
            if self._closed:
                raise ClosedError(f"the archive {self.url} was closed: open it again", address=self.url)
            if self._live is None:
                self._live = self._connect()
            return self._live

    def _connect(self) -> _Live:
        catalog = shared_by(self._url, self._catalog_options)
        try:
            header = catalog.call(catalog.it.header())
            if self._snapshot is None:
                self._snapshot = catalog.call(catalog.it.snapshot())
            places = placed(header.places, self._places, self._url)
        except BaseException:
            catalog.close()
            raise
        cache = self._cache_limit, self._max_cache_bytes
        threads = self._threads or default_threads()
        return _Live(catalog, header, self._snapshot, places, self._storage_options, cache, threads, self._prefetch)

    def leave_to_parent(self) -> None:
        """After a fork, in the child: what is connected belongs to the parent, and is never freed here."""
        if self._live is not None:
            keep_forever(self._live)
        self._live = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave all behind that belongs to this process; the copy has the same numbering."""
        if "client" in self._catalog_options:
            raise ConfigError(
                f"the archive {self.url} was opened with client=, which belongs to this process: to use it in worker "
                "processes, open it by the url of its catalog alone"
            )
        _ = self.snapshot
        state = self.__dict__.copy()
        for name in ("_lock", "_live", "_closed"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"<ArchiveReader {self.url}>"


class _Live:
    """What a reader has in one process."""

    def __init__(
        self,
        catalog: Shared[Catalog],
        header: Header,
        snapshot: Snapshot,
        places: Mapping[int, str],
        storage_options: Mapping[str, Any] | None,
        cache: tuple[int, int],
        threads: int,
        prefetch: bool,
    ) -> None:
        self.pid = os.getpid()
        self.catalog = catalog
        self.header = header
        self.snapshot = snapshot
        self.counts = ReadCounts()
        self.cache = FrameCache(*cache, self._dropped)
        self.stores = ChunkStores(places, storage_options, self.cache, self.counts)
        self.lookup = Lookup(catalog, snapshot, self.counts)
        self.decoders = Decoders(self.stores, self.counts, threads)
        self.reading = Reading(
            self.lookup, self.stores, self.decoders, self.cache, self.counts, threads, prefetch=prefetch
        )

    def close(self) -> None:
        self.stores.close()  # first: it ends what others wait for
        self.decoders.close()
        self.cache.clear()
        self.lookup.close()

    def _dropped(self, key: Any) -> None:
        self.stores.dropped(key)


_readers: Final[weakref.WeakSet[ArchiveReader]] = weakref.WeakSet()


def _after_fork() -> None:
    for reader in list(_readers):
        reader.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
