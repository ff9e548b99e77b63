"""Read the objects of one data set in one process: blobs, lists of files, and archives."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from streamloader.common.lru import LruCache
from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, Member
from streamloader.datasets.ipfs.archive_store import ArchivePieces, open_archive
from streamloader.datasets.ipfs.metadata_file import METADATA_NAME, FolderNames, parse_metadata
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType, choose_options
from streamloader.errors import DatasetNotFound, NotFound, NotSupported, StreamloaderError
from streamloader.stores.base import Store
from streamloader.stores.io_thread import SharedStore, open_shared_store, options_key
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.stream_table import StringColumn
from streamloader.values import ObjectInfo

__all__ = ["ObjectReader", "describe_errors", "read_member"]

T = TypeVar("T")

_MAX_PIECES: Final = 1 << 20
_MAX_OPEN_ARCHIVES: Final = 1024


class ObjectReader:
    """Reads objects on the I/O thread of this process. It must not be used in a process that was forked later.

    Args:
        objects: Objects of the data set.
        ipfs_api_address: Address of a node's API. None for the gateways in the addresses, or the stores' defaults.
        storage_options: Further options of the stores.
        piece_bytes: Size in bytes of the pieces in which archives are read.
        cache_bytes: Maximum size in bytes of the pieces that are kept.
        max_requests: Maximum number of files and pieces that are requested at the same time.

    Attributes:
        pid: Process that the reader belongs to.

    Raises:
        ConfigError: If there is neither a node nor a gateway, or if an option is invalid.
    """

    def __init__(
        self,
        objects: Sequence[IPFSObject],
        ipfs_api_address: str | None,
        storage_options: Mapping[str, Any] | None,
        *,
        piece_bytes: int,
        cache_bytes: int,
        max_requests: int,
    ) -> None:
        self.pid = os.getpid()
        self._objects = objects
        self._piece_bytes = piece_bytes
        self._requests = asyncio.Semaphore(max_requests)
        self._pieces: LruCache[tuple[str, int], bytes] = LruCache(_MAX_PIECES, cache_bytes)
        self._archives: LruCache[int, tuple[Container, bool]] = LruCache(_MAX_OPEN_ARCHIVES, _MAX_OPEN_ARCHIVES)
        self._openings: SingleFlight[tuple[Container, bool]] = SingleFlight()
        shared: dict[tuple[str, bytes], SharedStore] = {}
        self._shared: list[SharedStore] = []  # for each object; objects with the same options share one
        for each in objects:
            options = choose_options(each.location, ipfs_api_address, storage_options)
            key = each.location.scheme, options_key(options)
            if key not in shared:
                shared[key] = open_shared_store(f"{each.location.scheme}://", options)[0]
            self._shared.append(shared[key])

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the I/O thread."""
        return self._shared[0].submit(work)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the I/O thread and wait for its result."""
        return self._shared[0].call(work)

    def close(self) -> None:
        """Release the stores."""
        for shared in self._shared:
            shared.close()

    # --- coroutines of the I/O thread --------------------------------------------------------------------------------

    async def head(self, number: int, path: str = "") -> ObjectInfo:
        """Return the metadata of an object, or of a file in a folder."""
        async with self._requests:
            return await self._store(number).head(self._join(number, path))

    async def read(self, number: int, path: str = "") -> bytes:
        """Return the content of an object, or of a file in a folder."""
        store, address = self._store(number), self._join(number, path)
        async with self._requests:
            if self._objects[number].file_type is not RemoteFileType.PLAIN_STREAM:
                return await store.read(address)
            parts: list[bytes] = []
            await store.fetch(address, None, parts.append)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def list_folder(self, number: int) -> FolderNames:
        """Return the files of a folder, from its ``metadata.txt`` or from the directory itself, sorted then.

        Raises:
            DatasetNotFound: If there is no such folder, or if it is empty.
            StoreError: If the folder cannot be read.
        """
        store, path = self._store(number), self._join(number, METADATA_NAME)
        try:
            data = await store.read(path)
        except NotFound:
            return await self._list_directory(number)
        return await asyncio.to_thread(parse_metadata, data, store.address(path))  # a million lines take seconds

    async def _list_directory(self, number: int) -> FolderNames:
        store, folder = self._store(number), self._objects[number].location.path
        names: list[str] = []
        budget = ListingBudget(store.limits, store.address(folder), entry_bytes=HELD_ENTRY_BYTES)
        async with contextlib.aclosing(store.list(folder)) as entries:
            async for info in entries:
                if info.size is not None:  # symbolic links have no content of their own
                    budget.count_entry(info.path)
                    names.append(info.path[len(folder) + 1 :])
        if not names:
            address = store.address(folder)
            raise DatasetNotFound(f"{address} is no folder, or it has no files", address=address)
        return FolderNames(StringColumn.from_strings(sorted(names)))

    async def open_archive(self, number: int) -> tuple[Container, bool]:
        """Return the container of an archive, and whether it is sequential, see :func:`open_archive`."""
        opened = self._archives.get(number)
        if opened is None:
            opened = await self._openings.do(number, lambda: self._open_archive(number))
            self._archives.put(number, opened, 1)
        return opened

    async def _open_archive(self, number: int) -> tuple[Container, bool]:
        kind = self._objects[number].file_type
        info = await self.head(number)
        if info.size is None:
            address = self._store(number).address(info.path)
            raise NotSupported(
                f"{address}: its server does not report its size, which an archive needs", address=address
            )
        pieces = ArchivePieces(self._store(number), info, self._pieces, self._piece_bytes, self._requests)
        return await open_archive(pieces, info, kind)

    def _store(self, number: int) -> Store:
        return self._shared[number].store

    def _join(self, number: int, path: str) -> str:
        root = self._objects[number].location.path
        return f"{root}/{path}" if path else root


async def read_member(container: Container, member: Member) -> bytes:
    """Return the content of a member."""
    async with contextlib.aclosing(container.stream(member)) as pieces:
        parts = [piece async for piece in pieces]
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def describe_errors(each: IPFSObject, member: str | None = None) -> Iterator[None]:
    """Add the object and the member to the details of errors."""
    try:
        yield
    except StreamloaderError as error:
        error.details.setdefault("object", each.shown)
        if member is not None:
            error.details.setdefault("member", make_printable(member))
        raise
