"""What is known of many streams, in columns: ten million of them need no Python object each.

A column is a sequence that makes its values when they are asked for, from a few NumPy arrays. The arrays travel out of
band with pickle protocol 5, so that a process that maps a job's memory shares them with all others that do.
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

__all__ = ["Blobs", "StreamTable", "Texts", "as_lengths", "digest_of", "pack_column"]

Lengths: TypeAlias = "Sequence[int | None] | Array | None"

_BLOCK: Final = 1 << 16  # streams that are looked at in one go; the digest depends on it
_UNKNOWN: Final = -1
_MOST: Final = np.iinfo(np.int64).max


class StreamTable(Sequence[StreamInfo]):
    """The streams of a data set: a sequence of :class:`StreamInfo` that are made when they are asked for.

    ``StreamDataset.index`` may return one in place of a list, and should where there are millions of streams.

    Args:
        keys: the key of each stream, each another one; or how many streams there are, for the keys "0", "1", ...
        lengths: steps of each stream, None where unknown: a sequence, or an array of integers in which -1 stands for
            unknown; None if none is known. An int64 array is not copied: leave it alone afterwards.
        extra: a column for each name in ``StreamInfo.extra``. Lists of strings, bools, floats or ints (of 64 bits), all
            of one type, are kept in arrays, as are one-dimensional arrays of numbers. Other lists stay lists of
            objects; on their way to workers they become bytes, from which single objects are made when they are asked
            for, if they consist of None, numbers, strings, bytes, lists, tuples, dicts and sets only. Any other
            sequence, such as a range, is used as it is.

    Attributes:
        lengths: int64 (n,), read-only, -1 where unknown.

    Raises:
        ConfigError: columns that differ in size, a key that is no string, or a length that is no number of steps.
    """

    __slots__ = ("_digest", "_extra", "_keys", "_rows", "lengths")

    def __init__(
        self, keys: Iterable[str] | int, lengths: Lengths = None, extra: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        self._keys = _Numbered(keys) if isinstance(keys, int) else keys if isinstance(keys, Texts) else _as_keys(keys)
        self.lengths = as_lengths(lengths, self._keys)
        self._extra: Sequence[Mapping[str, Any]] = _Records(
            len(self._keys), {name: pack_column(column) for name, column in (extra or {}).items()}
        )
        self._rows: Sequence[StreamInfo] | None = None  # of a kind of their own
        self._digest = ""

    @classmethod
    def of(cls, infos: Sequence[StreamInfo]) -> StreamTable:
        """Return `infos` as a table; a table is returned as it is.

        Raises:
            ConfigError: a key that is no string, or a length that is no number of steps.
        """
        if isinstance(infos, StreamTable):
            return infos
        infos = list(infos)
        table = cls([info.key for info in infos], [info.length for info in infos])
        if all(type(info) is StreamInfo for info in infos):
            table._extra = _mappings([info.extra for info in infos])
        else:  # they may know more than their base class does
            table._rows = _Objects(infos)
        return table

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[operator.index(index)]  # an IndexError, or counted from the end
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

    def with_lengths(self, lengths: Lengths) -> StreamTable:
        """Return these streams with other lengths."""
        other = StreamTable(0)
        other._keys, other._extra, other.lengths = self._keys, self._extra, as_lengths(lengths, self._keys)
        return other

    def digest(self) -> str:
        """Return the SHA-256, in hex, of all keys and lengths in their order: equal for tables of equal streams.

        What is hashed: "streams-1" and a zero byte, the number of streams, and then for each 65,536 of them their
        lengths (-1 where unknown), the sizes of their keys in bytes, and their keys as UTF-8, end to end. Numbers are
        little-endian int64.
        """
        if not self._digest:
            sha = hashlib.sha256(b"streams-1\0" + len(self).to_bytes(8, "little"))
            for begin in range(0, len(self), _BLOCK):
                end = min(begin + _BLOCK, len(self))
                sizes, data = self._keys.encoded(begin, end)
                for part in (self.lengths[begin:end].astype("<i8"), sizes.astype("<i8"), data):
                    sha.update(part.data)
            self._digest = sha.hexdigest()
        return self._digest


def digest_of(streams: Sequence[StreamInfo]) -> str:
    """Return :meth:`StreamTable.digest` of a table, or of the table that a list of streams makes."""
    if isinstance(streams, StreamTable):
        return streams.digest()
    return StreamTable([info.key for info in streams], [info.length for info in streams]).digest()


def as_lengths(lengths: Lengths, keys: Sequence[str]) -> Array:
    """Return `lengths` as int64 (n,), read-only, -1 where unknown.

    Raises:
        ConfigError: it names the stream whose length is none.
    """
    count = len(keys)
    if lengths is None:
        made = np.full(count, _UNKNOWN, np.int64)
    elif len(lengths) != count:
        raise ConfigError(f"there are {len(lengths)} lengths for {count} streams")
    elif isinstance(lengths, np.ndarray) and lengths.ndim == 1 and np.can_cast(lengths.dtype, np.int64):
        made = lengths.astype(np.int64, copy=False).view()
        if count and int(made.min()) < _UNKNOWN:
            worst = int(made.argmin())
            raise _no_length(keys[worst], made[worst])
    else:
        made = np.fromiter(map(_length, lengths, keys), np.int64, count)
    made.flags.writeable = False
    return made


def _length(given: Any, key: str) -> int:
    if given is None:
        return _UNKNOWN
    try:
        length = operator.index(given)
    except TypeError:
        raise _no_length(key, given) from None
    if not 0 <= length <= _MOST:
        raise _no_length(key, given)
    return length


def _no_length(key: str, given: object) -> ConfigError:
    wrong = "declares a negative length" if isinstance(given, (int, np.integer)) and given < 0 else "has as its length"
    return ConfigError(f"stream {key!r} {wrong}, {given!s:.80}: it must be a number of steps, or None", stream=key)


# --- columns ---------------------------------------------------------------------------------------------------------


def pack_column(values: Sequence[Any]) -> Sequence[Any]:
    """Return `values` as a column: lists in arrays, where they are strings, bools, ints or floats, all of one type."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        return _Numbers(values)
    if not isinstance(values, (list, tuple)):
        return values
    kinds = set(map(type, values))
    if kinds == {str}:
        return Texts.pack(values)
    if kinds in ({bool}, {float}):
        return _Numbers(np.array(values))
    if kinds == {int}:
        try:
            return _Numbers(_narrowed(np.array(values, np.int64)))
        except OverflowError:
            pass
    return _Objects(values)


class _Column(Sequence[Any]):
    """A sequence that makes its values; equal to another one of equal values."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Column):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]


class _Numbers(_Column):
    __slots__ = ("_values",)

    def __init__(self, values: Array) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: Any) -> Any:
        return self._values[number].item()


class _Numbered(_Column):
    """The keys "0", "1", ..."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ConfigError(f"there cannot be {count} streams")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> str:
        return str(range(self._count)[number])

    def encoded(self, begin: int, end: int) -> tuple[Array, Array]:
        """Return sizes (int64) and bytes (uint8) of some keys."""
        numbers: Array = np.arange(begin, end, dtype=np.uint32 if end <= 1 << 32 else np.uint64)
        powers: Array = 10 ** np.arange(len(str(end)) - 1, -1, -1, dtype=numbers.dtype)
        digits = np.empty((len(numbers), len(powers)), np.uint8)
        rest = numbers
        for place in range(len(powers) - 1, -1, -1):  # dividing by one number is several times as fast as by many
            tens = rest // 10
            digits[:, place] = rest - tens * 10
            rest = tens
        digits += np.uint8(ord("0"))
        shown = numbers[:, None] >= powers
        shown[:, -1] = True  # of 0, too
        return shown.sum(axis=1, dtype=np.int64), digits[shown]


class Blobs(_Column):
    """Pieces of bytes, end to end in one array; each is given out as a view, uint8 (size,).

    Args:
        data: uint8.
        ends: int64, one for each piece.
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, data: Array, ends: Array) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def join(cls, pieces: Iterable[bytes]) -> Any:
        """Put `pieces` end to end."""
        data, sizes, remaining = bytearray(), array("q"), iter(pieces)
        while block := list(itertools.islice(remaining, _BLOCK)):
            data += b"".join(block)
            sizes.extend(map(len, block))
        return cls(np.frombuffer(data, np.uint8), np.cumsum(np.frombuffer(sizes, np.int64)))

    @property
    def sizes(self) -> Array:
        """Bytes of each piece, int64."""
        return np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self._ends))[number]
        return self._data[self._ends[number - 1] if number else 0 : self._ends[number]]

    def encoded(self, begin: int, end: int) -> tuple[Array, Array]:
        """Return sizes (int64) and bytes (uint8) of some pieces."""
        first = self._ends[begin - 1] if begin else 0
        return np.diff(self._ends[begin:end], prepend=first), self._data[first : self._ends[end - 1]]


class Texts(Blobs):
    """Strings, end to end as UTF-8 in one array; lone surrogates, as in names of files, are kept."""

    __slots__ = ()

    @classmethod
    def pack(cls, texts: Iterable[str]) -> Texts:
        """Put `texts` end to end."""
        packed: Texts = cls.join(text.encode("utf-8", "surrogatepass") for text in texts)
        return packed

    def __getitem__(self, number: Any) -> str:
        return str(super().__getitem__(number).tobytes(), "utf-8", "surrogatepass")


def _as_keys(keys: Iterable[Any]) -> Texts:
    listed = keys if isinstance(keys, (list, tuple)) else list(keys)
    for number, key in enumerate(listed):
        if not isinstance(key, str):
            raise ConfigError(f"the key of stream {number} must be a string, got {type(key).__name__} {key!r:.80}")
    return Texts.pack(listed)


class _Records(_Column):
    """Mappings that all have the same names."""

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


def _mappings(given: list[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return `given` in columns where all are dicts of the same names in the same order."""
    if not all(type(mapping) is dict for mapping in given):
        return _Objects(given)
    names = tuple(given[0]) if given else ()
    if any(tuple(mapping) != names for mapping in given):
        return _Objects(given)
    return _Records(len(given), {name: pack_column([mapping[name] for mapping in given]) for name in names})


class _Objects(_Column):
    """Values of any kind, as they are. Plain ones are bytes in another process, until they are asked for."""

    __slots__ = ("_values",)

    def __init__(self, values: list[Any] | tuple[Any, ...]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: Any) -> Any:
        return self._values[number]

    def __reduce__(self) -> tuple[Any, ...]:
        numbers: dict[int, int] = {}  # what many streams have in common is written once
        which = array("q", (numbers.setdefault(id(value), len(numbers)) for value in self._values))
        distinct: list[Any] = [None] * len(numbers)
        for number, value in zip(which, self._values, strict=True):
            distinct[number] = value
        try:
            blobs = Blobs.join(map(_pickled, distinct))
        except _NotPlainError:
            return _Objects, (self._values,)
        return _Pickled, (blobs, _narrowed(np.frombuffer(which, np.int64)))


class _Pickled(_Column):
    """What :class:`_Objects` becomes on its way to another process."""

    __slots__ = ("_blobs", "_which")

    def __init__(self, blobs: Blobs, which: Array) -> None:
        self._blobs, self._which = blobs, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, number: Any) -> Any:
        return pickle.loads(self._blobs[self._which[number]])  # noqa: S301 - builtin values that _pickled wrote


class _NotPlainError(Exception):
    pass


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Refuse: this is asked of all that is not of a built-in type of plain values."""
        raise _NotPlainError


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    _PlainPickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _narrowed(values: Array) -> Array:
    """Return int64 `values` as int32 where they fit."""
    if values.size and (int(values.min()) < -(1 << 31) or int(values.max()) >= 1 << 31):
        return values
    return values.astype(np.int32)
