"""Server-side filters for metadata queries in MongoDB.

:class:`MetadataQuery` has the final decision, so that a query has the same semantics in every catalog: not all servers
that speak this protocol agree with MongoDB on lists, null and missing names. The server filter only has to exclude
videos that cannot match, so that fewer documents are transferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from streamloader.archive.catalog.query import Condition, MetadataQuery

__all__ = ["build_server_filter", "contains_list"]

_COMPARISONS: Final = ("$gt", "$gte", "$lt", "$lte")


def build_server_filter(query: MetadataQuery) -> dict[str, Any]:
    """Return a MongoDB filter that accepts all videos that match, and possibly some others."""
    parts = [
        {f"metadata.{'.'.join(condition.path)}": server_condition}
        for condition in query.conditions
        for server_condition in _translate_condition(condition)
    ]
    if not parts:
        return {}
    if any(len(condition.path) > 1 or condition.operator in _COMPARISONS for condition in query.conditions):
        return {"$or": [{"$and": parts}, {"lists": True}]}  # not all servers search lists then
    return {"$and": parts}


def contains_list(value: object) -> bool:
    """Return whether a metadata value is a list or contains one."""
    if isinstance(value, Mapping):
        return any(map(contains_list, value.values()))
    return isinstance(value, (list, tuple))


def _translate_condition(condition: Condition) -> Iterator[dict[str, Any]]:
    match condition.operator:
        case "$eq" if _is_bson_scalar(condition.value):
            yield {"$in": [condition.value]}
        case "$in" if condition.value and all(map(_is_bson_scalar, condition.value)):
            yield {"$in": condition.value}
        case name if name in _COMPARISONS and _is_bson_scalar(condition.value):
            yield {name: condition.value}


def _is_bson_scalar(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return isinstance(value, (str, float))
