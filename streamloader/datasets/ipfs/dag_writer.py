"""Cut files into blocks, and build directories of them, as an IPFS node does for ``ipfs add --cid-version=1``.

The CIDs are computed here, not by the node. They are the same on every node, and a node that stores other bytes is
noticed. Formats: https://specs.ipfs.tech/unixfs, https://ipld.io/specs/codecs/dag-pb/spec and
https://ipld.io/specs/transport/car/carv1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from streamloader.stores.ipfs.cid import DAG_PB, HASHES, RAW, Cid, compute_digest, encode_varint
from streamloader.stores.ipfs.unixfs import UnixFsKind

__all__ = ["LEAF_BYTES", "DagFileWriter", "DagRoot", "OnBlock", "pack_car", "write_directory"]

LEAF_BYTES: Final = 256 << 10
_MAX_FILE_LINKS: Final = 174  # both numbers are the defaults of IPFS nodes

OnBlock = Callable[[Cid, bytes], None]


class DagRoot(NamedTuple):
    """The topmost block of a file or directory.

    Attributes:
        cid: CID of the block.
        total_bytes: Size of this block and of all blocks below it.
        size: Size of the file in bytes. 0 for directories.
    """

    cid: Cid
    total_bytes: int
    size: int = 0


class DagFileWriter:
    """Cut one file into blocks, which are passed on at once. A link to each leaf is kept until the end.

    Args:
        on_block: Function that receives each block with its CID.

    Attributes:
        size: Number of bytes that were written.
    """

    def __init__(self, on_block: OnBlock) -> None:
        self.size = 0
        self._on_block = on_block
        self._pending = bytearray()
        self._leaves: list[DagRoot] = []

    def write(self, data: bytes) -> None:
        """Append bytes to the file."""
        self.size += len(data)
        self._pending += data
        whole = len(self._pending) - len(self._pending) % LEAF_BYTES
        for start in range(0, whole, LEAF_BYTES):
            self._add_leaf(bytes(self._pending[start : start + LEAF_BYTES]))
        del self._pending[:whole]

    def finish(self) -> DagRoot:
        """End the file, and return its root: a balanced tree over the leaves."""
        if self._pending or not self._leaves:
            self._add_leaf(bytes(self._pending))
        row = self._leaves
        while len(row) > 1:
            groups = (row[start : start + _MAX_FILE_LINKS] for start in range(0, len(row), _MAX_FILE_LINKS))
            row = [self._add_parent(group) for group in groups]
        return row[0]

    def _add_leaf(self, data: bytes) -> None:
        self._leaves.append(DagRoot(_emit(RAW, data, self._on_block), len(data), len(data)))

    def _add_parent(self, children: Sequence[DagRoot]) -> DagRoot:
        sizes = [child.size for child in children]
        message = bytes((0x08, UnixFsKind.FILE, 0x18)) + encode_varint(sum(sizes))
        message += b"".join(b"\x20" + encode_varint(size) for size in sizes)
        return _write_node(message, [("", child) for child in children], sum(sizes), self._on_block)


def write_directory(entries: Mapping[str, DagRoot], on_block: OnBlock) -> DagRoot:
    """Build a directory in one block, which is passed to `on_block`, and return it."""
    links = sorted(entries.items(), key=lambda entry: entry[0].encode())
    return _write_node(bytes((0x08, UnixFsKind.DIRECTORY)), links, 0, on_block)


def pack_car(root: Cid, blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Return a CAR of version 1 with these blocks."""
    link = b"\x00" + root.encode()
    header = b"\xa2\x65roots\x81\xd8\x2a\x58" + bytes((len(link),)) + link + b"\x67version\x01"
    car = bytearray(encode_varint(len(header)) + header)
    for cid, block in blocks:
        name = cid.encode()
        car += encode_varint(len(name) + len(block)) + name + block
    return bytes(car)


def _write_node(message: bytes, links: Sequence[tuple[str, DagRoot]], size: int, on_block: OnBlock) -> DagRoot:
    node = bytearray()
    for name, child in links:
        target = child.cid.encode()
        link = b"\x0a" + _prefix_size(target) + b"\x12" + _prefix_size(name.encode())
        node += b"\x12" + _prefix_size(link + b"\x18" + encode_varint(child.total_bytes))
    block = bytes(node + b"\x0a" + _prefix_size(message))
    total_bytes = len(block) + sum(child.total_bytes for _, child in links)
    return DagRoot(_emit(DAG_PB, block, on_block), total_bytes, size)


def _prefix_size(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _emit(codec: int, block: bytes, on_block: OnBlock) -> Cid:
    code, digest_bytes = HASHES["sha2-256"]
    cid = Cid(1, codec, code, compute_digest(code, digest_bytes, block))
    on_block(cid, block)
    return cid
