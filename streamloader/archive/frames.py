"""What an archive and one video of it have in common: frames by number, by time, one by one, and awaited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread
import numpy as np
from torch.utils.data import Dataset

from streamloader.archive.frame_numbers import picked, whole_number
from streamloader.errors import ConfigError, FrameOutside

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import VideoRow
    from streamloader.archive.reader.reader import ArchiveReader
    from streamloader.values import Array

__all__ = ["ArchiveVideo", "ArchiveVideos", "FrameSource", "Frames"]


class FrameSource(Protocol):
    """An open archive that frames are read from: :class:`streamloader.archive.archive.Archive`."""

    @property
    def reader(self) -> ArchiveReader:
        """The reader of the archive."""

    def read(self, numbers: Array, *, one_by_one: bool = False) -> Any:
        """Return frames of the archive in the order of `numbers`, transformed all together or one by one."""

    def play(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the frames [start, stop) of the archive one by one."""


class Frames(Dataset[Any]):
    """What an archive and one video of it have in common: frames [start, stop) of the archive, from 0 on."""

    _archive: FrameSource

    def _span(self) -> tuple[int, int]:
        raise NotImplementedError

    def _called(self) -> str:
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of frames."""
        start, stop = self._span()
        return stop - start

    def __getitem__(self, which: Any) -> Any:
        """Return frames by number: see :class:`Archive`."""
        if isinstance(which, str):
            raise ConfigError(f"{self._called()} is one video: only an archive has videos by name")
        numbers, single = picked(which, len(self), self._called())
        frames = self._archive.read(numbers + self._span()[0])
        return frames[0] if single else frames

    def __getitems__(self, which: Sequence[int]) -> list[Any]:
        """Return a batch of single frames, as DataLoader asks for it: all are decoded together."""
        numbers, _ = picked(list(which), len(self), self._called())
        return list(self._archive.read(numbers + self._span()[0], one_by_one=True))

    def __iter__(self) -> Iterator[Any]:
        """Yield all frames one after the other, as ``[i]`` gives them; decoding goes on from one to the next."""
        start, stop = self._span()
        return self._archive.play(start, stop)

    async def frames(self, start: int | None = None, stop: int | None = None, step: int | None = None) -> Any:
        """Return what ``[start:stop:step]`` returns, without blocking the event loop meanwhile."""
        return await self.get(slice(start, stop, step))

    async def get(self, which: Any) -> Any:
        """Return what ``[which]`` returns, without blocking the event loop meanwhile."""
        return await anyio.to_thread.run_sync(self.__getitem__, which, abandon_on_cancel=True)

    def at(self, seconds: float | Sequence[float]) -> Any:
        """Return the frame that is shown at a time, or those at several times.

        Args:
            seconds: since the first frame; in an archive as if all its videos were played one after the other.

        Raises:
            FrameOutside: nothing is shown then.
        """
        if isinstance(seconds, (int, float, np.floating, np.integer)):
            return self[self.number_at(seconds)]
        return self[[self.number_at(time) for time in seconds]]

    def number_at(self, seconds: float) -> int:
        """Return the number of the frame that is shown at a time; see :meth:`at`."""
        raise NotImplementedError


class ArchiveVideo(Frames):
    """One video of an archive, with the face of an archive: numbers and times begin with its first frame.

    Attributes:
        video: what the catalog says of it: name, metadata, size, time base, number of its first frame in the archive...
    """

    def __init__(self, archive: FrameSource, video: VideoRow) -> None:
        self._archive = archive
        self.video = video

    @property
    def name(self) -> str:
        """By which it is looked up."""
        return self.video.name

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was said of it when it was added."""
        return self.video.metadata

    @property
    def start(self) -> int:
        """Number of its first frame in the archive."""
        return self.video.start

    def number_at(self, seconds: float) -> int:
        """Return the number, within the video, of the frame that is shown at a time; see :meth:`at`."""
        return self._archive.reader.frame_at(seconds, self.video) - self.video.start

    def _span(self) -> tuple[int, int]:
        return self.video.start, self.video.start + self.video.frames

    def _called(self) -> str:
        return f"video {self.video.name!r}"

    def __repr__(self) -> str:
        video = self.video
        return f"<ArchiveVideo {video.name!r}: {video.frames} frames of {video.height}x{video.width}>"


class ArchiveVideos(Sequence[ArchiveVideo]):
    """The videos of an archive, in their order, looked up when they are needed."""

    def __init__(self, archive: FrameSource) -> None:
        self._archive = archive

    def __len__(self) -> int:
        return self._archive.reader.snapshot.videos

    def __getitem__(self, which: Any) -> Any:
        """Return a video by number or name, or a list of them for a slice."""
        reader = self._archive.reader
        if isinstance(which, str):
            return ArchiveVideo(self._archive, reader.named(which))
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        number = whole_number(which)
        if not -len(self) <= number < len(self):
            raise FrameOutside(f"the archive has {len(self)} videos, and none of number {number}", offset=number)
        return ArchiveVideo(self._archive, reader.video(number % len(self)))

    def __iter__(self) -> Iterator[ArchiveVideo]:
        at, step = 0, 1000
        while at < len(self):
            yield from (ArchiveVideo(self._archive, row) for row in self._archive.reader.find(None, at, at + step))
            at += step
