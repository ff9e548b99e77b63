"""The format of packs: the footer, and the index with one column for each property of the members.

A pack consists of a header, the bytes of the members without gaps, an index and a footer. All numbers are
little-endian. docs/pack-format.md describes the format. This module reads and writes its parts, and does no I/O.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol
from zlib import crc32

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.containers.pack.block_checksums import BLOCK_CHECKSUMS_KEY, parse_block_checksums
from streamloader.containers.pack.lookup import PackBytes, encode_name, make_finder, make_view
from streamloader.containers.pack.name_columns import MAX_COLUMNS, describe_bad_parts, hash_names, separate_names
from streamloader.values import Array

__all__ = [
    "BLOCK_ROWS",
    "CUSTOM",
    "FOOTER_BYTES",
    "HEADER",
    "MAX_MEMBERS",
    "MAX_METADATA_BYTES",
    "MAX_NAMES_BYTES",
    "SERIALIZED_NAME",
    "STORED",
    "ZLIB",
    "ZSTD",
    "MalformedPack",
    "PackBytes",
    "PackCompressor",
    "PackFooter",
    "PackIndex",
    "check_header",
    "describe_class",
    "describe_invalid_name",
    "encode_name",
    "make_view",
    "pack_footer",
    "pack_index",
    "parse_footer",
    "round_up",
]

STORED: Final = 0
ZLIB: Final = 1
ZSTD: Final = 2
CUSTOM: Final = 255  # the compressor that the metadata names

VERSION: Final = 1
HEADER: Final = struct.pack("<8sII", b"\x89SLPACK\n", VERSION, 0)
MAX_MEMBERS: Final = (1 << 32) - 2
MAX_NAMES_BYTES: Final = (1 << 32) - 1
MAX_METADATA_BYTES: Final = 1 << 20
SERIALIZED_NAME: Final = "serialized"  # of the only member of a pack that a serializer of the user has made

_FOOTER: Final = struct.Struct("<8sQQQQIBBHIIII")
FOOTER_BYTES: Final = _FOOTER.size
_FOOTER_MAGIC: Final = b"SLPKINDX"
_HAS_METHODS: Final = 1  # flag
_WIDTHS: Final = (4, 8)
_METHODS: Final = (STORED, ZLIB, ZSTD, CUSTOM)
_MAX_NAME_BYTES: Final = 4096
BLOCK_ROWS: Final = 4096
_BAD_PARTS: Final = frozenset((b"", b".", b".."))


class MalformedPack(Exception):
    """A pack is cut, damaged or malformed. Readers turn it into a CorruptContainer with the address.

    Args:
        detail: Description of the damage.
        offset: Offset in the pack.
    """

    def __init__(self, detail: str, offset: int) -> None:
        super().__init__(detail)
        self.offset = offset


class PackCompressor(Protocol):
    """Compresses members. One with an attribute `method` makes packs that open without it."""

    def compress(self, data: bytes, /) -> bytes:
        """Return the compressed data."""

    def decompress(self, data: bytes, /) -> bytes:
        """Return the data from which :meth:`compress` has made `data`."""


# --- header and footer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackFooter:
    """Contents of the footer.

    Attributes:
        index_offset: Offset of the index in the pack, a multiple of 8.
        index_size: Size of the index in bytes.
        count: Number of members.
        names_size: Size of all names together in bytes.
        metadata_size: Size of the metadata in bytes.
        width: Size in bytes of the numbers in the columns `starts` and `sizes`: 4 or 8.
        has_methods: Whether the index has the columns `sizes` and `methods`.
        checksum: CRC-32 of the index.
    """

    index_offset: int
    index_size: int
    count: int
    names_size: int
    metadata_size: int
    width: int
    has_methods: bool
    checksum: int

    def lay_out(self) -> dict[str, tuple[int, int]]:
        """Return offset in the index and size in bytes of each column, without padding, in their order."""
        layout: dict[str, tuple[int, int]] = {}
        offset = 0
        for name, size in self._list_sizes():
            layout[name] = offset, size
            offset += round_up(size)
        return layout

    @property
    def expected_size(self) -> int:
        """Size in bytes of an index with these counts."""
        return sum(round_up(size) for _, size in self._list_sizes())

    def _list_sizes(self) -> list[tuple[str, int]]:
        count = self.count
        sizes = [
            ("starts", (count + 1) * self.width),
            ("modified", 8 * count),
            ("hashes", 4 * count),
            ("checksums", 4 * count),
            ("name_ends", 4 * (count + 1)),
        ]
        if self.has_methods:
            sizes += [("sizes", count * self.width), ("methods", count)]
        return [*sizes, ("names", self.names_size), ("metadata", self.metadata_size)]


def round_up(size: int) -> int:
    """Return the next multiple of 8."""
    return -(-size // 8) * 8


def pack_footer(footer: PackFooter) -> bytes:
    """Return the bytes of a footer."""
    body = _FOOTER.pack(
        _FOOTER_MAGIC,
        footer.index_offset,
        footer.index_size,
        footer.count,
        footer.names_size,
        footer.metadata_size,
        footer.width,
        _HAS_METHODS if footer.has_methods else 0,
        *(0, footer.checksum, 0, 0, 0),
    )[:-4]
    return body + struct.pack("<I", crc32(body))


def parse_footer(data: bytes | memoryview, pack_size: int) -> PackFooter:
    """Return the contents of a footer, all of which is checked.

    Args:
        data: Last :data:`FOOTER_BYTES` bytes of the pack, or fewer if it is shorter.
        pack_size: Size of the pack in bytes.

    Raises:
        MalformedPack: If it is no footer of such a pack.
    """
    offset = pack_size - len(data)
    if pack_size < len(HEADER) + FOOTER_BYTES or len(data) != FOOTER_BYTES:
        raise MalformedPack(f"it is cut, or no pack: it has {pack_size} bytes", max(0, offset))
    magic, index_offset, index_size, count, names_size, metadata_size, *others = _FOOTER.unpack(data)
    width, flags, zero, checksum, zero1, zero2, own_checksum = others
    if magic != _FOOTER_MAGIC:
        raise MalformedPack("it is cut, or no pack: it does not end with the footer of one", offset)
    if crc32(data[:-4]) != own_checksum:
        raise MalformedPack("its footer is damaged: the checksum is wrong", offset)
    if zero or zero1 or zero2 or flags & ~_HAS_METHODS:
        raise MalformedPack("its footer has fields of a later version of the format: update streamloader", offset)
    has_methods = bool(flags & _HAS_METHODS)
    footer = PackFooter(index_offset, index_size, count, names_size, metadata_size, width, has_methods, checksum)
    if (problem := _describe_footer_problem(footer, pack_size)) is not None:
        raise MalformedPack(f"its footer is damaged: {problem}", offset)
    return footer


def _describe_footer_problem(footer: PackFooter, pack_size: int) -> str | None:
    checks = (
        footer.width in _WIDTHS,
        footer.count <= MAX_MEMBERS,
        footer.names_size <= MAX_NAMES_BYTES,
        footer.metadata_size <= MAX_METADATA_BYTES,
        footer.index_size == footer.expected_size,
        footer.index_offset % 8 == 0 and footer.index_offset >= len(HEADER),
        footer.index_offset + footer.index_size + FOOTER_BYTES == pack_size,
    )
    if all(checks):
        return None
    problems = (
        f"its offsets have {footer.width} bytes",
        f"it has {footer.count} members",
        f"its names have {footer.names_size} bytes",
        f"its metadata has {footer.metadata_size} bytes",
        f"its index has {footer.index_size} bytes",
        f"its index begins at byte {footer.index_offset}",
        f"its parts have another size than the file, which has {pack_size} bytes",
    )
    return problems[checks.index(False)]


def check_header(data: bytes | memoryview) -> None:
    """Check the first bytes of a pack.

    Raises:
        MalformedPack: If they are not the header of a version that is known.
    """
    if data[:8] != HEADER[:8]:
        raise MalformedPack("it is no pack: it begins with other bytes", 0)
    if data[: len(HEADER)] != HEADER:
        raise MalformedPack("it has a later version of the format: update streamloader", 8)


# --- names -----------------------------------------------------------------------------------------------------------


def describe_invalid_name(name: bytes) -> str | None:
    """Return why a pack cannot hold a name. None if it can."""
    if not name or b"\0" in name:
        return "it is empty or contains NUL"
    if len(name) > _MAX_NAME_BYTES:
        return f"it has more than {_MAX_NAME_BYTES} bytes"
    if not _BAD_PARTS.isdisjoint(name.split(b"/")):
        return "it is absolute, or contains an empty, '.' or '..' part"
    return None


def describe_class(value: object) -> str:
    """Return the name of the class of a compressor or serializer, for the metadata: "module.Class"."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


# --- the index -------------------------------------------------------------------------------------------------------


def pack_index(
    columns: Mapping[str, Array], names: bytes | bytearray, metadata: Mapping[str, Any], width: int
) -> tuple[list[bytes | bytearray], PackFooter]:
    """Return the parts of an index, in their order, and the footer without the offset of the index.

    Args:
        columns: Columns by name. Those for `sizes` and `methods` may be absent.
        names: Names, one after the other.
        metadata: Metadata, which JSON can express.
        width: Size in bytes of the numbers in the columns `starts` and `sizes`: 4 or 8.

    Raises:
        ValueError: If JSON cannot express the metadata, or if it is too long.
    """
    text = json.dumps(dict(metadata), separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata of a pack must have at most {MAX_METADATA_BYTES} bytes, got {len(text)}")
    count = len(columns["hashes"])
    footer = PackFooter(0, 0, count, len(names), len(text), width, "methods" in columns, 0)
    parts: list[bytes | bytearray] = []
    checksum = 0
    for column, (_, size) in footer.lay_out().items():
        part: bytes | bytearray
        if column in ("names", "metadata"):
            part = names if column == "names" else text
        else:
            part = columns[column].astype(_get_dtype(column, width), copy=False).tobytes()
        for piece in (part, bytes(round_up(size) - size)):
            checksum = crc32(piece, checksum)
            parts.append(piece)
    size = footer.expected_size
    return parts, PackFooter(0, size, count, len(names), len(text), width, "methods" in columns, checksum)


def _get_dtype(column: str, width: int) -> str:
    if column in ("starts", "sizes"):
        return f"<u{width}"
    return {"modified": "<i8", "methods": "u1"}.get(column, "<u4")


class PackIndex:
    """Names, offsets and checksums of the members, as columns over the bytes of the index, which are not copied.

    A row is the number of a member: they are in ascending order of the bytes of their names. The constructor checks all
    that readers rely on: the checksum, the offsets, and that no name leads out of a directory. :meth:`check_names`
    checks the rest.

    Args:
        data: Bytes that contain the index.
        footer: Footer of the pack.
        base: Offset of the index in `data`. Defaults to 0.

    Attributes:
        find: Function that returns the row of a name, and None if no member has it. It is made on first use, in some
            milliseconds for 100,000 members.
        metadata: Metadata of the pack, without the checksums of blocks.
        block_checksums: CRC-32 of the stored bytes of each block of members. None if the pack has none.
        starts: Offset of the stored bytes of each member in the pack, and the end of the last one.
        modified: Time of the last modification in nanoseconds since 1970. 0 if unknown.
        hashes: CRC-32 of each name.
        checksums: CRC-32 of each content.
        name_ends: 0, and the offset in the names at which each name ends.
        names_offset: Offset of the names in `data`.
        starts_view: View of `starts`, which yields numbers of Python.
        name_ends_view: View of `name_ends`, which yields numbers of Python.
        sizes: Size of each content in bytes. None if all are stored as they are.
        methods: Compression method of each member. None if all are stored as they are.

    Raises:
        MalformedPack: If the index is damaged or malformed.
    """

    __slots__ = (
        "_count",
        "_data",
        "_footer",
        "_offset",
        "block_checksums",
        "checksums",
        "find",
        "hashes",
        "metadata",
        "methods",
        "modified",
        "name_ends",
        "name_ends_view",
        "names_offset",
        "sizes",
        "starts",
        "starts_view",
    )

    find: Callable[[str], int | None]

    def __init__(self, data: PackBytes, footer: PackFooter, base: int = 0) -> None:
        self._data = data
        self._offset = footer.index_offset
        self._footer = footer
        layout = footer.lay_out()
        self._count = footer.count
        with memoryview(data) as view, view[base : base + footer.index_size] as index:
            if len(index) != footer.index_size or crc32(index) != footer.checksum:
                raise MalformedPack("its index is damaged: the checksum is wrong", self._offset)
        columns = {
            name: np.frombuffer(data, dtype := _get_dtype(name, footer.width), size // int(dtype[-1]), base + offset)
            for name, (offset, size) in layout.items()
            if name not in ("names", "metadata")
        }
        self.starts, self.name_ends = columns["starts"], columns["name_ends"]
        self.modified, self.hashes, self.checksums = columns["modified"], columns["hashes"], columns["checksums"]
        self.sizes: Array | None = columns.get("sizes")
        self.methods: Array | None = columns.get("methods")
        self.names_offset = base + layout["names"][0]
        self._check_offsets(footer)
        names = np.frombuffer(data, np.uint8, footer.names_size, self.names_offset)
        if (problem := describe_bad_parts(names, self.name_ends)) is not None:
            raise self._make_error("names", 0, problem)
        metadata = self._parse_metadata(base + layout["metadata"][0], footer.metadata_size)
        self.block_checksums = parse_block_checksums(metadata, self._count) if self.methods is None else None
        metadata.pop(BLOCK_CHECKSUMS_KEY, None)  # which are wrong in another pack with this metadata
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)
        self.starts_view, self.name_ends_view = make_view(self.starts), make_view(self.name_ends)

    def __len__(self) -> int:
        return self._count

    # --- names -------------------------------------------------------------------------------------------------------

    def name(self, row: int) -> str:
        """Return the name of a member.

        Raises:
            IndexError: If there is no such row.
        """
        if row < 0:
            raise IndexError(f"a pack has no row {row}")
        start, ends = self.names_offset, self.name_ends_view
        return str(self._data[start + ends[row] : start + ends[row + 1]], "utf-8", "surrogateescape")

    def names(self) -> Iterator[str]:
        """Yield all names in the order of the rows."""
        for start in range(0, self._count, BLOCK_ROWS):
            yield from self.list_names(start, start + BLOCK_ROWS)

    def list_names(self, start: int, stop: int) -> list[str]:
        """Return the names of the rows from `start` on, and before `stop`."""
        if start >= min(stop, self._count):
            return []
        names, ends = self._cut_names(start, stop)
        return separate_names(names, ends).decode("utf-8", "surrogateescape").split("\0")

    def _cut_names(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return the bytes of the names of some rows, and where the first one begins and each of them ends."""
        ends = self.name_ends[start : stop + 1]
        first, last = int(ends[0]), int(ends[-1])
        return np.frombuffer(self._data, np.uint8, last - first, self.names_offset + first), ends

    def __getattr__(self, name: str) -> Callable[[str], int | None]:
        """Make `find` when it is first needed."""
        if name != "find":
            raise AttributeError(f"PackIndex has no attribute {name!r}")
        self.find = make_finder(self._data, self.name_ends, self.names_offset, self.hashes)
        return self.find

    # --- checks ------------------------------------------------------------------------------------------------------

    def check_names(self) -> None:
        """Check that the names are in ascending order, each of them once, and that their hashes fit.

        Raises:
            MalformedPack: If they are not.
        """
        last = b""
        for start in range(0, self._count, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, self._count)
            names, ends = self._cut_names(start, stop)
            if np.diff(ends).max() > MAX_COLUMNS:
                self._check_block(start, last, separate_names(names, ends).split(b"\0"))
            else:
                hashes, is_ascending = hash_names(names, ends)
                is_ascending &= last < names[: int(ends[1] - ends[0])].tobytes()
                self._check_order(
                    start, is_ascending=is_ascending, has_hashes=np.array_equal(hashes, self.hashes[start:stop])
                )
            last = names[int(ends[-2] - ends[0]) :].tobytes()

    def blocks(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the names of some thousand rows at a time, in UTF-8, after the checks of :meth:`check_names`.

        Yields:
            The first row of a block, and its names.

        Raises:
            MalformedPack: If names are not in ascending order, or if hashes do not fit.
        """
        last = b""
        for start in range(0, self._count, BLOCK_ROWS):
            names = separate_names(*self._cut_names(start, start + BLOCK_ROWS)).split(b"\0")
            self._check_block(start, last, names)
            last = names[-1]
            yield start, names

    def _check_block(self, start: int, last: bytes, names: list[bytes]) -> None:
        """Check names that follow another one."""
        hashes = self.hashes[start : start + len(names)].tolist()
        self._check_order(
            start,
            is_ascending=all(map(operator.lt, [last, *names], names)),
            has_hashes=list(map(crc32, names)) == hashes,
        )

    def _check_order(self, start: int, *, is_ascending: bool, has_hashes: bool) -> None:
        if not is_ascending:
            raise self._make_error("name_ends", start, "its names are not in ascending order")
        if not has_hashes:
            raise self._make_error("hashes", start, "the hashes do not fit the names")

    def _check_offsets(self, footer: PackFooter) -> None:
        starts, ends = self.starts, self.name_ends
        if starts[0] != len(HEADER) or round_up(int(starts[-1])) != footer.index_offset:
            raise self._make_error("starts", 0, "the members begin or end elsewhere")
        if not (starts[:-1] <= starts[1:]).all():
            raise self._make_error("starts", 0, "the offsets of the members are not in ascending order")
        if ends[0] != 0 or ends[-1] != footer.names_size:
            raise self._make_error("name_ends", 0, "the names begin or end elsewhere")
        if not (ends[:-1] < ends[1:]).all() or (ends[1:] - ends[:-1]).max(initial=0) > _MAX_NAME_BYTES:
            raise self._make_error("name_ends", 0, "names are empty, too long, or not one after the other")
        if self.methods is None or self.sizes is None:
            return
        if not np.isin(self.methods, _METHODS).all():
            raise self._make_error("methods", 0, "it has methods of a later version of the format")
        if ((starts[1:] - starts[:-1] != self.sizes) & (self.methods == STORED)).any():
            raise self._make_error("sizes", 0, "members that are not compressed have another size")

    def _parse_metadata(self, start: int, size: int) -> dict[str, Any]:
        try:
            metadata = json.loads(str(self._data[start : start + size], "utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._make_error("metadata", 0, f"its metadata is no JSON: {make_printable(error)}") from None
        if not isinstance(metadata, dict):
            raise self._make_error("metadata", 0, "its metadata is no JSON object")
        return metadata

    def _make_error(self, column: str, row: int, detail: str) -> MalformedPack:
        offset, size = self._footer.lay_out()[column]
        width = size // self._count if self._count else 0
        return MalformedPack(f"its index is damaged: {detail}", self._offset + offset + row * width)
