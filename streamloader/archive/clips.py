"""Clips of an archive as independent samples, for shuffled training."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

import numpy as np

from streamloader.archive.archive import Archive, open_archive
from streamloader.errors import ConfigError, FrameIndexError, StreamNotFound
from streamloader.media.video.selection import as_int
from streamloader.torch_datasets import Dataset

__all__ = ["ArchiveClips", "Clip"]

_VIDEOS_PER_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Clip:
    """The position of a clip.

    Attributes:
        video: Name of the video.
        first: Number of the clip's first frame in the video.
        frames: Numbers of the clip's frames in the archive.
    """

    video: str
    first: int
    frames: range


class ArchiveClips(Dataset[Any]):
    """All clips of an archive, each `window` frames of one video, as a ``torch.utils.data.Dataset``.

    ``clips[i]`` is uint8 (window, H, W, C), or the result of the archive's ``transform=`` for it. Clips are numbered by
    video and first frame, and the numbers never change. A clip never continues in another video, and videos that are
    shorter than a clip have none. Shuffle with ``DataLoader(clips, shuffle=True)``: a batch is decoded together, so
    neighboring clips share the decoding of frames. Works in forked and spawned workers.

    Args:
        archive: Open archive (see :class:`~streamloader.archive.archive.Archive` for size, pixel format and
            transform), or its address.
        window: Number of frames of a clip.
        stride: Distance between the frames of a clip, in frames of the video. Defaults to 1.
        step: Distance between the starts of successive clips, in frames of the video. Defaults to
            ``window * stride``, so that clips do not overlap.
        where: Condition on the metadata of videos, see :mod:`streamloader.archive.catalog.query`. Defaults to all
            videos.

    Raises:
        ConfigError: If an argument is invalid.
        StreamNotFound: If no video is long enough for a clip.
        FrameIndexError: If there is no clip of this number (at a read). It is an IndexError.
        FrameSizeError: If videos differ in size, and the archive was opened without ``size=`` (at a read).
        CorruptStream: If a chunk is damaged (at a read). ``offset`` is the frame of the video.
        StoreError: If bytes of a chunk cannot be read (at a read).
    """

    def __init__(
        self,
        archive: Archive | str | os.PathLike[str],
        window: int,
        stride: int = 1,
        *,
        step: int | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("window", window), ("stride", stride), ("step", 1 if step is None else step)):
            if as_int(value) < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        self._archive = archive if isinstance(archive, Archive) else open_archive(archive)
        self._window, self._stride = int(window), int(stride)
        self._step = self._window * self._stride if step is None else int(step)
        self._numbers, self._starts, frames = self._load_videos(where)
        clips = np.maximum(0, (frames - self._span) // self._step + 1)
        self._ends = np.cumsum(clips)  # per video: number of the clip after its last one
        if not len(self):
            longest = int(frames.max(initial=0))
            raise StreamNotFound(
                f"no video of {self._archive!r} has the {self._span} frames that a clip spans: the longest of "
                f"{len(frames)} has {longest}",
                address=self._archive.reader.url,
            )

    @property
    def archive(self) -> Archive:
        """The archive that contains the clips."""
        return self._archive

    def __len__(self) -> int:
        """Return the number of clips."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: SupportsIndex) -> Any:
        """Return one clip. Negative numbers count from the end."""
        return self._archive[self._frames_of(number)]

    def __getitems__(self, numbers: Sequence[SupportsIndex]) -> list[Any]:
        """Return a batch of clips for a DataLoader. All are decoded together."""
        spans = [self._frames_of(number) for number in numbers]
        if self._archive.transform is not None or not spans:  # a transform takes one clip at a time
            return [self._archive[span] for span in spans]
        frames = self._archive[[number for span in spans for number in span]]
        return list(frames.reshape(len(spans), self._window, *frames.shape[1:]))

    def clip(self, number: SupportsIndex) -> Clip:
        """Return the position of a clip."""
        index = self._video_index(number)
        frames = self._frames_of(number)
        video = self._archive.reader.video(int(self._numbers[index]))
        return Clip(video.name, frames.start - int(self._starts[index]), frames)

    @property
    def _span(self) -> int:
        """The number of frames of a video from the first frame of a clip to its last, both included."""
        return (self._window - 1) * self._stride + 1

    def _load_videos(self, where: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
        """Return number, first frame and number of frames of each video: int64 arrays."""
        reader = self._archive.reader
        rows = [
            (row.number, row.start, row.frames)
            for start in range(0, reader.snapshot.videos, _VIDEOS_PER_PAGE)
            for row in reader.find(where, start, start + _VIDEOS_PER_PAGE)
        ]
        return tuple(np.array(rows, np.int64).reshape(-1, 3).T)  # type: ignore[return-value]

    def _normalize_number(self, number: SupportsIndex) -> int:
        clip = operator.index(number)
        if not -len(self) <= clip < len(self):
            raise FrameIndexError(f"there are {len(self)} clips, and no clip number {clip}", offset=clip)
        return clip % len(self)

    def _video_index(self, number: SupportsIndex) -> int:
        return int(np.searchsorted(self._ends, self._normalize_number(number), side="right"))

    def _frames_of(self, number: SupportsIndex) -> range:
        index = self._video_index(number)
        clips_before = int(self._ends[index - 1]) if index else 0
        first = int(self._starts[index]) + (self._normalize_number(number) - clips_before) * self._step
        return range(first, first + self._span, self._stride)
