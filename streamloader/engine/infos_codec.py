"""JSON form of the infos of group envs, which keeps NumPy arrays, tuples, bytes and tensors as what they are.

Numbers, strings, None and lists stand for themselves. Anything else is an object with a single key, its tag::

    {"array": [dtype, shape, base64]}   an array in C order, or a NumPy scalar; `dtype` as in NumPy's npy files
    {"tensor": [dtype, shape, base64]}  a tensor in host memory
    {"dict": [[key, value], ...]}  {"tuple": [...]}  {"bytes": base64}

Decoding makes no object of any other kind, so a worker that was taken over cannot have code run by it.
"""

from __future__ import annotations

import binascii
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from streamloader.common.worker_messages import InvalidMessage
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["decode_infos", "encode_infos"]

_KEPT_AS_THEY_ARE: Final = (type(None), bool, int, float, str)


def encode_infos(value: Any, path: str = "infos") -> Any:
    """Return the JSON form of `value`.

    Args:
        value: Value that a group env returned.
        path: Path of the value in what the env returned, for messages.

    Raises:
        ConfigError: If it contains a value of another type. The message has the path of that value and its type.
    """
    if type(value) in _KEPT_AS_THEY_ARE:
        return value
    if isinstance(value, list):
        return [encode_infos(item, f"{path}[{index}]") for index, item in enumerate(value)]
    tag, content = _encode_tagged(value, path)
    return {tag: content}


def _encode_tagged(value: Any, path: str) -> tuple[str, Any]:
    """Return tag and content of a value that has no JSON form of its own."""
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return "array", _encode_array(np.asarray(value))
    if isinstance(value, tuple):
        return "tuple", [encode_infos(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        keys = [encode_infos(key, f"a key of {path}") for key in value]
        items = [encode_infos(item, f"{path}[{key!r}]") for key, item in value.items()]
        return "dict", list(zip(keys, items, strict=True))
    if isinstance(value, (bytes, bytearray)):
        return "bytes", _encode_bytes(value)
    torch = sys.modules.get("torch")  # workers do not import it for this
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            return "tensor", _encode_array(value.detach().cpu().numpy())
        except TypeError as error:  # a type that NumPy does not have
            raise ConfigError(f"{path} cannot be sent: {error}") from error
    raise ConfigError(
        f"{path} is of type {type(value).__name__}: a group env returns numbers, text, bytes, arrays, tensors, and "
        "lists, tuples and dicts of these"
    )


def _encode_array(array: Array) -> list[Any]:
    dtype = array.dtype
    description = dtype.str if dtype.names is None else np.lib.format.dtype_to_descr(dtype)
    return [description, array.shape, _encode_bytes(array.tobytes())]


def _encode_bytes(data: bytes | bytearray) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _decode_bytes(text: Any) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def decode_infos(value: Any) -> Any:
    """Return the value of which `value` is the JSON form. Arrays are writable copies.

    Raises:
        InvalidMessage: If it is not one that :func:`encode_infos` returns.
    """
    if isinstance(value, list):
        return [decode_infos(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise InvalidMessage(f"its infos contain an object of {len(value)} keys")
    ((tag, content),) = value.items()
    if tag not in _DECODERS:
        raise InvalidMessage("its infos contain an object of an unknown kind")
    try:
        return _DECODERS[tag](content)
    except InvalidMessage:
        raise
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError) as error:
        raise InvalidMessage(f"its infos contain a malformed {tag} ({type(error).__name__})") from None


def _decode_scalar_or_array(content: Any) -> Any:
    array = _decode_array(content)
    return array if array.ndim else array[()]


def _decode_tensor(content: Any) -> Any:
    import torch

    return torch.from_numpy(_decode_array(content))


def _decode_array(content: Any) -> Array:
    descr, shape, text = content
    dtype = np.dtype(descr) if isinstance(descr, str) else np.lib.format.descr_to_dtype(_with_tuples(descr))
    if dtype.hasobject:
        raise ValueError(dtype)
    # A copy, because decoded bytes are read-only.
    return np.frombuffer(_decode_bytes(text), dtype).reshape(tuple(shape)).copy()


def _with_tuples(descr: Any) -> Any:
    """Return the description of a structured type with tuples, which JSON has turned into lists."""
    if isinstance(descr, str):
        return descr
    return [
        (tuple(name) if isinstance(name, list) else name, _with_tuples(inner), *map(tuple, shape))
        for name, inner, *shape in descr
    ]


_DECODERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "array": _decode_scalar_or_array,
    "tensor": _decode_tensor,
    "tuple": lambda content: tuple(decode_infos(item) for item in content),
    "dict": lambda content: {decode_infos(key): decode_infos(item) for key, item in content},
    "bytes": _decode_bytes,
}
