"""An archive of videos as one array of frames: ``archive[1000:2000]``, exact to the frame, wherever the chunks are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import torch

from streamloader.archive.buffer_pool import ResultMemory
from streamloader.archive.create import create_archive
from streamloader.archive.frames import ArchiveVideo, ArchiveVideos, Frames
from streamloader.archive.pixels import PIX_FMTS, Pixels, checked_size
from streamloader.archive.reader.reader import CACHE_BYTES, CACHE_LIMIT, ArchiveReader
from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Snapshot, VideoRow
    from streamloader.archive.ingest import CheckReport, IngestReport
    from streamloader.media.video.reader import VideoFrame
    from streamloader.stores.addresses import Addresses
    from streamloader.values import Array

__all__ = ["Archive", "ArchiveVideo", "ArchiveVideos", "open_archive"]

Transform: TypeAlias = "Callable[[torch.Tensor], Any]"
Numbers: TypeAlias = "int | slice | Sequence[int] | Array | torch.Tensor"


class Archive(Frames):
    """All frames of an archive as one array, and as a ``torch.utils.data.Dataset`` of frames.

    ``archive[i]`` is a frame, uint8 (H, W, C); ``archive[a:b]``, ``archive[a:b:s]`` and ``archive[[i, j, k]]`` are
    uint8 (N, H, W, C), in the order asked for. Negative numbers count from the end, slices end where the archive ends.
    ``archive["name"]`` is one video with the same face (:class:`ArchiveVideo`). Frames are exactly those of a decode of
    the source from its beginning, upright, in RGB.

    What is read is what the archive held when it was opened, until :meth:`refresh`: numbers of frames never change.
    Threads can share an archive. It can be pickled, and used in forked and spawned processes, which connect anew.

    Args:
        address: url of the catalog, or the folder of a local archive.
        size: (height, width) to which frames are scaled (bilinear); None leaves them as they are.
        pix_fmt: ``"rgb24"``, or ``"gray"`` for one channel of luma stretched to 0..255.
        transform: is given uint8 (N, H, W, C) and returns N items of anything; single frames go through it as N = 1.
        places: number or url of a place of the archive -> the address by which this machine reaches it.
        storage_options: of :func:`streamloader.stores.open_store`, for these places; where they need different ones,
            see :func:`streamloader.stores.registry.options_for`.
        catalog_options: of the catalog. An archive with ``client=`` among them cannot be pickled.
        cache_limit: groups of decoded frames, and spans of bytes from stores, that are kept at most.
        max_cache_bytes: of memory that these take at most.
        prefetch: fetch what is next where access is sequential.
        threads: that decode at the same time; None: one for each core, but one in workers of a DataLoader.

    Raises:
        ConfigError: the arguments make no sense.
        CatalogNotFound: there is no archive (when it is first used).
        FrameOutside: from reading: there is no frame of this number (an IndexError).
        VideoNotFound: from reading: there is no video of this name (a KeyError).
        FrameSizeError: from reading: frames of different size were asked for, and `size` was not given.
        CorruptStream: from reading: a chunk is not what was put there; ``offset`` is the frame of the video.
        StoreError: from reading: bytes could not be had.
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
        cache_limit: int = CACHE_LIMIT,
        max_cache_bytes: int = CACHE_BYTES,
        prefetch: bool = True,
        threads: int | None = None,
    ) -> None:
        if pix_fmt not in PIX_FMTS:
            also = ": ArchiveStreams has it" if pix_fmt == "yuv420p" else ""
            raise ConfigError(f"pix_fmt must be one of {', '.join(map(repr, PIX_FMTS))}, got {pix_fmt!r}{also}")
        if transform is not None and not callable(transform):
            raise ConfigError(f"transform must be callable, got {transform!r}")
        self._archive = self
        self._pixels = Pixels(pix_fmt, checked_size(size))
        self._transform = transform
        self._memory = ResultMemory(max_cache_bytes // 2 if isinstance(max_cache_bytes, int) else 0)
        self.reader = ArchiveReader(
            address,
            places=places,
            storage_options=storage_options,
            catalog_options=catalog_options,
            cache_limit=cache_limit,
            max_cache_bytes=max_cache_bytes,
            prefetch=prefetch,
            threads=threads,
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
        """Make an empty archive, and open it.

        Args:
            store: address of the folder that its chunks go to; several, or several with their weights, to spread them.
            catalog: url of its catalog; by default the file ``catalog.sqlite`` in the (first) folder, if that is local.
            catalog_options: of the catalog.
            **options: of the archive.

        Raises:
            CatalogExists: there is one already.
            ConfigError: the addresses make no sense.
        """
        url = create_archive(store, catalog, catalog_options)
        return cls(url, catalog_options=catalog_options, **options)

    # --- what is in it -----------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """How many videos, frames and chunks, and how long they take."""
        return self.reader.snapshot

    @property
    def transform(self) -> Transform | None:
        """What frames go through before they are returned; None for nothing."""
        return self._transform

    @property
    def videos(self) -> ArchiveVideos:
        """The videos of the archive, in their order."""
        return ArchiveVideos(self)

    def find(self, where: Mapping[str, Any] | None = None) -> list[ArchiveVideo]:
        """Return the videos whose metadata match, in order; see :mod:`streamloader.archive.catalog.query`.

        Raises:
            ConfigError: `where` makes no sense.
        """
        return [ArchiveVideo(self, row) for row in self.reader.find(where)]

    def count(self, where: Mapping[str, Any] | None = None) -> Snapshot:
        """Return how many videos match, with the sums of their frames, chunks and times."""
        return self.reader.count(where)

    def refresh(self) -> Archive:
        """See what was added meanwhile, at the end; return the archive itself."""
        self.reader.refresh()
        return self

    def number_at(self, seconds: float) -> int:
        """Return the number of the frame that is shown at a time; see :meth:`at`."""
        return self.reader.frame_at(seconds)

    def __getitem__(self, which: Any) -> Any:
        """Return frames by number, or a video by its name: see the class."""
        if isinstance(which, str):
            return ArchiveVideo(self, self.reader.named(which))
        return super().__getitem__(which)

    # --- making it ---------------------------------------------------------------------------------------------------

    def add(self, videos: Addresses, **options: Any) -> IngestReport:
        """Cut videos into chunks and add them, each whole or not at all; then this archive has them too.

        Args:
            videos: paths, addresses of stores, patterns, folders, or a list of these.
            **options: ``name``, ``metadata``, ``engine``, ``jobs``, ... of
                :func:`streamloader.archive.ingest.add_videos`, and ``mode``,
                ``chunk_frames``, ... of :class:`streamloader.media.chunks.build.CutSettings`.
        """
        from streamloader.archive.create import add_to

        report = add_to(self.reader, videos, options)
        self.refresh()
        return report

    def check(self, repair: bool = False, **options: Any) -> CheckReport:
        """Compare the catalog with the stores, and mend what can be.

        See :func:`streamloader.archive.ingest.check_archive`.

        Args:
            repair: delete what no video needs, and make damaged chunks anew where their source is still there.
            **options: of that function.
        """
        from streamloader.archive.create import check_all

        return check_all(self.reader, repair, options)

    # --- life --------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Return what reading took so far: frames, hits and misses, packets, bytes, requests, and what the cache holds.

        See :class:`streamloader.archive.reader.stats.ReadCounts`. They count in this process alone.
        """
        return self.reader.stats()

    def close(self) -> None:
        """Free decoders and memory, and give stores and catalog back. Safe to call twice; later use is an error."""
        self.reader.close()
        self._pixels.close()
        self._memory.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Archive {self.reader.url}>"

    # --- for the others in this file ---------------------------------------------------------------------------------

    def _span(self) -> tuple[int, int]:
        return 0, self.reader.snapshot.frames

    def _called(self) -> str:
        return "the archive"

    def read(self, numbers: Array, *, one_by_one: bool = False) -> Any:
        """Return frames of the archive in the order of `numbers`, transformed all together or each for itself."""
        frames = self._decoded(numbers)
        if self._transform is None:
            return frames
        if not one_by_one:
            return self._transform(frames)
        return [self._transform(frames[n : n + 1])[0] for n in range(len(frames))]

    def _decoded(self, numbers: Array) -> torch.Tensor:
        if not len(numbers):
            return torch.empty((0, *self._empty_shape()), dtype=torch.uint8)
        wanted, back = np.unique(numbers, return_inverse=True)
        shape = self._pixels.shape(self.reader.videos_of(wanted))
        frames = torch.from_numpy(self._memory.array((len(wanted), *shape)))
        target = self._pixels.target(frames.numpy())

        def take(place: int, video: VideoRow, frame: VideoFrame) -> None:
            self._pixels.write(video, frame, target, place)

        self.reader.each(wanted, take)
        if len(wanted) == len(numbers) and bool((back[1:] > back[:-1]).all()):
            return frames
        return frames[torch.from_numpy(back)]

    def _empty_shape(self) -> tuple[int, int, int]:
        if self._pixels.size is not None:
            return (*self._pixels.size, self._pixels.channels)
        snapshot = self.reader.snapshot
        return self._pixels.shape([self.reader.video(0)]) if snapshot.videos else (0, 0, self._pixels.channels)

    def play(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the frames [start, stop) of the archive one by one."""
        while start < stop:
            video = self.reader.videos_of(np.asarray([start]))[0]
            end = min(stop, video.start + video.frames)
            shape = self._pixels.shape([video])
            for frame in self.reader.decode(video, range(start - video.start, end - video.start)):
                out = torch.empty((1, *shape), dtype=torch.uint8)
                self._pixels.write(video, frame, self._pixels.target(out.numpy()), 0)
                yield out[0] if self._transform is None else self._transform(out)[0]
            start = end


def open_archive(address: str | os.PathLike[str], **options: Any) -> Archive:
    """Open an archive: see :class:`Archive` for what can be chosen.

    Args:
        address: url of its catalog (a path, ``sqlite:///path``, ``mongodb://...``), or the folder of a local archive.
        **options: ``size``, ``pix_fmt``, ``transform``, ``places``, ``storage_options``, ``catalog_options``,
            ``cache_limit``, ``max_cache_bytes``, ``prefetch``, ``threads``.

    Raises:
        CatalogNotFound: there is none.
        ConfigError: the arguments make no sense.
    """
    archive = Archive(address, **options)
    try:
        _ = archive.snapshot
    except BaseException:
        archive.close()
        raise
    return archive
