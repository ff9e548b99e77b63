"""Check the steps of user code against the declared fields, and write them into a batch."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from streamloader.values import Array, Field

__all__ = ["StepMismatch", "StepWriter", "check_value", "describe_value", "qualified_name"]


class StepMismatch(ValueError):
    """A step, or a block of steps, does not match the declared fields. The message says what was expected."""


class StepWriter:
    """Writes steps into the arrays of a batch, after checking names, shapes and dtypes.

    Values change only in floating point precision: integers may be written to a narrower or unsigned dtype if they
    fit, integers to floats, floats to narrower floats, but never floats to integers.

    Args:
        fields: Declared fields by name.

    Attributes:
        fields: Declared fields by name.
        only_field: Name of the field if there is exactly one, otherwise None.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = dict(fields)
        self.only_field = next(iter(self.fields)) if len(self.fields) == 1 else None
        # The range of ints that may be written without further checks. Empty unless the only field is an integer.
        self._low, self._high = 1, 0
        if self.only_field is not None and self.fields[self.only_field].shape == ():
            dtype = self.fields[self.only_field].dtype
            if dtype.kind in "iu":
                self._low, self._high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

    def write_step(self, out: Mapping[str, Array], row: int, step: object) -> None:
        """Write one step into row `row` of every array of `out`.

        Raises:
            StepMismatch: If the step does not match the fields. Nothing is written then.
        """
        only = self.only_field
        if only is not None:
            if type(step) is int and self._low <= step <= self._high:
                out[only][row] = step
                return
            if not isinstance(step, Mapping):
                out[only][row] = check_value(step, only, self.fields[only], ())
                return
        values = self.check_names(step)
        checked = {name: check_value(values[name], name, field, ()) for name, field in self.fields.items()}
        for name, value in checked.items():
            out[name][row] = value

    def write_block(self, out: Mapping[str, Array], columns: Mapping[str, Array], count: int) -> None:
        """Write `count` steps, one array (count, *shape) per field, into the first rows of `out`.

        Raises:
            StepMismatch: If an array does not match its field. Nothing is written then.
        """
        checked = {name: check_value(columns[name], name, field, (count,)) for name, field in self.fields.items()}
        for name, block in checked.items():
            out[name][:count] = block

    def check_names(self, values: object) -> Mapping[str, Any]:
        """Return `values` if it is a mapping with exactly the declared fields.

        Raises:
            StepMismatch: If `values` is not such a mapping.
        """
        names = ", ".join(repr(name) for name in self.fields)
        if not isinstance(values, Mapping):
            raise StepMismatch(f"expected a dict with the fields {names}, got {describe_value(values)}")
        missing = [repr(name) for name in self.fields if name not in values]
        unknown = [repr(name) for name in values if name not in self.fields]
        if missing or unknown:
            faults = [f"{', '.join(missing)} missing"] if missing else []
            faults += [f"{', '.join(unknown)} not declared in fields="] if unknown else []
            raise StepMismatch(f"expected a dict with the fields {names}, got one with {' and '.join(faults)}")
        return values


def describe_value(value: object) -> str:
    """Describe a value briefly, for an error message."""
    if isinstance(value, np.ndarray):
        return _describe_array(value.shape, value.dtype)
    return f"{type(value).__name__} {reprlib.repr(value)}"


def qualified_name(function: object) -> str:
    """Return the qualified name of a function, or of the type of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def check_value(value: object, name: str, field: Field, lead: tuple[int, ...]) -> Array:
    """Return `value` as an array that can be assigned to a field.

    Args:
        value: Value of user code.
        name: Name of the field.
        field: Shape and dtype of one step.
        lead: Shape in front of the field's: ``()`` for one step.

    Raises:
        StepMismatch: If its shape does not match, or its values do not fit into the dtype.
    """
    array = value if isinstance(value, np.ndarray) else _as_array(value, name, field)
    if array.dtype.kind not in "biufc":
        raise StepMismatch(f"field {name!r}: expected {_describe_field(field, lead)}, got {describe_value(value)}")
    if array.shape != lead + field.shape:
        got = describe_value(array) if value is not array else describe_value(value)
        raise StepMismatch(f"field {name!r}: expected {_describe_field(field, lead)}, got {got}")
    return array if array.dtype == field.dtype else _check_cast(array, name, field, lead)


def _check_cast(array: Array, name: str, field: Field, lead: tuple[int, ...]) -> Array:
    expected = f"field {name!r}: expected {_describe_field(field, lead)}"
    if array.size == 0 or np.can_cast(array.dtype, field.dtype, "safe"):
        return array
    if array.dtype.kind in "iu" and field.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        bounds = np.iinfo(field.dtype)
        if low < bounds.min or high > bounds.max:
            worst = low if low < bounds.min else high
            raise StepMismatch(f"{expected}, got the value {worst}, which does not fit into it")
        return array
    if not np.can_cast(array.dtype, field.dtype, "same_kind"):
        raise StepMismatch(
            f"{expected}, got {describe_value(array)}: that conversion loses values, "
            "so convert it yourself, or declare another dtype"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        narrowed = array.astype(field.dtype)
    if np.count_nonzero(np.isinf(narrowed)) != np.count_nonzero(np.isinf(array)):
        raise StepMismatch(f"{expected}, got values of {array.dtype} that are too large for it")
    return narrowed


def _as_array(value: object, name: str, field: Field) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:  # the __array__ of a user's type may raise any error
        raise StepMismatch(
            f"field {name!r}: expected {_describe_field(field, ())}, got {describe_value(value)}, "
            f"which cannot be converted to an array ({type(error).__name__}: {error})"
        ) from error
    return array


def _describe_field(field: Field, lead: tuple[int, ...]) -> str:
    return _describe_array(lead + field.shape, field.dtype)


def _describe_array(shape: tuple[int, ...], dtype: Any) -> str:
    return f"an array of shape {shape} and dtype {dtype}" if shape else f"a number of dtype {dtype}"
