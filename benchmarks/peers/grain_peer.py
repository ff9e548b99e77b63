"""grain: a dataset of parts that its worker processes produce in turn.

Worker n modulo the number of workers produces part n, in order, so a worker keeps the lanes of its rows between parts.
The parts of a batch are concatenated, as for DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import grain
import numpy as np
import torch

from benchmarks.job import Job
from benchmarks.peers.lanes import Lane, open_lane


class Parts:
    """Produces part `index`. Called in a worker, in order. A part without rows means that the lanes have ended."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lanes: list[Lane] = []

    def __call__(self, index: int) -> tuple[Any, Any]:
        """Fill the next window of this worker's lanes."""
        job = self._job
        rows = job.lanes(index % job.workers)
        self._lanes = self._lanes or [open_lane(job, row) for row in rows]
        data = np.empty((len(rows), job.window, *job.shape), np.uint8)
        reset = np.empty((len(rows), job.window), np.bool_)
        if all(lane.fill(data[row], reset[row]) for row, lane in enumerate(self._lanes)):
            return data, reset
        return data[:0], reset[:0]


class Loader:
    """Iterates the parts of one epoch."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) until the lanes end."""
        del number
        job = self._job
        options = grain.MultiprocessingOptions(num_workers=job.workers, per_worker_buffer_size=job.ahead)
        parts = grain.MapDataset.range(job.batches).map(Parts(job)).to_iter_dataset(grain.ReadOptions(num_threads=0))
        stream = iter(parts.mp_prefetch(options))
        while batch := list(islice(stream, job.workers)):
            if any(not len(data) for data, _ in batch):
                return
            arrays = [(torch.from_numpy(data), torch.from_numpy(reset)) for data, reset in batch]
            yield torch.cat([data for data, _ in arrays]), torch.cat([reset for _, reset in arrays])

    def close(self) -> None:
        """Do nothing: grain stops its workers when the iterator is deleted."""


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
