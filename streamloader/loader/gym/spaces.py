"""Spaces of Gymnasium as fields of a batch: nested values become flat arrays, and flat arrays nested values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError
from streamloader.streams.step_writer import StepMismatch, check_value, describe_value
from streamloader.values import Array, Field

if TYPE_CHECKING:
    import gymnasium

__all__ = ["FlatSpace", "SpaceLeaf", "is_standard"]

_FLATTENED_BY_GYMNASIUM = ("OneOf", "Text")  # wrappers.FlattenObservation gives these a fixed shape


@dataclass(frozen=True, slots=True)
class SpaceLeaf:
    """One array of a space.

    Attributes:
        name: Name of its field.
        path: Keys and indices that lead to it in a value of the space.
        field: Shape and dtype of one value.
    """

    name: str
    path: tuple[Any, ...]
    field: Field

    def pick(self, value: Any) -> Any:
        """Return the part of a value of the space that belongs to this leaf.

        Raises:
            StepMismatch: If there is no such part.
        """
        part = value
        for key in self.path:
            try:
                part = part[key]
            except (LookupError, TypeError) as error:
                raise StepMismatch(f"field {self.name!r} is missing in {describe_value(value)}") from error
        return part

    def write(self, out: Array, index: Any, value: Any, lead: tuple[int, ...] = ()) -> None:
        """Write the part of `value` that belongs to this leaf into ``out[index]``.

        Args:
            out: Array whose part at `index` has the shape ``lead + field.shape``.
            index: Index into `out`.
            value: Value of the space, or batch of values.
            lead: Shape of the batch in front of the field's. Defaults to ``()``, one value.

        Raises:
            StepMismatch: If shape or dtype do not match the space.
        """
        part = self.pick(value) if self.path else value
        field = self.field
        if type(part) is not np.ndarray or part.dtype != field.dtype or part.shape != lead + field.shape:
            part = check_value(part, self.name, field, lead)
        out[index] = part


@dataclass(frozen=True)
class FlatSpace:
    """A space as named arrays of fixed shape.

    A Box, Discrete, MultiBinary or MultiDiscrete space is one array with the name of the whole. The parts of a Dict or
    Tuple space are named ``name.key`` and ``name.0``, at any depth.

    Attributes:
        leaves: Arrays, in the order of the space.
        tree: Structure of a value: the name of a leaf, or a dict or tuple of such structures.
    """

    leaves: tuple[SpaceLeaf, ...]
    tree: Any

    @classmethod
    def flatten(cls, space: gymnasium.Space[Any], name: str) -> FlatSpace:
        """Flatten a space.

        Args:
            space: Space of a single environment.
            name: Name of the whole, such as ``"observation"``.

        Raises:
            ConfigError: If a part of the space has no fixed shape, or two parts have the same name.
        """
        leaves: list[SpaceLeaf] = []
        tree = _flatten(space, name, (), leaves)
        names = [leaf.name for leaf in leaves]
        if not leaves:
            raise ConfigError(f"the {name} space {space} is empty")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ConfigError(f"two parts of the {name} space are named {doubled[0]!r}: rename a key that has a dot")
        return cls(tuple(leaves), tree)

    @property
    def fields(self) -> dict[str, Field]:
        """Fields of a batch, by name."""
        return {leaf.name: leaf.field for leaf in self.leaves}

    @property
    def is_nested(self) -> bool:
        """Whether values are dicts or tuples."""
        return not isinstance(self.tree, str)

    def nest(self, pick: Callable[[str], Any]) -> Any:
        """Return a value of the space. `pick` returns the array, or element, of the leaf with a name."""
        return _nest(self.tree, pick)


def _flatten(space: gymnasium.Space[Any], name: str, path: tuple[Any, ...], leaves: list[SpaceLeaf]) -> Any:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {key: _flatten(part, f"{name}.{key}", (*path, key), leaves) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_flatten(part, f"{name}.{i}", (*path, i), leaves) for i, part in enumerate(space.spaces))
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        kind = type(space).__name__
        advice = "wrap the env in gymnasium.wrappers.TransformObservation or TransformAction, to pad its values"
        if kind in _FLATTENED_BY_GYMNASIUM:
            advice = "wrap the env in gymnasium.wrappers.FlattenObservation or, for actions, TransformAction"
        raise ConfigError(
            f"{name!r} is a {kind} space, whose values have no fixed shape: {advice}. Box, Discrete, MultiBinary and "
            "MultiDiscrete are supported, also in Dict and Tuple"
        )
    assert space.shape is not None
    leaves.append(SpaceLeaf(name, path, Field(space.shape, space.dtype)))
    return name


def _nest(tree: Any, pick: Callable[[str], Any]) -> Any:
    if isinstance(tree, str):
        return pick(tree)
    if isinstance(tree, Mapping):
        return {key: _nest(part, pick) for key, part in tree.items()}
    return tuple(_nest(part, pick) for part in tree)


def is_standard(space: gymnasium.Space[Any]) -> bool:
    """Return whether a space consists of Gymnasium's own classes, so that its batches can be sampled at once."""
    from gymnasium import spaces

    if type(space) is spaces.Dict:
        return all(map(is_standard, space.spaces.values()))
    if type(space) is spaces.Tuple:
        return all(map(is_standard, space.spaces))
    return type(space) in (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
