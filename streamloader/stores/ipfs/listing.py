"""List directories, including sharded ones, with many nodes fetched at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from streamloader.common.gather import map_bounded
from streamloader.errors import ProtocolError
from streamloader.stores.ipfs.cid import RAW
from streamloader.stores.ipfs.file_reader import GetNode, check_child_shard
from streamloader.stores.ipfs.unixfs import (
    UnixFsKind,
    UnixFsLink,
    UnixFsNode,
    check_name,
    check_shard_levels,
    shard_path,
    shard_width,
)
from streamloader.stores.listing_budget import ListingBudget
from streamloader.values import ObjectInfo

__all__ = ["IpfsListing"]


class IpfsListing:
    """One listing.

    Args:
        get_node: Coroutine function that returns the node of a CID.
        max_concurrent: Maximum number of nodes fetched at the same time for each level of directories.
        budget: Budget of the listing. It counts nodes, and the directories and shards that are visited repeatedly: a
            few blocks that link to each other twice describe 2**n directories.
        recursive: Whether subdirectories are listed too.
    """

    def __init__(self, get_node: GetNode, *, max_concurrent: int, budget: ListingBudget, recursive: bool) -> None:
        self._get_node = get_node
        self._max_concurrent = max_concurrent
        self._budget = budget
        self._recursive = recursive

    async def list_entries(self, node: UnixFsNode, path: str) -> AsyncGenerator[ObjectInfo, None]:
        """Yield the entries of a directory. Symbolic links are listed without a size.

        Args:
            node: Node of the directory.
            path: Path of the directory.

        Raises:
            ProtocolError: If the directory is malformed.
            LimitExceeded: If the tree is too deep, has too many nodes, or contains the same directories too often.
            StoreError: If a block cannot be fetched.
        """
        open_directories = [(path, self._open_directory(node))]
        try:
            while open_directories:
                path, entries = open_directories[-1]
                entry = await anext(entries, None)
                if entry is None:
                    open_directories.pop()
                    continue
                name, link, child = entry
                child_path = f"{path}/{check_name(name)}"
                if child is None:
                    size = len(link.cid.digest) if link.cid.inline is not None else link.total_bytes
                    yield ObjectInfo(child_path, size, str(link.cid))
                elif not child.is_directory:
                    yield ObjectInfo(child_path, child.size if child.is_file else None, str(link.cid), child.modified)
                elif not self._recursive:
                    yield ObjectInfo(f"{child_path}/", version=str(link.cid))
                else:
                    self._budget.check_depth(len(open_directories) + 1, child_path)
                    self._budget.enter_directory(link.cid)
                    open_directories.append((child_path, self._open_directory(child)))
        finally:
            for _, entries in reversed(open_directories):
                await entries.aclose()

    def _open_directory(self, node: UnixFsNode) -> AsyncGenerator[tuple[str, UnixFsLink, UnixFsNode | None], None]:
        return map_bounded(self._resolve_entry, self._iterate_links(node), limit=self._max_concurrent)

    async def _resolve_entry(self, entry: tuple[str, UnixFsLink]) -> tuple[str, UnixFsLink, UnixFsNode | None]:
        """Fetch the node of an entry. The node is None for a raw block, whose link has the size of the file."""
        name, link = entry
        if link.cid.codec == RAW and link.total_bytes is not None:
            return name, link, None
        return name, link, await self._fetch_node(link)

    async def _fetch_node(self, link: UnixFsLink) -> UnixFsNode:
        self._budget.count_entry(link.name)
        return await self._get_node(link.cid)

    async def _iterate_links(
        self, node: UnixFsNode, parent_path: str = "", levels: int = 1
    ) -> AsyncGenerator[tuple[str, UnixFsLink], None]:
        """Yield the name and the link of each entry of a directory.

        Args:
            node: Node of the directory, or of one of its shards.
            parent_path: Path of the shard from the root of the directory, see :func:`shard_path`.
            levels: Number of shards from the root of the directory to this one.
        """
        if node.kind is UnixFsKind.DIRECTORY:
            for link in node.links:
                yield link.name, link
            return
        width = shard_width(node.fanout)
        check_shard_levels(levels, node.fanout)

        async def fetch_shard(link: UnixFsLink) -> tuple[UnixFsLink, UnixFsNode | None]:
            if len(link.name) == width:
                self._budget.enter_directory(link.cid)
                return link, check_child_shard(await self._fetch_node(link), node.fanout)
            return link, None

        children = map_bounded(fetch_shard, node.links, limit=self._max_concurrent)
        async with contextlib.aclosing(children) as entries:
            async for link, child in entries:
                path = parent_path + link.name[:width]
                if child is None:
                    name = link.name[width:]
                    if shard_path(name, levels, node.fanout) != path:
                        raise ProtocolError(f"a directory has its entry {name[:80]!r} in the wrong shard, {path}")
                    yield name, link
                else:
                    async with contextlib.aclosing(self._iterate_links(child, path, levels + 1)) as below:
                        async for entry in below:
                            yield entry
