"""Count the iterations of a data set over all processes, so that each one plays another epoch."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamloader.arguments import check_integer
from streamloader.datasets.workers import DataLoaderWorker
from streamloader.errors import ConfigError
from streamloader.torch_support import has_torch

__all__ = ["IterationCounter"]

_MAX_WORKERS: Final = 256
_NEXT_EPOCH, _FIRST_EPOCH, _EPOCH, _BATCHES, _IS_COUNTED, _USED_BY_WORKERS, _GENERATION, _RESUMED = range(8)
_HEADER: Final = 8
_MAX_EPOCH: Final = (1 << 62) - 1


class IterationCounter:
    """The number of the epoch that the next iteration plays, in memory that all processes of a data set share.

    DataLoader copies the data set to its workers, again for each iteration unless they are persistent, and the parent
    never notices an iteration. Each worker therefore counts its own iterations. All workers of a DataLoader take part
    in all of them, so they agree.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        # One counter for each worker of each number of workers.
        size = _HEADER + _MAX_WORKERS * (_MAX_WORKERS + 1) // 2
        self._values = _share_zeros(size)
        self._values[_NEXT_EPOCH] = first_epoch

    def set_epoch(self, epoch: int, *, resumes: bool = False) -> int:
        """Have the next iteration play this epoch.

        Args:
            epoch: Number of the epoch.
            resumes: Whether it continues a saved state, which each process has to have.

        Returns:
            Number of this call. A state is used only if it was loaded with the latest one.
        """
        epoch = check_integer("the epoch", epoch)
        if not 0 <= epoch <= _MAX_EPOCH:
            raise ConfigError(f"the epoch must be a number of 0 or more, got {epoch!r:.80}")
        generation = int(self._values[_GENERATION]) + 1
        self._values[:] = 0
        self._values[_NEXT_EPOCH] = epoch
        self._values[_GENERATION] = generation
        self._values[_RESUMED] = resumes
        return generation

    def start(self, worker: DataLoaderWorker, epochs: int) -> tuple[int, bool]:
        """Count an iteration that starts in this process.

        Args:
            worker: Worker of a DataLoader that this process is.
            epochs: Number of epochs of an iteration.

        Returns:
            Number of its first epoch, and whether it is the first iteration since the epoch was set.
        """
        if worker.workers > _MAX_WORKERS:
            raise ConfigError(f"a data set can have {_MAX_WORKERS} workers, got {worker.workers}")
        place = _HEADER + worker.workers * (worker.workers - 1) // 2 + worker.number
        count = int(self._values[place])
        self._values[place] = count + 1
        epoch = int(self._values[_NEXT_EPOCH]) + count * epochs
        self._values[_FIRST_EPOCH] = epoch
        if not worker.is_main:
            self._values[_USED_BY_WORKERS] = 1
        return epoch, count == 0

    def set_start(self, epoch: int, batches: int, *, is_counted: bool) -> None:
        """Note where the latest iteration has started.

        Args:
            epoch: Number of the epoch.
            batches: Number of its batches that were played before.
            is_counted: Whether the number of batches says which samples were played.
        """
        self._values[_EPOCH] = epoch
        self._values[_BATCHES] = batches
        self._values[_IS_COUNTED] = is_counted

    @property
    def resumed(self) -> int:
        """Number of the latest call of :meth:`set_epoch`, if it continues a saved state. 0 otherwise."""
        return int(self._values[_GENERATION]) if self._values[_RESUMED] else 0

    @property
    def is_unused(self) -> bool:
        """Whether no iteration has started since the epoch was set."""
        return not self._values[_HEADER:].any()

    @property
    def is_counted(self) -> bool:
        """Whether the number of batches of the latest iteration says which samples were played."""
        return bool(self._values[_IS_COUNTED])

    @property
    def next_epoch(self) -> int:
        """Epoch that was set."""
        return int(self._values[_NEXT_EPOCH])

    @property
    def latest(self) -> tuple[int, int, int]:
        """First epoch of the latest iteration; the epoch in which it started, and after how many of its batches."""
        return int(self._values[_FIRST_EPOCH]), int(self._values[_EPOCH]), int(self._values[_BATCHES])

    @property
    def is_used_by_workers(self) -> bool:
        """Whether workers of a DataLoader have played the data set since the epoch was set."""
        return bool(self._values[_USED_BY_WORKERS])


def _share_zeros(size: int) -> Any:
    """Return integers that the workers of a DataLoader share. Without torch there are none."""
    if not has_torch():
        return np.zeros(size, np.int64)
    import torch

    return torch.zeros(size, dtype=torch.int64).share_memory_()
