"""What an iteration yields: arrays (B, T, ...) that alias a slot of the ring, made when they are asked for."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

    import torch

    from streamloader.engine.ring import SlotLayout
    from streamloader.values import Array

__all__ = ["Batch", "BatchArray", "BatchSpec", "SlotBatch", "copy_memory"]

_MARKS = ("reset", "valid", "repeat", "step", "time", "stream")


@dataclasses.dataclass(frozen=True, slots=True)
class BatchArray:
    """Where an array of a batch lies in its memory, and how its axes are turned.

    Attributes:
        offset: bytes; count: elements; shape: as stored, (B, T, ...).
        order: axes as the layout has them, or None for as stored.
    """

    offset: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    order: tuple[int, ...] | None


class BatchSpec:
    """The arrays of every batch of a loader.

    Args:
        slots: how a slot is laid out.
        layout: axis letters such as ``"BTCHW"``, or None for as stored.
    """

    def __init__(self, slots: SlotLayout, layout: str | None) -> None:
        self.nbytes, self.rows = slots.nbytes, slots.lanes
        self.fields = tuple(slots.fields)
        self.arrays: dict[str, BatchArray] = {}
        self.torch_dtypes: dict[str, torch.dtype] = {}
        matched = False
        for name in (*self.fields, *(_MARKS if slots.window is not None else ())):
            array = slots.arrays[name]
            order, image = _order(layout, array.axes, len(array.shape))
            matched = matched or image
            count = int(np.prod(array.shape, dtype=np.int64))
            self.arrays[name] = BatchArray(array.offset, count, array.shape, array.dtype, order)
        axes = {name: field.axes for name, field in slots.fields.items() if field.axes}
        if layout not in (None, _DEFAULT_LAYOUT) and axes and not matched:
            raise ConfigError(f"layout={layout!r} fits no field: their axes, with B and T before them, are {axes}")

    def torch_dtype(self, name: str) -> torch.dtype:
        """Torch's name for the dtype of an array."""
        known = self.torch_dtypes.get(name)
        if known is None:
            import torch

            known = self.torch_dtypes[name] = torch.from_numpy(np.empty(0, self.arrays[name].dtype)).dtype
        return known


_DEFAULT_LAYOUT = "BTCHW"


def _order(layout: str | None, axes: str | None, ndim: int) -> tuple[tuple[int, ...] | None, bool]:
    """Return the permutation of the stored axes, and whether the layout names exactly these axes."""
    if layout is None:
        return None, False
    if len(set(layout)) != len(layout) or not set("BT") <= set(layout):
        raise ConfigError(f"layout must name B, T and each axis of a step once, got {layout!r}")
    stored = None if axes is None else "BT" + axes
    if stored is not None and sorted(stored) == sorted(layout):
        order = tuple(stored.index(letter) for letter in layout)
        return (None if order == tuple(range(ndim)) else order), True
    if layout.startswith("TB"):
        return (1, 0, *range(2, ndim)), False
    return None, False


class SlotBatch(abc.ABC):
    """The arrays of one slot as tensors, made when they are asked for; what kinds of batches have in common."""

    __slots__ = ("__weakref__", "_made", "_memory", "_spec")

    def __init__(self, spec: BatchSpec, memory: Any) -> None:
        self._spec = spec
        self._memory = memory  # the slot's bytes: a buffer, or a uint8 tensor
        self._made: dict[str, torch.Tensor] = {}

    @abc.abstractmethod
    def _over(self, memory: Any) -> Self:
        """Return the same batch over other memory."""

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor of an array."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = self._tensor(name)
        return made

    def _tensor(self, name: str) -> torch.Tensor:
        import torch

        array = self._spec.arrays.get(name)
        if array is None:
            raise KeyError(f"no field {name!r}; this batch has {', '.join(self)}")
        dtype = self._spec.torch_dtype(name)
        memory = self._memory
        if not array.count:
            tensor = torch.empty(0, dtype=dtype)
        elif isinstance(memory, torch.Tensor):
            tensor = memory[array.offset : array.offset + array.count * array.dtype.itemsize].view(dtype)
        else:
            tensor = torch.frombuffer(memory, dtype=dtype, count=array.count, offset=array.offset)
        tensor = tensor.view(array.shape)
        return tensor if array.order is None else tensor.permute(array.order)

    @property
    def data(self) -> torch.Tensor:
        """The field called "data"."""
        return self["data"]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of arrays."""
        return iter(self._spec.arrays)

    def keys(self) -> tuple[str, ...]:
        """Names of arrays."""
        return tuple(self._spec.arrays)

    def __contains__(self, name: object) -> bool:
        """Whether there is such an array."""
        return name in self._spec.arrays

    def __len__(self) -> int:
        """Lanes in the batch."""
        return self._spec.rows

    def numpy(self) -> dict[str, Array]:
        """Return NumPy arrays of all arrays, in the same layout and without a copy (of CPU tensors)."""
        memory = self._memory
        if hasattr(memory, "numpy"):
            memory = memory.numpy()
        arrays = {}
        for name, array in self._spec.arrays.items():
            stored = np.frombuffer(memory, array.dtype, array.count, array.offset).reshape(array.shape)
            arrays[name] = stored if array.order is None else stored.transpose(array.order)
        return arrays

    def clone(self) -> Self:
        """Return a copy with memory of its own."""
        memory = self._memory
        copied = memory.clone() if hasattr(memory, "clone") else copy_memory(memory)
        return self._over(copied)

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Return the batch on `device`: itself if it is there already, else moved whole, in one copy."""
        import torch

        target, memory = torch.device(device), self._memory
        if not isinstance(memory, torch.Tensor):
            if target.type == "cpu":
                return self
            memory = torch.frombuffer(memory, dtype=torch.uint8)
        moved = memory.to(target, non_blocking=non_blocking)
        return self if moved is memory else self._over(moved)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the CUDA allocator that `stream` uses this batch too (as ``Tensor.record_stream``)."""
        if hasattr(self._memory, "record_stream"):
            self._memory.record_stream(stream)

    def _shapes(self) -> str:
        """Describe the fields, for ``repr``."""
        arrays = self._spec.arrays
        return ", ".join(f"{name}={arrays[name].dtype}{_shape(arrays[name])}" for name in self._spec.fields)


def _shape(array: BatchArray) -> tuple[int, ...]:
    return array.shape if array.order is None else tuple(array.shape[axis] for axis in array.order)


class Batch(SlotBatch):
    """One batch: `batch_size` lanes by `window` steps, of every field, with marks that say what each step is.

    ``batch["name"]`` is the tensor of a field or mark; ``batch.data`` is ``batch["data"]``. In the order (B, T, ...):

    - fields: the dtype and shape that the data set declares, turned as the loader's ``layout`` says;
    - ``reset``: bool, True exactly on the first step of a stream: clear the hidden state there;
    - ``valid``: bool, False on padding;
    - ``repeat``: bool, True where a finished lane has started over (``tail="cycle"``);
    - ``step``: int64, position in the stream (-1 on padding);
    - ``time``: float64, seconds since the stream's first step (-1.0 on padding);
    - ``stream``: int64, ordinal of the stream in ``loader.streams`` (-1 on padding).

    Tensors alias the loader's memory, without a copy, and stay as they are for as long as they are held.

    Attributes:
        epoch: the epoch it belongs to.
        index: its number in the epoch.
    """

    __slots__ = ("epoch", "index")

    def __init__(self, spec: BatchSpec, memory: Any, epoch: int, index: int) -> None:
        super().__init__(spec, memory)
        self.epoch = epoch
        self.index = index

    def _over(self, memory: Any) -> Self:
        return type(self)(self._spec, memory, self.epoch, self.index)

    @property
    def reset(self) -> torch.Tensor:
        """Bool (B, T): True on the first step of a stream."""
        return self["reset"]

    @property
    def valid(self) -> torch.Tensor:
        """Bool (B, T): False on padding."""
        return self["valid"]

    @property
    def repeat(self) -> torch.Tensor:
        """Bool (B, T): True where a finished lane has started over."""
        return self["repeat"]

    @property
    def step(self) -> torch.Tensor:
        """Int64 (B, T): position in the stream."""
        return self["step"]

    @property
    def time(self) -> torch.Tensor:
        """Float64 (B, T): seconds since the stream's first step."""
        return self["time"]

    @property
    def stream(self) -> torch.Tensor:
        """Int64 (B, T): ordinal of the stream."""
        return self["stream"]

    @property
    def keep(self) -> torch.Tensor:
        """Float32 (B, T): 0.0 on the first step of a stream, else 1.0, for ``h = h * keep[:, t, None]``."""
        return (~self["reset"]).float()

    def __repr__(self) -> str:
        """Name the fields and their shapes."""
        return f"Batch(epoch={self.epoch}, index={self.index}, {self._shapes()})"


def copy_memory(memory: Any) -> Array:
    """Copy the bytes of a slot into memory of their own."""
    return np.frombuffer(memory, np.uint8).copy()
