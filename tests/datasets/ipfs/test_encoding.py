"""Items are exactly what was encoded, and any other bytes are one typed error."""

from __future__ import annotations

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamloader.datasets.ipfs.encoding import decode_item, encode_item
from streamloader.errors import StreamloaderError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 400), 1 << 400)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values)
        | st.lists(values).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), values)
    ),
    max_leaves=12,
)


def is_same(one, other):  # noqa: PLR0911 - a case for each type
    """Equality that tells types, signs of zero and kinds of NaN apart."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return is_same(list(one), list(other)) and is_same(list(one.values()), list(other.values()))
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex):
        return is_same(one.real, other.real) and is_same(one.imag, other.imag)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(as_bytes(one), as_bytes(other))
    return one == other


def as_bytes(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@given(VALUES)
def test_plain_values(value):
    assert is_same(decode_item(encode_item(value)), value)


TENSORS = [
    torch.arange(12).reshape(3, 4),
    torch.arange(12).reshape(3, 4).t(),
    torch.tensor(3.5),
    torch.empty(0, 7),
    torch.tensor([True, False]),
    torch.randn(3, dtype=torch.float64),
    torch.randn(4).to(torch.bfloat16),
    torch.randn(4).to(torch.float16),
    torch.randn(2, dtype=torch.complex64),
    torch.randint(0, 255, (2, 3), dtype=torch.uint8)[:, ::2],
]
ARRAYS = [
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.arange(6.0).reshape(2, 3).T,
    np.zeros((0, 3), "<f2"),
    np.array(7),
    np.array(["ä", "bc"]),
    np.array([b"x", b"yz"]),
    np.float32(1.5),
    np.int64(-3),
    np.bool_(True),
]


@pytest.mark.parametrize("value", [*TENSORS, *ARRAYS], ids=lambda value: f"{type(value).__name__}-{value.dtype}")
def test_tensors_and_arrays(value):
    assert is_same(decode_item(encode_item((value, {"x": [value]}))), (value, {"x": [value]}))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16", "F"])
def test_images(mode):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 12)).convert(mode if mode != "I;16" else "I")
    if mode == "I;16":
        image = image.convert("I;16")
    decoded = decode_item(encode_item(image))
    assert (decoded.mode, decoded.size) == (image.mode, image.size)
    assert decoded.tobytes() == image.tobytes()
    assert decoded.getpalette() == image.getpalette()


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), print, {1: 2}.keys()])
def test_what_would_need_code_is_refused(value):
    with pytest.raises(StreamloaderError):
        encode_item([value])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(data):
    for packed in (data, encode_item((1, "a", [2.5]))[:2] + data):
        try:
            decode_item(packed)
        except StreamloaderError:
            continue


def test_damaged_items_are_values_or_errors_and_take_no_memory():
    data = encode_item({"image": np.arange(100), "text": ["abc", (1, None, 2.5)], "tensor": torch.zeros(5)})
    tracemalloc.start()
    try:
        for position in range(len(data)):
            for wrong in (data[:position], data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]):
                try:
                    decode_item(wrong)
                except StreamloaderError:
                    continue
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(StreamloaderError):
        decode_item(data + b"\0")


def test_deep_nesting_is_an_error():
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(StreamloaderError):
        encode_item(value)
    assert math.isnan(decode_item(encode_item(math.nan)))
