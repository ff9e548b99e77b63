"""The language of queries, by its laws; the table of what matches is in the suite of catalogs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamloader.archive.catalog.query import MetadataQuery
from streamloader.errors import ConfigError

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, -0.0, 1.0, 1.5]),
    st.sampled_from(["", "a", "b"]),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
METADATA = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
NAMES = st.sampled_from(["a", "b", "a.b", "a.b.c", "c.a"])
ORDERED = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 1.0]), st.sampled_from(["", "a"]))

FEW = settings(max_examples=40)


def matches(where, metadata):
    return MetadataQuery(where)(metadata)


@FEW
@given(METADATA, NAMES, VALUES)
def test_not_equal_is_the_opposite_of_equal(metadata, name, value):
    query = {"$in": [value]}  # equality, with objects that are no operators too
    assert matches({name: {"$ne": value}}, metadata) is not matches({name: query}, metadata)
    assert matches({name: value}, metadata) is matches({name: query}, metadata)


@FEW
@given(METADATA, NAMES, st.lists(VALUES, max_size=3))
def test_in_is_any_of_them(metadata, name, values):
    assert matches({name: {"$in": values}}, metadata) is any(
        matches({name: {"$in": [value]}}, metadata) for value in values
    )


@FEW
@given(METADATA, NAMES, ORDERED)
def test_order_agrees_with_equality(metadata, name, value):
    for strict, loose in (("$gt", "$gte"), ("$lt", "$lte")):
        either = matches({name: {strict: value}}, metadata) or matches({name: value}, metadata)
        assert matches({name: {loose: value}}, metadata) is either


@FEW
@given(METADATA, NAMES, VALUES)
def test_what_is_missing_is_null(metadata, name, value):
    if matches({name: {"$exists": False}}, metadata):
        assert matches({name: value}, metadata) is (value is None)
        assert not matches({name: {"$gte": 0}}, metadata)


@FEW
@given(METADATA, NAMES, VALUES)
def test_lists_match_by_their_items(metadata, name, value):
    if "." in name or not matches({name: value}, {name: value}):
        return
    assert matches({name: value}, {name: [None, value, 7]})
    assert matches({name: [value, "x"]}, {name: [value, "x"]})


@FEW
@given(METADATA, NAMES, VALUES)
def test_json_changes_nothing(metadata, name, value):
    kept = json.loads(json.dumps(metadata))
    assert matches({name: value}, kept) is matches({name: value}, metadata)
    assert MetadataQuery({name: value}).conditions


@FEW
@given(METADATA)
def test_conditions_all_have_to_hold(metadata):
    query = {"a": {"$gte": -3, "$lt": 3}, "b": {"$exists": True}}
    parts = [{"a": {"$gte": -3}}, {"a": {"$lt": 3}}, {"b": {"$exists": True}}]
    assert matches(query, metadata) is all(matches(part, metadata) for part in parts)
    assert matches({}, metadata)
    assert not MetadataQuery(None)
    assert MetadataQuery(query)


def test_truth_is_no_number():
    assert not matches({"a": 1}, {"a": True})
    assert not matches({"a": {"$gte": 0}}, {"a": True})
    assert not matches({"a": [1]}, {"a": [True]})
    assert not matches({"a": {"b": 0}}, {"a": {"b": False}})
    assert matches({"a": 2**53 + 1}, {"a": 2**53 + 1})
    assert not matches({"a": float(2**53)}, {"a": 2**53 + 1})


@pytest.mark.parametrize("where", [{"a": {"$gt": True}}, {"a": {"$lt": {}}}, {"a": {"$eq": 1}}, {"a": {1, 2}}, 5])
def test_what_makes_no_sense(where):
    with pytest.raises(ConfigError):
        MetadataQuery(where)
