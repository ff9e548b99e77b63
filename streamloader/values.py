"""Frozen values that all layers of the package share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamloader.arguments import check_integer
from streamloader.errors import ConfigError, RangeNotSatisfiable
from streamloader.redaction import redact_address

__all__ = ["Array", "ByteRange", "Field", "ObjectInfo", "StreamInfo", "as_fields"]

Array = npt.NDArray[Any]
_MAX_ITEM_BYTES: Final = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16}  # by kind of dtype: what torch has too


@dataclass(frozen=True, slots=True)
class Field:
    """Description of one array of a step: its shape without batch and time, dtype and padding value.

    Args:
        shape: Shape of one step. ``()`` is a scalar, such as a byte or a token.
        dtype: Any argument of ``numpy.dtype`` that gives numbers or booleans of a fixed size.
        fill: Value of padded steps, which the dtype must be able to hold.
        axes: One letter for each axis of `shape`, such as ``"HWC"``, for image-like fields. The loader's ``layout=``
            permutes the fields that have axes. All others stay (B, T, ...).
    """

    shape: tuple[int, ...] = ()
    dtype: Any = "uint8"
    fill: int | float | bool = 0
    axes: str | None = None

    def __post_init__(self) -> None:
        """Normalize the values, and reject dtypes and padding values that a batch cannot hold."""
        try:
            sizes = (self.shape,) if hasattr(self.shape, "__index__") else tuple(self.shape)
            shape = tuple(check_integer("a size", n) for n in sizes)
        except (TypeError, ConfigError):
            raise ConfigError(f"a field's shape must be a tuple of whole numbers, got {self.shape!r:.80}") from None
        if any(n < 0 for n in shape):
            raise ConfigError(f"a field's shape must not have negative sizes, got {shape}")
        try:
            dtype = np.dtype(self.dtype)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a field's dtype is unknown to NumPy: {self.dtype!r:.80} ({error})") from None
        if dtype.hasobject or dtype.kind not in _MAX_ITEM_BYTES or dtype.itemsize > _MAX_ITEM_BYTES[dtype.kind]:
            raise ConfigError(f"a field's dtype must be a number or bool of fixed size, got {dtype}")
        dtype = dtype.newbyteorder("=")  # tensors have the byte order of the machine
        if self.axes is not None and not isinstance(self.axes, str):
            raise ConfigError(f"axes must be a string of letters, got {self.axes!r:.80}")
        if self.axes is not None and (len(self.axes) != len(shape) or len(set(self.axes)) != len(shape)):
            raise ConfigError(f"axes {self.axes!r} must name each of the {len(shape)} axes of {shape} once")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "fill", _fit_value(self.fill, dtype))


def _fit_value(fill: Any, dtype: np.dtype[Any]) -> int | float | complex | bool:
    """Return a padding value as one of Python's numbers. Floats are rounded to the dtype, as in any array.

    Raises:
        ConfigError: If the dtype cannot hold it.
    """
    try:
        value = np.asarray(float(fill) if isinstance(fill, int) and dtype.kind in "fc" else fill)
        if value.shape or value.dtype.kind not in ("biufc" if dtype.kind == "c" else "biuf"):
            raise TypeError
        with np.errstate(over="raise", invalid="raise"):
            fitted = value.astype(dtype)
        if dtype.kind in "biu" and fitted != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError, FloatingPointError):
        raise ConfigError(f"fill={fill!r:.80} does not fit into a field of {dtype}") from None
    number: int | float | complex | bool = fitted.item()
    return number


def as_fields(fields: Mapping[str, Field] | Field) -> dict[str, Field]:
    """Return the fields of one step by name. A single :class:`Field` is named ``"data"``."""
    if isinstance(fields, Field):
        return {"data": fields}
    if not isinstance(fields, Mapping):
        raise ConfigError(f"fields must be a streamloader.Field, or a dict of them by name, got {fields!r:.80}")
    if not fields:
        raise ConfigError("a step needs at least one field")
    for name, value in fields.items():
        if not isinstance(name, str):
            raise ConfigError(f"the name of a field must be a string, got {name!r:.80}")
        if not isinstance(value, Field):
            raise ConfigError(f"field {name!r} must be a streamloader.Field, got {type(value).__name__}")
        if name in _RESERVED:
            raise ConfigError(f"field name {name!r} is reserved for the batch itself; choose another name")
    return dict(fields)


_RESERVED = frozenset({"reset", "valid", "repeat", "step", "time", "stream", "cursor", "keep"})


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """Description of a stream, known before the stream is opened.

    Attributes:
        key: Unique name of the stream within its dataset, such as a path, an address or an item's number.
        length: Number of steps, or None if only reading the stream shows it.
        extra: Additional plain, picklable values for ``open``.
    """

    key: str
    length: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A half-open range of bytes of an object: [start, end).

    Args:
        start: Offset of the first byte. A negative value counts from the end of the object, as the suffix-range of RFC
            9110 does: a shorter object is then read whole, and `end` must be None.
        end: Offset after the last byte, or None for the end of the object.
    """

    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        """Validate the bounds."""
        if self.end is not None and not 0 <= self.start <= self.end:
            raise ConfigError(f"invalid byte range {self.start}-{self.end}: it must have 0 <= start <= end")

    def within(self, size: int, address: str | None = None) -> tuple[int, int]:
        """Return (start, end) within an object of `size` bytes.

        Raises:
            RangeNotSatisfiable: If the range exceeds the object.
        """
        start = max(0, size + self.start) if self.start < 0 else self.start
        end = size if self.end is None else self.end
        if end > size or start > size:
            raise RangeNotSatisfiable(
                f"bytes {self} of {address or 'an object'} were requested, but it has only {size} bytes",
                address=address,
                offset=start,
                size=size,
            )
        return start, end

    def __str__(self) -> str:
        """Return the range in the notation of a slice, for messages."""
        if self.start < 0:
            return f"[{self.start}:]"
        return f"[{self.start}:{'' if self.end is None else self.end}]"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Metadata of one object in a store.

    Attributes:
        path: Path within the store. A path that ends in "/" is a directory; non-recursive listings contain those.
        size: Size in bytes, or None if the server does not report it.
        version: Opaque string that changes with the object's bytes (an ETag, size and time, a CID), or None if the
            server provides none.
        modified: Time of the last modification, in seconds since 1970, or None.
    """

    path: str
    size: int | None = None
    version: str | None = None
    modified: float | None = None

    def __repr__(self) -> str:
        path = redact_address(f"http://-/{self.path}").removeprefix("http://-/")  # of an HTTP server, it has a query
        return f"ObjectInfo({path!r}, {self.size!r}, {self.version!r}, {self.modified!r})"

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory. The keys of some stores end in "/", too, but objects have a size."""
        return self.path.endswith("/") and self.size is None
