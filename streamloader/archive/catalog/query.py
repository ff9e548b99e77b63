"""Queries on the metadata of videos, with the same semantics in every kind of catalog.

A query is a mapping of names to conditions. All conditions have to hold: ``{"camera": "north", "weather.rain":
{"$gt": 0.5}}``. A dot in a name leads into an object; a list on the way is searched item by item. A condition is either
a value, for equality, or an object of operators that all have to hold:

===========  ==========================================================================================================
``$gt``      greater; likewise ``$gte``, ``$lt``, ``$lte``. Numbers compare with numbers, texts with texts by code point
``$ne``      not equal: matches every video that equality does not match, also if the name does not exist
``$in``      equal to one item of a list
``$exists``  true: the name exists, even with the value null; false: the name does not exist
===========  ==========================================================================================================

A list in the metadata matches if it is equal as a whole, or if one of its items is equal (``{"tags": "night"}``).
``None`` matches null, and names that do not exist. ``1`` equals ``1.0``; ``True`` equals no number.
These are the semantics of MongoDB.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamloader.errors import ConfigError

__all__ = ["Condition", "MetadataQuery"]

_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS: Final = ("$gt", "$gte", "$lt", "$lte", "$ne", "$in", "$exists")


@dataclass(frozen=True)
class Condition:
    """One condition of a query.

    Attributes:
        path: Names that lead to the tested value.
        operator: ``"$eq"``, or an operator of the table above.
        value: Operand of the operator.
    """

    path: tuple[str, ...]
    operator: str
    value: Any

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether the metadata satisfy this condition."""
        values = list(_resolve_path(metadata, self.path))
        match self.operator:
            case "$exists":
                return bool(values) is self.value
            case "$ne":
                return not _any_equals(values, self.value)
            case "$in":
                return any(_any_equals(values, operand) for operand in self.value)
            case "$eq":
                return _any_equals(values, self.value)
        compare = _COMPARISONS[self.operator]
        json_type = _get_json_type(self.value)
        return any(
            _get_json_type(item) == json_type and compare(item, self.value)
            for value in values
            for item in _iterate_items(value)
        )


class MetadataQuery:
    """A validated query. Calling it with the metadata of a video returns whether they match.

    Args:
        where: Query as described in this module. None and {} match every video.

    Attributes:
        conditions: Conditions that all have to hold.

    Raises:
        ConfigError: If `where` is not a valid query.
    """

    def __init__(self, where: Mapping[str, Any] | None = None) -> None:
        if where is not None and not isinstance(where, Mapping):
            raise ConfigError(f"a query must be a mapping of names to conditions, got {where!r}")
        self.conditions = tuple(_parse_conditions(where or {}))

    def __bool__(self) -> bool:
        """Return whether the query has any condition."""
        return bool(self.conditions)

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether the metadata match."""
        return all(condition.matches(metadata) for condition in self.conditions)


def _parse_conditions(where: Mapping[str, Any]) -> Iterator[Condition]:
    for name, condition in where.items():
        if not isinstance(name, str):
            raise ConfigError(f"{name!r} is not a metadata name: names are texts")
        path = tuple(name.split("."))
        if name.startswith("$") or not all(path):
            raise ConfigError(
                f"{name!r} is not a metadata name. All conditions of a query have to hold; $or is not supported"
            )
        if isinstance(condition, Mapping) and any(str(key).startswith("$") for key in condition):
            for key, operand in condition.items():
                if key not in _OPERATORS:
                    raise ConfigError(f"{name}: unknown operator {key!r}; use one of {', '.join(_OPERATORS)}")
                yield Condition(path, key, _validate_operand(name, key, operand))
        else:
            yield Condition(path, "$eq", _validate_json(name, condition))


def _validate_operand(name: str, key: str, operand: Any) -> Any:
    if key == "$exists":
        if not isinstance(operand, bool):
            raise ConfigError(f"{name}: $exists takes True or False, not {operand!r}")
        return operand
    if key == "$in":
        if not isinstance(operand, Sequence) or isinstance(operand, (str, bytes)):
            raise ConfigError(f"{name}: $in takes a list, not {operand!r}")
        return [_validate_json(name, item) for item in operand]
    operand = _validate_json(name, operand)
    if key in _COMPARISONS and _get_json_type(operand) not in ("number", "text"):
        raise ConfigError(f"{name}: {key} takes a number or a text, not {operand!r}")
    return operand


def _validate_json(name: str, value: Any) -> Any:
    """Return a copy of a plain JSON value, with lists for sequences. Raise ConfigError for other values."""
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_validate_json(name, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _validate_json(name, item) for key, item in value.items()}
    raise ConfigError(f"{name}: {value!r} is not a plain JSON value")


def _resolve_path(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield the values at a path. Lists on the way can lead to several values."""
    if not path:
        yield value
        return
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(item, Mapping) and path[0] in item:
            yield from _resolve_path(item[path[0]], path[1:])


def _iterate_items(value: Any) -> Iterator[Any]:
    """Yield the value itself and, if it is a list, its items."""
    yield value
    if isinstance(value, (list, tuple)):
        yield from value


def _any_equals(values: Sequence[Any], operand: Any) -> bool:
    if operand is None and not values:
        return True
    return any(_are_equal(item, operand) for value in values for item in _iterate_items(value))


def _are_equal(left: Any, right: Any) -> bool:
    json_type = _get_json_type(left)
    if json_type != _get_json_type(right):
        return False
    if json_type == "list":
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if json_type == "object":
        return left.keys() == right.keys() and all(_are_equal(left[key], right[key]) for key in left)
    return bool(left == right)


def _get_json_type(value: object) -> str:
    for json_type, python_types in _JSON_TYPES.items():
        if isinstance(value, python_types):
            return json_type
    return type(value).__name__


# The order matters: bool is a subclass of int.
_JSON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "null": (type(None),),
    "truth": (bool,),
    "number": (int, float),
    "text": (str,),
    "list": (list, tuple),
    "object": (Mapping,),
}
