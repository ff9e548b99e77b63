"""Loader of batches that group envs fill: one env for each worker and epoch, which holds the streams of its rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from streamloader.arguments import check_integer
from streamloader.engine.group_env import GroupWorkload
from streamloader.engine.workload import EpochPosition
from streamloader.errors import ConfigError, LengthUnknown, StreamFailed
from streamloader.loader.envstreamer import Dims, EnvBatch, EnvStreamer

if TYPE_CHECKING:
    from streamloader.engine.supervisor import Supervisor
    from streamloader.engine.vector_env import EnvWorkload
    from streamloader.engine.workload import ConsumedBatch

__all__ = ["GroupArray", "GroupStreamer"]

_DEFAULT_DTYPE = "uint8"


class GroupArray(np.ndarray[Any, np.dtype[Any]]):
    """NumPy array whose parts of one element also count as integers, as tensors' do: ``chr(row[0])`` for row (T, 1)."""

    def __index__(self) -> int:
        """Return the only element."""
        if self.size != 1:
            raise TypeError(f"only an array of one element is an integer, got the shape {self.shape}")
        return operator.index(self.item())


class GroupStreamer(EnvStreamer):
    """Streams the output of group envs, epoch by epoch. Created by :meth:`MultiStreamer.from_env`.

    Each worker creates one env for each epoch, which makes ``batchsize / num_workers`` rows, and calls it once for each
    batch, as ``env(arrays) -> infos``. `arrays` maps each name to an array (rows, *dims) of zeros, a view into the
    batch, which the env fills. It must not use the arrays after it returns. `infos` is a dict of lists, or None.

    An iteration is one epoch of `num_batches` batches. The next iteration is the next epoch, with new envs, which are
    created when its first batch is prepared; none is created before that iteration starts. An iteration that was left
    early, or that failed, is repeated from its first batch.

    For each batch, `collate_fn` gets a dict: the arrays (B, *dims) by name, and the lists of all workers' infos, joined
    in the order of the rows. Arrays are :class:`GroupArray`, a kind of NumPy array. They alias the loader's memory
    without a copy, and do not change while they are held. With a GPU `device`, they are tensors there.

    Global generators (`random`, NumPy's, and torch's if the env's module imports it) are seeded in each worker process
    before it creates an env, with numbers that depend on `seed`, the epoch and the worker's first row.

    Args:
        make_env: Function that each worker calls for each epoch, as ``make_env(worker_id=, num_workers=, num_streams=,
            epoch=)``: number of the worker, number of workers (1 for ``num_workers=0``), number of rows of a worker,
            and epoch. Workers are counted over all ranks. Arguments that it does not accept are left out. It is called
            once in this process too, with ``num_streams=0``, to read ``num_batches`` of what it returns. If that is
            None or missing, an epoch ends when an env raises ``StopIteration``.
        array_dims: Shape of one row of each array, see :class:`EnvStreamer`. A single array is named ``"data"``.
        batchsize: Number of rows B of a batch. A multiple of `num_workers`.
        max_q_size: Maximum number of batches prepared ahead, see :class:`EnvStreamer`.
        num_workers: Number of worker processes with one env each. 0 runs one env in a thread of this process.
        collate_fn: Function called in this process with the dict of each batch. The iteration yields its return value.
            Defaults to the dict itself.
        epoch: Number of the first epoch.
        dtype: Data type of the arrays whose dims do not have one. Defaults to uint8.
        pin_memory: Whether to page-lock the ring, see :class:`MultiStreamer`.

    The other arguments are those of :class:`EnvStreamer`.

    Raises:
        ConfigError: If an argument is invalid, or `make_env` fails in this process.
        RingTooLarge: If the ring does not fit into free memory.
    """

    def __init__(
        self,
        make_env: Callable[..., Any],
        array_dims: Mapping[str, Dims] | Dims,
        batchsize: int = 8,
        max_q_size: int = 4,
        num_workers: int = 1,
        collate_fn: Callable[[dict[str, Any]], Any] | None = None,
        *,
        epoch: int = 0,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        self._epoch = check_integer("epoch", epoch, 0)
        self._prepared_epoch: int | None = None  # epoch of the batches that workers prepare, if none was requested yet
        self.batchsize = check_integer("batchsize", batchsize, 1)
        dtype = _DEFAULT_DTYPE if dtype is None else dtype
        super().__init__(
            make_env, array_dims, batchsize, max_q_size, num_workers, collate_fn, dtype=dtype, **options
        )  # fmt: skip

    @override
    def _make_workload(
        self,
        make_env: Callable[..., Any],
        worker_rows: Sequence[range],
        first_lane: int,
        lanes: int,
        *,
        seed: int,
        in_processes: bool,
    ) -> EnvWorkload:
        rows, workers = sum(map(len, worker_rows)), len(worker_rows)
        if rows % workers:
            fitting = [number for number in range(1, rows + 1) if rows % number == 0]
            raise ConfigError(
                f"num_workers has to divide batchsize, because each worker makes batchsize / num_workers rows, got "
                f"{rows} / {workers}: use one of {fitting} workers"
            )
        return GroupWorkload.create_groups(
            make_env, worker_rows, first_lane, lanes, epoch=self._epoch, seed=seed, seeds_globals=in_processes
        )

    def __len__(self) -> int:
        """Return the number of batches in an epoch.

        Raises:
            LengthUnknown: If the envs have no ``num_batches``.
        """
        batches = self._workload.plan.batches
        if batches is None:
            raise LengthUnknown("the number of batches is unknown, because the envs have no num_batches")
        return batches

    @property
    def epoch(self) -> int:
        """Number of the epoch of the next iteration, or of the one in progress."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, or of the current one if none of its batches was requested yet.

        Args:
            epoch: Number of the epoch, 0 or more.
        """
        self._epoch = check_integer("epoch", epoch, 0)

    @override
    def _prepare_iteration(self, supervisor: Supervisor) -> None:
        self._discard_taken_batches()
        if self._prepared_epoch != self._epoch:
            supervisor.start_at(EpochPosition(self._epoch, 0))
            self._prepared_epoch = self._epoch

    @override
    def _on_first_request(self, supervisor: Supervisor) -> None:
        if self._prepared_epoch != self._epoch:  # set_epoch was called since then
            supervisor.start_at(EpochPosition(self._epoch, 0))
        self._prepared_epoch = None

    @override
    def _on_delivery(self, consumed: ConsumedBatch | None) -> None:
        if consumed is None:
            self._epoch += 1

    @override
    def _collate_batch(self, batch: EnvBatch) -> Any:
        collated: dict[str, Any] = self._join_infos(batch)
        if self._feed is None:
            collated.update({name: array.view(GroupArray) for name, array in batch.numpy().items()})
        else:
            collated.update({name: batch[name] for name in batch})
        return collated if self._collate_fn is None else self._collate_fn(collated)

    def _join_infos(self, batch: EnvBatch) -> dict[str, list[Any]]:
        """Return the lists by name, of all workers one after the other.

        Raises:
            StreamFailed: If an env returned other names than the first one.
        """
        infos = [{} if one is None else one for one in batch.infos]
        names = infos[0].keys()
        for one, env in zip(infos, self._workload.streams, strict=True):
            if one.keys() != names:
                differing = ", ".join(map(repr, sorted(one.keys() ^ names)))
                raise StreamFailed(
                    f"{env.key} returned the infos {sorted(one)} for batch {batch.index} of epoch {self._epoch}, and "
                    f"{self._workload.streams[0].key} returned {sorted(names)}: {differing} would be of some rows only",
                    stream=env.key,
                    offset=batch.index,
                )
        return {name: [value for one in infos for value in one[name]] for name in names}

    def __repr__(self) -> str:
        """Return the arrays, the settings and the epoch."""
        return super().__repr__().replace("EnvStreamer(", "GroupStreamer(")[:-1] + f", epoch={self._epoch})"
