"""Frames by number, by time, one by one, and asynchronously: the common interface of an archive and of its videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio.to_thread
import numpy as np
from typing_extensions import override

from streamloader.archive.frame_numbers import normalize_index, require_int
from streamloader.errors import ConfigError, FrameIndexError
from streamloader.torch_datasets import Dataset

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.archive.reader.reader import ArchiveReader
    from streamloader.values import Array

__all__ = ["ArchiveVideo", "ArchiveVideos", "FrameSequence", "FrameSource"]

_VIDEOS_PER_PAGE: Final = 1000


class FrameSource(Protocol):
    """An open archive that frames are read from, such as :class:`streamloader.archive.archive.Archive`."""

    @property
    def reader(self) -> ArchiveReader:
        """The reader of the archive."""

    def read(self, numbers: Array, *, one_by_one: bool = False) -> Any:
        """Return frames of the archive in the order of `numbers`, transformed all together or one by one."""

    def iter_frames(self, start: int, end: int) -> Iterator[Any]:
        """Yield the frames [start, end) of the archive one by one."""


class FrameSequence(Dataset[Any]):
    """A range of frames of an archive, numbered from 0: the whole archive or one video."""

    _archive: FrameSource

    def _frame_range(self) -> tuple[int, int]:
        """Return the range [start, end) of the frames within the archive."""
        raise NotImplementedError

    def _label(self) -> str:
        """Return the name of this sequence in error messages."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of frames."""
        start, end = self._frame_range()
        return end - start

    def __getitem__(self, index: Any) -> Any:
        """Return frames by number. See :class:`Archive` for the types of index."""
        if isinstance(index, str):
            raise ConfigError(f"{self._label()} is one video: only an archive has videos by name")
        numbers, single = normalize_index(index, len(self), self._label())
        frames = self._archive.read(numbers + self._frame_range()[0])
        return frames[0] if single else frames

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return a batch of single frames for a DataLoader. All are decoded together."""
        normalized, _ = normalize_index(list(numbers), len(self), self._label())
        return list(self._archive.read(normalized + self._frame_range()[0], one_by_one=True))

    def __iter__(self) -> Iterator[Any]:
        """Yield all frames in order, as ``[i]`` returns them. Decoding continues from one frame to the next."""
        start, end = self._frame_range()
        return self._archive.iter_frames(start, end)

    async def frames(self, start: int | None = None, stop: int | None = None, step: int | None = None) -> Any:
        """Return what ``[start:stop:step]`` returns, without blocking the event loop."""
        return await self.get(slice(start, stop, step))

    async def get(self, index: Any) -> Any:
        """Return what ``[index]`` returns, without blocking the event loop."""
        return await anyio.to_thread.run_sync(self.__getitem__, index, abandon_on_cancel=True)

    def at(self, seconds: float | Sequence[float]) -> Any:
        """Return the frame that is shown at a time, or the frames at several times.

        Args:
            seconds: Time or times in seconds after the first frame. In an archive, the videos are shown one after the
                other.

        Raises:
            FrameIndexError: If no frame is shown at that time.
        """
        if isinstance(seconds, (int, float, np.floating, np.integer)):
            return self[self.number_at(seconds)]
        return self[[self.number_at(time) for time in seconds]]

    def number_at(self, seconds: float) -> int:
        """Return the number of the frame that is shown at a time.

        Args:
            seconds: Time in seconds after the first frame, as for :meth:`at`.

        Raises:
            FrameIndexError: If no frame is shown at that time.
        """
        raise NotImplementedError


class ArchiveVideo(FrameSequence):
    """One video of an archive, with the interface of an archive. Numbers and times start at its first frame.

    Attributes:
        video: Catalog row of the video: name, metadata, size, time base, number of its first frame in the archive, ...
    """

    def __init__(self, archive: FrameSource, video: VideoRow) -> None:
        self._archive = archive
        self.video = video

    @property
    def name(self) -> str:
        """The name of the video, which is unique in the archive."""
        return self.video.name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata given when the video was added."""
        return self.video.metadata

    @property
    def start(self) -> int:
        """The number of its first frame in the archive."""
        return self.video.start

    @override
    def number_at(self, seconds: float) -> int:
        return self._archive.reader.frame_at(seconds, self.video) - self.video.start

    @override
    def _frame_range(self) -> tuple[int, int]:
        return self.video.start, self.video.start + self.video.frames

    @override
    def _label(self) -> str:
        return f"video {self.video.name!r}"

    def __repr__(self) -> str:
        video = self.video
        return f"<ArchiveVideo {video.name!r}: {video.frames} frames of {video.height}x{video.width}>"


class ArchiveVideos(Sequence[ArchiveVideo]):
    """The videos of an archive in order, loaded from the catalog when they are needed."""

    def __init__(self, archive: FrameSource) -> None:
        self._archive = archive

    def __len__(self) -> int:
        return self._archive.reader.snapshot.videos

    def __getitem__(self, index: Any) -> Any:
        """Return a video by number or name, or a list of videos for a slice."""
        reader = self._archive.reader
        if isinstance(index, str):
            return ArchiveVideo(self._archive, reader.video_by_name(index))
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = require_int(index)
        if not -len(self) <= number < len(self):
            raise FrameIndexError(f"the archive has {len(self)} videos, and no video number {number}", offset=number)
        return ArchiveVideo(self._archive, reader.video(number % len(self)))

    def __iter__(self) -> Iterator[ArchiveVideo]:
        start = 0
        while start < len(self):
            rows = self._archive.reader.find(None, start, start + _VIDEOS_PER_PAGE)
            yield from (ArchiveVideo(self._archive, row) for row in rows)
            start += _VIDEOS_PER_PAGE
