"""Find out which DataLoader worker this process is."""

from __future__ import annotations

import sys
from typing import NamedTuple

__all__ = ["DataLoaderWorker", "get_dataloader_worker"]


class DataLoaderWorker(NamedTuple):
    """The worker of a DataLoader that runs this code.

    Attributes:
        number: Number of the worker, from 0 on.
        workers: Number of workers of the DataLoader. 1 outside of a worker.
        is_main: Whether this process is no worker.
    """

    number: int
    workers: int
    is_main: bool


def get_dataloader_worker() -> DataLoaderWorker:
    """Return the worker that this process is; number 0 of 1 outside of a DataLoader's workers.

    torch is not imported for this: a worker of a DataLoader has imported it.
    """
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return DataLoaderWorker(0, 1, True) if info is None else DataLoaderWorker(info.id, info.num_workers, False)
