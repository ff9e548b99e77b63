"""Load a data set of shards with worker processes, with states that are exact to the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_convert
from typing_extensions import override

from streamloader.datasets.shards.lanes import SkippedSample
from streamloader.datasets.shards.remote_dataset import RemoteDataset
from streamloader.datasets.shards.state import NO_LANE, PlayedPart, PlayedStep
from streamloader.errors import ConfigError

__all__ = ["ShardLoader"]


class ShardLoader(DataLoader[Any]):
    """A DataLoader for a :class:`RemoteDataset`, whose states are exact although its workers run ahead.

    The state after any batch continues with the very next one, in a new process and with any number of workers: each
    batch comes with the position of its lane, which is counted when the batch is taken.

    Args:
        dataset: Data set. Batch it with ``batched()``.
        num_workers: Number of worker processes. Defaults to 0: none.
        **options: Further arguments of DataLoader, such as ``pin_memory``, ``prefetch_factor``, ``persistent_workers``
            or ``multiprocessing_context``.

    Raises:
        ConfigError: If `dataset` is none, or an argument would change its batches.
    """

    def __init__(self, dataset: RemoteDataset, *, num_workers: int = 0, **options: Any) -> None:
        if not isinstance(dataset, RemoteDataset):
            raise ConfigError(f"ShardLoader takes a RemoteDataset, got {type(dataset).__name__}")
        changing = {"batch_size", "shuffle", "sampler", "batch_sampler", "collate_fn", "drop_last", "in_order"} & set(
            options
        )
        if changing:
            raise ConfigError(
                f"ShardLoader takes no {min(changing)}=: use the methods of the data set, such as batched()"
            )
        self._samples = dataset
        self._part = PlayedPart(dataset.next_epoch)
        super().__init__(_Steps(dataset), batch_size=None, num_workers=num_workers, collate_fn=_convert, **options)

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        step: PlayedStep
        for value, step in super().__iter__():
            self._part.add(step)
            if step.lane != NO_LANE:
                yield value
        self._part = self._part.finish()

    @override
    def __len__(self) -> int:
        return len(self._samples)

    @property
    def skipped(self) -> list[SkippedSample]:
        """Tar files and bad samples that were left out so far; at most 1000 samples are listed."""
        return [*self._samples.skipped_shards, *self._part.skipped]

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration play this epoch. Without it, each iteration plays the one after the last."""
        self._samples.set_epoch(epoch)
        self._part = PlayedPart(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the data set was played, as plain JSON.

        Raises:
            StateError: If the data set is repeated such that workers may play different epochs at the same time.
        """
        self._samples.check_states(self.num_workers)
        return self._samples.make_state(self._part)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration continue where a state was saved, with any number of workers.

        Raises:
            StateError: If the state is damaged, or belongs to other data or settings.
        """
        self._iterator = None  # workers that are persistent start again, with the state
        self._part = self._samples.load_state_dict(state)


class _Steps(IterableDataset[Any]):
    """The batches of a data set, each with what a state needs of it."""

    def __init__(self, dataset: RemoteDataset) -> None:
        self._dataset = dataset

    @override
    def __iter__(self) -> Iterator[tuple[Any, PlayedStep]]:
        return self._dataset.play()


def _convert(item: Any) -> Any:
    """Convert arrays to tensors, as DataLoader does with data that is batched already."""
    return default_convert(item[0]), item[1]
