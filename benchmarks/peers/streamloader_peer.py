"""streamloader itself, used as documented."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.job import Job
from streamloader import ImageStreams, MultiStreamer, VideoStreams
from streamloader.streams.base import Stream, StreamDataset
from streamloader.values import Array, Field, StreamInfo


class FillStreams(StreamDataset):
    """The synthetic streams, as a user would write them."""

    def __init__(self, count: int, length: int, shape: tuple[int, ...]) -> None:
        self._count, self._length, self._shape = count, length, shape

    @property
    def fields(self) -> Mapping[str, Field]:
        """One array of bytes per step."""
        return {"data": Field(self._shape, "uint8")}

    async def index(self) -> Sequence[StreamInfo]:
        """Return the keys and lengths of the streams."""
        return [StreamInfo(f"fill{number}", self._length) for number in range(self._count)]

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open a stream."""
        del rng
        return FillStream(info.length or 0)


class FillStream(Stream):
    """A stream whose windows are each filled with one value."""

    def __init__(self, length: int) -> None:
        self._remaining, self._value = length, 0

    async def read_into(self, out: Mapping[str, Array]) -> int:
        """Overwrite all of `out`."""
        data = out["data"]
        count = min(len(data), self._remaining)
        self._remaining -= count
        self._value = (self._value + 1) & 255
        data[:count].fill(self._value)
        return count


class Loader:
    """A MultiStreamer. Its batches are views that stay valid while they are held."""

    def __init__(self, job: Job) -> None:
        self._cache = None
        if job.options.get("cold"):  # starts without an index of the videos
            self._cache = tempfile.TemporaryDirectory()
            os.environ["STREAMLOADER_CACHE"] = self._cache.name
        if job.kind == "fill":
            dataset: Any = FillStreams(job.batch_size, min(job.batches, 1 << 32) * job.window, job.shape)
        elif job.kind == "images":
            dataset = ImageStreams(list(job.paths), job.shape[:2], job.options.get("pix_fmt", "rgb24"))
        else:
            dataset = VideoStreams(list(job.paths), job.shape[:2], job.options.get("pix_fmt", "rgb24"))
        self._options = job.options
        self._loader = MultiStreamer(
            dataset,
            job.batch_size,
            job.window,
            num_workers=job.workers,
            shuffle=False,
            tail="drop",
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch of the next epoch."""
        del number
        for batch in self._loader:
            if self._options.get("rgb"):
                yield batch.rgb(), batch.reset
            else:
                yield batch["y" if "y" in batch else "data"], batch.reset

    def close(self) -> None:
        """Stop the workers."""
        self._loader.close()
        if self._cache is not None:
            self._cache.cleanup()


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
