"""Checking the steps that user code yields against the declared fields, and writing them into a batch."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array, Field

__all__ = ["Misfit", "StepWriter", "describe", "qualified_name"]


class Misfit(ValueError):
    """A step, or a block of steps, is not what the fields promise. The message says what was expected."""


class StepWriter:
    """Writes steps into the arrays of a batch, after checking names, shapes and dtypes.

    No value is changed on the way but for floating point precision: integers may go into a narrower or unsigned
    dtype only if they fit, integers go into floats, floats into narrower floats, never floats into integers.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = dict(fields)
        self.only = next(iter(self.fields)) if len(self.fields) == 1 else None
        # The range of plain integers that may be written without any further check; empty for other fields.
        self._low, self._high = 1, 0
        if self.only is not None and self.fields[self.only].shape == ():
            dtype = self.fields[self.only].dtype
            if dtype.kind in "iu":
                self._low, self._high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

    def put(self, out: Mapping[str, Array], row: int, step: object) -> None:
        """Write one step into row `row` of every array of `out`, or raise :class:`Misfit` and write nothing."""
        only = self.only
        if only is not None:
            if type(step) is int and self._low <= step <= self._high:
                out[only][row] = step
                return
            if not isinstance(step, Mapping):
                out[only][row] = _checked(step, only, self.fields[only], ())
                return
        values = self.by_name(step)
        checked = {name: _checked(values[name], name, field, ()) for name, field in self.fields.items()}
        for name, value in checked.items():
            out[name][row] = value

    def put_block(self, out: Mapping[str, Array], columns: Mapping[str, Array], count: int) -> None:
        """Write `count` steps, given as one array (count, *shape) for each field, into the first rows of `out`."""
        checked = {name: _checked(columns[name], name, field, (count,)) for name, field in self.fields.items()}
        for name, block in checked.items():
            out[name][:count] = block

    def by_name(self, values: object) -> Mapping[str, Any]:
        """Return `values` as a mapping that has exactly the declared fields, or raise :class:`Misfit`."""
        names = ", ".join(repr(name) for name in self.fields)
        if not isinstance(values, Mapping):
            raise Misfit(f"expected a dict with the fields {names}, got {describe(values)}")
        missing = [repr(name) for name in self.fields if name not in values]
        unknown = [repr(name) for name in values if name not in self.fields]
        if missing or unknown:
            faults = [f"{', '.join(missing)} missing"] if missing else []
            faults += [f"{', '.join(unknown)} not declared in fields="] if unknown else []
            raise Misfit(f"expected a dict with the fields {names}, got one with {' and '.join(faults)}")
        return values


def describe(value: object) -> str:
    """Say in a few words what `value` is, for an error message."""
    if isinstance(value, np.ndarray):
        return _named(value.shape, value.dtype)
    return f"{type(value).__name__} {reprlib.repr(value)}"


def qualified_name(function: object) -> str:
    """Return the name that a function, or the type of an object that can be called, has in its module."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def _checked(value: object, name: str, field: Field, lead: tuple[int, ...]) -> Array:
    array = value if isinstance(value, np.ndarray) else _as_array(value, name, field)
    if array.dtype.kind not in "biufc":
        raise Misfit(f"field {name!r}: expected {_wanted(field, lead)}, got {describe(value)}")
    if array.shape != lead + field.shape:
        got = describe(array) if value is not array else describe(value)
        raise Misfit(f"field {name!r}: expected {_wanted(field, lead)}, got {got}")
    return array if array.dtype == field.dtype else _cast(array, name, field, lead)


def _cast(array: Array, name: str, field: Field, lead: tuple[int, ...]) -> Array:
    wanted = f"field {name!r}: expected {_wanted(field, lead)}"
    if array.size == 0 or np.can_cast(array.dtype, field.dtype, "safe"):
        return array
    if array.dtype.kind in "iu" and field.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        bounds = np.iinfo(field.dtype)
        if low < bounds.min or high > bounds.max:
            worst = low if low < bounds.min else high
            raise Misfit(f"{wanted}, got the value {worst}, which does not fit into it")
        return array
    if not np.can_cast(array.dtype, field.dtype, "same_kind"):
        raise Misfit(
            f"{wanted}, got {describe(array)}: that conversion loses values, "
            f"so convert it yourself, or declare another dtype in fields="
        )
    with np.errstate(over="ignore", invalid="ignore"):
        narrowed = array.astype(field.dtype)
    if np.count_nonzero(np.isinf(narrowed)) != np.count_nonzero(np.isinf(array)):
        raise Misfit(f"{wanted}, got values of {array.dtype} that are too large for it")
    return narrowed


def _as_array(value: object, name: str, field: Field) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the __array__ of a foreign type raises
        raise Misfit(
            f"field {name!r}: expected {_wanted(field, ())}, got {describe(value)}, "
            f"which is no array ({type(error).__name__}: {error})"
        ) from error
    return array


def _wanted(field: Field, lead: tuple[int, ...]) -> str:
    return _named(lead + field.shape, field.dtype)


def _named(shape: tuple[int, ...], dtype: Any) -> str:
    return f"an array of shape {shape} and dtype {dtype}" if shape else f"a number of dtype {dtype}"
