"""streamloader with the reference's examples: their group classes by `from_env`, or its own streams.

``options["streams"]`` is "group" or "own".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streamloader as sl
from benchmarks.job import Job
from benchmarks.peers.group_streams import CAMERA_STEPS, TEXTS, collate, make_group


class Groups:
    """The group class of the reference design, by `MultiStreamer.from_env`."""

    def __init__(self, job: Job) -> None:
        dims = (job.window, *job.shape)
        self._loader = sl.MultiStreamer.from_env(
            make_group(job), dims, job.batch_size, job.ahead, job.workers, collate
        )  # fmt: skip

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch."""
        del number
        yield from self._loader

    def close(self) -> None:
        """Stop the workers."""
        self._loader.close()


class OwnStreams:
    """The kind of stream that streamloader has for such data."""

    def __init__(self, job: Job) -> None:
        self._loader = sl.MultiStreamer(
            make_dataset(job), job.batch_size, job.window, num_workers=job.workers, layout=None, shuffle=False
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch, epoch after epoch."""
        del number
        while True:
            for batch in self._loader:
                yield batch.data, batch.reset

    def close(self) -> None:
        """Stop the workers."""
        self._loader.close()


def make_dataset(job: Job) -> Any:
    """Return the streams of a job."""
    if job.kind == "text":
        return sl.TextStreams.from_texts(text.encode("latin-1") for text in TEXTS)
    if job.kind == "camera":
        return sl.CameraStreams(list(job.paths), job.shape[:2], CAMERA_STEPS, pix_fmt="gray", border="constant")
    return sl.VideoStreams(list(job.paths), job.shape[:2], "gray")


def open_peer(job: Job) -> Groups | OwnStreams:
    """Open this contender."""
    return OwnStreams(job) if job.options["streams"] == "own" else Groups(job)
