"""What every contender is asked to deliver, and how a contender presents itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Job:
    """One epoch of coherent batches: uint8 data (B, T, *shape) and a reset mask bool (B, T).

    Attributes:
        kind: "video" plays `paths`; "fill" plays one endless synthetic stream a lane, each window of which is
            overwritten wholly with one value (a memset, the same in every contender).
        batch_size: B, the lanes. Lane i plays clips i, i + B, i + 2B, ...
        window: T, steps of a batch.
        workers: worker processes, or threads where a contender has those instead.
        shape: one step; (height, width, 3) for video.
        paths: clips, for video. They are equally long, so that all lanes end together.
        batches: batches of one epoch, for "fill".
        ahead: batches that may be ready before the consumer asks for them (each contender's own buffer).
        options: what tells variants of a contender apart.
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
        """Bytes of one step."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def batch_bytes(self) -> int:
        """Bytes of one batch's data."""
        return self.batch_size * self.window * self.step_bytes

    def lanes(self, worker: int) -> range:
        """Rows of the batch that `worker` fills: consecutive ones, as even as can be."""
        return range(self.batch_size * worker // self.workers, self.batch_size * (worker + 1) // self.workers)

    def clips(self, lane: int) -> tuple[str, ...]:
        """Clips of one lane, in order."""
        return self.paths[lane :: self.batch_size]

    def to_json(self) -> str:
        """Plain JSON, for another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "shape": tuple(values["shape"]), "paths": tuple(values["paths"])})


class Peer(Protocol):
    """A contender at work. Built by a function ``open_peer(job)`` in a module of :mod:`benchmarks.peers`."""

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of one epoch as torch tensors; a batch is valid until the next is asked for."""

    def close(self) -> None:
        """End workers and give everything back."""
