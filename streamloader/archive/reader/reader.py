"""Random access to the decoded frames of an archive by number, without torch.

:mod:`streamloader.archive.archive` returns these frames as tensors.
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

from streamloader.archive.catalog.base import find_video_by_name
from streamloader.archive.location import PlaceAddress, catalog_url, open_shared_catalog, resolve_places
from streamloader.archive.reader.batch import FrameBatchReader, FrameConsumer
from streamloader.archive.reader.cache import FrameCache
from streamloader.archive.reader.chunk_bytes import ChunkReader
from streamloader.archive.reader.decoders import DecoderPool, leak_object
from streamloader.archive.reader.lookup import ChunkLookup
from streamloader.archive.reader.stats import ReadCounts
from streamloader.arguments import check_options
from streamloader.common.cores import count_cores
from streamloader.errors import ClosedError, ConfigError, FrameIndexError, VideoNotFound
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.redaction import redact_address

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog, CatalogHeader, Snapshot, VideoRow
    from streamloader.media.video.reader import VideoFrame
    from streamloader.stores.io_thread import SharedResource
    from streamloader.values import Array

__all__ = ["DEFAULT_CACHE_LIMIT", "DEFAULT_MAX_CACHE_BYTES", "ArchiveReader", "default_threads"]

DEFAULT_CACHE_LIMIT: Final = 256
DEFAULT_MAX_CACHE_BYTES: Final = 256 << 20
_MAX_DEFAULT_THREADS: Final = 8  # more threads do not make one reader faster


def default_threads() -> int:
    """Return the default number of threads of a reader: one per core, or one in a worker of a DataLoader."""
    data = sys.modules.get("torch.utils.data")
    if data is not None and data.get_worker_info() is not None:
        return 1
    return min(_MAX_DEFAULT_THREADS, count_cores())


class ArchiveReader:
    """Random access to the decoded frames of an archive.

    All methods are thread-safe. A reader can be pickled, and used after a fork. It then reconnects and keeps its
    numbering.

    Args:
        address: URL of the catalog, or folder of a local archive.
        places: Addresses by which this machine reaches the places, by number or URL of the place. Defaults to the
            addresses in the catalog, which have a limited reach: see :mod:`streamloader.stores.origins`.
        storage_options: Options of the stores of the places, see :func:`streamloader.stores.registry.select_options`.
            Options without an address prefix are for the addresses in `places` only. Defaults to none.
        catalog_options: Options of the catalog, such as ``client=``. Defaults to none.
        cache_limit: Maximum number of cached groups of decoded frames and blocks of bytes. Defaults to 256.
        max_cache_bytes: Maximum size of the cache in bytes. Defaults to 256 MiB.
        prefetch: Whether to fetch the bytes after a sequential read. Defaults to True.
        threads: Number of threads that decode. Defaults to one per core, or one in a worker of a DataLoader.
        max_pixels: Maximum number of pixels of a frame, before it is scaled. Defaults to 2^26.

    Raises:
        ConfigError: If an argument is invalid.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        places: Mapping[int | str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        catalog_options: Mapping[str, Any] | None = None,
        cache_limit: int = DEFAULT_CACHE_LIMIT,
        max_cache_bytes: int = DEFAULT_MAX_CACHE_BYTES,
        prefetch: bool = True,
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        for name, value in (("cache_limit", cache_limit), ("max_cache_bytes", max_cache_bytes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"{name} must be a whole number of at least 0, got {value!r}")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ConfigError(f"threads must be a whole number of at least 1, or None, got {threads!r}")
        self._url = catalog_url(address)
        self._places = dict(places or {})
        self._storage_options = check_options("storage_options", storage_options)
        self._catalog_options = dict(catalog_options or {})
        self._cache_limit = cache_limit
        self._max_cache_bytes = max_cache_bytes
        self._prefetch = bool(prefetch)
        self._threads = threads
        self._max_pixels = validate_max_pixels(max_pixels)
        self._snapshot: Snapshot | None = None
        self._init_process_state()

    def _init_process_state(self) -> None:
        self._lock = threading.Lock()
        self._session: _ReaderSession | None = None
        self._closed = False
        _readers.add(self)

    @property
    def url(self) -> str:
        """The URL of the catalog, without secrets."""
        return redact_address(self._url)

    @property
    def storage_options(self) -> Mapping[str, Any] | None:
        """The options of the stores of the places."""
        return self._storage_options

    @property
    def max_pixels(self) -> int:
        """The maximum number of pixels of a frame."""
        return self._max_pixels

    @property
    def places(self) -> Mapping[int | str, str]:
        """The addresses of places that the user named, by number or URL of the place."""
        return self._places

    @property
    def has_remote_places(self) -> bool:
        """Whether some chunks are in places that are not on this machine."""
        return not all(place.is_local for place in self._get_session().places.values())

    @property
    def snapshot(self) -> Snapshot:
        """The extent of the archive for this reader, as of the first access or the last :meth:`refresh`."""
        if self._snapshot is None:
            return self._get_session().snapshot
        return self._snapshot

    @property
    def header(self) -> CatalogHeader:
        """The header of the archive."""
        return self._get_session().header

    @property
    def catalog(self) -> SharedResource[Catalog]:
        """The catalog, on the I/O thread."""
        return self._get_session().catalog

    def refresh(self) -> Snapshot:
        """Include the videos that were added since the first access or the last call. Frame numbers do not change."""
        session = self._get_session()
        snapshot = session.catalog.call(session.catalog.resource.get_snapshot())
        session.lookup.snapshot = session.snapshot = self._snapshot = snapshot
        return snapshot

    # --- videos ------------------------------------------------------------------------------------------------------

    def video(self, number: int) -> VideoRow:
        """Return a video by its number.

        Raises:
            VideoNotFound: If the archive has no such video.
        """
        catalog = self._get_session().catalog
        row = catalog.call(catalog.resource.get_video(number)) if 0 <= number < self.snapshot.videos else None
        if row is None:
            raise VideoNotFound(f"the archive has {self.snapshot.videos} videos, and no video number {number}")
        return row

    def video_by_name(self, name: str) -> VideoRow:
        """Return a video by its name, or by the end of its name if no other video has that.

        Raises:
            VideoNotFound: If the archive has no such video, or several whose names end so.
        """
        catalog = self._get_session().catalog
        return catalog.call(find_video_by_name(catalog.resource, name, stop=self.snapshot.videos))

    def find(self, where: Mapping[str, Any] | None = None, start: int = 0, stop: int | None = None) -> list[VideoRow]:
        """Return the videos whose metadata match, in order.

        Args:
            where: Condition, see :mod:`streamloader.archive.catalog.query`. Defaults to all videos.
            start: Number of the first video to consider. Defaults to 0.
            stop: Number after the last video to consider. Defaults to the end.
        """
        stop = self.snapshot.videos if stop is None else min(stop, self.snapshot.videos)
        catalog = self._get_session().catalog

        async def collect() -> list[VideoRow]:
            async with contextlib.aclosing(catalog.resource.find_videos(where, start=start, stop=stop)) as rows:
                return [row async for row in rows]

        return catalog.call(collect())

    def count(self, where: Mapping[str, Any] | None = None) -> Snapshot:
        """Return the number of matching videos, and the sums of their frames, chunks and durations."""
        catalog = self._get_session().catalog
        return catalog.call(catalog.resource.count_videos(where, stop=self.snapshot.videos))

    def frame_at(self, seconds: float, video: VideoRow | None = None) -> int:
        """Return the number (in the archive) of the frame that is shown at a time.

        Args:
            seconds: Time in seconds after the start of the video, or of the archive if all its videos are shown one
                after the other.
            video: Video of the archive. Defaults to the whole archive.

        Raises:
            FrameIndexError: If no frame is shown at that time.
        """
        return self._get_session().lookup.frame_at(seconds, video)

    # --- frames ------------------------------------------------------------------------------------------------------

    def decode(self, video: VideoRow, numbers: Sequence[int] | Array) -> Iterator[VideoFrame]:
        """Yield frames of one video lazily, in the order of `numbers`.

        With ascending numbers, decoding continues from one frame to the next, and bytes are fetched ahead.

        Args:
            video: Video of this archive.
            numbers: Numbers of frames within the video.

        Raises:
            FrameIndexError: If the video has no such frame.
            CorruptStream: If a chunk differs from its index in the catalog. ``offset`` is the frame of the video.
            StoreError: If bytes of a chunk cannot be read.
            CatalogError: If the catalog cannot be read.
        """
        wanted = np.asarray(numbers, np.int64)
        outside = (wanted < 0) | (wanted >= video.frames)
        if outside.any():
            number = int(wanted[outside][0])
            raise FrameIndexError(
                f"video {video.name!r} has frames 0 to {video.frames - 1}, and no frame number {number}",
                stream=video.name,
                offset=number,
            )
        return self._get_session().batches.iter_frames(wanted + video.start)

    def for_each(self, numbers: Array, consume: FrameConsumer) -> None:
        """Call ``consume(position, video, frame)`` for each frame, from several threads and in any order.

        Args:
            numbers: Numbers of frames of the archive, int64 (N,), ascending and without duplicates.
            consume: Function called with the frame's position in `numbers`, its video and the frame.

        Raises:
            FrameIndexError: If the archive has no such frame. See :meth:`decode` for further errors.
        """
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < self.snapshot.frames:
            number = int(numbers[0] if numbers[0] < 0 else numbers[-1])
            raise FrameIndexError(
                f"the archive has {self.snapshot.frames} frames, and no frame number {number}", offset=number
            )
        self._get_session().batches.for_each(numbers, consume)

    def videos_containing(self, numbers: Array) -> list[VideoRow]:
        """Return the videos that contain these frames of the archive (ascending, at least one), in order."""
        rows = self._get_session().lookup.locate(numbers.tolist())
        return list({video.number: video for video, _, _ in rows.values()}.values())

    # --- statistics, copies, closing ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Return the fields of :class:`ReadCounts` for this process, and ``cache_entries`` and ``cache_bytes``."""
        session = self._session
        if session is None or session.pid != os.getpid():
            return dataclasses.asdict(ReadCounts()) | {"cache_entries": 0, "cache_bytes": 0}
        cache = session.cache
        return dataclasses.asdict(session.counts) | {"cache_entries": len(cache), "cache_bytes": cache.bytes}

    def clone(self, threads: int | None = None) -> ArchiveReader:
        """Return a new reader of the same archive with the same numbering. Connections and caches are not shared.

        Args:
            threads: Number of threads that decode. Defaults to this reader's setting.
        """
        reader = copy.copy(self)
        reader._threads = threads or self._threads  # noqa: SLF001
        return reader

    def close(self) -> None:
        """Free decoders and caches, and release stores and catalog. Safe to call twice. Later reads are errors."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            if session.pid == os.getpid():
                session.close()
            else:
                leak_object(session)

    def _get_session(self) -> _ReaderSession:
        session = self._session
        if session is not None and session.pid == os.getpid():
            return session
        with self._lock:
            if self._closed:
                raise ClosedError(f"the archive {self.url} was closed: open it again", address=self.url)
            if self._session is None:
                self._session = self._connect()
            return self._session

    def _connect(self) -> _ReaderSession:
        catalog = open_shared_catalog(self._url, self._catalog_options)
        try:
            header = catalog.call(catalog.resource.get_header())
            if self._snapshot is None:
                self._snapshot = catalog.call(catalog.resource.get_snapshot())
            places = resolve_places(header.places, self._places, self._url, self._storage_options)
        except BaseException:
            catalog.close()
            raise
        cache_limits = self._cache_limit, self._max_cache_bytes
        threads = self._threads or default_threads()
        return _ReaderSession(
            catalog, header, self._snapshot, places, self._storage_options, cache_limits, threads, self._prefetch,
            self._max_pixels,
        )  # fmt: skip

    def abandon_after_fork(self) -> None:
        """Called in the child after a fork. The session belongs to the parent process and is never freed here."""
        if self._session is not None:
            leak_object(self._session)
        self._session = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Omit everything that belongs to this process. The copy has the same numbering."""
        if "client" in self._catalog_options:
            raise ConfigError(
                f"the archive {self.url} was opened with client=, which belongs to this process: to use it in worker "
                "processes, open it by the URL of its catalog alone"
            )
        _ = self.snapshot
        state = self.__dict__.copy()
        for name in ("_lock", "_session", "_closed"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_process_state()

    def __repr__(self) -> str:
        return f"<ArchiveReader {self.url}>"


class _ReaderSession:
    """The connections, caches and decoders of a reader in one process."""

    def __init__(
        self,
        catalog: SharedResource[Catalog],
        header: CatalogHeader,
        snapshot: Snapshot,
        places: Mapping[int, PlaceAddress],
        storage_options: Mapping[str, Any] | None,
        cache_limits: tuple[int, int],
        threads: int,
        prefetch: bool,
        max_pixels: int,
    ) -> None:
        self.pid = os.getpid()
        self.catalog = catalog
        self.header = header
        self.places = places
        self.snapshot = snapshot
        self.counts = ReadCounts()
        self.cache = FrameCache(*cache_limits, self._on_cache_drop)
        self.chunks = ChunkReader(places, storage_options, self.cache, self.counts)
        self.lookup = ChunkLookup(catalog, snapshot, self.counts)
        self.decoders = DecoderPool(self.chunks, self.counts, threads, max_pixels)
        self.batches = FrameBatchReader(
            self.lookup, self.chunks, self.decoders, self.cache, self.counts, threads, prefetch=prefetch
        )

    def close(self) -> None:
        self.chunks.close()  # first: this ends the requests that other threads wait for
        self.decoders.close()
        self.cache.clear()
        self.lookup.close()

    def _on_cache_drop(self, key: Any) -> None:
        self.chunks.remove_dropped(key)


_readers: Final[weakref.WeakSet[ArchiveReader]] = weakref.WeakSet()


def _after_fork() -> None:
    for reader in list(_readers):
        reader.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork)
