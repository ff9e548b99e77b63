"""Listing directories, also sharded ones, with many nodes being fetched at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from streamloader.common.gather import map_bounded
from streamloader.errors import LimitExceeded, ProtocolFault
from streamloader.stores.ipfs.cid import RAW
from streamloader.stores.ipfs.file_reader import GetNode, below
from streamloader.stores.ipfs.unixfs import Kind, Link, Node, check_name, shard_path, shard_width
from streamloader.values import ObjectInfo

__all__ = ["Listing"]


class Listing:
    """One listing.

    Args:
        get: the node of a CID.
        ahead: how many nodes are fetched at the same time, for each level of directories.
        depth: levels of directories at most.
        most: nodes that are visited at most.
        recursive: whether to go into directories.
    """

    def __init__(self, get: GetNode, *, ahead: int, depth: int, most: int, recursive: bool) -> None:
        self._get = get
        self._ahead = ahead
        self._depth = depth
        self._most = most
        self._recursive = recursive
        self._visited = 0

    async def entries(self, node: Node, path: str, levels: int = 1) -> AsyncGenerator[ObjectInfo, None]:
        """Yield what is in a directory whose path is `path`. Symbolic links are listed, without a size.

        Raises:
            ProtocolFault: it is not sound.
            LimitExceeded: it is too deep, or visits too many nodes.
            StoreError: a block cannot be had.
        """
        if levels > self._depth:
            raise LimitExceeded(f"{path} lies deeper than {self._depth} directories: raise Limits(depth=...)")
        async with contextlib.aclosing(map_bounded(self._looked_at, self._links(node), limit=self._ahead)) as found:
            async for name, link, entry in found:
                under = f"{path}/{check_name(name)}"
                if entry is None:
                    size = len(link.cid.digest) if link.cid.inline is not None else link.total
                    yield ObjectInfo(under, size, str(link.cid))
                elif not entry.is_directory:
                    yield ObjectInfo(under, entry.size if entry.is_file else None, str(link.cid), entry.modified)
                elif not self._recursive:
                    yield ObjectInfo(f"{under}/", version=str(link.cid))
                else:
                    async with contextlib.aclosing(self.entries(entry, under, levels + 1)) as deeper:
                        async for info in deeper:
                            yield info

    async def _looked_at(self, entry: tuple[str, Link]) -> tuple[str, Link, Node | None]:
        """Get the node of an entry, unless its link says all: a raw block is a file, of that size."""
        name, link = entry
        if link.cid.codec == RAW and link.total is not None:
            return name, link, None
        return name, link, await self._visit(link)

    async def _visit(self, link: Link) -> Node:
        self._visited += 1
        if self._visited > self._most:
            raise LimitExceeded(f"a listing that visits more than {self._most} nodes: raise Limits(listed=...)")
        return await self._get(link.cid)

    async def _links(self, node: Node, above: str = "", levels: int = 1) -> AsyncGenerator[tuple[str, Link], None]:
        """Yield name and link of all entries of a directory; `above` is the path to a shard through those over it."""
        if node.kind is Kind.DIRECTORY:
            for link in node.links:
                yield link.name, link
            return
        width = shard_width(node.fanout)

        async def shard(link: Link) -> tuple[Link, Node | None]:
            return link, below(await self._visit(link), node.fanout) if len(link.name) == width else None

        async with contextlib.aclosing(map_bounded(shard, node.links, limit=self._ahead)) as found:
            async for link, child in found:
                place = above + link.name[:width]
                if child is None:
                    name = link.name[width:]
                    if shard_path(name, levels, node.fanout) != place:
                        raise ProtocolFault(f"a directory has its entry {name[:80]!r} at a wrong place, {place}")
                    yield name, link
                else:
                    async with contextlib.aclosing(self._links(child, place, levels + 1)) as deeper:
                        async for entry in deeper:
                            yield entry
