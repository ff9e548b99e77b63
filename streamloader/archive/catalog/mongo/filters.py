"""Which part of a query a MongoDB server decides.

:class:`Where` decides in the end, so that a query means the same everywhere: not all servers of the protocol agree with
MongoDB on lists, null and what is missing. The server only has to leave out what cannot match, so that not all videos
travel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from streamloader.archive.catalog.query import Condition, Where

__all__ = ["has_lists", "server_filter"]

_ORDER: Final = ("$gt", "$gte", "$lt", "$lte")


def server_filter(where: Where) -> dict[str, Any]:
    """Return a filter of MongoDB's that all videos pass whose metadata match, and some others perhaps."""
    parts = [
        {f"metadata.{'.'.join(condition.path)}": told} for condition in where.conditions for told in _told(condition)
    ]
    if not parts:
        return {}
    if any(len(condition.path) > 1 or condition.operator in _ORDER for condition in where.conditions):
        return {"$or": [{"$and": parts}, {"lists": True}]}  # not all servers look into lists then
    return {"$and": parts}


def has_lists(value: object) -> bool:
    """Return whether there are lists in these metadata."""
    if isinstance(value, Mapping):
        return any(map(has_lists, value.values()))
    return isinstance(value, (list, tuple))


def _told(condition: Condition) -> Iterator[dict[str, Any]]:
    match condition.operator:
        case "$eq" if _simple(condition.value):
            yield {"$in": [condition.value]}
        case "$in" if condition.value and all(map(_simple, condition.value)):
            yield {"$in": condition.value}
        case name if name in _ORDER and _simple(condition.value):
            yield {name: condition.value}


def _simple(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63  # what BSON has
    return isinstance(value, (str, float))
