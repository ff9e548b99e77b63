"""What is in a place, as a check sees it: many millions of files are known by a hash and a size each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from streamloader.archive.catalog.base import Place
from streamloader.archive.ingest.naming import ROOT
from streamloader.archive.ingest.sources import gathered
from streamloader.errors import NotFound
from streamloader.stores.base import Data, Store
from streamloader.stores.io_thread import shared_store
from streamloader.values import Array, ObjectInfo

__all__ = ["Shelf"]


class Shelf:
    """A place that is looked at. Paths are relative to it.

    Attributes:
        place: which one.
        url: of it, without secrets.
        reachable: whether it can be looked at; set by the caller.
        listed: whether :meth:`look` has seen what is there.
    """

    def __init__(self, place: Place, options: Mapping[str, Any]) -> None:
        self.place = place
        self.reachable = True
        self.listed = False
        self._store, root = shared_store(place.url, options)
        self._root = f"{root.rstrip('/')}/" if root else ""
        self.url = self._store.store.address(root) if root else self._store.store.url
        self._names: Array = np.empty(0, np.uint64)
        self._sizes: Array = np.empty(0, np.int64)

    def look(self) -> None:
        """See which files are there.

        Raises:
            NotSupported: the store has no listings.
            StoreError: it cannot be looked at.
        """
        names, sizes = array("Q"), array("q")
        for info in self._list():
            names.append(_name(info.path))
            sizes.append(-1 if info.size is None else info.size)
        found, known = np.frombuffer(names, np.uint64) if names else self._names, self._sizes
        order = np.argsort(found, kind="stable")
        self._names = found[order]
        self._sizes = np.frombuffer(sizes, np.int64)[order] if sizes else known
        self.listed = True

    def size_of(self, path: str) -> int | None:
        """Return the size of a file; None if it is not there."""
        if self.listed:
            at = int(np.searchsorted(self._names, np.uint64(_name(path))))
            if at < len(self._names) and self._names[at] == np.uint64(_name(path)):
                if self._sizes[at] >= 0:
                    return int(self._sizes[at])
            else:
                return None
        try:
            return self._store.head(self._root + path).size
        except NotFound:
            return None

    def digest_of(self, path: str) -> str:
        """Read a file, and return its digest."""
        return self._store.call(_digest(self._store.store, self._root + path))

    def others(self, known: Iterable[str]) -> list[ObjectInfo]:
        """Return the files that were there and are not among the known ones."""
        mine = np.zeros(len(self._names), bool)
        for path in known:
            name = np.uint64(_name(path))
            at = int(np.searchsorted(self._names, name))
            if at < len(self._names) and self._names[at] == name:
                mine[at] = True
        unknown = set(self._names[~mine].tolist())
        return [info for info in self._list() if _name(info.path) in unknown] if unknown else []

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Yield what writers have not finished."""
        found = self._store.store.leftovers(self._root + ROOT)
        yield from (self._relative(info) for info in self._store.call(_all(found)))

    def write(self, path: str, data: Data) -> None:
        """Write a file."""
        self._store.write(self._root + path, data)

    def delete(self, path: str) -> None:
        """Delete a file."""
        self._store.delete(self._root + path)

    def address(self, path: str) -> str:
        """Return the address of a file, for messages."""
        return self._store.store.address(self._root + path)

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    def _list(self) -> Iterator[ObjectInfo]:
        with contextlib.closing(self._store.list(self._root + ROOT)) as found:  # type: ignore[type-var]
            for info in found:
                yield self._relative(info)

    def _relative(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.path[len(self._root) :], info.size, info.version, info.modified)


def _name(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest())


async def _all(found: Any) -> list[ObjectInfo]:
    return [info async for info in found]


async def _digest(store: Store, path: str) -> str:
    hasher = hashlib.sha256()

    def take(pieces: list[bytes]) -> None:
        for piece in pieces:
            hasher.update(piece)

    async with contextlib.aclosing(gathered(store, path, None, lambda info, start: None)) as found:
        async for pieces in found:
            await asyncio.to_thread(take, pieces)
    return f"sha256:{hasher.hexdigest()}"
