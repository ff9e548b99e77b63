"""Decode UnixFS, the layout of files and directories in blocks.

A block is either raw, which is a piece of a file, or a dag-pb node, which has links to other blocks and a UnixFS
message that describes the node. Formats: https://ipld.io/specs/codecs/dag-pb/spec and https://specs.ipfs.tech/unixfs.
Blocks are untrusted: decoding any block ends with a consistent node or with a ProtocolError, and needs memory in
proportion to the size of the block.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from streamloader.errors import LimitExceeded, NotSupported, ProtocolError
from streamloader.stores.ipfs.cid import DAG_PB, RAW, Cid, read_varint

__all__ = [
    "MURMUR3",
    "UnixFsKind",
    "UnixFsLink",
    "UnixFsNode",
    "check_name",
    "check_shard_levels",
    "decode_node",
    "murmur3",
    "read_fields",
    "shard_path",
    "shard_width",
]

MURMUR3: Final = 0x22  # murmur3-x64-64, the only hash function that sharded directories use
_MIN_FANOUT, _MAX_FANOUT = 8, 1024  # all known programs use 256
_HASH_BITS: Final = 64
_MAX_FILE_BYTES: Final = (1 << 63) - 1
_MASK: Final = (1 << 64) - 1


class UnixFsKind(enum.IntEnum):
    """Kind of a node, with the numbers of the format."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    SHARD = 5


@dataclass(frozen=True, slots=True)
class UnixFsLink:
    """Link from a node to another block.

    Attributes:
        cid: CID of the other block.
        name: Name of the entry in a directory. Empty in files.
        total_bytes: Size of all blocks below the link as given by its author, or None. It is not verified.
    """

    cid: Cid
    name: str = ""
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UnixFsNode:
    """A decoded block, checked for consistency.

    Attributes:
        kind: FILE, RAW, DIRECTORY, SHARD or SYMLINK. A raw block is RAW.
        data: Bytes of a file that precede those of its links, target of a symlink, or bitmap of a shard.
        links: Links to other blocks, in order.
        sizes: Size in bytes of the part of a file below each link.
        size: Size of a file in bytes, including all linked blocks.
        fanout: Maximum number of links of a shard. 0 for other kinds.
        entries: Links of a directory by name. Those of a shard by their slot, as the hexadecimal prefix of the name.
        modified: Time of the last change in seconds since 1970 as given by the author, or None.
    """

    kind: UnixFsKind
    data: bytes = b""
    links: tuple[UnixFsLink, ...] = ()
    sizes: tuple[int, ...] = ()
    size: int = 0
    fanout: int = 0
    entries: Mapping[str, UnixFsLink] = field(default_factory=dict)
    modified: float | None = None

    @property
    def is_directory(self) -> bool:
        """Whether the node has entries."""
        return self.kind in (UnixFsKind.DIRECTORY, UnixFsKind.SHARD)

    @property
    def is_file(self) -> bool:
        """Whether the node has bytes of a file."""
        return self.kind in (UnixFsKind.FILE, UnixFsKind.RAW)


@dataclass(slots=True)
class _UnixFsMessage:
    """Fields of a UnixFS message, before any check."""

    kind: int | None = None
    data: bytes | None = None
    size: int | None = None
    sizes: list[int] = field(default_factory=list)
    hash: int | None = None
    fanout: int | None = None
    modified: float | None = None


def decode_node(cid: Cid, block: bytes, *, max_links: int) -> UnixFsNode:
    """Decode a block.

    Args:
        cid: CID of the block. Its codec determines the format.
        block: Bytes of the block.
        max_links: Maximum number of links.

    Raises:
        ProtocolError: If the block is malformed or inconsistent.
        LimitExceeded: If the node has too many links.
        NotSupported: If the block is neither raw nor dag-pb.
    """
    if cid.codec == RAW:
        return UnixFsNode(UnixFsKind.RAW, block, size=len(block))
    if cid.codec != DAG_PB:
        raise NotSupported(
            f"block {cid} is {cid.codec_name}, but files and directories consist of raw and dag-pb blocks"
        )
    try:
        links, data = _decode_links(block, max_links)
        return _make_node(links, _decode_message(data))
    except ProtocolError as error:
        raise ProtocolError(f"block {cid} is not a valid UnixFS node: {error.message}") from error
    except LimitExceeded as error:
        raise LimitExceeded(f"block {cid} {error.message}") from error


def _make_node(links: tuple[UnixFsLink, ...], message: _UnixFsMessage) -> UnixFsNode:
    data = message.data or b""
    try:
        kind = UnixFsKind(-1 if message.kind is None else message.kind)
    except ValueError:
        raise ProtocolError(f"its type {message.kind} does not exist") from None
    if kind is UnixFsKind.METADATA:
        raise ProtocolError("it is metadata, not a file or directory")
    if kind in (UnixFsKind.FILE, UnixFsKind.RAW):
        if len(message.sizes) != len(links):
            raise ProtocolError(f"it has {len(links)} links and {len(message.sizes)} sizes for them")
        size = len(data) + sum(message.sizes)
        if size > _MAX_FILE_BYTES:
            raise ProtocolError(f"its parts have {size} bytes, more than a file can have")
        if message.size is not None and message.size != size:
            raise ProtocolError(f"its size is given as {message.size} bytes, but its parts have {size}")
        return UnixFsNode(kind, data, links, tuple(message.sizes), size, modified=message.modified)
    if kind is UnixFsKind.SYMLINK:
        if links:
            raise ProtocolError("it is a symbolic link that has links to blocks")
        return UnixFsNode(kind, data, modified=message.modified)
    if kind is UnixFsKind.DIRECTORY:
        entries = {link.name: link for link in links}
        if len(entries) != len(links):
            raise ProtocolError("it has two entries of the same name")
        return UnixFsNode(kind, b"", links, entries=entries, modified=message.modified)
    return _make_shard(links, data, message)


def _make_shard(links: tuple[UnixFsLink, ...], bitmap: bytes, message: _UnixFsMessage) -> UnixFsNode:
    fanout = message.fanout or 0
    if message.hash != MURMUR3:
        raise ProtocolError(f"its names are hashed by {message.hash}, not by murmur3-x64-64")
    if fanout & (fanout - 1) or not _MIN_FANOUT <= fanout <= _MAX_FANOUT:
        raise ProtocolError(f"its fanout {fanout} is not a power of 2 from {_MIN_FANOUT} to {_MAX_FANOUT}")
    width = shard_width(fanout)
    entries = {link.name[:width]: link for link in links}
    slots = [_parse_slot(link.name, width, fanout) for link in links]
    if any(a >= b for a, b in pairwise(slots)):
        raise ProtocolError("its links are not in order")
    bits = int.from_bytes(bitmap, "big")
    if len(bitmap) > fanout // 8 or bits.bit_count() != len(slots) or any(not bits >> slot & 1 for slot in slots):
        raise ProtocolError("its bitmap does not match its links")
    return UnixFsNode(UnixFsKind.SHARD, bitmap, links, fanout=fanout, entries=entries, modified=message.modified)


# --- sharded directories ---------------------------------------------------------------------------------------------


def shard_width(fanout: int) -> int:
    """Return the number of hexadecimal digits of a slot, with which the name of a link in a shard begins."""
    return len(f"{fanout - 1:X}")


def _parse_slot(name: str, width: int, fanout: int) -> int:
    text = name[:width]
    if len(text) != width or not all(c in "0123456789ABCDEF" for c in text) or int(text, 16) >= fanout:
        raise ProtocolError(f"it has a link {name[:40]!r}, which names no slot of a shard of {fanout}")
    return int(text, 16)


def check_shard_levels(levels: int, fanout: int) -> None:
    """Check the number of nested shards.

    Args:
        levels: Number of shards from the root of a directory to one of its shards, including both.
        fanout: Fanout of the shards.

    Raises:
        ProtocolError: If the hash of a name has too few bits for that many levels.
    """
    if levels * (fanout.bit_length() - 1) > _HASH_BITS:
        raise ProtocolError("the shards of a directory are nested deeper than the hash of a name allows")


def shard_path(name: str, levels: int, fanout: int) -> str:
    """Return the slots on the way to an entry, as hexadecimal digits.

    Args:
        name: Name of the entry.
        levels: Number of nested shards that the path leads through.
        fanout: Fanout of the shards.

    Raises:
        ProtocolError: If the hash of a name has too few bits for that many levels.
    """
    check_shard_levels(levels, fanout)
    bits, width = fanout.bit_length() - 1, shard_width(fanout)
    hashed = murmur3(name.encode())
    return "".join(f"{hashed >> _HASH_BITS - (n + 1) * bits & (fanout - 1):0{width}X}" for n in range(levels))


def murmur3(data: bytes) -> int:
    """Return the first 64 bits of MurmurHash3_x64_128 with seed 0.

    Source: Austin Appleby's public-domain SMHasher, https://github.com/aappleby/smhasher/wiki/MurmurHash3.
    """
    h1 = h2 = 0
    blocks_end = len(data) & ~15
    for k1, k2 in struct.iter_unpack("<QQ", data[:blocks_end]):
        h1 ^= _mix(k1, 0x87C37B91114253D5, 31, 0x4CF5AD432745937F)
        h1 = ((_rotate_left(h1, 27) + h2) * 5 + 0x52DCE729) & _MASK
        h2 ^= _mix(k2, 0x4CF5AD432745937F, 33, 0x87C37B91114253D5)
        h2 = ((_rotate_left(h2, 31) + h1) * 5 + 0x38495AB5) & _MASK
    tail = data[blocks_end:]
    h2 ^= _mix(int.from_bytes(tail[8:], "little"), 0x4CF5AD432745937F, 33, 0x87C37B91114253D5)
    h1 ^= _mix(int.from_bytes(tail[:8], "little"), 0x87C37B91114253D5, 31, 0x4CF5AD432745937F)
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & _MASK
    h2 = (h2 + h1) & _MASK
    return (_finalize(h1) + _finalize(h2)) & _MASK


def _rotate_left(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK


def _mix(value: int, first: int, by: int, second: int) -> int:
    return _rotate_left(value * first & _MASK, by) * second & _MASK


def _finalize(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33


def check_name(name: str) -> str:
    """Check that the name of a directory entry can be part of a path, and return it.

    Raises:
        ProtocolError: If it is empty, "." or "..", or contains "/" or a null character.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ProtocolError(f"a directory has an entry with the invalid name {name[:80]!r}")
    return name


# --- the subset of protocol buffers that UnixFS uses -----------------------------------------------------------------


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message. A value is an int or bytes.

    Raises:
        ProtocolError: If the message is malformed, or uses groups.
    """
    offset = 0
    while offset < len(data):
        tag, offset = read_varint(data, offset)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, offset = read_varint(data, offset)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire_type)
        if wire_type == 2:
            length, offset = read_varint(data, offset)
        if length is None or not number:
            raise ProtocolError(f"it has a field {number} of wire type {wire_type}")
        if length > len(data) - offset:
            raise ProtocolError("one of its fields is truncated")
        yield number, data[offset : offset + length]
        offset += length


def _decode_links(block: bytes, max_links: int) -> tuple[tuple[UnixFsLink, ...], bytes]:
    """Return the links and the data of a dag-pb node."""
    links: list[UnixFsLink] = []
    data: bytes | None = None
    data_after_links = False
    for number, value in read_fields(block):
        if not isinstance(value, bytes) or number not in (1, 2):
            raise ProtocolError(f"it has a field {number}, which dag-pb does not have")
        if number == 1:
            if data is not None:
                raise ProtocolError("it has its data twice")
            data, data_after_links = value, bool(links)
        elif data_after_links:
            raise ProtocolError("it has links on both sides of its data")
        else:
            if len(links) >= max_links:
                raise LimitExceeded(f"has more than {max_links} links: raise max_links= if that is correct")
            links.append(_decode_link(value))
    if data is None:
        raise ProtocolError("it has no data")
    return tuple(links), data


def _decode_link(data: bytes) -> UnixFsLink:
    cid: Cid | None = None
    name, total_bytes, previous = "", None, 0
    for number, value in read_fields(data):
        if number <= previous:
            raise ProtocolError("one of its links has repeated fields, or fields in the wrong order")
        previous = number
        if number == 1 and isinstance(value, bytes):
            cid = Cid.decode(value)
        elif number == 2 and isinstance(value, bytes):
            try:
                name = value.decode()
            except UnicodeDecodeError as error:
                raise ProtocolError("one of its links has a name that is not UTF-8") from error
        elif number == 3 and isinstance(value, int):
            total_bytes = value
        else:
            raise ProtocolError(f"one of its links has a field {number}, which dag-pb does not have")
    if cid is None:
        raise ProtocolError("one of its links has no CID")
    return UnixFsLink(cid, name, total_bytes)


def _decode_message(data: bytes) -> _UnixFsMessage:
    message = _UnixFsMessage()
    int_fields = {1: "kind", 3: "size", 5: "hash", 6: "fanout"}
    for number, value in read_fields(data):
        if number in int_fields and isinstance(value, int):
            setattr(message, int_fields[number], value)
        elif number == 2 and isinstance(value, bytes):
            message.data = value
        elif number == 4 and isinstance(value, int):
            message.sizes.append(value)
        elif number == 4 and isinstance(value, bytes):  # packed
            offset = 0
            while offset < len(value):
                size, offset = read_varint(value, offset)
                message.sizes.append(size)
        elif number == 8 and isinstance(value, bytes):
            message.modified = _decode_time(value)
        elif number in (1, 2, 3, 4, 5, 6, 8):
            raise ProtocolError(f"its field {number} has the wrong type")
    return message


def _decode_time(data: bytes) -> float:
    seconds, nanoseconds = 0, 0
    for number, value in read_fields(data):
        if number == 1 and isinstance(value, int):
            seconds = value - (1 << 64) if value >> 63 else value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            nanoseconds = int.from_bytes(value, "little")
    return seconds + nanoseconds / 1e9
