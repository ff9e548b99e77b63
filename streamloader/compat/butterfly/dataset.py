"""The compatibility layer for ButterflyTorch: its classes and methods, over an archive.

Differences from ButterflyTorch: a second video never overwrites the frames of a first, frames are RGB, host keys are
checked, chunks are videos instead of pickles, and failures are typed errors instead of log lines.
"""

from __future__ import annotations

import os
import posixpath
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from streamloader.archive.archive import Archive, open_archive
from streamloader.archive.ingest import IngestReport
from streamloader.compat.butterfly.settings import ButterflySettings
from streamloader.compat.butterfly.storage import ChunkTracker, RemoteFileHandler, VideoProcessor
from streamloader.errors import ConfigError
from streamloader.media.video.selection import as_int
from streamloader.stores.addresses import Address
from streamloader.streams.video_names import is_video

__all__ = [
    "ButterflySettings",
    "ButterflyTorch",
    "ChunkTracker",
    "DistributedVideoDataset",
    "RemoteFileHandler",
    "VideoProcessor",
]

_COLOR_CHANNELS: Final = 3


class DistributedVideoDataset(Dataset[Any]):
    """All frames of the archive as one array: ``dataset[1000:2000]`` is uint8 (N, H, W, 3) in RGB.

    Args:
        connection_string: URL of the catalog, see :class:`ChunkTracker`.
        db_name: Name of the database in MongoDB, see :class:`ChunkTracker`.
        transform: Function of frames as a NumPy array: uint8 (N, H, W, 3) for slices and lists, (H, W, 3) for a single
            frame. An array that it returns is converted to a tensor.
        remote_handler: Handler of the machine with the chunks. Defaults to that of the settings.
        shape: Size (height, width) to which frames are scaled. None keeps their size.
        settings: Settings. Defaults to those of ``.env`` and the environment.

    Attributes:
        archive: The archive, which also offers names, times, asynchronous reads and statistics.

    Raises:
        CatalogNotFound: If no video has been saved yet.
        FrameIndexError: If there is no frame of this number (at a read). It is an IndexError. See
            :class:`~streamloader.archive.archive.Archive` for further errors.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        db_name: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        remote_handler: RemoteFileHandler | None = None,
        *,
        shape: Sequence[int] | None = None,
        settings: ButterflySettings | None = None,
    ) -> None:
        settings = settings or ButterflySettings.load()
        handler = remote_handler or RemoteFileHandler(settings=settings)
        limits = {"cache_limit": settings.cache_limit, "max_cache_bytes": settings.max_cache_bytes}
        self.transform = transform
        self.archive: Archive = open_archive(
            ChunkTracker(connection_string, db_name, settings=settings).url,
            size=_validate_shape(shape),
            storage_options=handler.storage_options,
            **{name: limit for name, limit in limits.items() if limit is not None},
        )

    def __len__(self) -> int:
        """Return the number of frames of all videos."""
        return len(self.archive)

    def __getitem__(self, idx: Any) -> Any:
        """Return frames by number, slice or list, as tensors."""
        frames = self.archive[idx]
        if self.transform is None or not isinstance(frames, torch.Tensor):
            return frames
        return self._apply_transform(frames)

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return a batch of single frames, decoded together."""
        frames = self.archive[list(numbers)]
        return list(frames) if self.transform is None else [self._apply_transform(frame) for frame in frames]

    def __iter__(self) -> Iterator[Any]:
        """Yield all frames in order."""
        for frame in self.archive:
            yield frame if self.transform is None else self._apply_transform(frame)

    def refresh(self) -> Self:
        """Include the videos that were added since the last refresh, at the end. Return the dataset itself."""
        self.archive.refresh()
        return self

    def close(self) -> None:
        """Close the archive. Safe to call twice."""
        self.archive.close()

    def _apply_transform(self, frames: torch.Tensor) -> Any:
        assert self.transform is not None
        result = self.transform(frames.numpy())
        return torch.from_numpy(result) if isinstance(result, np.ndarray) else result


class ButterflyTorch:
    """``torch`` with an archive of videos: all attributes of torch, and methods to save and load videos.

    Example::

        my_torch = ButterflyTorch()
        my_torch.save_data(["first.mp4", "second.mp4"])
        dataset = my_torch.load_data(transform_fn=lambda frames: frames / 255.0)
        normalised = my_torch.nn.functional.normalize(dataset[1000:2000])

    Args:
        settings: Settings. Defaults to those of ``.env`` and the environment.

    Attributes:
        torch: The module ``torch``.
        settings: The settings.
        remote_handler: Handler of the machine with the videos and chunks.
    """

    def __init__(self, settings: ButterflySettings | None = None) -> None:
        self.torch = torch
        self.settings = settings or ButterflySettings.load()
        self.remote_handler = RemoteFileHandler(settings=self.settings)
        self._loaded: weakref.WeakSet[DistributedVideoDataset] = weakref.WeakSet()

    def save_data(
        self,
        video_paths: Sequence[Address] | Address,
        storage_base_path: Address | None = None,
        connection_string: str | None = None,
        db_name: str | None = None,
        chunk_size: int | None = None,
        **options: Any,
    ) -> IngestReport:
        """Cut videos into chunks and save them. A video that was saved before is recognized and not saved again.

        Args:
            video_paths: Paths on the machine ``REMOTE_HOST``, or on this machine if it is not set, or addresses.
            storage_base_path: Folder for the chunks on the same machine. Defaults to that of the settings.
            connection_string: URL of the catalog, see :class:`ChunkTracker`.
            db_name: Name of the database in MongoDB, see :class:`ChunkTracker`.
            chunk_size: Number of frames of a chunk. Defaults to that of the settings.
            **options: Options of :func:`streamloader.archive.ingest.add_videos`, such as ``progress=True``.

        Raises:
            StreamNotFound: If a video does not exist. Nothing is saved then.
            IngestFailed: If some of several videos could not be saved. The others were.
            StreamloaderError: If a video cannot be saved, as for :meth:`VideoProcessor.process_video`.
        """
        settings = self.settings
        storage = storage_base_path or (settings.remote_storage_path if settings.remote_mode else settings.storage_path)
        if storage is None:
            raise ConfigError("no folder for chunks is configured: set REMOTE_STORAGE_PATH, or pass storage_base_path=")
        paths = [video_paths] if isinstance(video_paths, (str, os.PathLike)) else list(video_paths)
        tracker = ChunkTracker(connection_string, db_name, settings=settings)
        processor = VideoProcessor(tracker, self.remote_handler, chunk_size or settings.chunk_size)
        return processor.process_videos(paths, storage, **options)

    def load_data(
        self,
        connection_string: str | None = None,
        shape: Sequence[int] | None = None,
        transform_fn: Callable[[Any], Any] | None = None,
        db_name: str | None = None,
    ) -> DistributedVideoDataset:
        """Return a dataset of all frames that have been saved.

        Args:
            connection_string: URL of the catalog, see :class:`ChunkTracker`.
            shape: Size (height, width) to which frames are scaled. None keeps their size.
            transform_fn: Function of frames, see :class:`DistributedVideoDataset`.
            db_name: Name of the database in MongoDB, see :class:`ChunkTracker`.

        Raises:
            CatalogNotFound: If no video has been saved yet.
        """
        dataset = DistributedVideoDataset(
            connection_string, db_name, transform_fn, self.remote_handler, shape=shape, settings=self.settings
        )
        self._loaded.add(dataset)
        return dataset

    def list_remote_files(self, remote_path: Address | None = None) -> list[str]:
        """Return the paths of the files in a folder, sorted.

        Args:
            remote_path: Path of the folder. Defaults to ``REMOTE_VIDEOS_PATH`` (or ``VIDEOS_PATH``).

        Raises:
            ConfigError: If no folder is configured.
            StoreError: If the folder cannot be listed.
        """
        settings = self.settings
        default = settings.remote_videos_path
        if not settings.remote_mode:
            default = settings.videos_path or default
        folder = remote_path or default
        if not folder:
            raise ConfigError("no folder of videos is configured: set REMOTE_VIDEOS_PATH, or pass remote_path=")
        path = os.fspath(folder)
        return [posixpath.join(path, name) for name in self.remote_handler.list_directory(path)]

    def get_remote_videos(self, remote_path: Address | None = None) -> list[str]:
        """Return the paths of the videos in a folder, recognized by their suffix. See :meth:`list_remote_files`."""
        return [path for path in self.list_remote_files(remote_path) if is_video(path)]

    def setup_remote_storage(self, remote_storage_path: Address | None = None) -> None:
        """Create the folder for chunks, and check that files can be written there.

        Args:
            remote_storage_path: Path of the folder. Defaults to ``REMOTE_STORAGE_PATH`` (or ``STORAGE_PATH``).

        Raises:
            ConfigError: If no folder is configured.
            StoreError: If files cannot be written there.
        """
        settings = self.settings
        default = settings.remote_storage_path if settings.remote_mode else settings.storage_path
        folder = remote_storage_path or default
        if not folder:
            raise ConfigError(
                "no folder for chunks is configured: set REMOTE_STORAGE_PATH, or pass remote_storage_path="
            )
        self.remote_handler.make_directory(folder)

    def close(self) -> None:
        """Close the datasets returned by :meth:`load_data`. Safe to call twice."""
        for dataset in list(self._loaded):
            dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of ``torch``."""
        return getattr(torch, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(torch)})


def _validate_shape(shape: Sequence[int] | None) -> tuple[int, int] | None:
    if shape is None:
        return None
    sides = tuple(shape)
    if len(sides) == _COLOR_CHANNELS and sides[-1] == _COLOR_CHANNELS:
        sides = sides[:2]
    if len(sides) != 2 or any(as_int(side) < 1 for side in sides):  # noqa: PLR2004
        raise ConfigError(f"shape must be (height, width), got {shape!r}")
    return int(sides[0]), int(sides[1])
