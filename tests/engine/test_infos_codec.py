"""The infos of group envs arrive as they were returned, and nothing else can be made to arrive."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import streamloader as sl
from streamloader.common.worker_messages import InvalidMessage
from streamloader.engine.infos_codec import decode_infos, encode_infos

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
SCALARS = PLAIN | st.binary(max_size=9)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text("ab\u00e9") | st.integers(), inner)
    ),
    max_leaves=12,
)


def through_json(value):
    return decode_infos(json.loads(json.dumps(encode_infos(value))))


@given(VALUES)
def test_plain_values_arrive_with_their_types(value):
    assert repr(through_json(value)) == repr(value)


ARRAYS = [
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.arange(6, dtype=">i4").reshape(2, 3)[:, ::2],
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(7, "u8"),
    np.empty((0, 3), np.float32),
    np.array([True, False]),
    np.array(["a", "bcd"]),
    np.array([b"x", b"yz"]),
    np.array(["2020-01-02", "NaT"], "datetime64[D]"),
    np.array([1, 2], "timedelta64[ms]"),
    np.array([1 + 2j]),
    np.array([(1, 2.5, [3, 4])], [("t", "<i8"), ("x", "<f4"), ("p", "u1", (2,))]),
    np.zeros(2, [(("a title", "a"), "<i2"), ("b", [("c", "<u4"), ("d", "S3")])]),
    np.float32(0.1),
    np.int64(-5),
    np.bool_(True),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{np.shape(array)}"[:40])
def test_arrays_arrive_with_their_types(array):
    got = through_json([array])[0]
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    scalar = isinstance(array, np.generic) or not array.ndim
    assert isinstance(got, np.generic if scalar else np.ndarray)
    if not scalar:
        got[...] = got  # torch.from_numpy() warns of arrays that cannot be written


def test_tensors_arrive_as_tensors():
    for tensor in (torch.arange(6).reshape(2, 3).T, torch.tensor(2.5, requires_grad=True)):
        got = through_json({"x": tensor})["x"]
        assert type(got) is torch.Tensor
        assert got.equal(tensor.detach())
        assert got.dtype == tensor.dtype


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"^infos\['a'\]\[1\] is of type set: a group env returns"),
        ({"a": (1 + 2j,)}, r"^infos\['a'\]\[0\] is of type complex"),
        ({frozenset(): 1}, "^a key of infos is of type frozenset"),
        ([np.array([None])], r"^infos\[0\] is of type ndarray"),
        ([np.zeros(1, [("a", object)])], r"^infos\[0\] is of type ndarray"),
        (torch.ones(1, dtype=torch.bfloat16), "^infos cannot be sent: .*BFloat16"),
    ],
)
def test_other_values_are_refused_and_named(value, message):
    with pytest.raises(sl.ConfigError, match=message):
        encode_infos(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": 2},
        {"object": 1},
        {"array": 5},
        {"array": ["<u1", [2]]},
        {"array": ["<u1", [2], "AA=="]},  # one byte for two elements
        {"array": ["<u1", [1 << 70], "AA=="]},
        {"array": ["<u1", [-1, -1], "AA=="]},
        {"array": ["<u1", ["x"], "AA=="]},
        {"array": ["<u1", [1], "A"]},
        {"array": ["<u1", [1], "!AA=="]},
        {"array": ["O", [1], "AAAAAAAAAAA="]},
        {"array": [[["a", "O"]], [1], "AAAAAAAAAAA="]},
        {"array": ["<u1,__import__", [1], "AA=="]},
        {"array": [{"names": 1}, [1], "AA=="]},
        {"array": [[["a"]], [1], "AA=="]},
        {"array": [5, [1], "AA=="]},
        {"tensor": ["<U1", [1], "AAAAAA=="]},
        {"tuple": 5},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"bytes": 5},
        {"bytes": "\u00e9"},
        [{"tuple": [{"bytes": "A"}]}],
    ],
)
def test_nothing_else_is_decoded(value):
    with pytest.raises(InvalidMessage):
        decode_infos(value)
