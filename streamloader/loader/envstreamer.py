"""Loader of batches that vectorized producers fill: simulators, renderers, samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from streamloader.arguments import check_callable, check_flag, check_integer, check_seconds
from streamloader.distributed import resolve_rank
from streamloader.engine.plan import MAX_LANES
from streamloader.engine.ring import SlotLayout
from streamloader.engine.vector_env import EnvWorkload
from streamloader.errors import ConfigError
from streamloader.loader.base import SPARE_SLOTS, EndlessLoader, split_lanes
from streamloader.loader.batch import BatchSpec, SlotBatch
from streamloader.values import Field

if TYPE_CHECKING:
    from streamloader.engine.workload import Grant

__all__ = ["Dims", "EnvBatch", "EnvStreamer"]

Dims = Field | int | tuple[Any, ...]  # a Field, dims, or (dims, dtype)
_DEFAULT_DTYPE = "float32"


class EnvBatch(SlotBatch):
    """One batch of env output: arrays (B, *dims), with rows in the order of the lanes.

    ``batch["name"]`` is the tensor of an array, and ``batch.data`` is ``batch["data"]``. Tensors alias the loader's
    memory without a copy. They do not change while they are held. Where torch is not installed, they are NumPy arrays.

    Attributes:
        infos: Return value of each worker's env for this batch, in the order of the lanes. None where an env returned
            nothing.
        index: Number of the batch since the loader's first iteration.
    """

    __slots__ = ("index", "infos")

    def __init__(self, spec: BatchSpec, memory: Any, index: int, infos: list[Any]) -> None:
        super().__init__(spec, memory)
        self.index, self.infos = index, infos

    @override
    def _other_arguments(self) -> tuple[int, list[Any]]:
        return self.index, self.infos

    def __repr__(self) -> str:
        """Return the index, and the shapes of the arrays."""
        return f"EnvBatch(index={self.index}, {self._describe_fields()})"


class EnvStreamer(EndlessLoader):
    """Streams the output of vectorized producers ("envs"). Created by :meth:`MultiStreamer.from_env`.

    Each worker creates one env, and calls it once for each batch as ``env(arrays) -> infos``. `arrays` maps each name
    to an array (n, *dims) with one row for each lane of the worker. The arrays are views into the batch. They contain
    old data, so the env must fill all of them completely on each call. It must not use them after it returns. `infos`
    is None or plain values: numbers, strings, lists and dicts of these. NumPy scalars and arrays become Python values.

    The iteration is endless and has no ``len()``. It ends when an env raises ``StopIteration``, after the last batch
    that all workers have filled, or when an env fails. After ``break``, the next iteration continues with the next
    batch, and no batch is lost. After an env has failed, every further iteration raises its error.

    Args:
        make_env: Function that each worker calls once, as ``make_env(lanes, rng)`` with the global numbers of its lanes
            (a range) and a NumPy generator keyed on `seed` and the first lane. ``make_env(lanes)`` and ``make_env()``
            are supported too. If the env has a method ``close()``, it is called at the end. All three run in the same
            thread of the worker.
        array_dims: Shape of one row of each array, by name: a tuple of sizes (float32), ``(dims, dtype)`` or a
            :class:`Field`. The shape includes time if the env produces windows. A single array is named ``"data"``.
        batchsize: Number of lanes B, the rows of a batch, which are split over the workers. Defaults to 8.
        max_q_size: Maximum number of batches prepared ahead of the last one that was yielded. On a GPU `device`, one
            more batch is held while it is copied. Defaults to 4.
        num_workers: Number of worker processes with one env each. 0 runs one env in a thread of this process. Defaults
            to 1.
        collate_fn: Function called in this process as ``collate_fn(arrays, infos)``, with a dict of tensors (B, *dims)
            and the list of the envs' return values. The iteration yields its return value. Defaults to an
            :class:`EnvBatch`.
        dtype: Data type of the arrays whose dims do not have one. Defaults to float32.
        seed: Seed of the envs' generators.
        pin_memory: Whether to page-lock the ring, see :class:`MultiStreamer`.
        device: Device of the batches, see :class:`MultiStreamer`.
        timeout: Maximum seconds to wait for a batch before :class:`LoaderTimeout`. 0 or None disables the limit.
        rank: Rank of this process, which hosts the lanes ``[rank * B, (rank + 1) * B)``. Detected by default.
        world_size: Number of ranks. Detected by default.

    Raises:
        ConfigError: If an argument is invalid.
        RingTooLarge: If the ring does not fit into free memory.
    """

    def __init__(
        self,
        make_env: Callable[..., Any],
        array_dims: Mapping[str, Dims] | Dims,
        batchsize: int = 8,
        max_q_size: int = 4,
        num_workers: int = 1,
        collate_fn: Callable[..., Any] | None = None,
        *,
        dtype: Any = None,
        seed: int = 0,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank, world_size = resolve_rank(rank, world_size)
        num_workers, seed = check_integer("num_workers", num_workers, 0), check_integer("seed", seed)
        batchsize, max_q_size = check_integer("batchsize", batchsize, 1), check_integer("max_q_size", max_q_size, 1)
        check_integer("batchsize x world_size", batchsize * world_size, maximum=MAX_LANES)
        pin_memory = check_flag("pin_memory", pin_memory)
        check_seconds("timeout", timeout)
        self.batch_size = batchsize
        self._collate_fn = check_callable("collate_fn", collate_fn)
        worker_rows = split_lanes(batchsize, max(1, num_workers))
        slots = SlotLayout(_as_fields(array_dims, _DEFAULT_DTYPE if dtype is None else dtype), batchsize, None)
        super().__init__(
            self._make_workload(
                make_env,
                worker_rows,
                rank * batchsize,
                batchsize * world_size,
                seed=seed,
                in_processes=num_workers > 0,
            ),
            slots,
            BatchSpec(slots, None),
            worker_rows=worker_rows,
            num_workers=num_workers,
            ahead=max_q_size,
            spare=SPARE_SLOTS,
            exact=True,
            first_lane=rank * batchsize,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
        )

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
        """Return the workload of the workers that host `worker_rows`, out of `lanes` over all ranks."""
        del in_processes
        return EnvWorkload.create(make_env, worker_rows, first_lane, lanes, seed)

    @override
    def _make_batch(self, grant: Grant, memory: Any) -> EnvBatch:
        supervisor = self._supervisor
        assert supervisor is not None
        return EnvBatch(self._spec, memory, grant.batch, supervisor.take_infos(grant))

    @override
    def _collate_batch(self, batch: Any) -> Any:
        if self._collate_fn is None:
            return batch
        return self._collate_fn({name: batch[name] for name in batch}, batch.infos)

    def __repr__(self) -> str:
        """Return the arrays and the settings."""
        names = ", ".join(f"{name}: {field.dtype}{field.shape}" for name, field in self._slot_layout.fields.items())
        return f"EnvStreamer({{{names}}}, batchsize={self.batch_size}, num_workers={self.num_workers})"


def _as_fields(array_dims: Mapping[str, Dims] | Dims, dtype: Any) -> dict[str, Field]:
    if not isinstance(array_dims, Mapping):
        return {"data": _as_field("data", array_dims, dtype)}
    if not array_dims:
        raise ConfigError("array_dims must name at least one array")
    if not all(isinstance(name, str) for name in array_dims):
        raise ConfigError(f"the keys of array_dims must be strings, got {list(array_dims)}")
    return {name: _as_field(name, dims, dtype) for name, dims in array_dims.items()}


def _as_field(name: str, dims: Any, dtype: Any) -> Field:
    """Return the field described by a Field, dims, or (dims, dtype)."""
    if isinstance(dims, Field):
        return dims
    shape = dims
    if isinstance(dims, (tuple, list)) and len(dims) == 2 and not isinstance(dims[1], (int, np.integer)):  # noqa: PLR2004
        shape, dtype = dims
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(sizes, (tuple, list)) or not all(isinstance(size, (int, np.integer)) for size in sizes):
        raise ConfigError(f"array {name!r} must be a Field, dims such as (84, 84), or (dims, dtype), got {dims!r}")
    return Field(tuple(sizes), dtype)
