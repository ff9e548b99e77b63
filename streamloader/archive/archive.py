"""An archive of videos as one array of frames, from local and remote chunks: ``archive[1000:2000]``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from typing_extensions import override

from streamloader.archive.buffer_pool import BufferPool
from streamloader.archive.create import create_archive
from streamloader.archive.frames import ArchiveVideo, ArchiveVideos, FrameSequence
from streamloader.archive.pixels import PIX_FMTS, ConverterPool, validate_size
from streamloader.archive.reader.reader import DEFAULT_CACHE_LIMIT, DEFAULT_MAX_CACHE_BYTES, ArchiveReader
from streamloader.errors import ConfigError
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.torch_support import as_tensor

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Snapshot, VideoRow
    from streamloader.archive.ingest import CheckReport, IngestReport
    from streamloader.media.video.reader import VideoFrame
    from streamloader.stores.addresses import Addresses
    from streamloader.values import Array

__all__ = ["Archive", "ArchiveVideo", "ArchiveVideos", "open_archive"]

Transform: TypeAlias = "Callable[[Any], Any]"  # of tensors, or of arrays without torch


class Archive(FrameSequence):
    """All frames of an archive as one array, and as a ``torch.utils.data.Dataset`` of frames.

    ``archive[i]`` is a frame, uint8 (H, W, C). ``archive[a:b]``, ``archive[a:b:s]`` and ``archive[[i, j, k]]`` are
    uint8 (N, H, W, C), in the requested order. Negative numbers count from the end, and slices are clipped at the end.
    ``archive["name"]`` is one video with the same interface (:class:`ArchiveVideo`). Frames are exactly those of a
    linear decode of the source, upright, in RGB. They are tensors, or NumPy arrays where torch is not installed.

    An open archive is a snapshot: it has the videos that existed when it was opened, until :meth:`refresh`. The numbers
    of frames never change. All methods are thread-safe. An archive can be pickled, and used in forked and spawned
    processes, which open their own connections.

    Args:
        address: URL of the catalog, or folder of a local archive.
        size: Size (height, width) to which frames are scaled (bilinear). None keeps their size.
        pix_fmt: Pixel format: ``"rgb24"``, or ``"gray"`` for one channel of luma stretched to 0..255. Defaults to
            ``"rgb24"``.
        transform: Function from uint8 (N, H, W, C) to a sequence of N items. Single frames are passed with N = 1.
            Defaults to none.
        places: Addresses by which this machine reaches the places, by number or URL of the place. Defaults to the
            addresses in the catalog. The author of the catalog chose those, so they have a limited reach: see
            :mod:`streamloader.stores.origins`.
        storage_options: Options of :func:`streamloader.stores.open_store` for the places. Options by address prefix
            (:func:`streamloader.stores.registry.select_options`) are bound to an origin, which is thereby named; other
            options are for the addresses in `places` only. Defaults to none.
        catalog_options: Options of the catalog. With ``client=`` among them, the archive cannot be pickled. Defaults to
            none.
        cache_limit: Maximum number of cached groups of decoded frames and blocks of bytes. Defaults to 256.
        max_cache_bytes: Maximum size of the cache in bytes. Defaults to 256 MiB.
        prefetch: Whether to fetch the bytes after a sequential read. Defaults to True.
        threads: Number of threads that decode. Defaults to one per core, or one in a worker of a DataLoader.
        max_pixels: Maximum number of pixels of a frame, before `size` is applied. Defaults to 2^26, which is
            8192 x 8192.

    Raises:
        ConfigError: If an argument is invalid.
        CatalogNotFound: If there is no archive (at the first access).
        FrameIndexError: If there is no frame of this number (at a read). It is an IndexError.
        VideoNotFound: If there is no video of this name (at a read). It is a KeyError.
        FrameSizeError: If the requested frames differ in size, and `size` is None (at a read).
        CorruptStream: If a chunk is damaged (at a read). ``offset`` is the frame of the video.
        MediaLimitExceeded: If a frame exceeds `max_pixels` (at a read).
        StoreError: If bytes cannot be read (at a read).
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        pix_fmt: str = "rgb24",
        transform: Transform | None = None,
        places: Mapping[int | str, str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        catalog_options: Mapping[str, Any] | None = None,
        cache_limit: int = DEFAULT_CACHE_LIMIT,
        max_cache_bytes: int = DEFAULT_MAX_CACHE_BYTES,
        prefetch: bool = True,
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if pix_fmt not in PIX_FMTS:
            hint = ": ArchiveStreams has it" if pix_fmt in {"rgbp", "yuv420p"} else ""
            raise ConfigError(f"pix_fmt must be one of {', '.join(map(repr, PIX_FMTS))}, got {pix_fmt!r}{hint}")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform must be callable, got {transform!r}")
        self._archive = self
        self._converters = ConverterPool(pix_fmt, validate_size(size), validate_max_pixels(max_pixels))
        self._transform = transform
        self._buffers = BufferPool(max_cache_bytes // 2 if isinstance(max_cache_bytes, int) else 0)
        self.reader = ArchiveReader(
            address,
            places=places,
            storage_options=storage_options,
            catalog_options=catalog_options,
            cache_limit=cache_limit,
            max_cache_bytes=max_cache_bytes,
            prefetch=prefetch,
            threads=threads,
            max_pixels=max_pixels,
        )

    @classmethod
    def create(
        cls,
        store: str | os.PathLike[str] | Sequence[str] | Mapping[str, float],
        catalog: str | None = None,
        *,
        catalog_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Archive:
        """Create an empty archive, and open it.

        Args:
            store: Address of the folder for chunks. To spread the chunks: several addresses, or a mapping of addresses
                to their weights.
            catalog: URL of the catalog. Defaults to the file ``catalog.sqlite`` in the (first) folder, if it is local.
            catalog_options: Options of the catalog.
            **options: Arguments of :class:`Archive`.

        Raises:
            CatalogExists: If there is an archive already.
            ConfigError: If an address is invalid.
        """
        url, created = create_archive(store, catalog, catalog_options)
        places: dict[int | str, str] = dict(options.pop("places", None) or {})
        for place in created:
            if place.url not in places:
                places.setdefault(place.number, place.url)
        return cls(url, catalog_options=catalog_options, places=places, **options)

    # --- contents ----------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The number of videos, frames and chunks, and the duration."""
        return self.reader.snapshot

    @property
    def transform(self) -> Transform | None:
        """The transform of frames, or None."""
        return self._transform

    @property
    def videos(self) -> ArchiveVideos:
        """The videos of the archive, in order."""
        return ArchiveVideos(self)

    def find(self, where: Mapping[str, Any] | None = None) -> list[ArchiveVideo]:
        """Return the videos whose metadata match, in order.

        Args:
            where: Condition, see :mod:`streamloader.archive.catalog.query`. Defaults to all videos.

        Raises:
            ConfigError: If `where` is malformed.
        """
        return [ArchiveVideo(self, row) for row in self.reader.find(where)]

    def count(self, where: Mapping[str, Any] | None = None) -> Snapshot:
        """Return the number of matching videos, and the sums of their frames, chunks and durations."""
        return self.reader.count(where)

    def refresh(self) -> Archive:
        """Include the videos that were added since the archive was opened or refreshed. Return the archive itself."""
        self.reader.refresh()
        return self

    @override
    def number_at(self, seconds: float) -> int:
        return self.reader.frame_at(seconds)

    def __getitem__(self, index: Any) -> Any:
        """Return frames by number, or a video by its name."""
        if isinstance(index, str):
            return ArchiveVideo(self, self.reader.video_by_name(index))
        return super().__getitem__(index)

    # --- adding and checking -----------------------------------------------------------------------------------------

    def add(self, videos: Addresses, **options: Any) -> IngestReport:
        """Cut videos into chunks, add each as a whole or not at all, and refresh this archive.

        Args:
            videos: Paths, addresses of stores, patterns, folders, or a list of these.
            **options: ``name``, ``metadata``, ``executor``, ``jobs``, ... of
                :func:`streamloader.archive.ingest.add_videos`, and ``mode``, ``chunk_frames``, ... of
                :class:`streamloader.media.chunks.settings.CutSettings`.
        """
        from streamloader.archive.create import add_to_archive

        report = add_to_archive(self.reader, videos, options)
        self.refresh()
        return report

    def check(self, repair: bool = False, **options: Any) -> CheckReport:
        """Compare the catalog with the stores, and optionally repair what differs.

        Args:
            repair: Whether to delete unused files, and to rebuild damaged chunks whose source still exists.
            **options: Options of :func:`streamloader.archive.ingest.check_archive`.
        """
        from streamloader.archive.create import check_opened_archive

        return check_opened_archive(self.reader, repair, options)

    # --- statistics and closing --------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Return counters of the reads in this process: frames, hits, misses, packets, bytes, requests and cache size.

        See :class:`streamloader.archive.reader.stats.ReadCounts` for the counters.
        """
        return self.reader.stats()

    def close(self) -> None:
        """Free decoders and caches, and release stores and catalog. Safe to call twice. Later reads are errors."""
        self.reader.close()
        self._converters.close()
        self._buffers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Archive {self.reader.url}>"

    # --- the frame source of the archive and its videos --------------------------------------------------------------

    @override
    def _frame_range(self) -> tuple[int, int]:
        return 0, self.reader.snapshot.frames

    @override
    def _label(self) -> str:
        return "the archive"

    def read(self, numbers: Array, *, one_by_one: bool = False) -> Any:
        """Return frames of the archive in the order of `numbers`, transformed all together or one by one."""
        frames = self._decode(numbers)
        if self._transform is None:
            return frames
        if not one_by_one:
            return self._transform(frames)
        return [self._transform(frames[n : n + 1])[0] for n in range(len(frames))]

    def _decode(self, numbers: Array) -> Any:
        if not len(numbers):
            return as_tensor(np.empty((0, *self._empty_shape()), np.uint8))
        wanted, inverse = np.unique(numbers, return_inverse=True)
        shape = self._converters.frame_shape(self.reader.videos_containing(wanted))
        frames = self._buffers.allocate((len(wanted), *shape))
        output = self._converters.wrap_output(frames)

        def write_frame(position: int, video: VideoRow, frame: VideoFrame) -> None:
            self._converters.write_frame(video, frame, output, position)

        self.reader.for_each(wanted, write_frame)
        if len(wanted) == len(numbers) and bool((inverse[1:] > inverse[:-1]).all()):
            return as_tensor(frames)
        return as_tensor(frames)[as_tensor(inverse)]

    def _empty_shape(self) -> tuple[int, int, int]:
        if self._converters.size is not None:
            return (*self._converters.size, self._converters.channels)
        snapshot = self.reader.snapshot
        if not snapshot.videos:
            return 0, 0, self._converters.channels
        return self._converters.frame_shape([self.reader.video(0)])

    def iter_frames(self, start: int, end: int) -> Iterator[Any]:
        """Yield the frames [start, end) of the archive one by one."""
        while start < end:
            video = self.reader.videos_containing(np.asarray([start]))[0]
            video_end = min(end, video.start + video.frames)
            shape = self._converters.frame_shape([video])
            for frame in self.reader.decode(video, range(start - video.start, video_end - video.start)):
                output = np.empty((1, *shape), np.uint8)
                self._converters.write_frame(video, frame, self._converters.wrap_output(output), 0)
                shown = as_tensor(output)
                yield shown[0] if self._transform is None else self._transform(shown)[0]
            start = video_end


def open_archive(address: str | os.PathLike[str], **options: Any) -> Archive:
    """Open an existing archive.

    Args:
        address: URL of the catalog (a path, ``sqlite:///path``, ``mongodb://...``), or folder of a local archive.
        **options: Arguments of :class:`Archive`: ``size``, ``pix_fmt``, ``transform``, ``places``,
            ``storage_options``, ``catalog_options``, ``cache_limit``, ``max_cache_bytes``, ``prefetch``, ``threads``,
            ``max_pixels``.

    Raises:
        CatalogNotFound: If there is no archive.
        ConfigError: If an argument is invalid.
    """
    archive = Archive(address, **options)
    try:
        _ = archive.snapshot
    except BaseException:
        archive.close()
        raise
    return archive
