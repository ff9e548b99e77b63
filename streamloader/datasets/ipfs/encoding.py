"""Encode one item of a data set as bytes, and decode it again, without pickle: decoding never runs code.

An item is a magic number of four bytes (0x8a and ``SI1``) and one value. A value is a tag of one byte and its content;
all numbers are little-endian. "size" and "count" are unsigned varints (LEB128) in their shortest form.

======  ==========================  ===================================================================================
tag     type                        content
======  ==========================  ===================================================================================
``N``   None
``T``   True
``F``   False
``i``   int                         size, two's complement
``d``   float                       IEEE 754, 8 bytes
``c``   complex                     real and imaginary part, 16 bytes
``s``   str                         size, UTF-8 (lone surrogates as Python's "surrogatepass")
``b``   bytes                       size, bytes
``B``   bytearray                   size, bytes
``t``   tuple                       count, values
``l``   list                        count, values
``m``   dict                        count, then key and value in turn, in the order of the dict
``a``   numpy.ndarray               type, shape, size, elements in C order
``g``   NumPy scalar                type, size, bytes of the element
``u``   numpy.str_                  size, UTF-8
``y``   numpy.bytes_                size, bytes
``x``   torch.Tensor                name of the type as a ``s`` value, shape, size, elements in C order
``p``   PIL image                   see :mod:`streamloader.datasets.ipfs.image_encoding`
======  ==========================  ===================================================================================

A shape is a count and that many varints. The type of an array is a ``s`` value with NumPy's name of it (``<f4``,
``>i2``, ``<M8[ns]``), or, for structured types, a ``t`` value: ("struct", bytes of an element, ((name, type, offset),
...)); a field may also be ("array", type, shape). Keys of dicts are of the types N, T, F, i, d, c, s, b, u, y, g, or
tuples of these.
"""

from __future__ import annotations

import math
import operator
import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.datasets.ipfs.image_encoding import MalformedImage, pack_image, unpack_image
from streamloader.errors import ConfigError, CorruptSample
from streamloader.torch_support import require_torch
from streamloader.values import Array

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_DEPTH", "TENSOR_TYPES", "decode_item", "encode_item"]

MAX_DEPTH: Final = 64  # levels of tuples, lists and dicts

_MAGIC: Final = b"\x8aSI1"
_MAX_DIMENSIONS: Final = 64
_MAX_CODE_POINT: Final = 0x10FFFF
_PLAIN_TYPE: Final = re.compile(r"[<>|][biufc]\d{1,2}|[<>|][SUV]\d{1,10}|[<>][mM]8(\[\d{0,9}[a-zA-Z]{1,2}\])?")
_KEY_TAGS: Final = frozenset(b"NTFidcsbuygt")
_FLOAT: Final = struct.Struct("<d")
_COMPLEX: Final = struct.Struct("<dd")
TENSOR_TYPES: Final = frozenset(
    [
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ]
)
_Dtype = np.dtype[Any]


def encode_item(value: object) -> bytes:
    """Encode a value so that :func:`decode_item` returns an equal one, of the same types, on any machine.

    The value may consist of None, bool, int, float, complex, str, bytes, bytearray, tuples, lists, dicts, NumPy arrays
    and scalars without Python objects, dense CPU tensors without gradients, and PIL images. Arrays and tensors keep
    element type, byte order, shape and values, and become contiguous; a numpy.memmap becomes an array. Images keep
    mode, size, pixels, palette, and those entries of ``info`` that can be encoded.

    Raises:
        ConfigError: If the value contains anything else, such as an object of a class, or is nested too deeply. The
            message says where.
    """
    writer = _ItemWriter()
    writer.out += _MAGIC
    writer.write(value)
    return bytes(writer.out)


def decode_item(data: bytes | bytearray | memoryview) -> Any:
    """Decode an item. Any bytes give a value or one error; memory stays in proportion to the size of the data.

    Arrays, tensors and images own their memory and can be written to.

    Raises:
        CorruptSample: If the data is not an encoded item. ``offset``: byte of the item.
        MissingDependency: If the item contains an image, and Pillow is not installed.
    """
    reader = _ItemReader(data)
    try:
        if bytes(reader.take(len(_MAGIC))) != _MAGIC:
            raise _Malformed("it does not begin like an encoded item")
        value = reader.read()
        if reader.remaining:
            raise _Malformed(f"{reader.remaining} bytes follow the value")
    except (_Malformed, MalformedImage) as error:
        raise CorruptSample(
            f"an item of {len(reader.data)} bytes cannot be decoded: byte {reader.offset}: {error}",
            offset=reader.offset,
        ) from None
    return value


class _Malformed(Exception):
    """The bytes are no encoded item."""


# --- encoding --------------------------------------------------------------------------------------------------------


class _ItemWriter:
    """Appends values to `out`."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._path: list[str] = []

    def write(self, value: object) -> None:
        write = _WRITERS.get(type(value))
        if write is not None:
            write(self, value)
        elif isinstance(value, np.generic):
            self._write_scalar(value)
        elif type(value) in (np.ndarray, np.memmap):
            self._write_array(np.asarray(value))
        elif (module := sys.modules.get("torch")) is not None and isinstance(value, module.Tensor):
            self._write_tensor(value)
        elif (module := sys.modules.get("PIL.Image")) is not None and isinstance(value, module.Image):
            self._write_image(value)
        else:
            kind = type(value)
            raise self._make_error(
                f"it is a {kind.__module__}.{kind.__qualname__}, which cannot be encoded without pickle: convert it to "
                "numbers, texts, bytes, tuples, lists, dicts, arrays, tensors or images"
            )

    def write_count(self, count: int) -> None:
        while count > 0x7F:
            self.out.append(count & 0x7F | 0x80)
            count >>= 7
        self.out.append(count)

    def write_bytes(self, data: bytes | bytearray) -> None:
        self.write_count(len(data))
        self.out += data

    def write_none(self, value: None) -> None:
        self.out += b"N"

    def write_bool(self, value: bool) -> None:
        self.out += b"T" if value else b"F"

    def write_int(self, value: int) -> None:
        self.out += b"i"
        self.write_bytes(_pack_int(value))

    def write_float(self, value: float) -> None:
        self.out += b"d" + _FLOAT.pack(value)

    def write_complex(self, value: complex) -> None:
        self.out += b"c" + _COMPLEX.pack(value.real, value.imag)

    def write_str(self, value: str) -> None:
        self.out += b"s"
        self.write_bytes(value.encode("utf-8", "surrogatepass"))

    def write_binary(self, value: bytes) -> None:
        self.out += b"b"
        self.write_bytes(value)

    def write_bytearray(self, value: bytearray) -> None:
        self.out += b"B"
        self.write_bytes(value)

    def write_tuple(self, values: tuple[object, ...]) -> None:
        self._write_values(b"t", values)

    def write_list(self, values: list[object]) -> None:
        self._write_values(b"l", values)

    def _write_values(self, tag: bytes, values: Sequence[object]) -> None:
        self.out += tag
        self.write_count(len(values))
        for number, value in enumerate(values):
            self._write_child(f"[{number}]", value)

    def write_dict(self, values: dict[object, object]) -> None:
        self.out += b"m"
        self.write_count(len(values))
        for key, value in values.items():
            start = len(self.out)
            self._write_child(f".keys()[{make_printable(repr(key))[:60]}]", key)
            if self.out[start] not in _KEY_TAGS:
                raise self._make_error(f"it has a key of type {type(key).__qualname__}, which cannot be encoded")
            self._write_child(f"[{make_printable(repr(key))[:60]}]", value)

    def _write_child(self, name: str, value: object) -> None:
        self._path.append(name)
        if len(self._path) > MAX_DEPTH:
            raise self._make_error(f"it is nested in more than {MAX_DEPTH} tuples, lists and dicts")
        self.write(value)
        self._path.pop()

    def _write_array(self, array: Array) -> None:
        self.out += b"a"
        self._write_dtype(array.dtype)
        self._write_shape(array.shape)
        self.write_bytes(array.tobytes())

    def _write_scalar(self, value: np.generic[Any]) -> None:
        if isinstance(value, np.str_):
            self.out += b"u"
            self.write_bytes(value.encode("utf-8", "surrogatepass"))  # str() would drop null characters
        elif isinstance(value, np.bytes_):
            self.out += b"y"
            self.write_bytes(bytes(value))
        else:
            array = np.asarray(value)
            self.out += b"g"
            self._write_dtype(array.dtype)
            self.write_bytes(array.tobytes())

    def _write_dtype(self, dtype: _Dtype) -> None:
        try:
            plain = _describe_dtype(dtype)
        except _Malformed as error:
            raise self._make_error(f"it is an array of {dtype}: {error}") from None
        self.write(plain)

    def _write_shape(self, shape: Sequence[int]) -> None:
        self.write_count(len(shape))
        for length in shape:
            self.write_count(length)

    def _write_tensor(self, tensor: torch.Tensor) -> None:
        import torch

        name = str(tensor.dtype).removeprefix("torch.")
        reason = None
        if type(tensor) is not torch.Tensor:
            reason = f"of the class {type(tensor).__qualname__}: use tensor.as_subclass(torch.Tensor)"
        elif tensor.requires_grad:
            reason = "that requires a gradient: use tensor.detach()"
        elif tensor.device.type != "cpu":
            reason = f"on {tensor.device}: use tensor.cpu()"
        elif tensor.layout is not torch.strided or name not in TENSOR_TYPES:
            reason = f"of {name}, {tensor.layout}: only dense tensors of numbers can be encoded"
        if reason is not None:
            raise self._make_error(f"it is a tensor {reason}")
        elements = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        self.out += b"x"
        self.write(name)
        self._write_shape(tensor.shape)
        self.write_bytes(elements.numpy().tobytes())

    def _write_image(self, image: Any) -> None:
        try:
            packed = pack_image(image)
        except MalformedImage as error:
            raise self._make_error(f"it is an image: {error}") from None
        info: dict[object, object] = {}
        for key, value in packed.info.items():
            try:
                encode_item((key, value))
            except ConfigError:  # notes of a file format, such as rational numbers of TIFF
                continue
            info[key] = value
        self.out += b"p"
        palette = (packed.palette_mode, packed.palette)
        for part in (packed.mode, packed.width, packed.height, *palette, info, packed.pixels):
            self._write_child(".info", part)

    def _make_error(self, detail: str) -> ConfigError:
        return ConfigError(f"item{''.join(self._path)[:200]}: {detail}")


_WRITERS: Final[dict[type, Callable[[_ItemWriter, Any], None]]] = {
    type(None): _ItemWriter.write_none,
    bool: _ItemWriter.write_bool,
    int: _ItemWriter.write_int,
    float: _ItemWriter.write_float,
    complex: _ItemWriter.write_complex,
    str: _ItemWriter.write_str,
    bytes: _ItemWriter.write_binary,
    bytearray: _ItemWriter.write_bytearray,
    tuple: _ItemWriter.write_tuple,
    list: _ItemWriter.write_list,
    dict: _ItemWriter.write_dict,
}


def _pack_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


# --- decoding --------------------------------------------------------------------------------------------------------


class _ItemReader:
    """Reads values of `data`, from `offset` on. Nothing is allocated before the data for it is known to be there."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = memoryview(data).cast("B")
        self.offset = 0
        self._depth = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.offset

    def take(self, size: int) -> memoryview:
        if size > self.remaining:
            raise _Malformed(f"{size} bytes are needed, and {self.remaining} are left")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def take_count(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 56:
                raise _Malformed("a number of more than 63 bits")
        if shift and not byte:
            raise _Malformed("a number that is not in its shortest form")
        return value

    def take_sized(self) -> memoryview:
        return self.take(self.take_count())

    def read(self) -> Any:
        tag = self.take(1)[0]
        read = _READERS.get(tag)
        if read is None:
            raise _Malformed(f"a value of the unknown type {tag:#x}")
        return read(self)

    def read_typed(self, kind: type) -> Any:
        """Read a value that must be of one type."""
        value = self._read_nested()
        if type(value) is not kind:
            raise _Malformed(f"a {type(value).__name__} where a {kind.__name__} is expected")
        return value

    def _read_nested(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Malformed(f"a value that is nested in more than {MAX_DEPTH} others")
        value = self.read()
        self._depth -= 1
        return value

    def read_int(self) -> int:
        packed = bytes(self.take_sized())
        value = int.from_bytes(packed, "little", signed=True)
        if len(packed) != value.bit_length() // 8 + 1 or (value < 0 and packed != _pack_int(value)):
            raise _Malformed("an int that is not in its shortest form")
        return value

    def read_float(self) -> float:
        return float(_FLOAT.unpack(self.take(_FLOAT.size))[0])

    def read_complex(self) -> complex:
        return complex(*_COMPLEX.unpack(self.take(_COMPLEX.size)))

    def read_str(self) -> str:
        try:
            return str(self.take_sized(), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise _Malformed("a text that is not UTF-8") from None

    def read_values(self) -> list[Any]:
        return [self._read_nested() for _ in range(self._take_member_count(1))]

    def read_dict(self) -> dict[Any, Any]:
        count = self._take_member_count(2)
        values: dict[Any, Any] = {}
        for _ in range(count):
            key = self._read_key()
            if key in values:
                raise _Malformed("a dict with the same key twice")
            values[key] = self._read_nested()
        return values

    def _read_key(self) -> Any:
        if self.remaining and self.data[self.offset] not in _KEY_TAGS:
            raise _Malformed("a key of a type that keys cannot have")
        key = self._read_nested()
        try:
            hash(key)
        except TypeError:
            raise _Malformed("a key that contains lists, dicts or arrays") from None
        return key

    def _take_member_count(self, min_bytes: int) -> int:
        count = self.take_count()
        if count * min_bytes > self.remaining:
            raise _Malformed(f"{count} values cannot be in {self.remaining} bytes")
        return count

    # --- arrays ------------------------------------------------------------------------------------------------------

    def read_array(self) -> Array:
        dtype = self._read_dtype()
        return self._take_elements(dtype, self._take_shape())

    def read_scalar(self) -> Any:
        dtype = self._read_dtype()
        if dtype.kind in "SU" or not dtype.isnative:
            raise _Malformed(f"a scalar of the type {dtype.str}")
        scalar: Any = self._take_elements(dtype, ())[()]
        return scalar

    def read_tensor(self) -> torch.Tensor:
        require_torch("a sample with tensors needs")
        import torch

        name = self.read_typed(str)
        dtype = getattr(torch, name, None) if name in TENSOR_TYPES else None
        if dtype is None:
            raise _Malformed(f"a tensor of the type {make_printable(name)[:40]}, which this version of torch lacks")
        shape = self._take_shape()
        data = self._take_checked(dtype.itemsize, shape)
        if name == "bool" and data and np.frombuffer(data, np.uint8).max() > 1:
            raise _Malformed("a bool that is neither 0 nor 1")
        try:
            elements = torch.frombuffer(data, dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=dtype)
            return elements.reshape(shape)
        except (RuntimeError, TypeError, OverflowError, ValueError):
            raise _Malformed(f"a tensor of the impossible shape {shape}") from None

    def _read_dtype(self) -> _Dtype:
        return _build_dtype(self._read_nested())

    def _take_shape(self) -> tuple[int, ...]:
        dimensions = self.take_count()
        if dimensions > _MAX_DIMENSIONS:
            raise _Malformed(f"an array of {dimensions} dimensions")
        return tuple(self.take_count() for _ in range(dimensions))

    def _take_checked(self, item_bytes: int, shape: tuple[int, ...]) -> bytearray:
        """Return a copy of the elements, whose number must match the shape."""
        data = self.take_sized()
        if math.prod(shape) * item_bytes != len(data):
            raise _Malformed(f"an array of the shape {shape} with {len(data)} bytes of elements")
        return bytearray(data)

    def _take_elements(self, dtype: _Dtype, shape: tuple[int, ...]) -> Array:
        data = self._take_checked(dtype.itemsize, shape)
        try:
            array: Array = np.ndarray(shape, dtype, data)
            invalid = array.size > 0 and _has_invalid_elements(array)
        except (ValueError, TypeError, OverflowError, MemoryError):
            raise _Malformed(f"an array of the impossible shape {shape}") from None
        if invalid:
            raise _Malformed("an array with elements that its type does not have")
        return array

    # --- images ------------------------------------------------------------------------------------------------------

    def read_image(self) -> Any:
        mode, width, height = self.read_typed(str), self.read_typed(int), self.read_typed(int)
        palette_mode, palette = self.read_typed(str), self.read_typed(bytes)
        info, pixels = self.read_typed(dict), self.read_typed(bytes)
        return unpack_image(mode, (width, height), pixels, palette_mode, palette, info)


_READERS: Final[dict[int, Callable[[_ItemReader], Any]]] = {
    ord("N"): lambda reader: None,
    ord("T"): lambda reader: True,
    ord("F"): lambda reader: False,
    ord("i"): _ItemReader.read_int,
    ord("d"): _ItemReader.read_float,
    ord("c"): _ItemReader.read_complex,
    ord("s"): _ItemReader.read_str,
    ord("b"): lambda reader: bytes(reader.take_sized()),
    ord("B"): lambda reader: bytearray(reader.take_sized()),
    ord("t"): lambda reader: tuple(reader.read_values()),
    ord("l"): _ItemReader.read_values,
    ord("m"): _ItemReader.read_dict,
    ord("a"): _ItemReader.read_array,
    ord("g"): _ItemReader.read_scalar,
    ord("u"): lambda reader: np.str_(reader.read_str()),
    ord("y"): lambda reader: np.bytes_(bytes(reader.take_sized())),
    ord("x"): _ItemReader.read_tensor,
    ord("p"): _ItemReader.read_image,
}


# --- types of arrays -------------------------------------------------------------------------------------------------


def _describe_dtype(dtype: _Dtype) -> object:
    """Return a type as strings, ints and tuples."""
    if dtype.hasobject:
        raise _Malformed("Python objects cannot be encoded without pickle")
    if dtype.itemsize == 0:
        raise _Malformed("its elements have no bytes")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return "array", _describe_dtype(base), tuple(map(int, shape))
    if dtype.names is not None:
        assert dtype.fields is not None
        if any(len(field) > 2 for field in dtype.fields.values()):
            raise _Malformed("its fields have titles")
        _check_overlaps(dtype)
        fields = [(name, *dtype.fields[name]) for name in dtype.names]
        return "struct", dtype.itemsize, tuple((name, _describe_dtype(kind), at) for name, kind, at in fields)
    if _PLAIN_TYPE.fullmatch(dtype.str) is None or np.dtype(dtype.str) != dtype:
        raise _Malformed("only types of NumPy itself can be encoded")
    return dtype.str


def _build_dtype(plain: Any) -> _Dtype:
    """Return the type that :func:`_describe_dtype` has described."""
    try:
        dtype = _build_unchecked_dtype(plain)
    except (TypeError, ValueError, OverflowError, MemoryError):
        raise _Malformed("a type of arrays that NumPy does not have") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise _Malformed("a type of arrays that cannot be encoded")
    return dtype


def _build_unchecked_dtype(plain: Any) -> _Dtype:
    if isinstance(plain, str):
        if _PLAIN_TYPE.fullmatch(plain) is None:
            raise ValueError(plain)
        return np.dtype(plain)
    if type(plain) is not tuple:
        raise TypeError(type(plain))
    kind, *parts = plain
    if kind == "array":
        base, shape = parts
        return np.dtype((_build_dtype(base), tuple(map(operator.index, shape))))
    if kind != "struct":
        raise ValueError(kind)
    item_bytes, fields = parts
    names, types, offsets = zip(*fields, strict=True)
    built = [_build_dtype(field_type) for field_type in types]
    dtype = np.dtype({"names": list(names), "formats": built, "offsets": list(offsets), "itemsize": item_bytes})
    _check_overlaps(dtype)
    return dtype


def _check_overlaps(dtype: _Dtype) -> None:
    """Refuse fields that share bytes: checking the elements of many of them would take quadratic time."""
    assert dtype.fields is not None
    end = 0
    for field_type, offset in sorted(((field[0], field[1]) for field in dtype.fields.values()), key=lambda one: one[1]):
        if offset < end:
            raise _Malformed("its fields overlap")
        end = offset + field_type.itemsize


def _has_invalid_elements(array: Array) -> bool:
    """Return whether an array has bools that are neither 0 nor 1, or characters that Unicode does not have."""
    if array.dtype.names is not None:
        return any(_has_invalid_elements(array[name]) for name in array.dtype.names)
    if array.dtype.kind == "b":
        return bool((array.view(np.uint8) > 1).any())
    if array.dtype.kind == "U":
        characters = np.ascontiguousarray(array).view(f"{array.dtype.str[0]}u4")
        return bool((characters > _MAX_CODE_POINT).any())
    return False
