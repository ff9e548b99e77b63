"""The iterator over batches that vectorised producers fill: simulators, renderers, samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.engine.ring import SlotLayout
from streamloader.engine.vector_env import EnvScript
from streamloader.engine.workload import Place, Taken
from streamloader.errors import ConfigError
from streamloader.loader.base import SPARE, Loader, check_arguments, share
from streamloader.loader.batch import BatchSpec, SlotBatch
from streamloader.loader.distributed import rank_and_world
from streamloader.values import Field

if TYPE_CHECKING:
    from typing import Self

    import torch

    from streamloader.engine.supervisor import Supervisor
    from streamloader.engine.workload import Grant

__all__ = ["Dims", "EnvBatch", "EnvStreamer"]

Dims = Field | int | tuple[Any, ...]  # a Field, dims, or (dims, dtype)
_DTYPE = "float32"


class EnvBatch(SlotBatch):
    """One batch of what envs made: each array (B, *dims), rows in the order of the lanes.

    ``batch["name"]`` is the tensor of an array; ``batch.data`` is ``batch["data"]``. Tensors alias the loader's memory,
    without a copy, and stay as they are for as long as they are held.

    Attributes:
        infos: what the env of each worker returned for this batch, in the order of the lanes; None where it returned
            nothing.
        index: its number since the loader began.
    """

    __slots__ = ("index", "infos")

    def __init__(self, spec: BatchSpec, memory: Any, index: int, infos: list[Any]) -> None:
        super().__init__(spec, memory)
        self.index, self.infos = index, infos

    def _over(self, memory: Any) -> Self:
        return type(self)(self._spec, memory, self.index, self.infos)

    def __repr__(self) -> str:
        """Name the arrays and their shapes."""
        return f"EnvBatch(index={self.index}, {self._shapes()})"


class EnvStreamer(Loader):
    """Streams what vectorised producers ("envs") make; built by :meth:`MultiStreamer.from_env`.

    Each worker makes one env, and calls it once for each batch as ``env(arrays) -> infos``. `arrays` maps each name to
    an array (n, *dims), one row for each lane that the worker hosts. They are views into the batch, to be filled in
    place, all of them, each time: they hold whatever was there before, and are the env's only until it returns. `infos`
    is None or plain values (numbers, text, lists and dicts of these; NumPy's numbers and arrays become Python's).

    The iteration is endless and has no ``len()``. It ends when an env raises ``StopIteration`` - with the last batch
    that every worker has filled - or with an error. After ``break`` the next iteration goes on with the next
    batch: nothing that was made is thrown away. After an error of an env, every further iteration raises that error.

    Args:
        make_env: called once in each worker: ``make_env(lanes, rng)`` with the global numbers of its lanes (a range)
            and a NumPy generator keyed on `seed` and the first lane; ``make_env(lanes)`` and ``make_env()`` work too.
            An env that has a method ``close()`` is closed at the end. All three run in one thread of the worker.
        array_dims: dims of a row of each array, by name: a tuple of sizes (float32), ``(dims, dtype)`` or a
            :class:`Field`. They include time if the env makes windows. Without a name it is called ``"data"``.
        batchsize: lanes B, the rows of a batch; `num_workers` share them.
        max_q_size: batches made ahead of the one that was handed out last: never more. One more is held where
            `device` is a GPU: the one that is being copied to it.
        num_workers: processes that have an env each; 0 has one in a thread of this process.
        collate_fn: called in this process as ``collate_fn(arrays, infos)`` with a dict of tensors (B, *dims) and the
            list of what each worker's env returned; the iteration yields what it returns, or without it an
            :class:`EnvBatch`.
        seed: of the envs' generators.
        pin_memory, device: as for :class:`MultiStreamer`.
        timeout: seconds to wait for one batch before :class:`LoaderTimeout`; 0 or None: no limit.
        rank, world_size: host the lanes ``[rank * B, (rank + 1) * B)`` of ``world_size * B``; default 0 of 1.

    Raises:
        ConfigError: arguments that cannot work.
        RingTooLarge: the ring does not fit into free memory.
    """

    def __init__(
        self,
        make_env: Callable[..., Any],
        array_dims: Mapping[str, Dims] | Dims,
        batchsize: int,
        max_q_size: int = 2,
        num_workers: int = 0,
        collate_fn: Callable[[dict[str, torch.Tensor], list[Any]], Any] | None = None,
        *,
        seed: int = 0,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank, world_size = rank_and_world(rank, world_size)
        check_arguments(num_workers=num_workers, timeout=timeout)
        if batchsize < 1:
            raise ConfigError(f"batchsize is 1 or more, got {batchsize}")
        if max_q_size < 1:
            raise ConfigError(f"max_q_size is 1 or more, got {max_q_size}")
        self.batch_size = batchsize
        self._collate = collate_fn
        self._begun = False
        hosted = share(batchsize, max(1, num_workers))
        slots = SlotLayout(_fields(array_dims), batchsize, None)
        super().__init__(
            EnvScript.of(make_env, hosted, rank * batchsize, batchsize * world_size, seed),
            slots,
            BatchSpec(slots, None),
            hosted=hosted,
            num_workers=num_workers,
            ahead=max_q_size,
            spare=SPARE,
            exact=True,
            first_lane=rank * batchsize,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
        )

    def _begin_play(self, supervisor: Supervisor) -> None:
        if not self._begun:
            supervisor.begin(Place(0, 0))
            self._begun = True

    def _asked(self, supervisor: Supervisor) -> None:
        """Do nothing: there is one play, and it goes on."""

    def _delivered(self, taken: Taken | None) -> None:
        """Remember nothing: an env cannot be resumed."""

    def _wrap(self, grant: Grant, memory: Any) -> EnvBatch:
        supervisor = self._supervisor
        assert supervisor is not None
        return EnvBatch(self._spec, memory, grant.batch, supervisor.take_infos(grant))

    def _collated(self, batch: Any) -> Any:
        if self._collate is None:
            return batch
        return self._collate({name: batch[name] for name in batch}, batch.infos)

    def __repr__(self) -> str:
        """Name what is streamed, and how."""
        names = ", ".join(f"{name}: {field.dtype}{field.shape}" for name, field in self._slot_layout.fields.items())
        return f"EnvStreamer({{{names}}}, batchsize={self.batch_size}, num_workers={self.num_workers})"


def _fields(array_dims: Mapping[str, Dims] | Dims) -> dict[str, Field]:
    if not isinstance(array_dims, Mapping):
        return {"data": _field("data", array_dims)}
    if not array_dims:
        raise ConfigError("array_dims names no array")
    if not all(isinstance(name, str) for name in array_dims):
        raise ConfigError(f"array_dims maps names to dims, got the keys {list(array_dims)}")
    return {name: _field(name, dims) for name, dims in array_dims.items()}


def _field(name: str, dims: Any) -> Field:
    """Read a Field, dims, or (dims, dtype)."""
    if isinstance(dims, Field):
        return dims
    shape, dtype = dims, _DTYPE
    if isinstance(dims, (tuple, list)) and len(dims) == 2 and not isinstance(dims[1], (int, np.integer)):  # noqa: PLR2004
        shape, dtype = dims
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape
    if not isinstance(sizes, (tuple, list)) or not all(isinstance(size, (int, np.integer)) for size in sizes):
        raise ConfigError(f"array {name!r} must be a Field, dims such as (84, 84), or (dims, dtype), got {dims!r}")
    return Field(tuple(sizes), dtype)
