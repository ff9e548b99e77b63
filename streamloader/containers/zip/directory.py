"""Find the central directory of a zip file, and parse it in blocks (APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16)."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import struct
from array import array
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, NamedTuple

from streamloader.common.gather import map_bounded
from streamloader.containers.base import ContainerSource, Member, describe_unsafe_name
from streamloader.containers.zip.buffered import BufferedSource
from streamloader.containers.zip.fields import (
    DEFLATED,
    ENCRYPTION_FLAGS,
    NO_FIELDS,
    STORED,
    decode_name,
    decode_time,
    resolve_volume,
    resolve_zip64,
    split_extra,
)
from streamloader.containers.zip.local_header import LOCAL_HEADER_BYTES, LOCAL_SIGNATURE
from streamloader.errors import CorruptContainer, NotSupported
from streamloader.stores.listing_budget import ListingBudget

__all__ = ["CentralDirectory", "find_directory", "is_directory"]

_ENTRY_SIGNATURE: Final = b"PK\1\2"
_END_SIGNATURE: Final = b"PK\5\6"
_END_64_SIGNATURE: Final = b"PK\6\6"
_LOCATOR_SIGNATURE: Final = b"PK\6\7"

_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_END_64_HEADER_BYTES: Final = 12  # that its own size does not count
_ENTRY: Final = struct.Struct("<4s2B5H3L5H2L")

_MAX_COMMENT_BYTES: Final = 0xFFFF
_TAIL_BYTES: Final = _END_64.size + _LOCATOR.size + _END.size + _MAX_COMMENT_BYTES
_MAX_END_RECORDS: Final = 16  # that are compared, if the comment contains further ones
_READ_BYTES: Final = 1 << 20  # of one request
_MAX_REQUESTS: Final = 3  # at the same time
_SLICE_BYTES: Final = 128 << 10  # parsed in one go: about 1500 members, in 10 ms
_UNIX_SYSTEMS: Final = (3, 19)  # Unix and OS X: the upper half of the external attributes is a mode
_SENTINEL_16: Final = 0xFFFF
_SENTINEL_32: Final = 0xFFFFFFFF
_MAX_EXPANSION: Final = 1032  # of deflate: 258 bytes from 2 bits
_MAX_SIZE_BYTES: Final = (1 << 63) - 1

_METHOD_NAMES: Final = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "xz",
    98: "PPMd",
    99: "AES encryption",
}
_TYPE_NAMES: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def is_directory(member: Member) -> bool:
    """Return whether an entry is a directory, which is no member: its name ends in "/"."""
    return member.name.endswith("/")


# --- the end of the file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EndRecord:
    """What the end of the file says about the central directory.

    Attributes:
        start: Offset of the directory.
        end: Offset after it.
        prefix: Number of bytes before the archive, which its offsets do not count.
        count: Number of entries.
        is_zip64: Whether `count` has 64 bits. Otherwise, some writers keep the lower 16 bits of larger numbers.
    """

    start: int
    end: int
    prefix: int
    count: int
    is_zip64: bool


async def find_directory(source: ContainerSource) -> CentralDirectory:
    """Find the central directory, with one request for the end of the file.

    Bytes before the archive, as in self-extracting files, are allowed.

    Raises:
        CorruptContainer: If the file is cut or damaged, or is no zip file.
        NotSupported: If it is one volume of several.
    """
    tail = await BufferedSource.read_span(source, max(0, source.size - _TAIL_BYTES), source.size)
    record = await _find_end_record(tail)
    # Without this check, a file that is cut after a member that is a zip file itself would pass for that member.
    if record.prefix and await tail.read(0, len(LOCAL_SIGNATURE)) == LOCAL_SIGNATURE:
        raise source.make_error("it is cut, or two zip files are joined: another one precedes its last bytes", 0)
    return CentralDirectory(tail, record)


async def _find_end_record(tail: BufferedSource) -> _EndRecord:
    """Return the end record whose comment ends with the file. Otherwise, the last one that further bytes follow."""
    fitting, followed = await _list_end_records(tail)
    records, error = await _parse_end_records(tail, fitting)
    if not records:
        records, other_error = await _parse_end_records(tail, followed)
        del records[1:]
        error = error or other_error
    if not records:
        raise error or tail.make_error("it is cut or no zip file: it has no end record", tail.size)
    return await _choose_end_record(tail, records)


async def _list_end_records(tail: BufferedSource) -> tuple[list[int], list[int]]:
    """Return the offsets of end records, last ones first: those whose comment ends with the file, and all others."""
    start = max(0, tail.size - _MAX_COMMENT_BYTES - _END.size)
    data = await tail.read(start, tail.size)
    fitting: list[int] = []
    followed: list[int] = []
    position = data.rfind(_END_SIGNATURE)
    while position >= 0:
        if position + _END.size <= len(data):
            surplus = len(data) - position - _END.size - _END.unpack_from(data, position)[-1]
            if surplus >= 0:
                (followed if surplus else fitting).append(start + position)
        position = data.rfind(_END_SIGNATURE, 0, position)
    if len(fitting) > _MAX_END_RECORDS:
        raise tail.make_error(f"it is damaged or hostile: it has more than {_MAX_END_RECORDS} end records", start)
    return fitting, followed[:_MAX_END_RECORDS]


async def _parse_end_records(
    tail: BufferedSource, offsets: list[int]
) -> tuple[list[_EndRecord], CorruptContainer | NotSupported | None]:
    """Return the end records that can be parsed, and the first error."""
    records = []
    first_error: CorruptContainer | NotSupported | None = None
    for offset in offsets:
        try:
            records.append(await _parse_end_record(tail, offset))
        except (CorruptContainer, NotSupported) as error:
            first_error = first_error or error
    return records, first_error


async def _choose_end_record(tail: BufferedSource, records: list[_EndRecord]) -> _EndRecord:
    """Return the only record that leads to a directory: a comment can contain what looks like another record."""
    if len(records) == 1:
        return records[0]
    leading = [
        record
        for record in records
        if record.count and await tail.read(record.start, record.start + 4) == _ENTRY_SIGNATURE
    ]
    if len(leading) > 1:
        raise tail.make_error("it has more than one end record, and each leads to another list of members", tail.size)
    return leading[0] if leading else records[0]


async def _parse_end_record(tail: BufferedSource, offset: int) -> _EndRecord:
    """Parse the end record at `offset`, and the one of zip64 before it if there is one."""
    _, disk, start_disk, disk_count, count, size, start, _ = _END.unpack(await tail.read(offset, offset + _END.size))
    short = (disk, start_disk, disk_count, count, size, start)
    end = offset
    long = await _read_end_64(tail, offset)
    if long is not None:
        end, values = long
        _check_same(tail, short, values, offset)
        disk, start_disk, disk_count, count, size, start = values
    if disk or start_disk or disk_count != count:
        raise _make_volume_error(tail, offset)
    prefix = end - size - start
    if prefix < 0 or count * _ENTRY.size > size:
        raise tail.make_error("it is cut or damaged: its end record describes a directory outside of the file", offset)
    return _EndRecord(end - size, end, prefix, count, is_zip64=long is not None)


async def _read_end_64(tail: BufferedSource, offset: int) -> tuple[int, tuple[int, ...]] | None:
    """Return offset and values of the zip64 end record. None if there is none.

    Args:
        tail: Bytes at the end of the file.
        offset: Offset of the end record.
    """
    locator_offset = offset - _LOCATOR.size
    if locator_offset < 0:
        return None
    signature, _, declared, disks = _LOCATOR.unpack(await tail.read(locator_offset, offset))
    if signature != _LOCATOR_SIGNATURE:
        return None
    if disks > 1:
        raise _make_volume_error(tail, locator_offset)
    # Right before the locator, unless it has further data. Only its own offset leads to it then.
    for start in (locator_offset - _END_64.size, declared):
        if not 0 <= start <= locator_offset - _END_64.size:
            continue
        record = _END_64.unpack(await tail.read(start, start + _END_64.size))
        if record[0] == _END_64_SIGNATURE and start + _END_64_HEADER_BYTES + record[1] == locator_offset:
            return start, record[4:]
    raise tail.make_error("it is damaged: its zip64 end record is missing", locator_offset)


def _check_same(tail: BufferedSource, short: tuple[int, ...], long: tuple[int, ...], offset: int) -> None:
    """Check that both end records agree where the short one has space for the value."""
    sentinels = (_SENTINEL_16,) * 4 + (_SENTINEL_32,) * 2
    if any(value not in (sentinel, expected) for value, expected, sentinel in zip(short, long, sentinels, strict=True)):
        raise tail.make_error("it is damaged: its two end records differ", offset)


def _make_volume_error(tail: BufferedSource, offset: int) -> NotSupported:
    return NotSupported(
        f"{tail.address} is one volume of a zip file that has several: join them (zip -s 0) first",
        address=tail.address,
        offset=offset,
    )


# --- the directory ---------------------------------------------------------------------------------------------------


class _DirectoryEntry(NamedTuple):
    """The fixed fields of an entry (4.3.12)."""

    signature: bytes
    made_by_version: int
    made_by_system: int
    needed_version: int
    flags: int
    method: int
    time: int
    date: int
    checksum: int
    stored_size: int
    size: int
    name_length: int
    extra_length: int
    comment_length: int
    volume: int
    internal_attributes: int
    external_attributes: int
    offset: int


class CentralDirectory:
    """The list of members at the end of a zip file. It belongs to one source and holds no members.

    Args:
        source: Bytes of the container.
        record: End record.

    Attributes:
        start: Offset of the directory. All members end before it.
        end: Offset after the directory.
    """

    def __init__(self, source: ContainerSource, record: _EndRecord) -> None:
        self._source = source
        self._record = record
        self.start = record.start
        self.end = record.end

    async def read_blocks(self) -> AsyncGenerator[list[Member], None]:
        """Yield all entries in the order of the directory, in short lists, directories included.

        The `data` of a member is the lowest offset at which its content can begin: that of the extra fields in its
        local header, whose length only the local header states.

        Raises:
            CorruptContainer: If the directory is cut or damaged, or if members overlap.
            LimitExceeded: If there are too many members.
        """
        budget = ListingBudget(self._source.limits, self._source.address)
        order = _OrderCheck(self._source)
        async with contextlib.aclosing(self._parse_blocks()) as blocks:
            async for members in blocks:
                for member in members:
                    budget.count_entry(member.name)
                    order.add(member)
                yield members
        if not order.is_ascending:
            await self._check_overlaps()

    async def _check_overlaps(self) -> None:
        """Compare all members, for a directory that is not in the order of their offsets. This needs 16 bytes each."""
        starts, ends = array("q"), array("q")
        async with contextlib.aclosing(self._parse_blocks()) as blocks:
            async for members in blocks:
                starts.extend(member.offset for member in members)
                ends.extend(member.data + member.stored_size for member in members)
        offset = await asyncio.to_thread(_find_overlap, starts, ends)
        if offset is not None:
            raise _make_overlap_error(self._source, offset)

    async def _parse_blocks(self) -> AsyncGenerator[list[Member], None]:
        rest, offset, count = b"", self.start, 0
        async with contextlib.aclosing(self._read_slices()) as slices:
            async for piece in slices:
                data = rest + piece
                members, used = self._parse_entries(data, offset)
                rest = data[used:]
                offset += used
                count += len(members)
                if members:
                    yield members
                await asyncio.sleep(0)
        if rest:
            raise self._source.make_error("it is damaged: the last entry of its directory is cut", offset)
        self._check_count(count)

    async def _read_slices(self) -> AsyncGenerator[bytes, None]:
        spans = ((start, min(start + _READ_BYTES, self.end)) for start in range(self.start, self.end, _READ_BYTES))
        reads = map_bounded(lambda span: self._source.read(*span), spans, limit=_MAX_REQUESTS)
        async with contextlib.aclosing(reads) as blocks:
            async for block in blocks:
                for start in range(0, len(block), _SLICE_BYTES):
                    yield block[start : start + _SLICE_BYTES]

    def _check_count(self, count: int) -> None:
        expected = self._record.count
        if count != expected and (self._record.is_zip64 or (count - expected) % (_SENTINEL_16 + 1)):
            raise self._source.make_error(
                f"it is damaged: its directory has {count} entries, and the end record declares {expected}", self.end
            )

    def _parse_entries(self, data: bytes, offset: int) -> tuple[list[Member], int]:
        """Return the complete entries at the beginning of `data`, and the number of their bytes.

        Args:
            data: Bytes of the directory.
            offset: Offset of these bytes in the file.
        """
        members, position = [], 0
        while position + _ENTRY.size <= len(data):
            entry = _DirectoryEntry._make(_ENTRY.unpack_from(data, position))
            if entry.signature != _ENTRY_SIGNATURE:
                raise self._source.make_error("it is damaged: no entry of its directory begins here", offset + position)
            names = position + _ENTRY.size
            extras = names + entry.name_length
            end = extras + entry.extra_length
            if end + entry.comment_length > len(data):
                break
            try:
                members.append(self._make_member(entry, data[names:extras], data[extras:end]))
            except ValueError as error:
                raise self._source.make_error(f"it is damaged: {error}", offset + position) from None
            position = end + entry.comment_length
        return members, position

    def _make_member(self, entry: _DirectoryEntry, raw_name: bytes, extra: bytes) -> Member:
        """Check an entry and return its member.

        Raises:
            ValueError: If the entry contradicts itself or the file.
        """
        fields = split_extra(extra) if extra else NO_FIELDS
        values = entry.size, entry.stored_size, entry.offset
        size, stored_size, offset = resolve_zip64(values, fields)
        offset += self._record.prefix
        data = offset + LOCAL_HEADER_BYTES + entry.name_length
        if data + stored_size > self.start or size > _MAX_SIZE_BYTES:
            raise ValueError("the entry describes a member outside of the file")
        problem = _describe_problem(entry)
        if entry.volume and resolve_volume(entry.volume, values, fields):
            problem = "a member in another volume"
        if problem is None and not _is_possible_size(entry.method, size, stored_size):
            raise ValueError(f"the entry declares {size} bytes, which {stored_size} stored ones cannot contain")
        try:
            name = decode_name(raw_name, entry.flags, fields, is_unix=entry.made_by_system in _UNIX_SYSTEMS)
            problem = problem or describe_unsafe_name(name)
        except UnicodeDecodeError:
            name = raw_name.decode("utf-8", "surrogateescape")
            problem = "a member whose name is not valid UTF-8"
        modified = decode_time(entry.date, entry.time, fields)
        return Member(name, size, offset, data, stored_size, entry.method, entry.checksum, modified, problem)


def _describe_problem(entry: _DirectoryEntry) -> str | None:
    """Return the reason why the content is never read, or None."""
    if entry.made_by_system in _UNIX_SYSTEMS:
        mode = stat.S_IFMT(entry.external_attributes >> 16)
        if mode in _TYPE_NAMES:
            return _TYPE_NAMES[mode]
    if entry.flags & ENCRYPTION_FLAGS:
        return "an encrypted member"
    if entry.method not in (STORED, DEFLATED):
        name = _METHOD_NAMES.get(entry.method)
        return f"a member with the compression method {entry.method}" + (f" ({name})" if name else "")
    return None


def _is_possible_size(method: int, size: int, stored_size: int) -> bool:
    return size == stored_size if method == STORED else size <= stored_size * _MAX_EXPANSION


# --- overlapping members ---------------------------------------------------------------------------------------------


class _OrderCheck:
    """Compares each member with the previous one: neighbours must not overlap.

    Args:
        source: Bytes of the container, for errors.

    Attributes:
        is_ascending: Whether all members so far lie in the order of the directory. They then do not overlap.
    """

    def __init__(self, source: ContainerSource) -> None:
        self._source = source
        self._start = self._end = 0
        self.is_ascending = True

    def add(self, member: Member) -> None:
        """Check one member.

        Raises:
            CorruptContainer: If it overlaps the previous one.
        """
        end = member.data + member.stored_size
        if member.offset < self._end:
            if end > self._start:
                raise _make_overlap_error(self._source, member.offset)
            self.is_ascending = False
        self._start, self._end = member.offset, end


def _find_overlap(starts: array[int], ends: array[int]) -> int | None:
    """Return the offset of a member that begins before another one ends, or None."""
    import numpy as np  # only for directories in another order

    offsets = np.frombuffer(starts, np.int64)
    order = np.argsort(offsets)
    offsets = offsets[order]
    (overlapping,) = np.nonzero(np.frombuffer(ends, np.int64)[order][:-1] > offsets[1:])
    return int(offsets[overlapping[0] + 1]) if len(overlapping) else None


def _make_overlap_error(source: ContainerSource, offset: int) -> CorruptContainer:
    return source.make_error("it is damaged or hostile: the member here overlaps another one", offset)
