"""Listing directories, also sharded ones, with many nodes being fetched at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from streamloader.errors import LimitExceeded, ProtocolFault
from streamloader.stores.ipfs.cid import RAW
from streamloader.stores.ipfs.file_reader import GetNode, below
from streamloader.stores.ipfs.unixfs import Kind, Link, Node, check_name, shard_path, shard_width
from streamloader.values import ObjectInfo

__all__ = ["Listing"]

T = TypeVar("T")
R = TypeVar("R")


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
        async with contextlib.aclosing(_in_order(self._links(node), self._looked_at, self._ahead)) as found:
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

        async with contextlib.aclosing(_in_order(_each(node.links), shard, self._ahead)) as found:
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


async def _each(links: tuple[Link, ...]) -> AsyncGenerator[Link, None]:
    for link in links:
        yield link


async def _in_order(
    items: AsyncGenerator[T, None], work: Callable[[T], Coroutine[Any, Any, R]], most: int
) -> AsyncGenerator[R, None]:
    """Yield ``await work(item)`` of all items in their order, with up to `most` of them under way."""
    begun: deque[asyncio.Task[R]] = deque()
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                begun.append(asyncio.create_task(work(item)))
                if len(begun) >= most:
                    yield await begun[0]
                    begun.popleft()
            while begun:
                yield await begun[0]
                begun.popleft()
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
