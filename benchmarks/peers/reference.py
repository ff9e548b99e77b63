"""The reference design: processes that fill arrays in shared memory, and queues of free and ready indices.

In the original design, every process fills the arrays of its own lanes, and the consumer concatenates the arrays of
the processes (``options["collate"] = "concatenate"``). With ``"view"`` the processes share the arrays of a whole batch,
and each fills its rows, so no concatenation is necessary.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from ctypes import c_uint8
from itertools import count
from typing import Any

import numpy as np
import torch

from benchmarks.job import Job
from benchmarks.peers.lanes import is_epoch_over, open_lane

_END = -1
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def allocate_slots(job: Job, rows: int) -> list[Arrays]:
    """Return (data, reset) of `rows` lanes, `ahead` times, in RawArrays that forked workers share."""
    arrays = []
    for _ in range(job.ahead):
        data = multiprocessing.RawArray(c_uint8, rows * job.window * job.step_bytes)
        reset = multiprocessing.RawArray(c_uint8, rows * job.window)
        pixels = np.frombuffer(data, np.uint8).reshape(rows, job.window, *job.shape)
        arrays.append((pixels, np.frombuffer(reset, np.bool_).reshape(rows, job.window)))
    return arrays


def work(job: Job, worker: int, arrays: list[Arrays], free: Any, ready: Any) -> None:
    """Fill the rows of this worker's lanes in one slot after the other, epoch after epoch."""
    index = free.get()
    while True:
        lanes = [open_lane(job, lane) for lane in job.lanes(worker)]
        for number in count():
            data, reset = arrays[index]
            if is_epoch_over(job, number) or not all(
                lane.fill(data[row], reset[row]) for row, lane in enumerate(lanes)
            ):
                ready.put(_END)  # keep the slot for the first batch of the next epoch
                break
            ready.put(index)
            index = free.get()


class Loader:
    """Waits until every worker has filled its part of a batch, and yields the batch."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("fork")
        make = context.SimpleQueue if job.options["queue"] == "simple" else context.Queue
        rows = [job.lanes(worker) for worker in range(job.workers)]
        if job.options["collate"] == "view":
            whole = allocate_slots(job, job.batch_size)
            self._whole = [(torch.from_numpy(data), torch.from_numpy(reset)) for data, reset in whole]
            parts = [[(data[r.start : r.stop], reset[r.start : r.stop]) for data, reset in whole] for r in rows]
        else:
            self._whole = []
            parts = [allocate_slots(job, len(r)) for r in rows]
        self._parts = [[(torch.from_numpy(d), torch.from_numpy(m)) for d, m in arrays] for arrays in parts]
        self._free = [make() for _ in rows]
        self._ready = [make() for _ in rows]
        self._workers = [
            context.Process(target=work, args=(job, worker, arrays, free, ready), daemon=True)
            for worker, (arrays, free, ready) in enumerate(zip(parts, self._free, self._ready, strict=True))
        ]
        for process in self._workers:
            process.start()
        for index in range(job.ahead):
            for free in self._free:
                free.put(index)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch."""
        del number
        while True:
            indices = [ready.get() for ready in self._ready]
            if _END in indices:
                return
            yield self._collate(indices)
            for free, index in zip(self._free, indices, strict=True):
                free.put(index)

    def close(self) -> None:
        """Stop the workers."""
        for process in self._workers:
            process.terminate()
            process.join()

    def _collate(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if self._whole:
            return self._whole[indices[0]]
        parts = [arrays[index] for arrays, index in zip(self._parts, indices, strict=True)]
        return torch.cat([data for data, _ in parts]), torch.cat([reset for _, reset in parts])


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
