"""The door of the reference system: its names and its use, over an archive.

What differs from it: a second video never overwrites the frames of a first, frames are RGB, host keys are checked,
chunks are videos and no pickles, and what goes wrong is a typed error and not a line in a log.
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
from streamloader.media.video.selection import whole
from streamloader.stores.addresses import Address
from streamloader.streams.video import is_video

__all__ = [
    "ButterflySettings",
    "ButterflyTorch",
    "ChunkTracker",
    "DistributedVideoDataset",
    "RemoteFileHandler",
    "VideoProcessor",
]

_COLOURS: Final = 3


class DistributedVideoDataset(Dataset[Any]):
    """All frames of the archive as one array: ``dataset[1000:2000]`` is uint8 (N, H, W, 3) in RGB.

    Args:
        connection_string: see :class:`ChunkTracker`.
        db_name: the same.
        transform: is given frames as a NumPy array, uint8 (N, H, W, 3) for slices and lists, (H, W, 3) for a single
            one. Arrays that it returns become tensors.
        remote_handler: of the machine that chunks are on; by default that of the settings.
        shape: (height, width) to which frames are scaled, where videos differ; None leaves them as they are.
        settings: what to go by instead of ``.env`` and the environment.

    Attributes:
        archive: the archive, whose face has more: names, times, asynchronous reading, statistics.

    Raises:
        CatalogNotFound: nothing was saved yet.
        FrameOutside: from reading: there is no frame of this number (an IndexError); for more see
            :class:`~streamloader.archive.archive.Archive`.
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
        known = settings or ButterflySettings.load()
        handler = remote_handler or RemoteFileHandler(settings=known)
        limits = {"cache_limit": known.cache_limit, "max_cache_bytes": known.max_cache_bytes}
        self.transform = transform
        self.archive: Archive = open_archive(
            ChunkTracker(connection_string, db_name, settings=known).url,
            size=_size(shape),
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
        return self._transformed(frames)

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return a batch of single frames, decoded together."""
        frames = self.archive[list(numbers)]
        return list(frames) if self.transform is None else [self._transformed(frame) for frame in frames]

    def __iter__(self) -> Iterator[Any]:
        """Yield all frames, one after the other."""
        for frame in self.archive:
            yield frame if self.transform is None else self._transformed(frame)

    def refresh(self) -> Self:
        """See what was added meanwhile, at the end; return the data set itself."""
        self.archive.refresh()
        return self

    def close(self) -> None:
        """Give back what it holds. Safe to call twice."""
        self.archive.close()

    def _transformed(self, frames: torch.Tensor) -> Any:
        assert self.transform is not None
        done = self.transform(frames.numpy())
        return torch.from_numpy(done) if isinstance(done, np.ndarray) else done


class ButterflyTorch:
    """``torch`` with an archive of videos: any attribute of torch is one of this, and there are a few more.

    Example::

        my_torch = ButterflyTorch()
        my_torch.save_data(["first.mp4", "second.mp4"])
        dataset = my_torch.load_data(transform_fn=lambda frames: frames / 255.0)
        normalised = my_torch.nn.functional.normalize(dataset[1000:2000])

    Args:
        settings: what to go by instead of ``.env`` and the environment; see :class:`ButterflySettings`.

    Attributes:
        torch: the module.
        settings: see above.
        remote_handler: of the machine that videos and chunks are on.
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
        """Cut videos into chunks and put them into storage. What was saved before is recognised and not saved again.

        Args:
            video_paths: of the machine that ``REMOTE_HOST`` names, else of this one; or addresses.
            storage_base_path: folder for the chunks, of the same machine; by default that of the settings.
            connection_string: see :class:`ChunkTracker`.
            db_name: the same.
            chunk_size: frames of a chunk; by default that of the settings.
            **options: of :func:`streamloader.archive.ingest.add_videos`, such as ``progress=True``.

        Raises:
            StreamNotFound: there is no such video; nothing was done.
            IngestFailed: some of several videos could not be saved; the others were.
            StreamloaderError: see :meth:`VideoProcessor.process_video`.
        """
        known = self.settings
        storage = storage_base_path or (known.remote_storage_path if known.remote_mode else known.storage_path)
        if storage is None:
            raise ConfigError("say where chunks go: set REMOTE_STORAGE_PATH, or pass storage_base_path=")
        paths = [video_paths] if isinstance(video_paths, (str, os.PathLike)) else list(video_paths)
        tracker = ChunkTracker(connection_string, db_name, settings=known)
        processor = VideoProcessor(tracker, self.remote_handler, chunk_size or known.chunk_size)
        return processor.process_videos(paths, storage, **options)

    def load_data(
        self,
        connection_string: str | None = None,
        shape: Sequence[int] | None = None,
        transform_fn: Callable[[Any], Any] | None = None,
        db_name: str | None = None,
    ) -> DistributedVideoDataset:
        """Return all frames that were saved so far; see :class:`DistributedVideoDataset`.

        Raises:
            CatalogNotFound: nothing was saved yet.
        """
        dataset = DistributedVideoDataset(
            connection_string, db_name, transform_fn, self.remote_handler, shape=shape, settings=self.settings
        )
        self._loaded.add(dataset)
        return dataset

    def list_remote_files(self, remote_path: Address | None = None) -> list[str]:
        """Return the paths of the files in a folder, sorted; by default in ``REMOTE_VIDEOS_PATH`` (or ``VIDEOS_PATH``).

        Raises:
            ConfigError: no folder is named.
            StoreError: it cannot be listed.
        """
        known = self.settings
        own = known.remote_videos_path if known.remote_mode else known.videos_path or known.remote_videos_path
        folder = remote_path or own
        if not folder:
            raise ConfigError("say which folder is meant: set REMOTE_VIDEOS_PATH, or pass remote_path=")
        text = os.fspath(folder)
        return [posixpath.join(text, name) for name in self.remote_handler.list_directory(text)]

    def get_remote_videos(self, remote_path: Address | None = None) -> list[str]:
        """Return those of :meth:`list_remote_files` whose ending is one of a video."""
        return [path for path in self.list_remote_files(remote_path) if is_video(path)]

    def setup_remote_storage(self, remote_storage_path: Address | None = None) -> None:
        """Make the folder for chunks (by default ``REMOTE_STORAGE_PATH``), and see that files can be written there.

        Raises:
            ConfigError: no folder is named.
            StoreError: they cannot.
        """
        known = self.settings
        folder = remote_storage_path or (known.remote_storage_path if known.remote_mode else known.storage_path)
        if not folder:
            raise ConfigError("say which folder is meant: set REMOTE_STORAGE_PATH, or pass remote_storage_path=")
        self.remote_handler.make_directory(folder)

    def close(self) -> None:
        """Close the data sets that were loaded here. Safe to call twice."""
        for dataset in list(self._loaded):
            dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Return what torch calls so."""
        return getattr(torch, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(torch)})


def _size(shape: Sequence[int] | None) -> tuple[int, int] | None:
    if shape is None:
        return None
    sides = tuple(shape)
    if len(sides) == _COLOURS and sides[-1] == _COLOURS:
        sides = sides[:2]
    if len(sides) != 2 or any(whole(side) < 1 for side in sides):  # noqa: PLR2004
        raise ConfigError(f"shape must be (height, width), got {shape!r}")
    return int(sides[0]), int(sides[1])
