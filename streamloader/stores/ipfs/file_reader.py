"""Finding and reading files: only the blocks that are needed, many of them at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from streamloader.errors import LimitExceeded, NotSupported, ProtocolFault
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.unixfs import Kind, Link, Node, shard_path, shard_width

__all__ = ["GetNode", "Tree", "below"]

GetNode: TypeAlias = Callable[[Cid], Coroutine[Any, Any, Node]]


@dataclass(slots=True)
class _Piece:
    """A part of a file: what lies under one link."""

    cid: Cid
    size: int  # of all of it
    start: int  # of what is wanted of it
    end: int
    depth: int
    task: asyncio.Task[Node] | None = None


@dataclass(slots=True)
class _Level:
    """The children of one node that are still to come: some are being fetched, the rest is not yet looked at."""

    begun: deque[_Piece]
    rest: Iterator[_Piece]
    links: int


class Tree:
    """Files, given a function that gets their nodes.

    Args:
        get: the node of a CID.
        ahead: how many are fetched at the same time.
        depth: levels of nodes in a file at most.
        most_links: of one node; a file may have twice as many open at the same time.
    """

    def __init__(self, get: GetNode, *, ahead: int, depth: int, most_links: int) -> None:
        self._get = get
        self._ahead = ahead
        self._depth = depth
        self._most_links = most_links

    # --- paths -------------------------------------------------------------------------------------------------------

    async def resolve(self, cid: Cid, names: Sequence[str]) -> tuple[Cid, Node] | None:
        """Follow names from a directory down, and return what is there; None if there is nothing.

        Raises:
            NotSupported: a symbolic link is in the way.
            StoreError: a node cannot be had.
        """
        node = await self._get(cid)
        for name in names:
            if node.kind is Kind.SYMLINK:
                raise _symlink(node)
            link = await self._entry(node, name)
            if link is None:
                return None
            cid, node = link.cid, await self._get(link.cid)
        return cid, node

    async def _entry(self, node: Node, name: str) -> Link | None:
        if node.kind is not Kind.SHARD:
            return node.entries.get(name)
        levels, fanout, width = 1, node.fanout, shard_width(node.fanout)
        while True:
            link = node.entries.get(shard_path(name, levels, fanout)[-width:])
            if link is None or len(link.name) > width:
                return link if link is not None and link.name[width:] == name else None
            node = below(await self._get(link.cid), fanout)
            levels += 1

    # --- files -------------------------------------------------------------------------------------------------------

    async def read(self, node: Node, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield bytes [start, end) of a file.

        Raises:
            ProtocolFault: a part of it is not as long as it should be, or no part of a file.
            LimitExceeded: it is too deep, or too wide.
            StoreError: a block cannot be had.
        """
        levels: list[_Level] = []
        try:
            data, level = self._open(node, start, end, 1)
            if data:
                yield data
            levels.append(level)
            while levels:
                piece = self._next(levels)
                if piece is None:
                    levels.pop()
                    continue
                assert piece.task is not None
                found = await piece.task
                levels[-1].begun.popleft()
                if not found.is_file or found.size != piece.size:
                    what = f"has {found.size} bytes" if found.is_file else f"is a {found.kind.name.lower()}"
                    raise ProtocolFault(f"block {piece.cid} should be {piece.size} bytes of a file, and {what}")
                data, level = self._open(found, piece.start, piece.end, piece.depth + 1)
                if data:
                    yield data
                levels.append(level)
        finally:
            begun = [piece.task for level in levels for piece in level.begun if piece.task is not None]
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)

    def _open(self, node: Node, start: int, end: int, depth: int) -> tuple[bytes, _Level]:
        """Return the wanted bytes that lie in a node itself, and the pieces that follow."""
        if node.links and depth > self._depth:
            raise LimitExceeded(f"a file is deeper than {self._depth} levels of blocks: raise Limits(depth=...)")
        data = node.data
        if start or end < len(data):
            data = data[start:end]
        return data, _Level(deque(), _pieces(node, start, end, depth), len(node.links))

    def _next(self, levels: list[_Level]) -> _Piece | None:
        """Return the next piece of the deepest level, and see to it that enough others are under way."""
        if sum(level.links for level in levels) > 2 * self._most_links:
            raise LimitExceeded(f"a file has more than {2 * self._most_links} links open at the same time")
        under_way = sum(len(level.begun) for level in levels)
        for level in reversed(levels):
            while under_way < self._ahead or (level is levels[-1] and not level.begun):
                piece = next(level.rest, None)
                if piece is None:
                    break
                piece.task = asyncio.create_task(self._get(piece.cid))
                level.begun.append(piece)
                under_way += 1
        return levels[-1].begun[0] if levels[-1].begun else None


def below(node: Node, fanout: int) -> Node:
    """Return a node that lies under a shard of `fanout` places, if it belongs there.

    Raises:
        ProtocolFault: it does not.
    """
    if node.kind is not Kind.SHARD or node.fanout != fanout or not node.links:
        raise ProtocolFault("a shard of a directory leads to something that is no shard of it")
    return node


def _pieces(node: Node, start: int, end: int, depth: int) -> Iterator[_Piece]:
    at = len(node.data)
    for link, size in zip(node.links, node.sizes, strict=True):
        if at >= end:
            return
        if size and at + size > start:
            yield _Piece(link.cid, size, max(0, start - at), min(size, end - at), depth)
        at += size


def _symlink(node: Node) -> NotSupported:
    target = node.data.decode("utf-8", "replace")
    return NotSupported(f"a symbolic link (to {target[:200]!r}) is in the way: those are not followed")
