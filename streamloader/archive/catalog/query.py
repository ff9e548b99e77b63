"""Which videos are meant: conditions on their metadata, with the same meaning in every kind of catalog.

A query is a mapping of names to conditions, all of which have to hold: ``{"camera": "north", "weather.rain":
{"$gt": 0.5}}``. A dot leads into an object; a list on the way is gone through item by item. A condition is a value, for
equality, or an object of operators, all of which have to hold:

===========  ==========================================================================================================
``$gt``      greater, as are ``$gte``, ``$lt``, ``$lte``: numbers with numbers, text with text by code points, else not
``$ne``      not equal: what equality would not match, so also where there is nothing of this name
``$in``      equal to one of a list
``$exists``  true: there is something of this name, null too; false: there is nothing
===========  ==========================================================================================================

A list in the metadata matches where it equals as a whole, and where one of its items does (``{"tags": "night"}``).
``None`` matches null, and where there is nothing of this name. ``1`` equals ``1.0``; ``True`` equals no number.
These are MongoDB's meanings.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamloader.errors import ConfigError

__all__ = ["Condition", "Where"]

_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_KNOWN: Final = ("$gt", "$gte", "$lt", "$lte", "$ne", "$in", "$exists")


@dataclass(frozen=True)
class Condition:
    """One condition of a query.

    Attributes:
        path: names that lead to what is asked about.
        operator: ``"$eq"``, or one of those above.
        value: what it is compared with.
    """

    path: tuple[str, ...]
    operator: str
    value: Any

    def holds(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether these metadata fulfil it."""
        found = list(_reach(metadata, self.path))
        match self.operator:
            case "$exists":
                return bool(found) is self.value
            case "$ne":
                return not _equals(found, self.value)
            case "$in":
                return any(_equals(found, value) for value in self.value)
            case "$eq":
                return _equals(found, self.value)
        compare = _ORDER[self.operator]
        kind = _kind(self.value)
        return any(_kind(item) == kind and compare(item, self.value) for value in found for item in _items(value))


class Where:
    """A query that was checked. Call it with the metadata of a video to ask whether that matches.

    Args:
        where: the query; None and {} match everything.

    Attributes:
        conditions: all that have to hold.

    Raises:
        ConfigError: it makes no sense.
    """

    def __init__(self, where: Mapping[str, Any] | None = None) -> None:
        if where is not None and not isinstance(where, Mapping):
            raise ConfigError(f"a query is a mapping of names to conditions, not {where!r}")
        self.conditions = tuple(_conditions(where or {}))

    def __bool__(self) -> bool:
        """Return whether it asks for anything."""
        return bool(self.conditions)

    def __call__(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether metadata match."""
        return all(condition.holds(metadata) for condition in self.conditions)


def _conditions(where: Mapping[str, Any]) -> Iterator[Condition]:
    for name, asked in where.items():
        if not isinstance(name, str):
            raise ConfigError(f"{name!r} is no name of metadata")
        path = tuple(name.split("."))
        if name.startswith("$") or not all(path):
            raise ConfigError(
                f"{name!r} is no name of metadata; all conditions of a query have to hold, there is no $or"
            )
        if isinstance(asked, Mapping) and any(str(key).startswith("$") for key in asked):
            for key, value in asked.items():
                if key not in _KNOWN:
                    raise ConfigError(f"{name}: {key!r} is none of {', '.join(_KNOWN)}")
                yield Condition(path, key, _operand(name, key, value))
        else:
            yield Condition(path, "$eq", _plain(name, asked))


def _operand(name: str, key: str, value: Any) -> Any:
    if key == "$exists":
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: $exists takes True or False, not {value!r}")
        return value
    if key == "$in":
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise ConfigError(f"{name}: $in takes a list, not {value!r}")
        return [_plain(name, item) for item in value]
    value = _plain(name, value)
    if key in _ORDER and _kind(value) not in ("number", "text"):
        raise ConfigError(f"{name}: {key} compares with a number or a text, not {value!r}")
    return value


def _plain(name: str, value: Any) -> Any:
    """Return a plain JSON value with lists for sequences; raise for others."""
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, item) for key, item in value.items()}
    raise ConfigError(f"{name}: {value!r} is no plain JSON value")


def _reach(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield what a path leads to: nothing, one value, or several where lists are on the way."""
    if not path:
        yield value
        return
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(item, Mapping) and path[0] in item:
            yield from _reach(item[path[0]], path[1:])


def _items(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (list, tuple)):
        yield from value


def _equals(found: Sequence[Any], value: Any) -> bool:
    if value is None and not found:
        return True
    return any(_same(item, value) for one in found for item in _items(one))


def _same(one: Any, other: Any) -> bool:
    kind = _kind(one)
    if kind != _kind(other):
        return False
    if kind == "list":
        return len(one) == len(other) and all(map(_same, one, other))
    if kind == "object":
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _kind(value: object) -> str:
    for kind, types in _KINDS.items():
        if isinstance(value, types):
            return kind
    return type(value).__name__


_KINDS: Final[dict[str, tuple[type, ...]]] = {  # a bool is an int to Python: first come, first served
    "null": (type(None),),
    "truth": (bool,),
    "number": (int, float),
    "text": (str,),
    "list": (list, tuple),
    "object": (Mapping,),
}
