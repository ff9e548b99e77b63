"""Compare the local header of a zip member with its entry in the directory (APPNOTE.TXT 6.3.10, section 4.3.7)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from streamloader.containers.base import ContainerSource, Member
from streamloader.containers.zip.buffered import BufferedSource
from streamloader.containers.zip.fields import (
    DESCRIPTOR_FLAG,
    ENCRYPTION_FLAGS,
    NO_FIELDS,
    UTF8_FLAG,
    decode_name,
    resolve_zip64,
    split_extra,
)

__all__ = ["LOCAL_HEADER_BYTES", "LOCAL_SIGNATURE", "TYPICAL_EXTRA_BYTES", "find_content"]

LOCAL_SIGNATURE: Final = b"PK\3\4"
_HEADER: Final = struct.Struct("<4s5H3L2H")
LOCAL_HEADER_BYTES: Final = _HEADER.size
TYPICAL_EXTRA_BYTES: Final = 64  # of extra fields, read in advance. Most writers need less


class _LocalHeader(NamedTuple):
    """The fixed fields of a local header."""

    signature: bytes
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


async def find_content(source: BufferedSource, member: Member) -> int:
    """Return the offset of a member's content, which follows its local header.

    Raises:
        CorruptContainer: If there is no local header, or it differs from the directory.
        StoreError: If the header cannot be read.
    """
    head = source.peek(member.offset, member.data + TYPICAL_EXTRA_BYTES)
    if member.offset + len(head) < member.data:
        head = await source.read(member.offset, min(member.data + TYPICAL_EXTRA_BYTES, source.size))
    data = _check_header(source, member, head)
    if data > member.offset + len(head):
        _check_header(source, member, await source.read(member.offset, data))
    return data


def _check_header(source: ContainerSource, member: Member, head: bytes) -> int:
    """Compare a local header with the directory, and return the offset of the content.

    Args:
        source: Bytes of the container, for errors.
        member: Member of the header.
        head: Bytes from the header on. If they end before the content begins, only the fixed fields are compared.

    Raises:
        CorruptContainer: If there is no local header, or it differs from the directory.
    """
    if head[:4] != LOCAL_SIGNATURE or len(head) < _HEADER.size:
        raise source.make_error("it is damaged: no member begins here, although the directory lists one", member.offset)
    header = _LocalHeader._make(_HEADER.unpack_from(head))
    extra_start = member.data - member.offset
    extra_end = extra_start + header.extra_length
    try:
        difference = _compare_fixed(member, header)
        if difference is None and extra_end <= len(head):
            raw_name, extra = head[_HEADER.size : extra_start], head[extra_start:extra_end]
            difference = _compare_variable(member, header, raw_name, split_extra(extra) if extra else NO_FIELDS)
    except ValueError as error:
        raise source.make_error(f"it is damaged: {error}", member.offset) from None
    if difference is not None:
        raise source.make_error(
            f"it is damaged or hostile: {difference} in the header of the member differs from the directory",
            member.offset,
        )
    return member.offset + extra_end


def _compare_fixed(member: Member, header: _LocalHeader) -> str | None:
    """Return what differs between the header and the directory, or None."""
    if member.offset + _HEADER.size + header.name_length != member.data:
        return "the length of the name"
    if header.flags & ENCRYPTION_FLAGS:
        return "the encryption"
    if header.method != member.method:
        return "the compression method"
    return None


def _compare_variable(member: Member, header: _LocalHeader, raw_name: bytes, fields: dict[int, bytes]) -> str | None:
    """Return what differs in what depends on the extra fields, or None.

    Raises:
        ValueError: If the extra fields or the name cannot be decoded.
    """
    size, stored_size = resolve_zip64((header.size, header.stored_size), fields)
    stated = (header.checksum, size, stored_size)
    expected = (member.checksum, member.size, member.stored_size)
    # With a data descriptor, writers that did not know the values yet have left zeros.
    may_be_unknown = header.flags & DESCRIPTOR_FLAG
    if stated != expected and not (
        may_be_unknown and all(value in (0, right) for value, right in zip(stated, expected, strict=True))
    ):
        return "a size or the checksum"
    # How other names are to be decoded, only the directory states. Their length has been compared.
    is_known = raw_name.isascii() or member.name.isascii() or header.flags & UTF8_FLAG
    if is_known and decode_name(raw_name, header.flags, fields) != member.name:
        return "the name"
    return None
