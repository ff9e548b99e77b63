"""The workload of a benchmark, and the interface of a contender."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Job:
    """One epoch of coherent batches: uint8 data (B, T, *shape) and a reset mask bool (B, T).

    Attributes:
        kind: Kind of streams. "video" streams `paths`, "images" the images in these folders. "fill" has one endless
            synthetic stream per lane, and fills each window with one value (a memset, the same for every contender).
            "text" and "camera" are examples of `peers/group_streams.py`, of which "camera" has the paths of images.
        shape: Shape of one step: (height, width, 3) for video.
        batch_size: Number of lanes B. Lane i streams clips i, i + B, i + 2B, ...
        window: Number of steps T in a batch.
        workers: Number of worker processes, or of threads for contenders that use threads.
        paths: Clips for "video". All have the same length, so that all lanes end together.
        batches: Number of batches in one epoch, for "fill".
        ahead: Number of batches that may be ready before the consumer requests them, in the contender's own buffer.
        options: Options of the contender's variant.
    """

    kind: str
    shape: tuple[int, ...]
    batch_size: int = 8
    window: int = 8
    workers: int = 2
    paths: tuple[str, ...] = ()
    batches: int = 1 << 40
    ahead: int = 4
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def step_bytes(self) -> int:
        """Size of one step in bytes."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def batch_bytes(self) -> int:
        """Size of one batch's data in bytes."""
        return self.batch_size * self.window * self.step_bytes

    def lanes(self, worker: int) -> range:
        """Return the consecutive rows of the batch that `worker` fills, split evenly over the workers."""
        return range(self.batch_size * worker // self.workers, self.batch_size * (worker + 1) // self.workers)

    def clips(self, lane: int) -> tuple[str, ...]:
        """Return the clips of one lane, in order."""
        return self.paths[lane :: self.batch_size]

    def to_json(self) -> str:
        """Return the job as JSON, for another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Return the job from the text of :meth:`to_json`."""
        values = json.loads(text)
        return cls(**{**values, "shape": tuple(values["shape"]), "paths": tuple(values["paths"])})


class Peer(Protocol):
    """A running contender. Modules of :mod:`benchmarks.peers` create it with a function ``open_peer(job)``."""

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of one epoch as torch tensors. A batch is valid until the next one is requested."""

    def close(self) -> None:
        """Stop the workers and release all resources."""
