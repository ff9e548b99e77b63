"""Open a data set of shards: its manifest, or the shards that an address stands for."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from streamloader.arguments import check_options
from streamloader.common.error_translation import error_translator
from streamloader.common.lru import LruCache
from streamloader.datasets.shards.claim import CLAIM_NAME, is_claimed
from streamloader.datasets.shards.index import INDEX_SUFFIX, ShardIndex, digest_index
from streamloader.datasets.shards.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardInfo
from streamloader.datasets.shards.naming import SHARD_SUFFIXES
from streamloader.datasets.shards.open_files import drop_open_files, number_data_set
from streamloader.datasets.shards.table import ShardTable, make_table
from streamloader.errors import (
    ClosedError,
    ConfigError,
    CorruptShard,
    DatasetIncomplete,
    DatasetNotFound,
    NotFound,
    NotSupported,
    StreamNotFound,
)
from streamloader.redaction import redact_address
from streamloader.stores.addresses import SourceFile, expand_addresses
from streamloader.stores.base import Store
from streamloader.stores.io_thread import SharedStore, open_shared_store, options_key
from streamloader.stores.local import local_path
from streamloader.stores.patterns import has_magic
from streamloader.stores.registry import is_local_file, scheme_of, select_options, split_address
from streamloader.stores.search import UnreadableReport
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array, ObjectInfo

__all__ = [
    "INDEXED_BY", "MAX_INDEX_FILE_BYTES", "ShardSet", "add_suffix", "is_folder_address",
    "join_address", "list_folder", "list_shards", "name_missing_shards", "open_folder", "read_limited",
    "resolve_address",
]  # fmt: skip

INDEXED_BY: Final = "index-shards"
MAX_INDEX_FILE_BYTES: Final = 1 << 30
_MAX_INDEX_BYTES: Final = 64 << 20  # of those that were used last; samples are found by tables
_MAX_INDEXES: Final = 16
_MAX_TABLE_BYTES: Final = 512 << 20  # about 16 million samples of two fields
_MAX_TABLES: Final = 1 << 20
_MAX_OPEN_STORES: Final = 64


class ShardSet:
    """The shards of a data set, each with its index. Opens nothing until it is used.

    It can be pickled and used after a fork. All methods may be called from any thread.

    Args:
        address: Address of the data set, for messages. Secrets in it are removed.
        addresses: Address of each shard.
        infos: Description of each shard.
        storage_options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        indexes: Content of the index files, for shards that have none beside them. Defaults to none.
        skipped: Tar files that were left out because they cannot be indexed. Defaults to none.

    Attributes:
        address: Address of the data set, without secrets.
        infos: Description of each shard.
        counts: Number of samples of each shard, int64 (shards,).
        total_bytes: Size of the decompressed contents of all shards together.
        digest: Text that identifies names, samples and sizes of the shards, for saved states. Their contents are
            compared with their checksums when they are read.
        skipped: Tar files that were left out.
        number: Number of this object among those of the process, for its open files.
    """

    def __init__(
        self,
        address: str,
        addresses: Sequence[str],
        infos: Sequence[ShardInfo],
        storage_options: Mapping[str, Any] | None = None,
        indexes: Mapping[int, bytes] | None = None,
        skipped: Sequence[SkippedVideo] = (),
    ) -> None:
        self.address = redact_address(address)
        self.infos = infos
        self.counts: Array = np.array([info.samples for info in infos], np.int64)
        self.total_bytes = sum(info.data_bytes for info in infos)
        self.digest = _digest(infos)
        self._addresses = addresses
        self._options = check_options("storage_options", storage_options) or {}
        self._index_files = dict(indexes or {})
        self.skipped: Sequence[SkippedVideo] = tuple(skipped)
        self._open = _OpenObjects()
        self._number()

    def __len__(self) -> int:
        return len(self.infos)

    def __repr__(self) -> str:
        return f"<ShardSet {self.address}: {int(self.counts.sum())} samples in {len(self)} shards>"

    def shard_address(self, shard: int) -> str:
        """Return the address of a shard without secrets, for messages."""
        return redact_address(self._addresses[shard])

    def local_path(self, shard: int) -> str | None:
        """Return the path of a shard on this machine. None if it lies elsewhere."""
        address = self._addresses[shard]
        return local_path(address) if is_local_file(address) else None

    def store(self, shard: int) -> tuple[SharedStore, str]:
        """Return the store that holds a shard, and the shard's path in it."""
        address = self._addresses[shard]
        root, path = split_address(address)
        options = select_options(address, self._options)
        key = root, options_key(options)
        stores = self._get_open().stores
        handle = stores.get(key)
        if handle is None:
            if len(stores) >= _MAX_OPEN_STORES:
                stores.clear()  # each is released when its last reader has finished
            handle = stores[key] = open_shared_store(address, options)[0]
        return handle, path

    def index(self, shard: int, reading: concurrent.futures.Future[bytes] | None = None) -> ShardIndex:
        """Return the index of a shard. It is read when it is first needed.

        Args:
            shard: Number of the shard.
            reading: Result of :meth:`submit_index`, if it was called.

        Raises:
            CorruptShard: If the index is missing or damaged, or is not the one that belongs to the data set.
            StoreError: If the store fails otherwise.
        """
        indexes = self._get_open().indexes
        index = indexes.get(shard)
        if index is None:
            index = self._load_index(shard, reading)
            indexes.put(shard, index, index.memory_bytes)
        return index

    def table(
        self, shard: int, fields: frozenset[str] | None, reading: concurrent.futures.Future[bytes] | None = None
    ) -> ShardTable:
        """Return where the samples of a shard lie. It is made from the index when it is first needed.

        Args:
            shard: Number of the shard.
            fields: Names of the fields that are needed. None stands for all.
            reading: Result of :meth:`submit_index`, if it was called.

        Raises:
            ConfigError: If the shard has too many fields.
            CorruptShard: If the index is missing or damaged, or is not the one that belongs to the data set.
            StoreError: If the store fails otherwise.
        """
        tables = self._get_open().tables
        table = tables.get((shard, fields))
        if table is None:
            table = make_table(self.index(shard, reading), fields)
            tables.put((shard, fields), table, table.memory_bytes)
        return table

    def submit_index(self, shard: int, fields: frozenset[str] | None) -> concurrent.futures.Future[bytes] | None:
        """Start to read the index of a shard, for :meth:`table`. None if that needs no reading."""
        opened = self._get_open()
        is_known = shard in self._index_files or opened.indexes.get(shard) is not None
        if is_known or opened.tables.get((shard, fields)) is not None:
            return None
        return self._submit_index(shard)

    def acquire(self) -> None:
        """Announce a reader, which calls :meth:`release` when it has ended."""
        opened = self._get_open()
        with opened.lock:
            opened.readers += 1

    def release(self) -> None:
        """End a reader. With the last one, the stores are released; the next use opens them again."""
        opened = self._get_open()
        with opened.lock:
            opened.readers -= 1
            is_last = opened.readers <= 0
        if is_last:
            self._release_stores(opened)

    def close(self) -> None:
        """Release the stores, close all files, and forget the indexes. The next use reads them again."""
        opened, self._open = self._get_open(), _OpenObjects()
        self._release_stores(opened)
        drop_open_files(self.number, len(self))

    def _release_stores(self, opened: _OpenObjects) -> None:
        stores, opened.stores = opened.stores, {}
        for handle in stores.values():
            handle.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process."""
        state = self.__dict__.copy()
        del state["_open"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the data set, with nothing open."""
        self.__dict__.update(state)
        self._open = _OpenObjects()
        self._number()

    def _number(self) -> None:
        """Number this object, and have its files closed when it is collected."""
        self.number = number_data_set()
        weakref.finalize(self, drop_open_files, self.number, len(self)).atexit = False

    def _get_open(self) -> _OpenObjects:
        """Return what this process has opened. A forked child starts with nothing: its parent owns locks and stores."""
        opened = self._open
        if opened.pid != os.getpid():
            opened = self._open = _OpenObjects()
        return opened

    def _load_index(self, shard: int, reading: concurrent.futures.Future[bytes] | None) -> ShardIndex:
        address = redact_address(add_suffix(self._addresses[shard], INDEX_SUFFIX))
        data = self._index_files.get(shard)
        if data is None:
            try:
                data = self._wait_for_index(shard, reading)
            except NotFound as error:
                raise self._make_error(shard, f"{address}: the index of the shard is missing") from error
        info = self.infos[shard]
        if digest_index(data) != info.index_digest:
            raise self._make_error(
                shard, f"{address}: the index is damaged, or is not the one that belongs to the data set"
            )
        index = ShardIndex.parse(data, address)
        if (len(index), index.size, index.data_size) != (info.samples, info.bytes, info.data_bytes):
            raise self._make_error(shard, f"{address}: the index describes another shard than the manifest")
        return index

    def _wait_for_index(self, shard: int, reading: concurrent.futures.Future[bytes] | None) -> bytes:
        """Return the bytes of an index. A transfer that was cancelled, because the stores were closed, is repeated."""
        for future in (reading, None):
            try:
                return (future or self._submit_index(shard)).result()
            except concurrent.futures.CancelledError as error:
                if future is None:
                    address = self.shard_address(shard)
                    raise ClosedError(
                        f"{address}: the stores were closed while its index was read", address=address
                    ) from error
        raise AssertionError("the second attempt returns or raises")

    def _submit_index(self, shard: int) -> concurrent.futures.Future[bytes]:
        store, _ = self.store(shard)
        path = split_address(add_suffix(self._addresses[shard], INDEX_SUFFIX))[1]
        return store.submit(read_limited(store.store, path, MAX_INDEX_FILE_BYTES))

    def _make_error(self, shard: int, message: str) -> CorruptShard:
        return CorruptShard(
            f"{message} (data set {self.address}, shard {self.infos[shard].name}). Write the shard or its index again",
            address=self.shard_address(shard),
            offset=0,
            dataset=self.address,
            shard=self.infos[shard].name,
        )


class _OpenObjects:
    """What one process has opened.

    Attributes:
        pid: Number of the process.
        stores: Stores by URL and options.
        indexes: Indexes of shards that were used last.
        tables: Tables of shards, by shard and fields.
        readers: Number of readers that have not ended.
        lock: Lock of the number of readers.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.stores: dict[tuple[str, bytes], SharedStore] = {}
        self.indexes: LruCache[int, ShardIndex] = LruCache(_MAX_INDEXES, _MAX_INDEX_BYTES)
        self.tables: LruCache[tuple[int, frozenset[str] | None], ShardTable] = LruCache(_MAX_TABLES, _MAX_TABLE_BYTES)
        self.readers = 0
        self.lock = threading.Lock()


async def read_limited(store: Store, path: str, max_bytes: int) -> bytes:
    """Return the bytes of an object, by one request, but no more than `max_bytes` + 1 of them."""
    pieces = []
    count = 0
    async with contextlib.aclosing(store.stream(path)) as stream:
        async for piece in stream:
            pieces.append(piece)
            count += len(piece)
            if count > max_bytes:
                break
    return b"".join(pieces)[: max_bytes + 1]


def resolve_address(address: str) -> str:
    """Return the address of a data set without ``manifest.json`` at its end, and a local one as an absolute path.

    Workers may have another current directory.
    """
    base, query = _split_query(address)
    if base.endswith(f"/{MANIFEST_NAME}") or base == MANIFEST_NAME:
        address = (base[: -len(MANIFEST_NAME)] or ".") + query
    return f"/{split_address(address)[1]}" if is_local_file(address) else address


def join_address(folder: str, name: str) -> str:
    """Return the address of an object in a folder. The query of an HTTP address goes to its end."""
    base, query = _split_query(folder)
    return f"{base.rstrip('/')}/{name}{query}"


def add_suffix(address: str, suffix: str) -> str:
    """Return the address of the object whose name is that of another one and `suffix`."""
    base, query = _split_query(address)
    return f"{base}{suffix}{query}"


def _split_query(address: str) -> tuple[str, str]:
    """Return an address without its query, and the query with its "?". Only HTTP addresses have one."""
    if scheme_of(address) not in ("http", "https"):
        return address, ""
    base, question, query = address.partition("?")
    return base, question + query


def open_folder(
    address: str, storage_options: Mapping[str, Any] | None = None, *, allow_incomplete: bool = False
) -> ShardSet | None:
    """Return the data set in a folder that has a manifest. None if it has shards that other programs have written.

    Those have neither manifest nor indexes, or indexes of an interrupted :func:`index_shards`.

    Raises:
        DatasetNotFound: If there are no shards in the folder.
        DatasetIncomplete: If its writer has not finished. Not raised if `allow_incomplete`.
        DatasetError: If the manifest is damaged.
        StoreError: If the store fails otherwise.
    """
    manifest_address = join_address(address, MANIFEST_NAME)
    handle, path = open_shared_store(manifest_address, select_options(address, storage_options))
    with handle:
        try:
            data = handle.call(read_limited(handle.store, path, MAX_MANIFEST_BYTES))
        except (NotFound, NotADirectoryError):
            is_unfinished = handle.call(is_claimed(handle.store, f"{path.removesuffix(MANIFEST_NAME)}{CLAIM_NAME}"))
            if is_unfinished and not allow_incomplete:
                raise _make_incomplete_error(address) from None
            names = list_folder(handle, address)
            indexes = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
            if indexes and not allow_incomplete and not _is_from_scan(handle, join_address(address, indexes[0])):
                raise _make_incomplete_error(address) from None
            return None
    manifest = Manifest.parse(data, redact_address(manifest_address))
    addresses = _FolderAddresses(address, manifest.shards)
    return ShardSet(address, addresses, manifest.shards, storage_options)


def _make_incomplete_error(address: str) -> DatasetIncomplete:
    shown = redact_address(address)
    return DatasetIncomplete(
        f"{shown} has no {MANIFEST_NAME} yet: it is still being written, or its writer was interrupted. The same call "
        f"of the writer completes it. To read the shards that are there, name them: {join_address(shown, '*.tar')}",
        address=shown,
        dataset=shown,
    )


@error_translator
def name_missing_shards(addresses: Sequence[str]) -> Iterator[None]:
    """Raise the error that files are missing as one about a data set.

    Raises:
        DatasetNotFound: If the block raises a StreamNotFound.
    """
    try:
        yield
    except StreamNotFound as error:
        shown = redact_address(addresses[0]) + (f" and {len(addresses) - 1} more" if len(addresses) > 1 else "")
        missing = DatasetNotFound(f"shards are missing: {error.message}", address=shown, dataset=shown)
        missing.details |= error.details
        raise missing from error


def list_shards(
    addresses: Sequence[str], storage_options: Mapping[str, Any] | None, report: UnreadableReport
) -> list[SourceFile]:
    """Return the shards that patterns, braces or names stand for, in their order. `report` gets what may not be read.

    Raises:
        DatasetNotFound: If there are none.
        ConfigError: If a name is not that of a shard.
        StoreError: If a store fails otherwise.
    """
    files: list[SourceFile] = []
    for options, group in itertools.groupby(addresses, lambda address: select_options(address, storage_options)):
        files += expand_addresses(list(group), _is_shard, options, unreadable=report)
    with name_missing_shards(addresses):
        report.check(files)
    wrong = next((file.address for file in files if not _is_shard(file.address)), None)
    if wrong is not None:
        raise ConfigError(f"{redact_address(wrong)} is no shard: its name has to end in {', '.join(SHARD_SUFFIXES)}")
    return files


def list_folder(handle: SharedStore, address: str) -> dict[str, ObjectInfo]:
    """Return the objects in a folder by name, without hidden ones and those in subfolders.

    Args:
        handle: Store of the folder.
        address: Address of the folder.

    Raises:
        DatasetNotFound: If there are no shards in it.
        StoreError: If the store fails otherwise.
    """
    shown = redact_address(address)
    unlisted = DatasetNotFound(
        f"there is no {MANIFEST_NAME} at {shown}, and its server has no listings: name the shards, such as "
        f"{join_address(shown, 'shard-{000..127}.tar')}",
        address=shown,
        dataset=shown,
    )
    manifest_path = split_address(join_address(address, MANIFEST_NAME))[1]
    if not handle.store.supports_listing:
        raise unlisted
    folder = manifest_path.rpartition("/")[0]
    found: dict[str, ObjectInfo] = {}
    try:
        for info in handle.list(folder, recursive=False):
            name = info.path.rpartition("/")[2]
            if name and not name.startswith("."):
                found[name] = info
    except (NotFound, NotADirectoryError):
        pass
    except NotSupported as error:
        raise unlisted from error
    if not any(map(_is_shard, found)):
        raise DatasetNotFound(
            f"there are no shards at {shown}: neither {MANIFEST_NAME} nor tar files", address=shown, dataset=shown
        )
    return found


def is_folder_address(address: str) -> bool:
    """Return whether an address is that of a folder, and not of shards."""
    if is_local_file(address) and os.path.isdir(address):
        return True
    base, _ = _split_query(address)
    return not _is_shard(base) and not has_magic(base) and "{" not in base


def _is_shard(address: str) -> bool:
    return _split_query(address)[0].lower().endswith(SHARD_SUFFIXES)


def _is_from_scan(handle: SharedStore, address: str) -> bool:
    """Return whether the index at an address is one of :func:`index_shards`, and not of the writer of the shard."""
    try:
        data = handle.call(read_limited(handle.store, split_address(address)[1], MAX_INDEX_FILE_BYTES))
        return ShardIndex.parse(data, redact_address(address)).settings.get("writer") == INDEXED_BY
    except (NotFound, CorruptShard):
        return False


class _FolderAddresses(Sequence[str]):
    """Addresses of the shards in one folder, made on access."""

    def __init__(self, folder: str, shards: Sequence[ShardInfo]) -> None:
        self._folder = folder
        self._shards = shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, shard: Any) -> Any:
        return join_address(self._folder, self._shards[shard].name)


def _digest(infos: Sequence[ShardInfo]) -> str:
    digest = hashlib.sha256(b"shards-1\0")
    for info in infos:
        digest.update(f"{info.name}\0{info.samples}\0{info.data_bytes}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
