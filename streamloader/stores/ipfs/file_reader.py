"""Find and read UnixFS files. Only the required blocks are fetched, many at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamloader.errors import LimitExceeded, NotSupported, ProtocolError
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.unixfs import UnixFsKind, UnixFsLink, UnixFsNode, shard_path, shard_width

__all__ = ["GetNode", "UnixFsReader", "check_child_shard"]

GetNode: TypeAlias = Callable[[Cid], Coroutine[Any, Any, UnixFsNode]]


@dataclass(slots=True)
class _FilePart:
    """The part of a file below one link.

    Attributes:
        cid: CID of the linked node.
        size: Size of the part in bytes.
        start: Offset within the part of the first requested byte.
        end: Offset within the part after the last requested byte.
        depth: Level of the node that has the link. The root has level 1.
        task: Task that fetches the node, or None before it is started.
    """

    cid: Cid
    size: int
    start: int
    end: int
    depth: int
    task: asyncio.Task[UnixFsNode] | None = None


@dataclass(slots=True)
class _OpenNode:
    """The parts of a node that have not been read.

    Attributes:
        fetching: Parts whose nodes are being fetched, in order.
        remaining: Parts after those.
        link_count: Number of links of the node.
    """

    fetching: deque[_FilePart]
    remaining: Iterator[_FilePart]
    link_count: int


class UnixFsReader:
    """Find and read files, given a function that fetches nodes.

    Args:
        get_node: Coroutine function that returns the node of a CID.
        max_concurrent: Maximum number of nodes fetched at the same time.
        max_depth: Maximum number of node levels of a file.
        max_links: Maximum number of links of a node. The open nodes of a file may have twice as many together.
    """

    def __init__(self, get_node: GetNode, *, max_concurrent: int, max_depth: int, max_links: int) -> None:
        self._get_node = get_node
        self._max_concurrent = max_concurrent
        self._max_depth = max_depth
        self._max_links = max_links

    # --- paths -------------------------------------------------------------------------------------------------------

    async def resolve(self, cid: Cid, names: Sequence[str]) -> tuple[Cid, UnixFsNode] | None:
        """Follow a path of names from a directory.

        Args:
            cid: CID of the directory.
            names: Names on the path.

        Returns:
            The CID and the node at the end of the path, or None if it does not exist.

        Raises:
            NotSupported: If the path leads through a symbolic link.
            StoreError: If a node cannot be fetched.
        """
        node = await self._get_node(cid)
        for name in names:
            if node.kind is UnixFsKind.SYMLINK:
                raise _make_symlink_error(node)
            link = await self._find_entry(node, name)
            if link is None:
                return None
            cid, node = link.cid, await self._get_node(link.cid)
        return cid, node

    async def _find_entry(self, node: UnixFsNode, name: str) -> UnixFsLink | None:
        if node.kind is not UnixFsKind.SHARD:
            return node.entries.get(name)
        levels, fanout, width = 1, node.fanout, shard_width(node.fanout)
        while True:
            link = node.entries.get(shard_path(name, levels, fanout)[-width:])
            if link is None or len(link.name) > width:
                return link if link is not None and link.name[width:] == name else None
            node = check_child_shard(await self._get_node(link.cid), fanout)
            levels += 1

    # --- files -------------------------------------------------------------------------------------------------------

    async def read(self, node: UnixFsNode, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield bytes [start, end) of a file.

        Raises:
            ProtocolError: If a part of the file has a wrong size, or does not belong to a file.
            LimitExceeded: If the file has too many levels, or too many links are open.
            StoreError: If a block cannot be fetched.
        """
        open_nodes: list[_OpenNode] = []
        try:
            data, open_node = self._open_node(node, start, end, 1)
            if data:
                yield data
            open_nodes.append(open_node)
            while open_nodes:
                part = self._next_part(open_nodes)
                if part is None:
                    open_nodes.pop()
                    continue
                assert part.task is not None
                child = await part.task
                open_nodes[-1].fetching.popleft()
                if not child.is_file or child.size != part.size:
                    actual = f"has {child.size} bytes" if child.is_file else f"is a {child.kind.name.lower()}"
                    raise ProtocolError(f"block {part.cid} should be {part.size} bytes of a file, but {actual}")
                data, open_node = self._open_node(child, part.start, part.end, part.depth + 1)
                if data:
                    yield data
                open_nodes.append(open_node)
        finally:
            tasks = [part.task for open_node in open_nodes for part in open_node.fetching if part.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _open_node(self, node: UnixFsNode, start: int, end: int, depth: int) -> tuple[bytes, _OpenNode]:
        """Return the requested bytes that the node itself contains, and its requested parts."""
        if node.links and depth > self._max_depth:
            raise LimitExceeded(f"a file has more than {self._max_depth} levels of blocks: raise Limits(depth=...)")
        data = node.data
        if start or end < len(data):
            data = data[start:end]
        return data, _OpenNode(deque(), _split_into_parts(node, start, end, depth), len(node.links))

    def _next_part(self, open_nodes: list[_OpenNode]) -> _FilePart | None:
        """Return the next part of the innermost node, or None at its end. Start to fetch further parts."""
        if sum(open_node.link_count for open_node in open_nodes) > 2 * self._max_links:
            raise LimitExceeded(f"a file has more than {2 * self._max_links} links open at the same time")
        running = sum(len(open_node.fetching) for open_node in open_nodes)
        innermost = open_nodes[-1]
        for open_node in reversed(open_nodes):
            while running < self._max_concurrent or (open_node is innermost and not open_node.fetching):
                part = next(open_node.remaining, None)
                if part is None:
                    break
                part.task = asyncio.create_task(self._get_node(part.cid))
                open_node.fetching.append(part)
                running += 1
        return innermost.fetching[0] if innermost.fetching else None


def check_child_shard(node: UnixFsNode, fanout: int) -> UnixFsNode:
    """Check that a node belongs below a shard with this fanout, and return the node.

    Raises:
        ProtocolError: If it does not.
    """
    if node.kind is not UnixFsKind.SHARD or node.fanout != fanout or not node.links:
        raise ProtocolError("a shard of a directory links to a node that is not a shard of the same directory")
    return node


def _split_into_parts(node: UnixFsNode, start: int, end: int, depth: int) -> Iterator[_FilePart]:
    """Yield the parts of a node that overlap with bytes [start, end)."""
    offset = len(node.data)
    for link, size in zip(node.links, node.sizes, strict=True):
        if offset >= end:
            return
        if size and offset + size > start:
            yield _FilePart(link.cid, size, max(0, start - offset), min(size, end - offset), depth)
        offset += size


def _make_symlink_error(node: UnixFsNode) -> NotSupported:
    target = node.data.decode("utf-8", "replace")
    return NotSupported(f"the path leads through a symbolic link (to {target[:200]!r}), which is not followed")
