"""Clips of an archive as independent samples, for shuffled training."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

import numpy as np
import torch
from torch.utils.data import Dataset

from streamloader.archive.archive import Archive, open_archive
from streamloader.errors import ConfigError, FrameOutside, StreamNotFound
from streamloader.media.video.selection import whole

__all__ = ["ArchiveClips", "Clip"]

_PAGE: Final = 10_000  # videos that are looked up in one go


@dataclass(frozen=True, slots=True)
class Clip:
    """Where a clip comes from.

    Attributes:
        video: name of the video.
        first: number of its first frame in the video.
        frames: numbers of its frames in the archive.
    """

    video: str
    first: int
    frames: range


class ArchiveClips(Dataset[Any]):
    """All clips of an archive, each `window` frames of one video: a ``torch.utils.data.Dataset``.

    ``clips[i]`` is uint8 (window, H, W, C), or what the archive's ``transform=`` makes of that. Clips are numbered by
    video and first frame, and the numbers never change; a clip never goes on in another video, and videos that are
    shorter than one have none. Shuffle with ``DataLoader(clips, shuffle=True)``: a batch is read in one go, so that
    neighbours share what is decoded. Works in forked and spawned workers.

    Args:
        archive: an open archive (see :class:`~streamloader.archive.archive.Archive` for size, pixels and transform),
            or its address.
        window: frames of a clip.
        stride: every how many frames of the video one is taken.
        step: frames of the video from the beginning of a clip to that of the next; by default ``window * stride``, so
            that no frame is in two clips.
        where: only videos whose metadata match; see :mod:`streamloader.archive.catalog.query`.

    Raises:
        ConfigError: the arguments make no sense.
        StreamNotFound: no video has so many frames.
        FrameOutside: from reading: there is no clip of this number (an IndexError).
        FrameSizeError: from reading: videos differ in size, and the archive was opened without ``size=``.
        CorruptStream: from reading: a chunk does not hold what the catalog says; ``offset`` is the frame of the video.
        StoreError: from reading: bytes of a chunk could not be had.
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
            if whole(value) < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        self._archive = archive if isinstance(archive, Archive) else open_archive(archive)
        self._window, self._stride = int(window), int(stride)
        self._step = self._window * self._stride if step is None else int(step)
        self._numbers, self._starts, frames = self._videos(where)
        clips = np.maximum(0, (frames - self._span) // self._step + 1)
        self._ends = np.cumsum(clips)  # number of the clip behind the last one of each video
        if not len(self):
            longest = int(frames.max(initial=0))
            raise StreamNotFound(
                f"no video of {self._archive!r} has the {self._span} frames that a clip takes: the longest of "
                f"{len(frames)} has {longest}",
                address=self._archive.reader.url,
            )

    @property
    def archive(self) -> Archive:
        """The archive that the clips are of."""
        return self._archive

    def __len__(self) -> int:
        """Return the number of clips."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: SupportsIndex) -> Any:
        """Return one clip; negative numbers count from the end."""
        return self._archive[self._frames(number)]

    def __getitems__(self, numbers: Sequence[SupportsIndex]) -> list[Any]:
        """Return a batch of clips, as DataLoader asks for it: all are decoded together."""
        spans = [self._frames(number) for number in numbers]
        if self._archive.transform is not None or not spans:  # which is for one clip at a time
            return [self._archive[span] for span in spans]
        frames: torch.Tensor = self._archive[[number for span in spans for number in span]]
        return list(frames.view(len(spans), self._window, *frames.shape[1:]))

    def clip(self, number: SupportsIndex) -> Clip:
        """Say where a clip comes from."""
        place = self._place(number)
        frames = self._frames(number)
        return Clip(
            self._archive.reader.video(int(self._numbers[place])).name, frames.start - int(self._starts[place]), frames
        )

    @property
    def _span(self) -> int:
        return (self._window - 1) * self._stride + 1

    def _videos(self, where: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
        """Return number, first frame and frames of each video: int64."""
        reader = self._archive.reader
        rows = [
            (row.number, row.start, row.frames)
            for start in range(0, reader.snapshot.videos, _PAGE)
            for row in reader.find(where, start, start + _PAGE)
        ]
        return tuple(np.array(rows, np.int64).reshape(-1, 3).T)  # type: ignore[return-value]

    def _checked(self, number: SupportsIndex) -> int:
        clip = operator.index(number)
        if not -len(self) <= clip < len(self):
            raise FrameOutside(f"there are {len(self)} clips, and none of number {clip}", offset=clip)
        return clip % len(self)

    def _place(self, number: SupportsIndex) -> int:
        return int(np.searchsorted(self._ends, self._checked(number), side="right"))

    def _frames(self, number: SupportsIndex) -> range:
        place = self._place(number)
        before = int(self._ends[place - 1]) if place else 0
        first = int(self._starts[place]) + (self._checked(number) - before) * self._step
        return range(first, first + self._span, self._stride)
