"""Index shards that have no index: those of other writers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import platformdirs

from streamloader.arguments import expand_path
from streamloader.common.count_display import open_count_display
from streamloader.common.gather import map_bounded
from streamloader.common.guarded_files import GuardedFolder, UnsafePath
from streamloader.containers.base import ContainerSource, Member
from streamloader.containers.tar.container import TarContainer
from streamloader.datasets.shards.all_shards import (
    INDEXED_BY,
    MAX_INDEX_FILE_BYTES,
    ShardSet,
    add_suffix,
    is_folder_address,
    join_address,
    list_folder,
    list_shards,
    name_missing_shards,
    open_folder,
    read_limited,
    resolve_address,
)
from streamloader.datasets.shards.claim import CLAIM_NAME
from streamloader.datasets.shards.index import INDEX_SUFFIX, IndexBuilder, ShardIndex, digest_index, is_index
from streamloader.datasets.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from streamloader.datasets.shards.naming import SHARD_SUFFIXES, split_member_name
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    CorruptContainer,
    CorruptShard,
    DatasetError,
    DatasetIncomplete,
    NotFound,
    NotSupported,
    StreamloaderError,
)
from streamloader.redaction import identify_address, redact_address
from streamloader.stores.addresses import Address, Addresses, as_addresses
from streamloader.stores.base import Store
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.registry import select_options, split_address
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.unreadable import SkippedVideo, ends_indexing, settle_errors
from streamloader.values import ObjectInfo

__all__ = ["index_folder", "index_shards", "open_shard_set"]

_MAX_CONCURRENT_SHARDS: Final = 32
_METHODS: Final = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}
_NOUN: Final = "shards"
_log: Final = logging.getLogger("streamloader")


def open_shard_set(
    address: Addresses,
    storage_options: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    allow_incomplete: bool = False,
    unreadable: Unreadable = None,
) -> ShardSet:
    """Open a data set of shards.

    Args:
        address: Address of a folder with a manifest; or of tar files, as a folder, as a pattern (``s3://b/set/*.tar``),
            with braces (``https://h/set-{000..127}.tar``), or a list of these. Tar files may have an index beside them.
            The headers of all others are read once, and what was found is kept in the user's cache.
        storage_options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        progress: Whether to show a progress bar on a terminal. Defaults to True.
        allow_incomplete: Whether to read what is there of a data set whose writer has not finished. Defaults to False.
        unreadable: Handling of tar files that cannot be indexed, of a set without a manifest: ``"raise"`` raises one
            error that lists all of them, ``"skip"`` leaves them out with one warning. None, the default, raises for
            them too, but leaves out directories that may not be read. The shards of a manifest are opened when they are
            played.

    Raises:
        ConfigError: If the address is malformed, or names something else than shards.
        DatasetNotFound: If there are no shards at the address.
        DatasetIncomplete: If the writer of the data set has not finished.
        DatasetError: If the manifest is damaged.
        CorruptShard: If a shard cannot be indexed. The error lists all such shards.
        StoreError: If a store fails otherwise.
    """
    report = UnreadableReport(validate_unreadable(unreadable))
    addresses = [resolve_address(each) for each in as_addresses(address)]
    if len(addresses) == 1 and is_folder_address(addresses[0]):
        found = open_folder(addresses[0], storage_options, allow_incomplete=allow_incomplete)
        if found is not None:
            return found
        jobs = _list_folder(addresses[0], storage_options)[0]
    else:
        jobs = [_Job(file.address, file.info) for file in list_shards(addresses, storage_options, report)]
    indexer = _Indexer(jobs, storage_options, use_cache=True)
    with name_missing_shards(addresses):
        indexed = indexer.run(report, progress=progress)
    name = addresses[0] if len(addresses) == 1 else f"{addresses[0]} and {len(addresses) - 1} more"
    return ShardSet(
        name,
        [item.address for item in indexed],
        [item.describe() for item in indexed],
        storage_options,
        {number: item.data for number, item in enumerate(indexed) if not item.is_beside},
        indexer.skipped,
    )


def index_shards(
    address: Address,
    storage_options: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    unreadable: Unreadable = None,
) -> int:
    """Index the tar files of a folder, and write an index beside each of them, and a manifest.

    Every content is read once, for its checksum. A shard that has an intact index already, for a file of the same size,
    is not read: delete the index of a shard that was replaced by another one of the same size. The call can be
    interrupted at any time, and repeated.

    Args:
        address: Address of the folder.
        storage_options: Options of the store, see :func:`streamloader.stores.registry.select_options`.
        progress: Whether to show a progress bar on a terminal. Defaults to True.
        unreadable: Handling of tar files that cannot be indexed: ``"raise"``, the default, indexes the others, writes
            no manifest, and raises one error that lists all of them; ``"skip"`` leaves them out of the manifest, with
            one warning.

    Returns:
        Number of shards.

    Raises:
        ConfigError: If `address` is not that of a folder, or if the name of a shard is not allowed in a manifest.
        DatasetNotFound: If there are no shards in it.
        DatasetIncomplete: If the writer of the data set has not finished.
        CorruptShard: If a shard cannot be indexed. The error lists all such shards.
        NotSupported: If the store is read-only.
        StoreError: If the store fails otherwise.
    """
    return index_folder(address, storage_options, progress=progress, unreadable=unreadable)[0]


def index_folder(
    address: Address, storage_options: Mapping[str, Any] | None, *, progress: bool, unreadable: Unreadable
) -> tuple[int, Sequence[SkippedVideo]]:
    """Index the tar files of a folder. Return the number of shards, and those left out. See :func:`index_shards`."""
    report = UnreadableReport(validate_unreadable(unreadable))
    folder = resolve_address(as_addresses(address)[0])
    if not is_folder_address(folder):
        raise ConfigError(f"{redact_address(folder)} is not the address of a folder")
    jobs, settings = _list_folder(folder, storage_options, writes=True)
    indexer = _Indexer(jobs, storage_options, use_cache=False)
    indexed = indexer.run(report, progress=progress)
    manifest = Manifest([item.describe() for item in indexed], settings)
    store, path = open_shared_store(join_address(folder, MANIFEST_NAME), select_options(folder, storage_options))
    with store:
        store.write(path, manifest.pack())
    return len(indexed), indexer.skipped


class _Job(NamedTuple):
    """A shard to index.

    Attributes:
        address: Address of the shard.
        info: Metadata of the shard. None if it was not requested.
    """

    address: str
    info: ObjectInfo | None


def _list_folder(
    folder: str, storage_options: Mapping[str, Any] | None, *, writes: bool = False
) -> tuple[list[_Job], Mapping[str, Any]]:
    """Return the shards in a folder, sorted by name, and the settings of its manifest, or those of a new one."""
    handle, path = open_shared_store(join_address(folder, MANIFEST_NAME), select_options(folder, storage_options))
    with handle:
        if writes and not handle.store.supports_writes:
            raise NotSupported(
                f"{redact_address(folder)} is read-only: index a copy of the shards, or read them without an index",
                address=folder,
            )
        found = list_folder(handle, folder)
        if writes and CLAIM_NAME in found and MANIFEST_NAME not in found:
            raise DatasetIncomplete(
                f"{redact_address(folder)} has a part of a data set, because its writer is running or was interrupted: "
                f"the same call of the writer completes it. To keep that part as it is, delete {CLAIM_NAME}",
                address=folder,
                dataset=redact_address(folder),
            )
        settings: Mapping[str, Any] = {"writer": INDEXED_BY}
        if writes and MANIFEST_NAME in found:
            with contextlib.suppress(DatasetError):  # a damaged one is replaced
                settings = Manifest.parse(handle.read(path), redact_address(folder)).settings
    names = sorted(name for name in found if name.lower().endswith(SHARD_SUFFIXES))
    return [_Job(join_address(folder, name), found[name]) for name in names], settings


@dataclass(frozen=True, slots=True)
class _IndexedShard:
    """Index of a shard.

    Attributes:
        address: Address of the shard.
        index: Index.
        data: Content of the index file.
        is_beside: Whether that file lies beside the shard.
    """

    address: str
    index: ShardIndex
    data: bytes
    is_beside: bool

    @property
    def left_out(self) -> int:
        """Number of members that belong to no sample, if the shard was scanned."""
        count = self.index.settings.get("left_out", 0)
        return count if type(count) is int else 0

    def describe(self) -> ShardInfo:
        index = self.index
        name = self.address.partition("?")[0].rpartition("/")[2]
        return ShardInfo(name, len(index), index.size, index.data_size, digest_index(self.data))


class _Indexer:
    """Indexes shards concurrently, on the I/O thread.

    Args:
        addresses: Address of each shard.
        storage_options: Options of the stores.
        use_cache: Whether to read headers alone and keep the indexes in the user's cache. Otherwise contents are read
            too, and the indexes are written beside the shards.

    Attributes:
        skipped: Shards that were left out because they cannot be indexed.
    """

    def __init__(self, jobs: Sequence[_Job], storage_options: Mapping[str, Any] | None, *, use_cache: bool) -> None:
        self._jobs = jobs
        self._options = storage_options
        self._cache = _IndexCache() if use_cache else None
        self._left_out = 0
        self.skipped: tuple[SkippedVideo, ...] = ()

    def run(self, report: UnreadableReport, *, progress: bool) -> list[_IndexedShard]:
        """Return the index of each shard.

        Args:
            report: Report of the search for the shards, with the handling of those that cannot be indexed.
            progress: Whether to show a progress bar on a terminal.

        Raises:
            StreamloaderError: If shards cannot be indexed and are not left out, or if none can be indexed.
        """
        with contextlib.ExitStack() as stack:
            show = stack.enter_context(open_count_display("indexing shards")) if progress else _show_nothing
            stores, handle = [], None
            for job in self._jobs:
                handle, _ = open_shared_store(job.address, select_options(job.address, self._options))
                stack.callback(handle.close)
                stores.append(handle.store)
            results = [] if handle is None else handle.call(self._index_all(stores, show))
        if self._left_out:
            _log.warning(
                "%s: %d members belong to no sample, and are left out: their names have no field, or they are links, "
                "devices or have unsafe names",
                redact_address(self._jobs[0].address) + " and other shards" * (len(self._jobs) > 1),
                self._left_out,
            )
        errors = {number: result for number, result in enumerate(results) if isinstance(result, StreamloaderError)}
        names = [redact_address(job.address) for job in self._jobs]
        self.skipped = settle_errors(report, errors, names, names, _NOUN)
        return [result for result in results if not isinstance(result, StreamloaderError)]

    async def _index_all(
        self, stores: Sequence[Store], show: Callable[[int, int], None]
    ) -> list[_IndexedShard | StreamloaderError]:
        indexed: list[_IndexedShard | StreamloaderError] = []
        pairs = zip(stores, self._jobs, strict=True)
        async with contextlib.aclosing(
            map_bounded(self._index_or_error, pairs, limit=_MAX_CONCURRENT_SHARDS)
        ) as results:
            async for result in results:
                indexed.append(result)
                self._left_out += 0 if isinstance(result, StreamloaderError) else result.left_out
                show(len(indexed), len(self._jobs))
        return indexed

    async def _index_or_error(self, pair: tuple[Store, _Job]) -> _IndexedShard | StreamloaderError:
        try:
            return await self._index(pair)
        except StreamloaderError as error:
            if ends_indexing(error):
                raise
            return error

    async def _index(self, pair: tuple[Store, _Job]) -> _IndexedShard:
        store, (address, info) = pair
        if info is None or info.size is None:
            info = await _head(store, address)
        index_path = split_address(add_suffix(address, INDEX_SUFFIX))[1]
        beside = await self._read_beside(store, index_path, address, info)
        if beside is not None:
            return beside
        if self._cache is None:
            index = await _scan(store, info, address, checksums=True)
            data = index.pack()
            await store.write(index_path, data)
            return _IndexedShard(address, index, data, is_beside=True)
        key = None
        if info.version is not None or info.modified is not None:
            key = f"{identify_address(address)}\0{info.size}\0{info.version}\0{info.modified}"
        found = None if key is None else await asyncio.to_thread(self._cache.find, key)
        cached = None if found is None else _parse_cached(found, info)
        if found is not None and cached is not None:
            return _IndexedShard(address, cached, found, is_beside=False)
        index = await _scan(store, info, address, checksums=False)
        data = index.pack()
        if key is not None:
            await asyncio.to_thread(self._cache.keep, key, data)
        return _IndexedShard(address, index, data, is_beside=False)

    async def _read_beside(self, store: Store, path: str, address: str, info: ObjectInfo) -> _IndexedShard | None:
        """Return the index that lies beside a shard. None if there is none, or if it is to be made again."""
        try:
            data = await read_limited(store, path, MAX_INDEX_FILE_BYTES)
        except (NotFound, AccessDenied):  # object stores deny access to missing objects, if they may not be listed
            return None
        try:
            index = ShardIndex.parse(data, redact_address(add_suffix(address, INDEX_SUFFIX)))
        except CorruptShard:
            # Some servers answer requests of missing objects with a page.
            if self._cache is None or not is_index(data):
                return None
            raise
        if index.size == info.size:
            return _IndexedShard(address, index, data, is_beside=True)
        if self._cache is None:
            return None
        shown = redact_address(address)
        raise CorruptShard(
            f"{shown} has {info.size} bytes, and its index describes {index.size}: one of them was replaced or cut. "
            "Write both again, or delete the index",
            address=shown,
            offset=min(index.size, info.size or 0),
            shard=shown,
        )


async def _head(store: Store, address: str) -> ObjectInfo:
    shown = redact_address(address)
    try:
        info = await store.head(split_address(address)[1])
    except NotFound as error:
        raise CorruptShard(f"the shard {shown} is missing", address=shown, offset=0, shard=shown) from error
    if info.size is None:
        raise DatasetError(f"{shown}: its server does not report its size", address=shown, shard=shown)
    return info


def _parse_cached(data: bytes, info: ObjectInfo) -> ShardIndex | None:
    """Return an index from the cache, unless it is damaged or that of another shard."""
    try:
        index = ShardIndex.parse(data, "the cache")
    except CorruptShard:
        return None
    return index if index.size == info.size else None


async def _scan(store: Store, info: ObjectInfo, address: str, *, checksums: bool) -> ShardIndex:
    """Index a shard from its headers, or from one pass over all of it."""
    shown = redact_address(address)
    builder = IndexBuilder(shown)
    container = TarContainer(ContainerSource(store, info))
    budget = ListingBudget(store.limits, shown)
    left_out = data_end = 0
    method = _find_method(info.path)
    assert info.size is not None
    members = _sum_members(container) if checksums or method is not None else _list_members(container)
    try:
        async with contextlib.aclosing(members):
            async for member, checksum in members:
                budget.count_entry(member.name)
                name = split_member_name(member.name)
                if member.problem is not None or name is None or member.data < member.offset:  # a hard link
                    left_out += 1
                    continue
                data_end = member.data + member.size
                builder.add(*name, member.data, member.size, checksum)
        return builder.build(
            info.path.partition("?")[0].rpartition("/")[2],
            info.size,
            data_size=info.size if method is None else data_end,
            compression=method,
            frames=None if method is None else [(0, 0)],
            settings={"writer": INDEXED_BY, "left_out": left_out},
        )
    except (CorruptContainer, ConfigError) as error:
        raise CorruptShard(error.message, address=shown, offset=error.offset, shard=shown) from error


def _find_method(path: str) -> str | None:
    name = path.partition("?")[0].lower()
    return next((method for suffix, method in _METHODS.items() if name.endswith(suffix)), None)


async def _list_members(container: TarContainer) -> AsyncGenerator[tuple[Member, int | None], None]:
    async with contextlib.aclosing(container.scan()) as members:
        async for member in members:
            yield member, None


async def _sum_members(container: TarContainer) -> AsyncGenerator[tuple[Member, int | None], None]:
    """Yield each member with the checksum of its content."""
    async with contextlib.aclosing(container.iterate()) as pairs:
        async for member, pieces in pairs:
            checksum = 0
            if member.problem is None:
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        checksum = zlib.crc32(piece, checksum)
            yield member, checksum


class _IndexCache:
    """Indexes of shards in the user's cache, each in a file that is named by a digest."""

    def __init__(self) -> None:
        cache = os.environ.get("STREAMLOADER_CACHE") or platformdirs.user_cache_dir("streamloader")
        cache = expand_path(cache, create=True)
        self._path = f"{os.path.abspath(cache)}/shard-indexes"

    def find(self, key: str) -> bytes | None:
        try:
            with GuardedFolder(self._path) as folder, os.fdopen(folder.open_file(_digest(key)), "rb") as file:
                return file.read()
        except OSError:
            return None

    def keep(self, key: str, data: bytes) -> None:
        name = _digest(key)
        new = f"{name}.{os.getpid()}.{id(data)}.new"
        try:
            with (
                GuardedFolder(os.path.dirname(self._path), create=True),
                GuardedFolder(self._path, create=True) as folder,
            ):
                try:
                    with os.fdopen(folder.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                        file.write(data)
                    folder.replace(new, name)
                except BaseException:
                    with contextlib.suppress(OSError):
                        folder.unlink(new)
                    raise
        except (UnsafePath, OSError) as error:
            _log.info("the index of a shard is not cached: %s", str(error))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _show_nothing(done: int, total: int) -> None:
    """Show no progress."""
