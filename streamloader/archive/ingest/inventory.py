"""The inventory of a place: a hash and a size for each of possibly many millions of files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from array import array
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from streamloader.archive.catalog.chunk_paths import CHUNKS_FOLDER
from streamloader.archive.ingest.sources import read_batches
from streamloader.archive.location import PlaceAddress
from streamloader.errors import NotFound, NotSupported
from streamloader.stores.base import Data, Store
from streamloader.stores.io_thread import open_shared_store
from streamloader.values import Array, ObjectInfo

__all__ = ["PlaceInventory"]


class PlaceInventory:
    """The files of one place. All paths are relative to the place.

    Args:
        place: Address of the place to scan.
        options: Options of the place's store.

    Attributes:
        place: Address of the scanned place.
        url: Address of the place, without secrets.
        reachable: Whether the place can be scanned. The caller sets it.
        listed: Whether :meth:`scan` has listed the files.
    """

    def __init__(self, place: PlaceAddress, options: Mapping[str, Any]) -> None:
        self.place = place
        self.reachable = True
        self.listed = False
        self._store, root = open_shared_store(place.url, options)
        self._root = f"{root.rstrip('/')}/" if root else ""
        self.url = self._store.store.address(root) if root else self._store.store.url
        self._path_hashes: Array = np.empty(0, np.uint64)  # ascending
        self._sizes: Array = np.empty(0, np.int64)  # -1 if unknown

    def scan(self) -> None:
        """List the files of the place.

        Raises:
            NotSupported: If the store cannot list files, or is a web server, whose listings may lack some.
            StoreError: If the listing fails.
        """
        if self._store.store.has_url_paths:
            raise NotSupported(f"{self.url}: the listings of web servers may lack files", address=self.url)
        hashes, sizes = array("Q"), array("q")
        for info in self._list_files():
            hashes.append(_hash_path(info.path))
            sizes.append(-1 if info.size is None else info.size)
        if hashes:
            all_hashes = np.frombuffer(hashes, np.uint64)
            order = np.argsort(all_hashes, kind="stable")
            self._path_hashes = all_hashes[order]
            self._sizes = np.frombuffer(sizes, np.int64)[order]
        self.listed = True

    def get_size(self, path: str) -> int | None:
        """Return the size of a file in bytes. Return None if there is no such file."""
        if self.listed:
            path_hash = np.uint64(_hash_path(path))
            position = int(np.searchsorted(self._path_hashes, path_hash))
            if position < len(self._path_hashes) and self._path_hashes[position] == path_hash:
                if self._sizes[position] >= 0:
                    return int(self._sizes[position])
            else:
                return None
        try:
            return self._store.head(self._root + path).size
        except NotFound:
            return None

    def compute_digest(self, path: str, size: int) -> str | None:
        """Read a file, and return its digest. Return None if it has more than `size` bytes."""
        return self._store.call(_compute_digest(self._store.store, self._root + path, size))

    def find_unknown_files(self, known_paths: Iterable[str]) -> list[ObjectInfo]:
        """Return the files of the last scan that are not among `known_paths`."""
        known = np.zeros(len(self._path_hashes), bool)
        for path in known_paths:
            path_hash = np.uint64(_hash_path(path))
            position = int(np.searchsorted(self._path_hashes, path_hash))
            if position < len(self._path_hashes) and self._path_hashes[position] == path_hash:
                known[position] = True
        unknown = set(self._path_hashes[~known].tolist())
        return [info for info in self._list_files() if _hash_path(info.path) in unknown] if unknown else []

    def list_unfinished(self) -> Iterator[ObjectInfo]:
        """Yield the partial files of running or killed writers."""
        unfinished = self._store.store.list_unfinished(self._root + CHUNKS_FOLDER)
        yield from (self._make_relative(info) for info in self._store.call(_collect(unfinished)))

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
        """Release the store."""
        self._store.close()

    def _list_files(self) -> Iterator[ObjectInfo]:
        with contextlib.closing(self._store.list(self._root + CHUNKS_FOLDER)) as infos:  # type: ignore[type-var]
            for info in infos:
                yield self._make_relative(info)

    def _make_relative(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.path[len(self._root) :], info.size, info.version, info.modified)


def _hash_path(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest())


async def _collect(infos: AsyncIterable[ObjectInfo]) -> list[ObjectInfo]:
    return [info async for info in infos]


async def _compute_digest(store: Store, path: str, size: int) -> str | None:
    hasher = hashlib.sha256()

    def update(batch: list[bytes]) -> None:
        for piece in batch:
            hasher.update(piece)

    async with contextlib.aclosing(read_batches(store, path, None, lambda info, start: None)) as batches:
        async for batch in batches:
            size -= sum(map(len, batch))
            if size < 0:
                return None
            await asyncio.to_thread(update, batch)
    return f"sha256:{hasher.hexdigest()}"
