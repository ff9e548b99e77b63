"""torch.utils.data.DataLoader: in its usual form, tuned, and with whole batches per worker.

For coherent batches, lanes must stay in one worker. So each worker yields the rows of its own lanes
(``batch_size=None``), and the parts that the workers deliver in turn are concatenated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import av
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.job import Job
from benchmarks.peers.lanes import is_epoch_over, open_lane

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
Batch = tuple[torch.Tensor, torch.Tensor]


class UsualDataset(IterableDataset[Batch]):
    """The usual form: stack frames to windows, and windows to the rows of the worker."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def steps(self, lane: int) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield (frame, whether it is the first of its clip)."""
        height, width, _ = self.job.shape
        for path in self.job.clips(lane):
            with av.open(path) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    image = frame.to_ndarray(format="rgb24", width=width, height=height)
                    yield torch.from_numpy(image), number == 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rows of this worker's lanes."""
        info = get_worker_info()
        lanes = [self.steps(lane) for lane in self.job.lanes(info.id)]
        while True:
            windows = [list(islice(lane, self.job.window)) for lane in lanes]
            if any(len(window) < self.job.window for window in windows):
                return
            data = torch.stack([torch.stack([frame for frame, _ in window]) for window in windows])
            yield data, torch.tensor([[first for _, first in window] for window in windows])


class TunedDataset(IterableDataset[Batch]):
    """The tuned form: write rows into a tensor in shared memory, as default_collate does.

    With ``options["whole"]`` each worker fills whole batches of its own lanes. Consecutive batches are then not
    coherent; this variant shows the maximum speed of DataLoader's transport.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rows of this worker's lanes."""
        job, info = self.job, get_worker_info()
        if job.options.get("keep_memory"):
            _keep_memory()
        rows = range(job.batch_size) if job.options.get("whole") else job.lanes(info.id)
        lanes = [open_lane(job, lane) for lane in rows]
        for number in count():
            if is_epoch_over(job, number):
                return
            data, reset = _shared(len(lanes), job.window, *job.shape), _shared(len(lanes), job.window)
            pixels, mask = data.numpy(), reset.numpy()
            if not all(lane.fill(pixels[row], mask[row]) for row, lane in enumerate(lanes)):
                return
            yield data, reset.view(torch.bool)


def _keep_memory() -> None:
    """Have malloc keep large blocks, so that decoders which allocate each image get memory that is mapped already."""
    libc = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(option, 1 << 30)


def _shared(*shape: int) -> torch.Tensor:
    size = torch.Size(shape)
    storage = torch.UntypedStorage._new_shared(size.numel(), device="cpu")  # noqa: SLF001 - as default_collate does
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, size)


class Loader:
    """Iterates a DataLoader, and concatenates the workers' parts."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._whole = bool(job.options.get("whole"))
        dataset = UsualDataset(job) if job.options.get("naive") else TunedDataset(job)
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_size=None,
            num_workers=job.workers,
            prefetch_factor=job.options.get("prefetch", 2),
            persistent_workers=job.options.get("persistent", False),
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """Yield (data, reset) of each batch."""
        del number
        parts = iter(self._loader)
        if self._whole or self._job.workers == 1:
            yield from parts
            return
        while len(batch := list(islice(parts, self._job.workers))) == self._job.workers:
            yield torch.cat([data for data, _ in batch]), torch.cat([reset for _, reset in batch])

    def close(self) -> None:
        """Delete the DataLoader, which stops its workers."""
        del self._loader


def open_peer(job: Job) -> Loader:
    """Open this contender."""
    return Loader(job)
