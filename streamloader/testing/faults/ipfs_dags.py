"""Files and directories of IPFS as blocks, made in memory: what an IPFS node makes of them when they are added.

With the defaults of js-ipfs and Kubo the CIDs are theirs, too. The gateway of
:mod:`streamloader.testing.faults.ipfs_gateway` serves such blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamloader.stores.ipfs.cid import DAG_PB, HASHES, IDENTITY, RAW, Cid, digest_of, varint
from streamloader.stores.ipfs.unixfs import MURMUR3, Kind, decode, shard_path, shard_width

__all__ = ["Built", "DagBuilder", "car", "encode_node", "encode_unixfs"]


@dataclass(frozen=True, slots=True)
class Built:
    """Something that was made of blocks.

    Attributes:
        cid: of its topmost block.
        total: bytes of all its blocks.
        size: bytes of it, for files.
    """

    cid: Cid
    total: int
    size: int = 0


@dataclass(slots=True)
class DagBuilder:
    """Makes blocks of files and directories, and keeps them.

    Args:
        chunk_size: bytes of a file in one block.
        width: links of one node of a file.
        raw_leaves: whether the blocks at the bottom of files are the bytes alone, or dag-pb nodes around them.
        version: of the CIDs; raw leaves have version 1 always.
        hash: by its name in the table of multicodecs: sha2-256, sha2-512, sha3-256, sha3-512, blake2b-256 or blake3.
        inline: blocks of no more bytes than this lie in their own CIDs. -1 for none.

    Attributes:
        blocks: CID -> bytes, of all that was made. What lies in its own CID is not among them.
    """

    chunk_size: int = 262_144
    width: int = 174
    raw_leaves: bool = True
    version: int = 1
    hash: str = "sha2-256"
    inline: int = -1
    blocks: dict[Cid, bytes] = field(default_factory=dict)

    def block(self, codec: int, data: bytes) -> Cid:
        """Keep a block and return its CID."""
        if len(data) <= self.inline:
            return Cid(1, codec, IDENTITY, data)
        code, size = HASHES[self.hash]
        version = self.version if codec == DAG_PB else 1
        cid = Cid(version, codec, code, digest_of(code, size, data))
        self.blocks[cid] = data
        return cid

    def file(self, data: bytes) -> Built:
        """Make a file: balanced, as all nodes do it by default."""
        pieces = [data[at : at + self.chunk_size] for at in range(0, len(data), self.chunk_size)] or [b""]
        row = [self._leaf(piece) for piece in pieces]
        while len(row) > 1:
            row = [self.parent(row[at : at + self.width]) for at in range(0, len(row), self.width)]
        return row[0]

    def parent(self, children: Sequence[Built]) -> Built:
        """Make a file of several files, one behind the other."""
        sizes = [child.size for child in children]
        message = encode_unixfs(Kind.FILE, sizes=sizes, size=sum(sizes))
        return self._node(message, [("", child) for child in children], sum(sizes))

    def directory(self, entries: Mapping[str, Built]) -> Built:
        """Make a directory in one block."""
        links = [(name, built) for name, built in sorted(entries.items(), key=lambda item: item[0].encode())]
        return self._node(encode_unixfs(Kind.DIRECTORY), links)

    def sharded(self, entries: Mapping[str, Built], fanout: int = 256) -> Built:
        """Make a directory of many blocks, the entries spread over them by the hash of their names."""
        return self._shard(entries, fanout, 1)

    def tree(self, files: Mapping[str, bytes], *, shard_above: int | None = None) -> dict[str, Built]:
        """Make files and the directories that they are in, and return all of them by path; "" is the topmost.

        Args:
            files: path -> bytes.
            shard_above: directories with more entries are sharded; None for never.
        """
        made: dict[str, Built] = {}
        self._tree("", dict(files), shard_above, made)
        return made

    def link(self, data: bytes) -> Built:
        """Make a symbolic link to the path `data`."""
        return self._node(encode_unixfs(Kind.SYMLINK, data), [])

    def leaves(self, built: Built) -> list[Cid]:
        """Return the blocks at the bottom of a file, in the order of its bytes."""
        node = decode(built.cid, self.blocks.get(built.cid, built.cid.digest), most_links=1 << 20)
        below = [Built(link.cid, 0) for link in node.links]
        return [cid for child in below for cid in self.leaves(child)] if below else [built.cid]

    def _tree(self, path: str, files: Mapping[str, bytes], shard_above: int | None, made: dict[str, Built]) -> Built:
        folders: dict[str, dict[str, bytes]] = {}
        entries: dict[str, Built] = {}
        for name, data in files.items():
            first, slash, rest = name.partition("/")
            if slash:
                folders.setdefault(first, {})[rest] = data
            else:
                entries[first] = made[f"{path}{first}"] = self.file(data)
        for name, below in folders.items():
            entries[name] = self._tree(f"{path}{name}/", below, shard_above, made)
        many = shard_above is not None and len(entries) > shard_above
        built = made[path.rstrip("/")] = self.sharded(entries) if many else self.directory(entries)
        return built

    def _leaf(self, data: bytes) -> Built:
        if self.raw_leaves:
            return Built(self.block(RAW, data), len(data), len(data))
        return self._node(encode_unixfs(Kind.FILE, data, size=len(data)), [], len(data))

    def _shard(self, entries: Mapping[str, Built], fanout: int, level: int) -> Built:
        width = shard_width(fanout)
        places: dict[str, dict[str, Built]] = {}
        for name, built in entries.items():
            places.setdefault(shard_path(name, level, fanout)[-width:], {})[name] = built
        links, bits = [], 0
        for place, there in sorted(places.items()):
            bits |= 1 << int(place, 16)
            name, built = next(iter(there.items()))
            links.append((place + name, built) if len(there) == 1 else (place, self._shard(there, fanout, level + 1)))
        bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "big")
        return self._node(encode_unixfs(Kind.SHARD, bitmap, fanout=fanout), links)

    def _node(self, message: bytes, links: Sequence[tuple[str, Built]], size: int = 0) -> Built:
        data = encode_node(message, [(built.cid, name, built.total) for name, built in links])
        return Built(self.block(DAG_PB, data), len(data) + sum(built.total for _, built in links), size)


def encode_unixfs(
    kind: int,
    data: bytes = b"",
    *,
    size: int | None = None,
    sizes: Sequence[int] = (),
    fanout: int | None = None,
    modified: float | None = None,
) -> bytes:
    """Write a UnixFS message. Nothing is checked: tests need messages that make no sense, too."""
    out = b"\x08" + varint(kind)
    if data:
        out += b"\x12" + varint(len(data)) + data
    if size is not None:
        out += b"\x18" + varint(size)
    for one in sizes:
        out += b"\x20" + varint(one)
    if fanout is not None:
        out += b"\x28" + varint(MURMUR3) + b"\x30" + varint(fanout)
    if modified is not None:
        whole = int(modified // 1)
        time = b"\x08" + varint(whole % (1 << 64)) + b"\x15" + struct.pack("<I", int((modified - whole) * 1e9))
        out += b"\x42" + varint(len(time)) + time
    return out


def encode_node(data: bytes, links: Sequence[tuple[Cid, str, int | None]]) -> bytes:
    """Write a dag-pb node: its links, each with a name and the bytes below it, and then its data."""
    out = bytearray()
    for cid, name, total in links:
        target = cid.encode()
        link = b"\x0a" + varint(len(target)) + target + b"\x12" + varint(len(name.encode())) + name.encode()
        if total is not None:
            link += b"\x18" + varint(total)
        out += b"\x12" + varint(len(link)) + link
    return bytes(out + b"\x0a" + varint(len(data)) + data)


def car(root: Cid, blocks: Sequence[tuple[Cid, bytes]]) -> bytes:
    """Write a CAR of version 1 with these blocks."""
    named = b"\x00" + root.encode()
    header = b"\xa2\x65roots\x81\xd8\x2a" + _cbor_length(len(named)) + named + b"\x67version\x01"
    out = bytearray(varint(len(header)) + header)
    for cid, block in blocks:
        name = cid.encode()
        out += varint(len(name) + len(block)) + name + block
    return bytes(out)


def _cbor_length(size: int) -> bytes:
    return (
        bytes([0x40 | size])
        if size < 24
        else b"\x58" + bytes([size])
        if size < 256
        else b"\x59" + size.to_bytes(2, "big")
    )
