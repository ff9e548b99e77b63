"""UnixFS: how files and directories are laid out in blocks.

A block is either a piece of a file as it is (raw) or a dag-pb node: links to further blocks, and in its data a
UnixFS message that says what they make. Formats: https://ipld.io/specs/codecs/dag-pb/spec and
https://specs.ipfs.tech/unixfs. Blocks come from strangers: whatever they hold, decoding ends with a node whose
parts fit together, or with a ProtocolFault, and needs memory in proportion to the block.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from streamloader.errors import LimitExceeded, NotSupported, ProtocolFault
from streamloader.stores.ipfs.cid import DAG_PB, RAW, Cid, read_varint

__all__ = ["MURMUR3", "Kind", "Link", "Node", "check_name", "decode", "fields", "murmur3", "shard_path", "shard_width"]

MURMUR3: Final = 0x22  # murmur3-x64-64, the one hash that sharded directories use
_NARROWEST, _WIDEST = 8, 1024  # of a shard; everybody uses 256
_HASH_BITS: Final = 64
_MASK: Final = (1 << 64) - 1


class Kind(enum.IntEnum):
    """What a node stands for, with the numbers of the format."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    SHARD = 5


@dataclass(frozen=True, slots=True)
class Link:
    """From a node to another block.

    Attributes:
        cid: of that block.
        name: in a directory; "" in files.
        total: bytes of all blocks under it, where the maker of the link says so; nothing is checked against it.
    """

    cid: Cid
    name: str = ""
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A block that was understood, and whose parts fit together.

    Attributes:
        kind: FILE, RAW, DIRECTORY, SHARD or SYMLINK. A raw block is RAW.
        data: of a file the bytes that come before those of its links; of a symlink its target; of a shard its bitmap.
        links: to other blocks.
        sizes: of a file, the bytes of each link.
        size: of a file, in bytes, with all that is linked.
        fanout: of a shard, how many links it can have.
        entries: the links of a directory by name, those of a shard by the place that their names begin with.
        modified: seconds since 1970, where the maker says.
    """

    kind: Kind
    data: bytes = b""
    links: tuple[Link, ...] = ()
    sizes: tuple[int, ...] = ()
    size: int = 0
    fanout: int = 0
    entries: Mapping[str, Link] = field(default_factory=dict)
    modified: float | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it has entries."""
        return self.kind in (Kind.DIRECTORY, Kind.SHARD)

    @property
    def is_file(self) -> bool:
        """Whether it has bytes."""
        return self.kind in (Kind.FILE, Kind.RAW)


@dataclass(slots=True)
class _Message:
    """A UnixFS message as it is written."""

    kind: int | None = None
    data: bytes | None = None
    size: int | None = None
    sizes: list[int] = field(default_factory=list)
    hash: int | None = None
    fanout: int | None = None
    modified: float | None = None


def decode(cid: Cid, block: bytes, *, most_links: int) -> Node:
    """Understand a block.

    Args:
        cid: its name, whose codec says how to read it.
        block: its bytes.
        most_links: that a node may have.

    Raises:
        ProtocolFault: it is damaged, or its parts do not fit together.
        LimitExceeded: it has too many links.
        NotSupported: it is neither raw nor dag-pb.
    """
    if cid.codec == RAW:
        return Node(Kind.RAW, block, size=len(block))
    if cid.codec != DAG_PB:
        raise NotSupported(f"block {cid} is {cid.codec_name}: files and directories are made of raw and dag-pb blocks")
    try:
        links, data = _decode_links(block, most_links)
        return _node(links, _decode_message(data))
    except ProtocolFault as error:
        raise ProtocolFault(f"block {cid} is no sound UnixFS node: {error.message}") from error
    except LimitExceeded as error:
        raise LimitExceeded(f"block {cid} {error.message}") from error


def _node(links: tuple[Link, ...], message: _Message) -> Node:
    data = message.data or b""
    try:
        kind = Kind(-1 if message.kind is None else message.kind)
    except ValueError:
        raise ProtocolFault(f"its type {message.kind} does not exist") from None
    if kind is Kind.METADATA:
        raise ProtocolFault("it is metadata, which stands for no file or directory")
    if kind in (Kind.FILE, Kind.RAW):
        if len(message.sizes) != len(links):
            raise ProtocolFault(f"it has {len(links)} links and {len(message.sizes)} sizes for them")
        size = len(data) + sum(message.sizes)
        if message.size is not None and message.size != size:
            raise ProtocolFault(f"it is said to be {message.size} bytes, its parts make {size}")
        return Node(kind, data, links, tuple(message.sizes), size, modified=message.modified)
    if kind is Kind.SYMLINK:
        if links:
            raise ProtocolFault("it is a symbolic link, and links to blocks")
        return Node(kind, data, modified=message.modified)
    if kind is Kind.DIRECTORY:
        entries = {link.name: link for link in links}
        if len(entries) != len(links):
            raise ProtocolFault("it has two entries of the same name")
        return Node(kind, b"", links, entries=entries, modified=message.modified)
    return _shard(links, data, message)


def _shard(links: tuple[Link, ...], bitmap: bytes, message: _Message) -> Node:
    fanout = message.fanout or 0
    if message.hash != MURMUR3:
        raise ProtocolFault(f"its names are hashed by {message.hash}, not by murmur3-x64-64")
    if fanout & (fanout - 1) or not _NARROWEST <= fanout <= _WIDEST:
        raise ProtocolFault(f"its fanout is {fanout}, which is no power of 2 from {_NARROWEST} to {_WIDEST}")
    width = shard_width(fanout)
    entries = {link.name[:width]: link for link in links}
    places = [_place(link.name, width, fanout) for link in links]
    if any(a >= b for a, b in pairwise(places)):
        raise ProtocolFault("its links are not in order")
    bits = int.from_bytes(bitmap, "big")
    if len(bitmap) > fanout // 8 or bits.bit_count() != len(places) or any(not bits >> place & 1 for place in places):
        raise ProtocolFault("its bitmap does not fit its links")
    return Node(Kind.SHARD, bitmap, links, fanout=fanout, entries=entries, modified=message.modified)


# --- sharded directories ---------------------------------------------------------------------------------------------


def shard_width(fanout: int) -> int:
    """Return how many characters of a link's name in a shard are its place."""
    return len(f"{fanout - 1:X}")


def _place(name: str, width: int, fanout: int) -> int:
    text = name[:width]
    if len(text) != width or not all(c in "0123456789ABCDEF" for c in text) or int(text, 16) >= fanout:
        raise ProtocolFault(f"it has a link {name[:40]!r}, which names no place in a shard of {fanout}")
    return int(text, 16)


def shard_path(name: str, levels: int, fanout: int) -> str:
    """Return what the links begin with that lead to an entry through `levels` shards, one behind the other.

    Raises:
        ProtocolFault: the hash of a name has not so many bits: the shards are too deep.
    """
    bits, width = fanout.bit_length() - 1, shard_width(fanout)
    if levels * bits > _HASH_BITS:
        raise ProtocolFault("shards of a directory are deeper than a hash has bits")
    hashed = murmur3(name.encode())
    return "".join(f"{hashed >> _HASH_BITS - (n + 1) * bits & (fanout - 1):0{width}X}" for n in range(levels))


def murmur3(data: bytes) -> int:
    """Return the first 64 bits of MurmurHash3_x64_128 with seed 0.

    Source: Austin Appleby's public-domain SMHasher, https://github.com/aappleby/smhasher/wiki/MurmurHash3.
    """
    one = two = 0
    whole = len(data) & ~15
    for a, b in struct.iter_unpack("<QQ", data[:whole]):
        one ^= _mix(a, 0x87C37B91114253D5, 31, 0x4CF5AD432745937F)
        one = ((_rotated(one, 27) + two) * 5 + 0x52DCE729) & _MASK
        two ^= _mix(b, 0x4CF5AD432745937F, 33, 0x87C37B91114253D5)
        two = ((_rotated(two, 31) + one) * 5 + 0x38495AB5) & _MASK
    tail = data[whole:]
    two ^= _mix(int.from_bytes(tail[8:], "little"), 0x4CF5AD432745937F, 33, 0x87C37B91114253D5)
    one ^= _mix(int.from_bytes(tail[:8], "little"), 0x87C37B91114253D5, 31, 0x4CF5AD432745937F)
    one ^= len(data)
    two ^= len(data)
    one = (one + two) & _MASK
    two = (two + one) & _MASK
    return (_scattered(one) + _scattered(two)) & _MASK


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK


def _mix(value: int, first: int, by: int, second: int) -> int:
    return _rotated(value * first & _MASK, by) * second & _MASK


def _scattered(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33


def check_name(name: str) -> str:
    """Return the name of an entry of a directory, if it is one that can be part of a path.

    Raises:
        ProtocolFault: it is empty, "." or "..", or has "/" or a zero byte in it.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ProtocolFault(f"a directory has an entry {name[:80]!r}, which is no name")
    return name


# --- protocol buffers, as much of them as is needed ------------------------------------------------------------------


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message: an int, or the bytes.

    Raises:
        ProtocolFault: it is damaged, or has groups.
    """
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(data, at)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, at = read_varint(data, at)
        if length is None or not number:
            raise ProtocolFault(f"it has a field {number} of wire type {wire}")
        if length > len(data) - at:
            raise ProtocolFault("a field of it is cut off")
        yield number, data[at : at + length]
        at += length


def _decode_links(block: bytes, most: int) -> tuple[tuple[Link, ...], bytes]:
    links: list[Link] = []
    data: bytes | None = None
    interrupted = False
    for number, value in fields(block):
        if not isinstance(value, bytes) or number not in (1, 2):
            raise ProtocolFault(f"it has a field {number} that dag-pb does not")
        if number == 1:
            if data is not None:
                raise ProtocolFault("it has its data twice")
            data, interrupted = value, bool(links)
        elif interrupted:
            raise ProtocolFault("it has links on both sides of its data")
        else:
            if len(links) >= most:
                raise LimitExceeded(f"has more than {most} links: raise links= where that is right")
            links.append(_decode_link(value))
    if data is None:
        raise ProtocolFault("it has no data")
    return tuple(links), data


def _decode_link(data: bytes) -> Link:
    cid: Cid | None = None
    name, total, before = "", None, 0
    for number, value in fields(data):
        if number <= before:
            raise ProtocolFault("a link of it has its fields twice, or in another order")
        before = number
        if number == 1 and isinstance(value, bytes):
            cid = Cid.decode(value)
        elif number == 2 and isinstance(value, bytes):
            try:
                name = value.decode()
            except UnicodeDecodeError as error:
                raise ProtocolFault("a link of it has a name that is not UTF-8") from error
        elif number == 3 and isinstance(value, int):
            total = value
        else:
            raise ProtocolFault(f"a link of it has a field {number} that dag-pb does not")
    if cid is None:
        raise ProtocolFault("a link of it leads nowhere")
    return Link(cid, name, total)


def _decode_message(data: bytes) -> _Message:
    message = _Message()
    numbers = {1: "kind", 3: "size", 5: "hash", 6: "fanout"}
    for number, value in fields(data):
        if number in numbers and isinstance(value, int):
            setattr(message, numbers[number], value)
        elif number == 2 and isinstance(value, bytes):
            message.data = value
        elif number == 4 and isinstance(value, int):
            message.sizes.append(value)
        elif number == 4 and isinstance(value, bytes):  # packed
            at = 0
            while at < len(value):
                size, at = read_varint(value, at)
                message.sizes.append(size)
        elif number == 8 and isinstance(value, bytes):
            message.modified = _decode_time(value)
        elif number in (1, 2, 3, 4, 5, 6, 8):
            raise ProtocolFault(f"field {number} of it has a wrong type")
    return message


def _decode_time(data: bytes) -> float:
    seconds, nanoseconds = 0, 0
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            seconds = value - (1 << 64) if value >> 63 else value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            nanoseconds = int.from_bytes(value, "little")
    return seconds + nanoseconds / 1e9
