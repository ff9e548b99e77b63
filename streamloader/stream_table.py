"""Descriptions of many streams in columns, so that ten million streams need no Python object each.

A column is a sequence that creates its values on access, from a few NumPy arrays. With pickle protocol 5 the arrays
travel out of band, so that all processes which map a job's memory share them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import operator
import pickle
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from streamloader.errors import ConfigError
from streamloader.values import Array, StreamInfo

__all__ = ["BytesColumn", "StreamTable", "StringColumn", "as_lengths", "digest_streams", "pack_column"]

Lengths: TypeAlias = "Sequence[int | None] | Array | None"

_BLOCK_STREAMS: Final = 1 << 16  # part of the definition of the digest
_UNKNOWN: Final = -1
_MAX_LENGTH: Final = np.iinfo(np.int64).max


class StreamTable(Sequence[StreamInfo]):
    """The streams of a dataset: a sequence that creates each :class:`StreamInfo` on access.

    ``StreamDataset.index`` may return a table instead of a list, and should do so for millions of streams.

    Args:
        keys: Unique key of each stream, or the number of streams, whose keys are then "0", "1", ...
        lengths: Number of steps of each stream: a sequence with None where unknown, or an integer array with -1 where
            unknown. None means that no length is known. An int64 array is not copied and must not be modified later.
        extra: Column of values for each name in ``StreamInfo.extra``. Lists of strings, bools, floats or 64-bit ints,
            all of one type, are stored in arrays, as are one-dimensional arrays of numbers. Other lists stay lists of
            objects. If these objects consist of None, numbers, strings, bytes, lists, tuples, dicts and sets only, a
            worker receives them pickled, and unpickles each of them on access. Any other sequence, such as a range, is
            used unchanged.
        identities: Text of each stream that takes the place of its key in :meth:`digest`, for keys that do not show
            everything in which streams differ. It is never shown. Defaults to the keys.

    Attributes:
        lengths: Array of int64 (n,), read-only, -1 where unknown.

    Raises:
        ConfigError: If columns differ in size, a key is not a string, or a length is not a number of steps.
    """

    __slots__ = ("_digest", "_extra", "_identities", "_keys", "_rows", "lengths")

    def __init__(
        self,
        keys: Iterable[str] | int,
        lengths: Lengths = None,
        extra: Mapping[str, Sequence[Any]] | None = None,
        identities: Iterable[str] | None = None,
    ) -> None:
        self._keys = (
            _NumberedKeys(keys)
            if isinstance(keys, int)
            else keys
            if isinstance(keys, StringColumn)
            else _pack_keys(keys)
        )
        self.lengths = as_lengths(lengths, self._keys)
        self._extra: Sequence[Mapping[str, Any]] = _RecordColumn(
            len(self._keys), {name: pack_column(column) for name, column in (extra or {}).items()}
        )
        self._rows: Sequence[StreamInfo] | None = None  # infos of a subclass of StreamInfo
        self._identities = None if identities is None else _pack_keys(identities)
        self._digest = ""

    @classmethod
    def from_infos(cls, infos: Sequence[StreamInfo], identities: Iterable[str] | None = None) -> StreamTable:
        """Return a table of `infos`. A table is returned unchanged.

        Args:
            infos: Streams of the table.
            identities: Texts for :meth:`digest`, see the class. Defaults to the keys.

        Raises:
            ConfigError: If a key is not a string, or a length is not a number of steps.
        """
        if isinstance(infos, StreamTable):
            return infos
        infos = list(infos)
        table = cls([info.key for info in infos], [info.length for info in infos], identities=identities)
        if all(type(info) is StreamInfo for info in infos):
            table._extra = _pack_mappings([info.extra for info in infos])
        else:  # a subclass may have further attributes
            table._rows = _ObjectColumn(infos)
        return table

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[operator.index(index)]  # supports negative indices, and raises IndexError
        if self._rows is not None:
            return self._rows[number]
        length = int(self.lengths[number])
        return StreamInfo(self._keys[number], None if length == _UNKNOWN else length, self._extra[number])

    def __iter__(self) -> Iterator[StreamInfo]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a table of equal streams."""
        if not isinstance(other, StreamTable):
            return NotImplemented
        return np.array_equal(self.lengths, other.lengths) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [repr(info) for info in self[:3]] + ["..."] * (len(self) > 3)  # noqa: PLR2004
        return f"StreamTable of {len(self)}: [{', '.join(shown)}]"

    def extra_integers(self, name: str) -> Array:
        """Return the integer `name` of each ``StreamInfo.extra``, int64 (n,); -1 where there is none of 0 or more."""
        if self._rows is None and isinstance(self._extra, _RecordColumn):
            column = self._extra.get_column(name)
            if column is None:
                return np.full(len(self), -1, np.int64)
            if isinstance(column, _ArrayColumn) and column.values.dtype.kind == "i":
                return np.maximum(column.values.astype(np.int64, copy=False), -1)
            values: Iterable[Any] = column
        else:
            values = (info.extra.get(name) for info in self)
        integers = (max(-1, min(value, _MAX_LENGTH)) if isinstance(value, int) else -1 for value in values)
        return np.fromiter(integers, np.int64, len(self))

    @property
    def identities(self) -> Sequence[str]:
        """Text of each stream for :meth:`digest`. It may contain secrets."""
        return self._keys if self._identities is None else self._identities

    def with_lengths(self, lengths: Lengths) -> StreamTable:
        """Return a table of the same streams with other lengths."""
        other = StreamTable(0)
        other._keys, other._extra, other.lengths = self._keys, self._extra, as_lengths(lengths, self._keys)
        other._identities = self._identities
        return other

    def digest(self) -> str:
        """Return the SHA-256 of all keys and lengths in order, in hex. Tables of equal streams have equal digests.

        If the table has identities, they take the place of the keys. The hashed bytes are "streams-1" and a zero byte,
        the number of streams, and then for each block of 65,536 streams their lengths (-1 where unknown), the sizes of
        their keys in bytes, and their keys as UTF-8 without separators. Numbers are little-endian int64.
        """
        if not self._digest:
            keys = self._keys if self._identities is None else self._identities
            sha = hashlib.sha256(b"streams-1\0" + len(self).to_bytes(8, "little"))
            for start in range(0, len(self), _BLOCK_STREAMS):
                end = min(start + _BLOCK_STREAMS, len(self))
                sizes, data = keys.encode(start, end)
                for part in (self.lengths[start:end].astype("<i8"), sizes.astype("<i8"), data):
                    sha.update(part.data)
            self._digest = sha.hexdigest()
        return self._digest


def digest_streams(streams: Sequence[StreamInfo]) -> str:
    """Return :meth:`StreamTable.digest` of `streams`, which is a table or a list."""
    if isinstance(streams, StreamTable):
        return streams.digest()
    return StreamTable([info.key for info in streams], [info.length for info in streams]).digest()


def as_lengths(lengths: Lengths, keys: Sequence[str]) -> Array:
    """Return `lengths` as int64 (n,), read-only, -1 where unknown.

    Raises:
        ConfigError: If a length is not a number of steps. The message names the stream.
    """
    count = len(keys)
    if lengths is None:
        result = np.full(count, _UNKNOWN, np.int64)
    elif len(lengths) != count:
        raise ConfigError(f"there are {len(lengths)} lengths for {count} streams")
    elif isinstance(lengths, np.ndarray) and lengths.ndim == 1 and np.can_cast(lengths.dtype, np.int64):
        result = lengths.astype(np.int64, copy=False).view()
        if count and int(result.min()) < _UNKNOWN:
            worst = int(result.argmin())
            raise _length_error(keys[worst], result[worst])
    else:
        result = np.fromiter(map(_as_length, lengths, keys), np.int64, count)
    result.flags.writeable = False
    return result


def _as_length(value: Any, key: str) -> int:
    if value is None:
        return _UNKNOWN
    try:
        length = operator.index(value)
    except TypeError:
        raise _length_error(key, value) from None
    if not 0 <= length <= _MAX_LENGTH:
        raise _length_error(key, value)
    return length


def _length_error(key: str, value: object) -> ConfigError:
    negative = isinstance(value, (int, np.integer)) and value < 0
    declares = "a negative length" if negative else "the length"
    return ConfigError(
        f"stream {key!r} declares {declares} {value!s:.80}: it must be a number of steps, or None", stream=key
    )


# --- columns ---------------------------------------------------------------------------------------------------------


def pack_column(values: Sequence[Any]) -> Sequence[Any]:
    """Return `values` as a column. Lists of strings, bools, ints or floats, all of one type, are stored in arrays."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        return _ArrayColumn(values)
    if not isinstance(values, (list, tuple)):
        return values
    kinds = set(map(type, values))
    if kinds == {str}:
        return StringColumn.from_strings(values)
    if kinds in ({bool}, {float}):
        return _ArrayColumn(np.array(values))
    if kinds == {int}:
        try:
            return _ArrayColumn(_narrow_ints(np.array(values, np.int64)))
        except OverflowError:
            pass
    return _ObjectColumn(values)


class _Column(Sequence[Any]):
    """A sequence that creates its values on access. Columns of equal values are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Column):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


class _ArrayColumn(_Column):
    __slots__ = ("_values",)

    def __init__(self, values: Array) -> None:
        self._values = values

    @property
    def values(self) -> Array:
        """All values, as an array."""
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: Any) -> Any:
        return self._values[number].item()


class _NumberedKeys(_Column):
    """The keys "0", "1", ..."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ConfigError(f"the number of streams must be 0 or more, got {count}")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> str:
        return str(range(self._count)[number])

    def encode(self, start: int, end: int) -> tuple[Array, Array]:
        """Return the sizes (int64) and the concatenated bytes (uint8) of keys [start, end)."""
        numbers: Array = np.arange(start, end, dtype=np.uint32 if end <= 1 << 32 else np.uint64)
        powers: Array = 10 ** np.arange(len(str(end)) - 1, -1, -1, dtype=numbers.dtype)
        digits = np.empty((len(numbers), len(powers)), np.uint8)
        remaining = numbers
        for column in range(len(powers) - 1, -1, -1):  # dividing by one number is several times as fast as by many
            tens = remaining // 10
            digits[:, column] = remaining - tens * 10
            remaining = tens
        digits += np.uint8(ord("0"))
        significant = numbers[:, None] >= powers
        significant[:, -1] = True  # the number 0 has one digit
        return significant.sum(axis=1, dtype=np.int64), digits[significant]


class BytesColumn(_Column):
    """Pieces of bytes, concatenated in one array. Each is returned as a view, uint8 (size,).

    Args:
        data: Concatenated pieces, uint8.
        ends: End offset of each piece in `data`, int64.
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, data: Array, ends: Array) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def from_pieces(cls, pieces: Iterable[bytes]) -> Any:
        """Return a column of `pieces`."""
        data, sizes, remaining = bytearray(), array("q"), iter(pieces)
        while block := list(itertools.islice(remaining, _BLOCK_STREAMS)):
            data += b"".join(block)
            sizes.extend(map(len, block))
        return cls(np.frombuffer(data, np.uint8), np.cumsum(np.frombuffer(sizes, np.int64)))

    @property
    def sizes(self) -> Array:
        """Size of each piece in bytes, int64."""
        return np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self._ends))[number]
        return self._data[self._ends[number - 1] if number else 0 : self._ends[number]]

    def encode(self, start: int, end: int) -> tuple[Array, Array]:
        """Return the sizes (int64) and the concatenated bytes (uint8) of pieces [start, end)."""
        first = self._ends[start - 1] if start else 0
        return np.diff(self._ends[start:end], prepend=first), self._data[first : self._ends[end - 1]]


class StringColumn(BytesColumn):
    """Strings, concatenated as UTF-8 in one array. Lone surrogates, which file names may have, are preserved."""

    __slots__ = ()

    @classmethod
    def from_strings(cls, texts: Iterable[str]) -> StringColumn:
        """Return a column of `texts`."""
        packed: StringColumn = cls.from_pieces(text.encode("utf-8", "surrogatepass") for text in texts)
        return packed

    def __getitem__(self, number: Any) -> str:
        return str(super().__getitem__(number).tobytes(), "utf-8", "surrogatepass")


def _pack_keys(keys: Iterable[Any]) -> StringColumn:
    listed = keys if isinstance(keys, (list, tuple)) else list(keys)
    for number, key in enumerate(listed):
        if not isinstance(key, str):
            raise ConfigError(f"the key of stream {number} must be a string, got {type(key).__name__} {key!r:.80}")
    return StringColumn.from_strings(listed)


class _RecordColumn(_Column):
    """Mappings with the same names, stored as one column for each name."""

    __slots__ = ("_columns", "_count")

    def __init__(self, count: int, columns: Mapping[str, Sequence[Any]]) -> None:
        for name, column in columns.items():
            if len(column) != count:
                raise ConfigError(f"the column {name!r} has {len(column)} entries for {count} streams")
        self._count, self._columns = count, dict(columns)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return {name: column[number] for name, column in self._columns.items()}

    def get_column(self, name: str) -> Sequence[Any] | None:
        """Return the column of `name`, or None if there is none."""
        return self._columns.get(name)


def _pack_mappings(mappings: list[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return `mappings` as a column for each name, if all are dicts of the same names in the same order."""
    if not all(type(mapping) is dict for mapping in mappings):
        return _ObjectColumn(mappings)
    names = tuple(mappings[0]) if mappings else ()
    if any(tuple(mapping) != names for mapping in mappings):
        return _ObjectColumn(mappings)
    return _RecordColumn(len(mappings), {name: pack_column([mapping[name] for mapping in mappings]) for name in names})


class _ObjectColumn(_Column):
    """Values of any type, unchanged. In another process, plain values stay pickled until they are accessed."""

    __slots__ = ("_values",)

    def __init__(self, values: list[Any] | tuple[Any, ...]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: Any) -> Any:
        return self._values[number]

    def __reduce__(self) -> tuple[Any, ...]:
        numbers: dict[int, int] = {}  # a value that many streams share is pickled once
        which = array("q", (numbers.setdefault(id(value), len(numbers)) for value in self._values))
        distinct: list[Any] = [None] * len(numbers)
        for number, value in zip(which, self._values, strict=True):
            distinct[number] = value
        try:
            blobs = BytesColumn.from_pieces(map(_pickle_plain, distinct))
        except _NotPlainError:
            return _ObjectColumn, (self._values,)
        return _PickledColumn, (blobs, _narrow_ints(np.frombuffer(which, np.int64)))


class _PickledColumn(_Column):
    """Form of an :class:`_ObjectColumn` of plain values in another process."""

    __slots__ = ("_blobs", "_which")

    def __init__(self, blobs: BytesColumn, which: Array) -> None:
        self._blobs, self._which = blobs, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, number: Any) -> Any:
        return pickle.loads(self._blobs[self._which[number]])  # noqa: S301 - builtin values that _pickle_plain wrote


class _NotPlainError(Exception):
    pass


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Called for every value that is not of a built-in plain type: reject it."""
        raise _NotPlainError


def _pickle_plain(value: Any) -> bytes:
    file = io.BytesIO()
    _PlainPickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _narrow_ints(values: Array) -> Array:
    """Return int64 `values` as int32 where they fit."""
    if values.size and (int(values.min()) < -(1 << 31) or int(values.max()) >= 1 << 31):
        return values
    return values.astype(np.int32)
