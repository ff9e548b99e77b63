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


def transfer(value):
    return decode_infos(encode_infos(value))


def pack(head, data=b"", size=None):
    """Return the binary form with this head, which may be any JSON value or bytes."""
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(head) if size is None else size).to_bytes(4, "little") + head + data


@given(VALUES)
def test_plain_values_arrive_with_their_types(value):
    assert repr(transfer(value)) == repr(value)


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
    got = transfer([array])[0]
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    scalar = isinstance(array, np.generic) or not array.ndim
    assert isinstance(got, np.generic if scalar else np.ndarray)
    if not scalar:
        got[...] = got  # torch.from_numpy() warns of arrays that cannot be written


def test_tensors_arrive_as_tensors():
    for tensor in (torch.arange(6).reshape(2, 3).T, torch.tensor(2.5, requires_grad=True)):
        got = transfer({"x": tensor})["x"]
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
    ("head", "data"),
    [
        ({}, b""),
        ({"a": 1, "b": 2}, b""),
        ({"object": 1}, b""),
        ({"array": 5}, b""),
        ({"array": ["<u1"]}, b"x"),
        ({"array": ["<u1", [1], 1]}, b"x"),
        ({"array": ["<u1", [2]]}, b"x"),  # one byte for two elements
        ({"array": ["<u1", [1]]}, b"xy"),
        ({"array": ["<u1", 1]}, b"x"),
        ({"array": ["<u1", [1 << 70]]}, b"x"),
        ({"array": ["<u1", [1 << 40, 1 << 40]]}, b"x"),
        ({"array": ["<u1", [-1, -1]]}, b"x"),
        ({"array": ["<u1", [-1]]}, b"x"),
        ({"array": ["<u1", ["x"]]}, b"x"),
        ({"array": ["<u1", [1.0]]}, b"x"),
        ({"array": ["<U0", [1 << 40]]}, b""),  # so many elements of no size
        ({"array": ["O", [1]]}, bytes(8)),
        ({"array": [[["a", "O"]], [1]]}, bytes(8)),
        ({"array": ["<u1,__import__", [1]]}, b"x"),
        ({"array": [{"names": 1}, [1]]}, b"x"),
        ({"array": [[["a"]], [1]]}, b"x"),
        ({"array": [5, [1]]}, b"x"),
        ({"tensor": ["<U1", [1]]}, bytes(4)),
        ({"tuple": 5}, b""),
        ({"tuple": {"bytes": 0}}, b""),
        ({"dict": [[1]]}, b""),
        ({"dict": [[[], 1]]}, b""),
        ({"dict": "ab"}, b""),
        ({"bytes": "5"}, b"x"),
        ({"bytes": True}, b"x"),
        ({"bytes": -1}, b"x"),
        ({"bytes": 2}, b"x"),
        ([{"tuple": [{"bytes": 1 << 70}]}], b"x"),
        ([{"bytes": 1}, {"bytes": -1}, {"bytes": 1}], b"x"),  # the same byte twice
        (b"{", b""),
        (b"\xff", b""),
        (b"", b""),
        (b"[" * 65 + b"]" * 65, b""),
    ],
)
def test_nothing_else_is_decoded(head, data):
    with pytest.raises(InvalidMessage):
        decode_infos(pack(head, data))


@pytest.mark.parametrize("data", [b"", b"\x01", pack(b"1", size=0), pack(b"1", size=2), pack(b"1", size=1 << 31)])
def test_a_head_of_another_size_is_refused(data):
    with pytest.raises(InvalidMessage):
        decode_infos(data)


def test_values_of_the_same_kinds_do_not_share_what_they_contain():
    """The head of such messages is parsed once."""
    first, second = (transfer({"a": [np.full(3, number), [1], {"b": []}]}) for number in (1, 2))
    first["a"][1].append(2)
    first["a"][2]["b"].append(3)
    assert first["a"][0].tolist() == [1] * 3
    assert second["a"][0].tolist() == [2] * 3
    assert second["a"][1:] == [[1], {"b": []}]
    assert transfer({"a": [np.full(3, 1), [1], {"b": []}]})["a"][1:] == [[1], {"b": []}]


def nest(levels, make=lambda value: [value], innermost=0):
    value = innermost
    for _ in range(levels):
        value = make(value)
    return value


MAKES = [
    (lambda value: [value], 1, 0),
    (lambda value: (value,), 2, 0),
    (lambda value: {"a": value}, 3, 0),
    (lambda value: [value], 1, np.zeros(2)),
    (lambda value: [value], 1, np.zeros(2, [("a", [("b", [("c", "i4")])])])),
]


@pytest.mark.parametrize(("make", "levels", "innermost"), MAKES)
def test_what_is_sent_is_accepted(make, levels, innermost):
    sent = 0
    for count in range(1, 100):
        try:
            data = encode_infos(nest(count, make, innermost))
        except sl.ConfigError as error:
            assert "nested more than 64 levels deep" in error.message  # noqa: PT017 - of what is nested the least
            break
        decode_infos(data)
        sent = count
    assert 64 - 8 <= sent * levels <= 64
