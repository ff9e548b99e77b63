"""Binary form of the infos of group envs, which keeps NumPy arrays, tuples, bytes and tensors as what they are.

It is the size of a head (4 bytes, little-endian), the head in JSON, and the bytes of all arrays, one after another. In
the head, numbers, strings, None and lists stand for themselves. Anything else is an object with a single key, its tag::

    {"array": [dtype, shape]}   an array in C order, or a NumPy scalar; `dtype` as in NumPy's npy files
    {"tensor": [dtype, shape]}  a tensor in host memory
    {"dict": [[key, value], ...]}  {"tuple": [...]}  {"bytes": size}

An env mostly returns the same kinds and shapes for every batch, so the head is the same, and is parsed once.

Decoding makes no object of any other kind, so a worker that was taken over cannot have code run by it.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import sys
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Final

import numpy as np

from streamloader.common.worker_messages import MAX_NESTING, InvalidMessage, parse_json
from streamloader.errors import ConfigError
from streamloader.values import Array

__all__ = ["decode_infos", "encode_infos"]

_HEAD_SIZE: Final = struct.Struct("<I")
_MAX_KEPT_HEAD_BYTES: Final = 1 << 10
_SURELY_SHALLOW: Final = MAX_NESTING // 2  # levels: a tag adds a few

# --- encoding --------------------------------------------------------------------------------------------------------


def encode_infos(value: Any) -> bytes:
    """Return the binary form of what a group env returned.

    Raises:
        ConfigError: If it contains a value of another type, or is nested too deeply. The message has the path of the
            value and its type.
    """
    writer = _Writer()
    try:
        writer.write(value, 1)
    except _UnsendableInfo as error:
        path = f"infos{''.join(reversed(error.path))}"
        raise ConfigError(f"{f'a key of {path}' if error.is_key else path} {error.reason}") from error
    head = "".join(writer.head).encode()
    if writer.deepest > _SURELY_SHALLOW:
        try:
            parse_json(head)
        except InvalidMessage as error:
            raise ConfigError(f"infos of an env: {error}") from error
    return b"".join((_HEAD_SIZE.pack(len(head)), head, *writer.data))


class _UnsendableInfo(Exception):
    """A value that cannot be sent. The containers around it add their part of the path, from the inside out."""

    def __init__(self, reason: str, *, is_key: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_key = reason, is_key
        self.path: list[str] = []


class _Writer:
    """Writes one value.

    Attributes:
        head: Parts of the head.
        data: Bytes of the arrays.
        deepest: Level of the innermost value.
    """

    def __init__(self) -> None:
        self.head: list[str] = []
        self.data: list[bytes | bytearray] = []
        self.deepest = 0

    def write(self, value: Any, level: int) -> None:
        """Write a value in a container of the level above."""
        kind = type(value)
        if kind in _TEXT_OF:
            self.head.append(_TEXT_OF[kind](value))
        elif isinstance(value, list):
            self._write_items("[", value, "]", level)
        elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            self._write_array("array", np.asarray(value), level)
        elif isinstance(value, tuple):
            self._write_items('{"tuple":[', value, "]}", level + 1)
        elif kind is dict or isinstance(value, Mapping):
            self._write_mapping(value, level)
        elif isinstance(value, (bytes, bytearray)):
            self.head.append(f'{{"bytes":{len(value)}}}')
            self.data.append(value)
            self._note_level(level)
        else:
            self._write_tensor(value, level)

    def _note_level(self, level: int) -> None:
        if level > self.deepest:
            if level > MAX_NESTING:
                raise ConfigError(f"infos of an env: its JSON is nested more than {MAX_NESTING} levels deep")
            self.deepest = level

    def _write_items(self, start: str, items: list[Any] | tuple[Any, ...], end: str, level: int) -> None:
        self._note_level(level)
        head = self.head
        head.append(start)
        for index, item in enumerate(items):
            if index:
                head.append(",")
            try:
                self.write(item, level + 1)
            except _UnsendableInfo as error:
                error.path.append(f"[{index}]")
                raise
        head.append(end)

    def _write_mapping(self, mapping: Mapping[Any, Any], level: int) -> None:
        self._note_level(level + 2)
        head = self.head
        separator = '{"dict":[['
        for key, item in mapping.items():
            head.append(separator)
            separator = "],["
            try:
                self.write(key, level + 3)
            except _UnsendableInfo as error:
                error.is_key = True
                error.path.clear()
                raise
            head.append(",")
            try:
                self.write(item, level + 3)
            except _UnsendableInfo as error:
                error.path.append(f"[{key!r}]")
                raise
        head.append("]]}" if mapping else '{"dict":[]}')

    def _write_array(self, tag: str, array: Array, level: int) -> None:
        text, is_structured = _describe_type(array.dtype)
        self._note_level(MAX_NESTING if is_structured else level + 2)
        self.head.append(f'{{"{tag}":[{text},{list(array.shape)}]}}')
        self.data.append(array.tobytes())

    def _write_tensor(self, value: Any, level: int) -> None:
        torch = sys.modules.get("torch")  # workers do not import it for this
        if torch is None or not isinstance(value, torch.Tensor):
            raise _UnsendableInfo(
                f"is of type {type(value).__name__}: a group env returns numbers, text, bytes, arrays, tensors, and "
                "lists, tuples and dicts of these"
            )
        try:
            array = value.detach().cpu().numpy()
        except TypeError as error:  # a type that NumPy does not have
            raise _UnsendableInfo(f"cannot be sent: {error}") from error
        self._write_array("tensor", array, level)


def _describe_float(value: float) -> str:
    if math.isfinite(value):
        return float.__repr__(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


_TEXT_OF: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda value: "null",
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    float: _describe_float,
    str: encode_basestring_ascii,
}


@functools.lru_cache(maxsize=64)
def _describe_type(dtype: np.dtype[Any]) -> tuple[str, bool]:
    """Return the description of a data type as JSON, and whether it is a structured one."""
    if dtype.names is None:
        return encode_basestring_ascii(dtype.str), False
    return json.dumps(np.lib.format.dtype_to_descr(dtype)), True


# --- decoding --------------------------------------------------------------------------------------------------------


def decode_infos(data: bytes) -> Any:
    """Return the value of which `data` is the binary form. Arrays are writable copies.

    Raises:
        InvalidMessage: If it is not one that :func:`encode_infos` returns.
    """
    start = _HEAD_SIZE.size
    end = start + int.from_bytes(data[:start], "little")
    if not start < end <= len(data):
        raise InvalidMessage("its infos have no head")
    head = data[start:end]
    reader = _Reader(data, end)
    value = reader.read(_parse_head(head) if len(head) <= _MAX_KEPT_HEAD_BYTES else parse_json(head))
    if reader.offset != len(data):
        raise InvalidMessage("its infos have more bytes than their arrays")
    return value


_parse_head = functools.lru_cache(maxsize=16)(parse_json)  # what it returns is only read, and never handed out


class _Reader:
    """Reads the values of one message.

    Attributes:
        offset: Offset of the next array.
    """

    def __init__(self, data: bytes, offset: int) -> None:
        self._data, self.offset = data, offset

    def read(self, value: Any) -> Any:
        """Return the value that a part of the head describes."""
        kind = type(value)
        if kind is list:
            return [self.read(item) for item in value]
        if kind is not dict:
            return value
        if len(value) != 1:
            raise InvalidMessage(f"its infos contain an object of {len(value)} keys")
        ((tag, content),) = value.items()
        read = _READERS.get(tag)
        if read is None:
            raise InvalidMessage("its infos contain an object of an unknown kind")
        try:
            return read(self, content)
        except InvalidMessage:
            raise
        except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError) as error:
            raise InvalidMessage(f"its infos contain a malformed {tag} ({type(error).__name__})") from None

    def read_scalar_or_array(self, content: Any) -> Any:
        """Return a NumPy scalar, or an array of one axis or more."""
        array = self._read_array(content)
        return array if array.ndim else array[()]

    def read_tensor(self, content: Any) -> Any:
        """Return a tensor."""
        import torch

        return torch.from_numpy(self._read_array(content))

    def read_tuple(self, content: Any) -> Any:
        """Return a tuple."""
        if type(content) is not list:
            raise TypeError(content)
        return tuple([self.read(item) for item in content])

    def read_dict(self, content: Any) -> Any:
        """Return a dict."""
        if type(content) is not list:
            raise TypeError(content)
        return {self.read(key): self.read(item) for key, item in content}

    def read_bytes(self, size: Any) -> bytes:
        """Return bytes."""
        start, self.offset = self.offset, self.offset + size
        if type(size) is not int or not start <= self.offset <= len(self._data):
            raise ValueError(size)
        return self._data[start : self.offset]

    def _read_array(self, content: Any) -> Array:
        descr, shape = content
        dtype = np.dtype(descr) if isinstance(descr, str) else np.lib.format.descr_to_dtype(_with_tuples(descr))
        # NumPy takes a shape of [-1] for all that is left.
        if dtype.hasobject or not dtype.itemsize or type(shape) is not list or min(shape, default=0) < 0:
            raise ValueError(content)
        # A copy, because the bytes are read-only.
        array = np.ndarray(shape, dtype, self._data, self.offset).copy()
        self.offset += array.nbytes
        return array


def _with_tuples(descr: Any) -> Any:
    """Return the description of a structured type with tuples, which JSON has turned into lists."""
    if isinstance(descr, str):
        return descr
    return [
        (tuple(name) if isinstance(name, list) else name, _with_tuples(inner), *map(tuple, shape))
        for name, inner, *shape in descr
    ]


_READERS: Final[Mapping[str, Callable[[_Reader, Any], Any]]] = {
    "array": _Reader.read_scalar_or_array,
    "tensor": _Reader.read_tensor,
    "tuple": _Reader.read_tuple,
    "dict": _Reader.read_dict,
    "bytes": _Reader.read_bytes,
}
