"""Frozen values that every floor of the package shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamloader.errors import ConfigError, RangeOutside

__all__ = ["Array", "ByteRange", "Field", "ObjectInfo", "StreamInfo", "as_fields"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a step: its shape (without batch and time), dtype, and the value that padding has.

    Args:
        shape: shape of one step, ``()`` for a scalar such as a byte or a token.
        dtype: anything that ``numpy.dtype`` takes; fixed-size numbers and booleans only.
        fill: value of padded steps.
        axes: one letter for each axis of `shape`, for image-like fields, such as ``"HWC"``. The loader's
            ``layout=`` permutes exactly the fields that have them; others stay (B, T, ...).
    """

    shape: tuple[int, ...] = ()
    dtype: Any = "uint8"
    fill: int | float | bool = 0
    axes: str | None = None

    def __post_init__(self) -> None:
        """Normalise and refuse what shared memory cannot hold."""
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(int(n) for n in self.shape)
        dtype = np.dtype(self.dtype)
        if any(n < 0 for n in shape):
            raise ConfigError(f"a field's shape has no negative size, got {shape}")
        if dtype.hasobject or dtype.kind not in "biufc":
            raise ConfigError(f"a field's dtype must be a number or bool of fixed size, got {dtype}")
        if self.axes is not None and (len(self.axes) != len(shape) or len(set(self.axes)) != len(shape)):
            raise ConfigError(f"axes {self.axes!r} must name each of the {len(shape)} axes of {shape} once")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)


def as_fields(fields: Mapping[str, Field] | Field) -> dict[str, Field]:
    """Normalise the fields of one step: a lone :class:`Field` is called ``"data"``."""
    if isinstance(fields, Field):
        return {"data": fields}
    if not fields:
        raise ConfigError("a step needs at least one field")
    for name, value in fields.items():
        if not isinstance(value, Field):
            raise ConfigError(f"field {name!r} must be a streamloader.Field, got {type(value).__name__}")
        if name in _RESERVED:
            raise ConfigError(f"field name {name!r} is taken by the batch itself; choose another")
    return dict(fields)


_RESERVED = frozenset({"reset", "valid", "repeat", "step", "time", "stream", "cursor", "keep"})


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a stream before it is opened.

    Attributes:
        key: names the stream within its data set: a path, an address, an item's number.
        length: steps it will yield, or None where only playing it tells.
        extra: what ``open`` needs besides (plain, picklable values).
    """

    key: str
    length: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A span of bytes of an object: [start, end), in bytes from its beginning.

    Args:
        start: the first byte, counted from the beginning; negative: that many bytes before the end (as in RFC 9110's
            suffix-range, a shorter object is then taken whole). Then there is no `end`.
        end: the byte behind the last one; None for all up to the object's end.
    """

    start: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        """Refuse spans that make no sense."""
        if self.end is not None and not 0 <= self.start <= self.end:
            raise ConfigError(f"bytes {self.start}-{self.end} are no span: it takes 0 <= start <= end")

    def within(self, size: int, address: str | None = None) -> tuple[int, int]:
        """Return (start, end) in an object of `size` bytes.

        Raises:
            RangeOutside: not all of these bytes are there.
        """
        start = max(0, size + self.start) if self.start < 0 else self.start
        end = size if self.end is None else self.end
        if end > size or start > size:
            raise RangeOutside(
                f"asked for bytes {self} of {address or 'an object'}, which has {size}",
                address=address,
                offset=start,
                size=size,
            )
        return start, end

    def __str__(self) -> str:
        """Write it as half-open, for messages."""
        if self.start < 0:
            return f"[{self.start}:]"
        return f"[{self.start}:{'' if self.end is None else self.end}]"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of one object, without reading it.

    Attributes:
        path: within its store. One that ends in "/" is a directory, in listings that are not recursive.
        size: bytes, or None where the server does not tell.
        version: an opaque text that changes with the object's bytes (an ETag, size and time, a CID); None where the
            server has none.
        modified: seconds since 1970, or None.
    """

    path: str
    size: int | None = None
    version: str | None = None
    modified: float | None = None

    @property
    def is_directory(self) -> bool:
        """Whether this stands for what lies under it."""
        return self.path.endswith("/")
