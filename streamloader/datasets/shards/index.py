"""Hold where each member of a shard lies, and store that in a file beside the shard.

The file (docs/shards-format.md) consists of 16 bytes, a header in JSON, columns of numbers, and a checksum. Nothing in
it is trusted: a file that is damaged, or that describes something impossible, is one error.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np

from streamloader.common.inflate import inflate
from streamloader.common.printable import make_printable
from streamloader.containers.base import describe_unsafe_name
from streamloader.errors import ConfigError, CorruptShard
from streamloader.stream_table import StringColumn
from streamloader.values import Array

__all__ = ["INDEX_SUFFIX", "IndexBuilder", "ShardIndex", "digest_index", "is_index"]

INDEX_SUFFIX: Final = ".index"

_MAGIC: Final = b"SLSHARDX"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sII")  # magic, version, size of the header
_CHECKSUM: Final = struct.Struct("<I")
_MAX_HEADER_BYTES: Final = 64 << 20
_MAX_EXPANSION: Final = 256  # of the columns by deflate; a thousand is a bomb
_FREE_EXPANSION_BYTES: Final = 16 << 20
_MAX_OBJECT_BYTES: Final = (1 << 61) - 1  # so that sums of two such numbers are no overflow
_MAX_FIELDS: Final = 1 << 16
_MAX_KEY_BYTES: Final = 4096
_FREE_SHARD_BYTES: Final = 1 << 30  # decompressed bytes of a shard up to which its expansion does not matter
_MAX_SHARD_EXPANSION: Final = 1000  # as in streamloader.config.Limits
_SUSPICIOUS: Final = (b"..", b"./", b"//", b"\0", b":/", b":\\")  # what joined keys contain if one is an unsafe name
_BLOCK_BYTES: Final = 512  # of tar
_DTYPES: Final = ("<u1", "<u2", "<u4", "<i8")
_COMPRESSIONS: Final = (None, "gzip", "zstd")


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardIndex:
    """Members of one shard by sample, in columns.

    Attributes:
        shard: Name of the shard's file.
        size: Size of the file in bytes.
        data_size: Size of its decompressed content in bytes. The same for a plain tar.
        first_members: First member of each sample, and the number of members: int64 (samples + 1,).
        member_fields: Number of each member's field in `fields`, uint16 (members,).
        starts: Offset of each member's content in the decompressed content, int64 (members,), ascending.
        sizes: Size of each member's content in bytes, int64 (members,).
        checksums: CRC-32 of each member's content, uint32 (members,). None if unknown.
        fields: Names of the fields that occur.
        keys: Key of each sample.
        compression: Method with which the shard is compressed: "gzip", "zstd" or None.
        frames: Offsets at which decompression can start, int64 (n, 2): in the file, and in the decompressed content.
            Empty for a plain tar.
        settings: Settings of the writer, as plain JSON.
    """

    shard: str
    size: int
    data_size: int
    first_members: Array
    member_fields: Array
    starts: Array
    sizes: Array
    checksums: Array | None
    fields: tuple[str, ...]
    keys: StringColumn
    compression: str | None
    frames: Array
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.first_members) - 1

    @property
    def memory_bytes(self) -> int:
        """Approximate size in memory, in bytes."""
        return 4096 + 24 * len(self) + int(self.keys.sizes.sum()) + 22 * len(self.starts) + 16 * len(self.frames)

    def describe_member(self, sample: int, field: str | None = None) -> tuple[str, int]:
        """Return name and offset of a member, for messages. Without a field, those of the sample's first member."""
        first, end = int(self.first_members[sample]), int(self.first_members[sample + 1])
        for member in range(first, end):
            name = self.fields[self.member_fields[member]]
            if field in (None, name):
                return f"{self.keys[sample]}.{name}", int(self.starts[member])
        return self.keys[sample], int(self.starts[first]) if first < end else 0

    # --- the file ----------------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """Return the content of the index file."""
        _, key_bytes = self.keys.encode(0, len(self)) if len(self) else (None, np.empty(0, np.uint8))
        previous_ends = np.concatenate([[0], (self.starts + self.sizes)[:-1]]) if len(self.starts) else self.starts
        columns = {
            "members": np.diff(self.first_members),
            "fields": self.member_fields,
            "gaps": self.starts - previous_ends,  # small numbers, which compress well
            "sizes": self.sizes,
            "checksums": np.empty(0, np.uint32) if self.checksums is None else self.checksums,
            "key_sizes": self.keys.sizes,
            "keys": key_bytes,
            "frames": np.diff(self.frames, axis=0, prepend=0).reshape(-1),
        }
        narrow = {name: _narrow(column) for name, column in columns.items()}
        header = {
            "shard": self.shard,
            "size": self.size,
            "data_size": self.data_size,
            "fields": self.fields,
            "compression": self.compression,
            "checksums": self.checksums is not None,
            "settings": dict(self.settings),
            "columns": {name: [column.dtype.str, len(column)] for name, column in narrow.items()},
        }
        head = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
        body = zlib.compress(b"".join(column.tobytes() for column in narrow.values()), 1)
        data = _HEAD.pack(_MAGIC, _VERSION, len(head)) + head + body
        return data + _CHECKSUM.pack(zlib.crc32(data))

    @classmethod
    def parse(cls, data: bytes, address: str) -> ShardIndex:
        """Return the index that an index file contains.

        Args:
            data: Content of the file.
            address: Address of the file, for messages.

        Raises:
            CorruptShard: If it is no index file, is damaged or too new, or describes something impossible.
        """
        try:
            return _parse(data)
        except _InvalidIndex as error:
            raise CorruptShard(
                f"{address}: {error}. Make it again: streamloader index-shards", address=address, offset=0
            ) from error


class IndexBuilder:
    """Collects the members of a shard in their order.

    Members with the same key that lie next to each other are one sample. If the key comes again later, that is another
    sample.

    Args:
        address: Address of the shard, for messages.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._keys: list[str] = []
        self._fields: dict[str, int] = {}
        self._present: set[str] = set()  # fields of the last sample
        self._firsts = array("q")
        self._member_fields = array("H")
        self._starts = array("q")
        self._sizes = array("q")
        self._checksums = array("I")
        self._checksums_known = True

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._keys)

    def add(self, key: str, field: str, start: int, size: int, checksum: int | None) -> None:
        """Add a member.

        Raises:
            CorruptShard: If the sample has this field already, or if there are more than 65,536 fields.
        """
        number = self._fields.get(field, len(self._fields))
        if number >= _MAX_FIELDS:
            raise self._make_error(
                f"its members have more than {_MAX_FIELDS:,} fields: a key ends at its first dot, so dots in the names "
                "of samples make a field of each",
                f"{key}.{field}",
                start,
            )
        if not self._keys or self._keys[-1] != key:
            self._keys.append(key)
            self._firsts.append(len(self._starts))
            self._present = set()
        elif field in self._present:
            detail = f"the sample {make_printable(key)!r} has two members {make_printable(field)!r}"
            raise self._make_error(detail, f"{key}.{field}", start)
        self._fields[field] = number
        self._present.add(field)
        self._member_fields.append(number)
        self._starts.append(start)
        self._sizes.append(size)
        self._checksums_known &= checksum is not None
        self._checksums.append(checksum or 0)

    def build(
        self,
        shard: str,
        size: int,
        *,
        data_size: int | None = None,
        compression: str | None = None,
        frames: list[tuple[int, int]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> ShardIndex:
        """Return the index. Arguments are those of :class:`ShardIndex`.

        Raises:
            ConfigError: If the members cannot lie in such a shard.
        """
        index = ShardIndex(
            shard=shard,
            size=size,
            data_size=size if data_size is None else data_size,
            first_members=np.array([*self._firsts, len(self._starts)], np.int64),
            member_fields=np.array(self._member_fields, np.uint16),
            starts=np.array(self._starts, np.int64),
            sizes=np.array(self._sizes, np.int64),
            checksums=np.array(self._checksums, np.uint32) if self._checksums_known else None,
            fields=tuple(self._fields),
            keys=StringColumn.from_strings(self._keys),
            compression=compression,
            frames=np.array(frames or [], np.int64).reshape(-1, 2),
            settings=dict(settings or {}),
        )
        try:
            _check(index)
        except _InvalidIndex as error:
            raise ConfigError(f"{self._address}: {error}") from error
        return index

    def _make_error(self, detail: str, member: str, offset: int) -> CorruptShard:
        return CorruptShard(
            f"{self._address}, byte {offset}: {detail}",
            address=self._address,
            offset=offset,
            shard=self._address,
            member=member,
        )


def digest_index(data: bytes) -> str:
    """Return what identifies the content of an index file: 128 bits of BLAKE2b, in hex.

    A CRC-32 would not do, because it is the same for all data that ends with its own CRC-32.
    """
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def is_index(data: bytes) -> bool:
    """Return whether data begins as an index file does. It may still be damaged."""
    return data.startswith(_MAGIC)


class _InvalidIndex(ValueError):
    """What is wrong with an index."""


def _fail(problem: str) -> NoReturn:
    raise _InvalidIndex(problem)


def _narrow(values: Array) -> Array:
    """Return integers of 0 or more in the narrowest type that holds all of them."""
    largest = int(values.max()) if values.size else 0
    dtype = next(dtype for dtype in _DTYPES if largest <= np.iinfo(dtype).max)
    return np.ascontiguousarray(values, dtype)


def _parse(data: bytes) -> ShardIndex:
    if len(data) < _HEAD.size + _CHECKSUM.size or not data.startswith(_MAGIC):
        _fail("it is not the index of a shard, or is cut")
    _, version, header_bytes = _HEAD.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != checksum:
        _fail("the index is damaged or cut: its checksum is wrong")
    if version != _VERSION:
        _fail(f"the index has version {version}, and this streamloader reads version {_VERSION}")
    body_start = _HEAD.size + header_bytes
    if header_bytes > min(_MAX_HEADER_BYTES, len(data)) or body_start > len(data) - _CHECKSUM.size:
        _fail("the header of the index is longer than the file")
    header = _parse_header(data[_HEAD.size : body_start])
    index = _build(header, _parse_columns(header, memoryview(data)[body_start : -_CHECKSUM.size]))
    _check(index)
    return index


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data, parse_constant=_fail)
    except (ValueError, RecursionError) as error:
        raise _InvalidIndex(f"the header of the index is no JSON: {error}") from error
    kinds = {
        "shard": str, "size": int, "data_size": int, "fields": list, "checksums": bool, "settings": dict,
        "columns": dict,
    }  # fmt: skip
    if not isinstance(header, dict) or any(type(header.get(name)) is not kind for name, kind in kinds.items()):
        _fail("the header of the index lacks an entry, or has one of another type")
    if (
        not all(isinstance(field, str) for field in header["fields"])
        or header.get("compression", "") not in _COMPRESSIONS
    ):
        _fail("the header of the index has fields or a compression that are unknown")
    if not 0 <= header["size"] <= _MAX_OBJECT_BYTES or not 0 <= header["data_size"] <= _MAX_OBJECT_BYTES:
        _fail("the header of the index declares an impossible size")
    return header


_COLUMNS: Final = {  # widest type of each
    "members": "<i8", "fields": "<u2", "gaps": "<i8", "sizes": "<i8", "checksums": "<u4", "key_sizes": "<u4",
    "keys": "|u1", "frames": "<i8",
}  # fmt: skip


def _parse_columns(header: dict[str, Any], body: memoryview) -> dict[str, Array]:
    """Return the columns. Their declared sizes are compared with the data before memory is taken for them."""
    declared = header["columns"]
    if tuple(sorted(declared)) != tuple(sorted(_COLUMNS)):
        _fail("the index has other columns than this streamloader knows")
    shapes: list[tuple[str, np.dtype[Any], int]] = []
    for name in _COLUMNS:
        entry = declared[name]
        if not (
            isinstance(entry, list)
            and len(entry) == 2
            and entry[0] in (*_DTYPES[1:], "|u1")
            and np.dtype(entry[0]).itemsize <= np.dtype(_COLUMNS[name]).itemsize
            and type(entry[1]) is int
        ):
            _fail(f"the column {name!r} of the index has an unknown type")
        if not 0 <= entry[1] <= _MAX_OBJECT_BYTES >> 3:
            _fail(f"the column {name!r} of the index has an impossible size")
        shapes.append((name, np.dtype(entry[0]), entry[1]))
    total = sum(dtype.itemsize * count for _, dtype, count in shapes)
    if total > max(_FREE_EXPANSION_BYTES, _MAX_EXPANSION * len(body)):
        _fail("the columns of the index expand too much")
    try:
        content = inflate(body, total)
    except ValueError as error:
        raise _InvalidIndex(f"the columns of the index are damaged: {error}") from error
    if len(content) != total:
        _fail(f"the columns of the index have {len(content)} bytes, and it declares {total}")
    columns, offset = {}, 0
    for name, dtype, count in shapes:
        columns[name] = np.frombuffer(content, dtype, count, offset)
        offset += dtype.itemsize * count
    return columns


def _build(header: dict[str, Any], columns: dict[str, Array]) -> ShardIndex:
    members = len(columns["fields"])
    if len(columns["key_sizes"]) != len(columns["members"]) or len(columns["frames"]) % 2:
        _fail("the columns of the index differ in size")
    if {len(columns["gaps"]), len(columns["sizes"])} != {members}:
        _fail("the columns of the index differ in size")
    if len(columns["checksums"]) != (members if header["checksums"] else 0):
        _fail("the index does not have a checksum for each member")
    for name in ("members", "gaps", "sizes", "key_sizes", "frames"):
        column = columns[name]
        if column.size and (int(column.min()) < 0 or float(column.sum(dtype=np.float64)) > _MAX_OBJECT_BYTES):
            _fail(f"the column {name!r} of the index has impossible numbers")
    sizes = columns["sizes"].astype(np.int64)
    ends = np.cumsum(columns["gaps"].astype(np.int64) + sizes)
    key_ends = np.cumsum(columns["key_sizes"].astype(np.int64))
    if (int(key_ends[-1]) if len(key_ends) else 0) != len(columns["keys"]):
        _fail("the keys of the index have other sizes than declared")
    return ShardIndex(
        shard=header["shard"],
        size=header["size"],
        data_size=header["data_size"],
        first_members=np.concatenate([[0], np.cumsum(columns["members"].astype(np.int64))]),
        member_fields=columns["fields"].astype(np.uint16),
        starts=ends - sizes,
        sizes=sizes,
        checksums=columns["checksums"].astype(np.uint32) if header["checksums"] else None,
        fields=tuple(header["fields"]),
        keys=StringColumn(columns["keys"], key_ends),
        compression=header["compression"],
        frames=np.cumsum(columns["frames"].astype(np.int64).reshape(-1, 2), axis=0),
        settings=header["settings"],
    )


def _check(index: ShardIndex) -> None:
    """Check that such a shard is possible, so that reading it needs no further checks."""
    _check_names(index)
    members = len(index.starts)
    if int(index.first_members[-1]) != members or (np.diff(index.first_members) < 1).any():
        _fail("the index has a sample without members, or members without a sample")
    if members and int(index.member_fields.max()) >= len(index.fields):
        _fail("the index has a member of an unknown field")
    _check_repeated_fields(index)
    if members and int(index.starts[-1] + index.sizes[-1]) > index.data_size:
        _fail(f"the index has members behind the end of the shard, which has {index.data_size} bytes")
    if members and (index.starts[1:] < (index.starts + index.sizes)[:-1] + _BLOCK_BYTES).any():  # with a header between
        _fail("the index has members that overlap")
    if (index.starts % _BLOCK_BYTES).any() or (members and int(index.starts[0]) < _BLOCK_BYTES):
        _fail("the index has members that do not start where those of a tar file do")
    if index.compression is None:
        if len(index.frames) or index.size != index.data_size:
            _fail("the index of a plain tar file describes compressed data")
        return
    if index.data_size > max(_FREE_SHARD_BYTES, _MAX_SHARD_EXPANSION * index.size):
        _fail("the index describes a shard that expands too much")
    frames = index.frames
    if not len(frames) or tuple(frames[0]) != (0, 0) or (np.diff(frames, axis=0) < 1).any():
        _fail("the index has impossible offsets at which decompression starts")
    if int(frames[-1, 0]) >= max(1, index.size) or int(frames[-1, 1]) > index.data_size:
        _fail("the index has offsets at which decompression starts behind the end of the shard")


def _check_names(index: ShardIndex) -> None:
    """Check the names of the shard, of fields and of samples."""
    fields = index.fields
    if not index.shard or len(fields) > _MAX_FIELDS or len(set(fields)) != len(fields):
        _fail("the index has no name of the shard, or two fields of the same name")
    if any("/" in field or field.startswith("__") for field in fields):
        _fail("the index has a field with an impossible name")
    if not len(index):
        return
    sizes, data = index.keys.encode(0, len(index))
    text, firsts = data.tobytes(), np.cumsum(sizes) - sizes
    if int(sizes.min()) < 1 or int(sizes.max()) > _MAX_KEY_BYTES:
        _fail("the index has a key that is empty or too long")
    try:
        text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise _InvalidIndex("the keys of the index are no text") from error
    if ((data[firsts] & 0xC0) == 0x80).any():
        _fail("the keys of the index are no text")
    is_suspicious = bool((data[firsts] == ord("/")).any()) or any(part in text for part in _SUSPICIOUS)
    if is_suspicious and any(describe_unsafe_name(key) is not None for key in index.keys):
        _fail("the index has a key that is an absolute name, or has a segment '.' or '..'")


def _check_repeated_fields(index: ShardIndex) -> None:
    """Check that no sample has two members of the same field."""
    numbers, samples = index.member_fields, len(index)
    if not samples:
        return
    first = numbers[: int(index.first_members[1])]
    if len(numbers) == samples * len(first) and (numbers.reshape(samples, -1) == first).all():
        is_repeated = len(set(first.tolist())) != len(first)  # all samples have the same fields, as in most shards
    else:
        pairs = np.repeat(np.arange(samples), np.diff(index.first_members)) * len(index.fields) + numbers
        is_repeated = len(np.unique(pairs)) != len(pairs)
    if is_repeated:
        _fail("the index has a sample with two members of the same field")
