"""Batches: arrays (B, T, ...) that alias a slot of the ring and are created on access."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from typing_extensions import override

from streamloader.errors import ConfigError
from streamloader.torch_support import has_torch, require_torch

if TYPE_CHECKING:
    from typing import Self

    import torch

    from streamloader.engine.ring import SlotLayout
    from streamloader.values import Array

__all__ = ["Batch", "BatchArray", "BatchSpec", "SlotBatch", "copy_memory"]

_MARKS = ("reset", "valid", "repeat", "step", "time", "stream")
_YUV_FIELDS = ("y", "u", "v", "matrix", "range")


@dataclasses.dataclass(frozen=True, slots=True)
class BatchArray:
    """Location of one array in the memory of a batch, and the order of its axes.

    Attributes:
        offset: Offset of the array in bytes.
        count: Number of elements.
        shape: Shape as stored, (B, T, ...).
        dtype: Data type of the elements.
        order: Permutation of the stored axes that gives the layout, or None if the layout is as stored.
        layout_shape: Shape in the layout.
        layout_strides: Strides in the layout, in bytes.
    """

    offset: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    order: tuple[int, ...] | None
    layout_shape: tuple[int, ...] = dataclasses.field(init=False)
    layout_strides: tuple[int, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Compute shape and strides in the layout."""
        order = self.order or range(len(self.shape))
        inner = [math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize for axis in range(len(self.shape))]
        object.__setattr__(self, "layout_shape", tuple(self.shape[axis] for axis in order))
        object.__setattr__(self, "layout_strides", tuple(inner[axis] for axis in order))

    def view(self, memory: Any) -> Array:
        """Return the array in the layout over `memory`, a buffer. It keeps the buffer alive."""
        return np.ndarray(self.layout_shape, self.dtype, memory, self.offset, self.layout_strides)


class BatchSpec:
    """The arrays of every batch of a loader.

    Args:
        slots: Layout of a slot.
        layout: Axis letters such as ``"BTCHW"``, or None for the axes as stored.

    Raises:
        ConfigError: If the layout is invalid, or matches no field.
    """

    def __init__(self, slots: SlotLayout, layout: str | None) -> None:
        self.nbytes, self.rows = slots.nbytes, slots.lanes
        self.fields = tuple(slots.fields)
        self.arrays: dict[str, BatchArray] = {}
        matched = False
        for name in (*self.fields, *(_MARKS if slots.window is not None else ())):
            array = slots.arrays[name]
            order, image = _axis_order(layout, array.axes, len(array.shape))
            matched = matched or image
            count = math.prod(array.shape)
            self.arrays[name] = BatchArray(array.offset, count, array.shape, array.dtype, order)
        axes = {name: field.axes for name, field in slots.fields.items() if field.axes}
        if layout not in (None, _DEFAULT_LAYOUT) and axes and not matched:
            raise ConfigError(
                f"layout={layout!r} matches no field; the axes of the fields, without B and T, are {axes}"
            )

    @functools.cached_property
    def make_tensor(self) -> Callable[[Array], torch.Tensor]:
        """``torch.from_numpy``, once torch is imported. Without torch, a function that returns the array itself."""
        if not has_torch():
            return cast("Callable[[Array], torch.Tensor]", _return_array)
        import torch

        return torch.from_numpy

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the function of torch."""
        return {name: value for name, value in self.__dict__.items() if name != "make_tensor"}


def _return_array(array: Array) -> Array:
    return array


_DEFAULT_LAYOUT = "BTCHW"


def _axis_order(layout: str | None, axes: str | None, ndim: int) -> tuple[tuple[int, ...] | None, bool]:
    """Return the permutation of the stored axes, and whether the layout names exactly these axes."""
    if layout is None:
        return None, False
    if not isinstance(layout, str) or len(set(layout)) != len(layout) or not set("BT") <= set(layout):
        raise ConfigError(f"layout must name B, T and each axis of a step once, got {layout!r:.80}")
    stored = None if axes is None else "BT" + axes
    if stored is not None and sorted(stored) == sorted(layout):
        order = tuple(stored.index(letter) for letter in layout)
        return (None if order == tuple(range(ndim)) else order), True
    if layout.startswith("TB"):
        return (1, 0, *range(2, ndim)), False
    return None, False


class SlotBatch(Mapping[str, "torch.Tensor"], abc.ABC):
    """Base of the batches: the arrays of one slot as tensors by name, created on access.

    Where torch is not installed, NumPy arrays take the place of all tensors, over the same memory and in the same
    layout. Both export DLPack.

    Trainers and collation functions treat a batch as the mapping that it is. Those that rebuild a mapping by calling
    its type with other values get a dict of these. A pickled batch contains a copy of its memory. ``len(batch)`` is
    the number of lanes, and batches are compared by identity, as tensors cannot be compared by ``==``.
    """

    __slots__ = ("__weakref__", "_memory", "_spec", "_tensors")

    def __new__(cls, spec: BatchSpec | Mapping[str, Any], *_: Any) -> Any:
        """Return a new batch, or a dict if the argument is a mapping, whose values may have any shape."""
        return object.__new__(cls) if isinstance(spec, BatchSpec) else dict(spec)

    def __init__(self, spec: BatchSpec, memory: Any) -> None:
        self._spec = spec
        self._memory = memory  # the slot's bytes: a buffer, or a uint8 tensor
        self._tensors: dict[str, torch.Tensor] = {}

    @abc.abstractmethod
    def _other_arguments(self) -> tuple[Any, ...]:
        """Return the arguments of the constructor behind spec and memory."""

    def _with_memory(self, memory: Any) -> Self:
        """Return the same batch over other memory."""
        batch: Self = type(self)(self._spec, memory, *self._other_arguments())
        return batch

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor of an array, or the array itself where torch is not installed."""
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = self._make_tensor(name)
        return tensor

    def _make_tensor(self, name: str) -> torch.Tensor:
        array = self._spec.arrays.get(name)
        if array is None:
            raise KeyError(f"no field {name!r}; this batch has {', '.join(self)}")
        memory = self._memory
        if not hasattr(memory, "record_stream"):  # a buffer, not a tensor
            return self._spec.make_tensor(array.view(memory))
        dtype = self._spec.make_tensor(np.empty(0, array.dtype)).dtype
        tensor: torch.Tensor = memory[array.offset : array.offset + array.count * array.dtype.itemsize].view(dtype)
        tensor = tensor.view(array.shape)
        return tensor if array.order is None else tensor.permute(array.order)

    def _make_stored(self, name: str) -> torch.Tensor:
        """Return the tensor of an array with its axes as stored, (B, T, ...)."""
        order = self._spec.arrays[name].order
        return self[name] if order is None else self[name].permute([order.index(axis) for axis in range(len(order))])

    @property
    def data(self) -> torch.Tensor:
        """The field named "data"."""
        return self["data"]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the arrays."""
        return iter(self._spec.arrays)

    @override
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the names of the arrays."""
        return tuple(self._spec.arrays)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a copy of the memory, which does not belong to the ring of the loader any more."""
        memory = self._memory
        return type(self), (
            self._spec,
            memory if hasattr(memory, "clone") else copy_memory(memory),
            *self._other_arguments(),
        )

    def __contains__(self, name: object) -> bool:
        """Whether the batch has an array of this name."""
        return name in self._spec.arrays

    def __len__(self) -> int:
        """Number of lanes."""
        return self._spec.rows

    def numpy(self) -> dict[str, Array]:
        """Return all arrays as NumPy arrays in the same layout, without a copy. The batch must be on the CPU."""
        memory = self._memory
        if hasattr(memory, "numpy"):
            memory = memory.numpy()
        return {name: array.view(memory) for name, array in self._spec.arrays.items()}

    def clone(self) -> Self:
        """Return a copy that owns its memory."""
        memory = self._memory
        copy = memory.clone() if hasattr(memory, "clone") else copy_memory(memory)
        return self._with_memory(copy)

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Return the batch on `device`: the batch itself if it is there already, or a single copy of all its memory.

        Raises:
            MissingDependency: If torch is not installed, and `device` is not ``"cpu"``.
        """
        if device == "cpu" and not has_torch():
            return self
        require_torch(f"batch.to({str(device)!r}) needs")
        import torch

        target, memory = torch.device(device), self._memory
        if not isinstance(memory, torch.Tensor):
            if target.type == "cpu":
                return self
            memory = torch.frombuffer(memory, dtype=torch.uint8)
        moved = memory.to(target, non_blocking=non_blocking)
        return self if moved is memory else self._with_memory(moved)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Mark the batch as used by `stream` for the CUDA allocator, as ``Tensor.record_stream`` does."""
        if hasattr(self._memory, "record_stream"):
            self._memory.record_stream(stream)

    def _describe_fields(self) -> str:
        """Return the dtypes and shapes of the fields, for ``repr``."""
        arrays = self._spec.arrays
        return ", ".join(f"{name}={arrays[name].dtype}{arrays[name].layout_shape}" for name in self._spec.fields)


class Batch(SlotBatch):
    """One batch: `batch_size` lanes by `window` steps of every field, with masks and positions for each step.

    ``batch["name"]`` is the tensor of a field, mask or position, and ``batch.data`` is ``batch["data"]``. All have the
    axes (B, T, ...) by default:

    - fields: dtype and shape as the dataset declares them, with axes permuted by the loader's ``layout``;
    - ``reset``: bool, True exactly on the first step of a stream, where the hidden state must be cleared;
    - ``valid``: bool, False on padding;
    - ``repeat``: bool, True where a finished lane has started over (``tail="cycle"``);
    - ``step``: int64, position in the stream (-1 on padding);
    - ``time``: float64, seconds since the stream's first step (-1.0 on padding);
    - ``stream``: int64, ordinal of the stream in ``loader.streams`` (-1 on padding).

    Tensors alias the loader's memory without a copy. They do not change while they are held. Where torch is not
    installed, they are NumPy arrays.

    Attributes:
        epoch: Epoch of the batch.
        index: Number of the batch within its epoch.
    """

    __slots__ = ("epoch", "index")

    def __init__(self, spec: BatchSpec, memory: Any, epoch: int, index: int) -> None:
        super().__init__(spec, memory)
        self.epoch = epoch
        self.index = index

    @override
    def _other_arguments(self) -> tuple[int, int]:
        return self.epoch, self.index

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
        """Float32 (B, T): 0.0 on the first step of a stream and 1.0 elsewhere, for ``h = h * keep[:, t, None]``."""
        continues = ~self["reset"]
        if isinstance(continues, np.ndarray):  # torch is not installed
            return cast("torch.Tensor", continues.astype(np.float32))
        return continues.float()

    def rgb(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the frames of ``VideoStreams(..., pix_fmt="yuv420p")`` in RGB, on the device of the batch.

        The axes are in the loader's layout, like those of ``batch.data`` with ``pix_fmt="rgb24"``. In memory, the
        tensor is contiguous as (B, T, 3, H, W). Padding is black. :func:`streamloader.yuv_to_rgb` describes the pixels.

        Args:
            size: (height, width) to which frames are scaled. Defaults to their own size.

        Raises:
            ConfigError: If the batch has no such frames.
            MissingDependency: If torch is not installed. ``pix_fmt="rgb24"`` does not need it.
        """
        require_torch("batch.rgb() needs")
        from streamloader.loader.yuv import yuv_to_rgb

        missing = [repr(name) for name in _YUV_FIELDS if name not in self]
        if missing:
            raise ConfigError(
                "rgb() converts frames of VideoStreams or ArchiveStreams with pix_fmt='yuv420p', but this batch has no "
                f"field {', '.join(missing)}; it has {', '.join(self._spec.fields)}"
            )
        y, u, v, matrix, full_range = map(self._make_stored, _YUV_FIELDS)
        rgb = yuv_to_rgb(y, u, v, matrix, full_range, size, channel_axis=-1)
        order = self._spec.arrays["y"].order
        return rgb if order is None else rgb.permute(order)

    def __repr__(self) -> str:
        """Return the epoch, the index, and the shapes of the fields."""
        return f"Batch(epoch={self.epoch}, index={self.index}, {self._describe_fields()})"


def copy_memory(memory: Any) -> Array:
    """Copy the bytes of a slot into a new array."""
    return np.frombuffer(memory, np.uint8).copy()
