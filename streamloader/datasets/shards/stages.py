"""The stages of a chain: functions that each sample, or each batch, passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from streamloader.datasets.shards.decode import make_decoder
from streamloader.errors import ConfigError
from streamloader.torch_support import has_torch

__all__ = [
    "DROPPED", "DecodeStage", "LacksField", "MapStage", "MapTupleStage", "SelectStage", "Stage", "ToTupleStage",
    "collate", "find_fields",
]  # fmt: skip

Stage: TypeAlias = "MapStage | SelectStage | DecodeStage | ToTupleStage | MapTupleStage"

DROPPED: Final = object()
_PROVIDED: Final = ("__key__", "__url__")


class LacksField(Exception):
    """A sample without a requested field.

    Attributes:
        names: Names of the field, of which one would do.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(*names)
        self.names = tuple(names)


class MapStage:
    """Replaces each value by the result of a function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        """Return the value after this stage."""
        return self.function(value)


class SelectStage:
    """Keeps the values for which a function returns a true value."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, value: Any) -> Any:
        """Return the value after this stage."""
        return value if self.function(value) else DROPPED


class DecodeStage:
    """Decodes the fields of each sample.

    Args:
        specs: Decoders, see :func:`streamloader.datasets.shards.decode.make_decoder`.
    """

    def __init__(self, specs: tuple[Any, ...]) -> None:
        self.specs = specs
        self._decode = make_decoder(specs)

    def __call__(self, value: Any) -> Any:
        """Return the value after this stage."""
        return self._decode(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeStage, (self.specs,)


class ToTupleStage:
    """Replaces each sample by a tuple of its fields.

    Args:
        names: Names of the fields. Alternatives are separated by ";" or blanks: ``"jpg;png"``.

    Raises:
        ConfigError: If there is no name, or one is empty.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.alternatives = [tuple(name.replace(";", " ").split()) for name in names if isinstance(name, str)]
        if not names or len(self.alternatives) != len(names) or not all(self.alternatives):
            raise ConfigError(
                f"to_tuple{tuple(names)!r:.200}: give one or more names of fields, such as 'jpg;png', 'cls'"
            )

    def __call__(self, value: Any) -> Any:
        """Return the value after this stage."""
        return tuple([_find(value, names) for names in self.alternatives])


class MapTupleStage:
    """Applies one function to each element of a tuple. Elements without a function stay.

    Args:
        functions: Function for each element.
    """

    def __init__(self, functions: Sequence[Callable[[Any], Any]]) -> None:
        self.functions = tuple(functions)

    def __call__(self, value: Any) -> Any:
        """Return the value after this stage."""
        changed = [function(item) for function, item in zip(self.functions, value, strict=False)]
        return (*changed, *value[len(changed) :])


def find_fields(stages: Iterable[Stage]) -> list[str] | None:
    """Return the fields that the first stages of a chain need. None if a function receives whole samples."""
    for stage in stages:
        if isinstance(stage, ToTupleStage):
            return [name for names in stage.alternatives for name in names if name not in _PROVIDED]
        if not isinstance(stage, DecodeStage) or any(not isinstance(spec, str) for spec in stage.specs):
            return None
    return None


def collate(values: list[Any]) -> Any:
    """Join the values of a batch: tuples and dicts by element, tensors and arrays of one shape stacked.

    Numbers become a tensor, as for :class:`torch.utils.data.DataLoader`. What cannot be stacked becomes a list. Where
    torch is not installed, tensors are NumPy arrays of the same types.
    """
    first = values[0]
    if isinstance(first, dict):
        names = {name: None for value in values for name in value}
        return {name: _join([value.get(name) for value in values]) for name in names}
    if isinstance(first, (tuple, list)):
        return tuple([_join(list(column)) for column in zip(*values, strict=True)])
    return _join(values)


def _join(values: list[Any]) -> Any:
    if not has_torch():
        return _join_arrays(values)
    import torch
    from torch.utils.data import default_collate  # in a worker, it stacks in shared memory: nothing is copied twice

    first = values[0]
    if isinstance(first, torch.Tensor):
        if any(not isinstance(value, torch.Tensor) or value.shape != first.shape for value in values):
            return values
        return default_collate(values) if all(value.dtype == first.dtype for value in values) else torch.stack(values)
    if isinstance(first, np.ndarray):
        return default_collate(values) if _can_stack(values) else values
    if all(isinstance(value, (bool, int, float)) for value in values):
        return torch.tensor(values)
    return values


def _join_arrays(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return np.stack(values) if _can_stack(values) else values
    if all(isinstance(value, bool) for value in values):
        return np.array(values)
    if all(isinstance(value, (bool, int)) for value in values):
        return np.array(values, np.int64)
    if all(isinstance(value, (bool, int, float)) for value in values):
        return np.array(values, np.float32)  # torch's type of floating-point numbers
    return values


def _can_stack(values: list[Any]) -> bool:
    first = values[0]
    return first.dtype.kind in "biufc" and all(
        isinstance(value, np.ndarray) and value.shape == first.shape and value.dtype == first.dtype for value in values
    )


def _find(sample: Any, names: Sequence[str]) -> Any:
    for name in names:
        if name in sample:
            return sample[name]
    raise LacksField(names)
