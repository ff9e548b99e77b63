"""Build the blocks of IPFS files and directories in memory, as an IPFS node does when they are added.

With the defaults of js-ipfs and Kubo, the CIDs are the same as theirs. The gateway of
:mod:`streamloader.testing.faults.ipfs_gateway` serves these blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamloader.stores.ipfs.cid import DAG_PB, HASHES, IDENTITY, RAW, Cid, compute_digest, encode_varint
from streamloader.stores.ipfs.unixfs import MURMUR3, UnixFsKind, decode_node, shard_path, shard_width

__all__ = ["DagBuilder", "DagEntry", "encode_car", "encode_node", "encode_unixfs"]


@dataclass(frozen=True, slots=True)
class DagEntry:
    """A file or directory in blocks.

    Attributes:
        cid: CID of the root block.
        total: Size of all its blocks in bytes.
        size: Size of the file in bytes; 0 for directories.
    """

    cid: Cid
    total: int
    size: int = 0


@dataclass(slots=True)
class DagBuilder:
    """Encodes files and directories as blocks, and collects the blocks.

    Args:
        chunk_size: Number of file bytes in one block.
        width: Maximum number of links of a file node.
        raw_leaves: Whether leaf blocks are plain bytes. Otherwise they are dag-pb nodes.
        version: Version of the CIDs. Raw leaves always have version 1.
        hash: Hash function, by its multicodec name: sha2-256, sha2-512, sha3-256, sha3-512, blake2b-256 or blake3.
        inline: Maximum size of blocks that are stored in their CIDs, in bytes. -1 for none.

    Attributes:
        blocks: All blocks so far, CID -> bytes, without those that are stored in their CIDs.
    """

    chunk_size: int = 262_144
    width: int = 174
    raw_leaves: bool = True
    version: int = 1
    hash: str = "sha2-256"
    inline: int = -1
    blocks: dict[Cid, bytes] = field(default_factory=dict)

    def block(self, codec: int, data: bytes) -> Cid:
        """Add a block and return its CID."""
        if len(data) <= self.inline:
            return Cid(1, codec, IDENTITY, data)
        code, size = HASHES[self.hash]
        version = self.version if codec == DAG_PB else 1
        cid = Cid(version, codec, code, compute_digest(code, size, data))
        self.blocks[cid] = data
        return cid

    def file(self, data: bytes) -> DagEntry:
        """Add a file as a balanced tree, the default of all IPFS nodes."""
        pieces = [data[at : at + self.chunk_size] for at in range(0, len(data), self.chunk_size)] or [b""]
        row = [self._leaf(piece) for piece in pieces]
        while len(row) > 1:
            row = [self.parent(row[at : at + self.width]) for at in range(0, len(row), self.width)]
        return row[0]

    def parent(self, children: Sequence[DagEntry]) -> DagEntry:
        """Add a file that concatenates several files."""
        sizes = [child.size for child in children]
        message = encode_unixfs(UnixFsKind.FILE, sizes=sizes, size=sum(sizes))
        return self._node(message, [("", child) for child in children], sum(sizes))

    def directory(self, entries: Mapping[str, DagEntry]) -> DagEntry:
        """Add a directory in one block."""
        links = [(name, entry) for name, entry in sorted(entries.items(), key=lambda item: item[0].encode())]
        return self._node(encode_unixfs(UnixFsKind.DIRECTORY), links)

    def sharded(self, entries: Mapping[str, DagEntry], fanout: int = 256) -> DagEntry:
        """Add a sharded directory (HAMT): the hash of its name decides the block of an entry."""
        return self._shard(entries, fanout, 1)

    def tree(self, files: Mapping[str, bytes], *, shard_above: int | None = None) -> dict[str, DagEntry]:
        """Add files and their directories, and return all of them by path; "" is the root directory.

        Args:
            files: Files, path -> bytes.
            shard_above: Number of entries above which directories are sharded. None for never.
        """
        entries: dict[str, DagEntry] = {}
        self._tree("", dict(files), shard_above, entries)
        return entries

    def link(self, data: bytes) -> DagEntry:
        """Add a symbolic link to the path `data`."""
        return self._node(encode_unixfs(UnixFsKind.SYMLINK, data), [])

    def leaves(self, entry: DagEntry) -> list[Cid]:
        """Return the leaf blocks of a file, in the order of its bytes."""
        node = decode_node(entry.cid, self.blocks.get(entry.cid, entry.cid.digest), max_links=1 << 20)
        children = [DagEntry(link.cid, 0) for link in node.links]
        return [cid for child in children for cid in self.leaves(child)] if children else [entry.cid]

    def _tree(
        self, path: str, files: Mapping[str, bytes], shard_above: int | None, entries_by_path: dict[str, DagEntry]
    ) -> DagEntry:
        folders: dict[str, dict[str, bytes]] = {}
        entries: dict[str, DagEntry] = {}
        for name, data in files.items():
            first, slash, rest = name.partition("/")
            if slash:
                folders.setdefault(first, {})[rest] = data
            else:
                entries[first] = entries_by_path[f"{path}{first}"] = self.file(data)
        for name, folder in folders.items():
            entries[name] = self._tree(f"{path}{name}/", folder, shard_above, entries_by_path)
        many = shard_above is not None and len(entries) > shard_above
        entry = entries_by_path[path.rstrip("/")] = self.sharded(entries) if many else self.directory(entries)
        return entry

    def _leaf(self, data: bytes) -> DagEntry:
        if self.raw_leaves:
            return DagEntry(self.block(RAW, data), len(data), len(data))
        return self._node(encode_unixfs(UnixFsKind.FILE, data, size=len(data)), [], len(data))

    def _shard(self, entries: Mapping[str, DagEntry], fanout: int, level: int) -> DagEntry:
        width = shard_width(fanout)
        groups: dict[str, dict[str, DagEntry]] = {}
        for name, entry in entries.items():
            groups.setdefault(shard_path(name, level, fanout)[-width:], {})[name] = entry
        links, bits = [], 0
        for prefix, group in sorted(groups.items()):
            bits |= 1 << int(prefix, 16)
            name, entry = next(iter(group.items()))
            links.append((prefix + name, entry) if len(group) == 1 else (prefix, self._shard(group, fanout, level + 1)))
        bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "big")
        return self._node(encode_unixfs(UnixFsKind.SHARD, bitmap, fanout=fanout), links)

    def _node(self, message: bytes, links: Sequence[tuple[str, DagEntry]], size: int = 0) -> DagEntry:
        data = encode_node(message, [(entry.cid, name, entry.total) for name, entry in links])
        return DagEntry(self.block(DAG_PB, data), len(data) + sum(entry.total for _, entry in links), size)


def encode_unixfs(
    kind: int,
    data: bytes = b"",
    *,
    size: int | None = None,
    sizes: Sequence[int] = (),
    fanout: int | None = None,
    modified: float | None = None,
) -> bytes:
    """Encode a UnixFS message without validation, because tests need malformed messages too."""
    out = b"\x08" + encode_varint(kind)
    if data:
        out += b"\x12" + encode_varint(len(data)) + data
    if size is not None:
        out += b"\x18" + encode_varint(size)
    for one in sizes:
        out += b"\x20" + encode_varint(one)
    if fanout is not None:
        out += b"\x28" + encode_varint(MURMUR3) + b"\x30" + encode_varint(fanout)
    if modified is not None:
        whole = int(modified // 1)
        time = b"\x08" + encode_varint(whole % (1 << 64)) + b"\x15" + struct.pack("<I", int((modified - whole) * 1e9))
        out += b"\x42" + encode_varint(len(time)) + time
    return out


def encode_node(data: bytes, links: Sequence[tuple[Cid, str, int | None]]) -> bytes:
    """Encode a dag-pb node: its links, each with a name and a total size, then its data."""
    out = bytearray()
    for cid, name, total in links:
        target = cid.encode()
        link = (
            b"\x0a" + encode_varint(len(target)) + target + b"\x12" + encode_varint(len(name.encode())) + name.encode()
        )
        if total is not None:
            link += b"\x18" + encode_varint(total)
        out += b"\x12" + encode_varint(len(link)) + link
    return bytes(out + b"\x0a" + encode_varint(len(data)) + data)


def encode_car(root: Cid, blocks: Sequence[tuple[Cid, bytes]]) -> bytes:
    """Encode a CAR of version 1 with these blocks."""
    named = b"\x00" + root.encode()
    header = b"\xa2\x65roots\x81\xd8\x2a" + _cbor_length(len(named)) + named + b"\x67version\x01"
    out = bytearray(encode_varint(len(header)) + header)
    for cid, block in blocks:
        name = cid.encode()
        out += encode_varint(len(name) + len(block)) + name + block
    return bytes(out)


def _cbor_length(size: int) -> bytes:
    return (
        bytes([0x40 | size])
        if size < 24
        else b"\x58" + bytes([size])
        if size < 256
        else b"\x59" + size.to_bytes(2, "big")
    )
