"""Columns of a table of labels, kept in few NumPy arrays, so that millions of rows need no Python object each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from streamloader.stream_table import StringColumn, pack_column
from streamloader.values import Array

__all__ = ["get_array", "is_missing", "make_column", "parse_texts", "take_rows"]

_NUMBER_KINDS: Final = "biuf"
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity)|nan", re.IGNORECASE)
_PADDED: Final = re.compile(r"[+-]?0[0-9]")  # "007" is a name, not a number
_BOOLS: Final = {"true": True, "false": False}
_MAX_INT64: Final = np.iinfo(np.int64).max
_MAX_EXACT_FLOAT: Final = 1 << 53
_MAX_DIGITS: Final = 20  # a number with more is greater than all limits


class OptionalTexts(Sequence[str | None]):
    """Texts, some of which are missing.

    Args:
        texts: Texts, with any text for those that are missing.
        missing: Whether each text is missing, bool (n,).
    """

    def __init__(self, texts: Sequence[str], missing: Array) -> None:
        self._texts = texts
        self._missing = missing

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: Any) -> Any:
        return None if self._missing[row] else self._texts[row]


class ArrayRows(Sequence[Any]):
    """Rows of an array of several dimensions, or of a dtype that Python has no type for.

    Args:
        values: Array (n, ...).

    Attributes:
        values: The array.
    """

    def __init__(self, values: Array) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: Any) -> Any:
        return self.values[row].copy()  # what a caller changes is not the table's


def is_missing(value: object) -> bool:
    """Return whether a value stands for none: None, NaN, or what dataframes have in their place."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def make_column(values: Any) -> Sequence[Any]:
    """Return values as a column.

    Numbers and texts are kept in arrays. Numbers of which some are missing become floats with NaN, and missing texts
    None. Everything else stays as it is.

    Args:
        values: Array, or any sequence.
    """
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.dtype.kind in f"{_NUMBER_KINDS}cmM":
        is_plain = values.ndim == 1 and values.dtype.kind in _NUMBER_KINDS
        return _pack_array(values.copy()) if is_plain else ArrayRows(values.copy())
    return _make_object_column(list(values.tolist() if isinstance(values, np.ndarray) else values))


def _pack_array(values: Any) -> Sequence[Any]:
    return pack_column(values)


def _make_object_column(values: list[Any]) -> Sequence[Any]:
    missing = np.fromiter(map(is_missing, values), bool, len(values))
    values = [value.item() if isinstance(value, np.generic) and _is_plain(value) else value for value in values]
    present = [value for value, is_none in zip(values, missing, strict=True) if not is_none]
    kinds = set(map(type, present))
    if kinds == {str}:
        return _make_texts(values, missing)
    if (missing.any() or len(kinds) > 1) and kinds and all(map(_is_exact_float, present)):
        floats = (math.nan if is_none else value for value, is_none in zip(values, missing, strict=True))
        return _pack_array(np.fromiter(floats, np.float64, len(values)))
    return pack_column([None if is_none else value for value, is_none in zip(values, missing, strict=True)])


def _is_plain(value: Any) -> bool:
    return value.dtype.kind in f"{_NUMBER_KINDS}U"


def _is_exact_float(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= _MAX_EXACT_FLOAT)


def _make_texts(values: list[Any], missing: Array) -> Sequence[Any]:
    if not missing.any():
        return pack_column(values)
    filled = ("" if is_none else value for value, is_none in zip(values, missing, strict=True))
    return OptionalTexts(StringColumn.from_strings(filled), missing)


# --- text files ------------------------------------------------------------------------------------------------------


def parse_texts(texts: StringColumn) -> Sequence[Any]:
    """Return the cells of a column of a text file: as numbers or bools if all of them are, and else as texts.

    Integers are written without leading zeros. Empty cells between numbers are NaN.
    """
    for dtype, parse in _PARSERS:
        try:
            parsed = np.fromiter(map(parse, texts), dtype, len(texts))
        except ValueError:
            continue
        if dtype is np.float64 and np.isnan(parsed).all():
            break
        return _pack_array(parsed)
    return texts


def _parse_bool(text: str) -> bool:
    value = _BOOLS.get(text.lower())
    if value is None:
        raise ValueError(text)
    return value


def _parse_int(text: str) -> int:
    if not _INTEGER.fullmatch(text) or abs(value := int(text[:_MAX_DIGITS])) > _MAX_INT64:
        raise ValueError(text)
    return value


def _parse_float(text: str) -> float:
    if not text:
        return math.nan
    if not _NUMBER.fullmatch(text) or _PADDED.match(text):
        raise ValueError(text)
    if _INTEGER.fullmatch(text) and abs(int(text[:_MAX_DIGITS])) > _MAX_EXACT_FLOAT:
        raise ValueError(text)  # such as an identifier, whose last digits a float does not have
    return float(text)


_PARSERS: Final[Sequence[tuple[Any, Callable[[str], Any]]]] = (
    (np.bool_, _parse_bool),
    (np.int64, _parse_int),
    (np.float64, _parse_float),
)

# --- rows ------------------------------------------------------------------------------------------------------------


def take_rows(column: Sequence[Any], rows: Array) -> Sequence[Any]:
    """Return a column with some of the rows."""
    if isinstance(column, OptionalTexts):
        return _make_object_column([column[row] for row in rows.tolist()])
    array = get_array(column)
    if array is not None:
        return make_column(array[rows])
    return pack_column([column[row] for row in rows.tolist()])


def get_array(column: Sequence[Any]) -> Array | None:
    """Return the array of a column of numbers, dates or arrays. None for all other columns."""
    values: Array | None = getattr(column, "values", None)
    return values
