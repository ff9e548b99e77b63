"""Write a data set of shards into any store, so that a writer that was killed goes on where it stopped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from streamloader.common.gather import gather_bounded
from streamloader.datasets.shards.all_shards import join_address
from streamloader.datasets.shards.encode import encode_sample
from streamloader.datasets.shards.index import INDEX_SUFFIX, ShardIndex, digest_index
from streamloader.datasets.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from streamloader.datasets.shards.naming import SHARD_SUFFIXES, check_key
from streamloader.datasets.shards.tar_stream import COMPRESSION_SUFFIXES, TarStream
from streamloader.errors import ClosedError, ConfigError, DatasetError, DatasetExists, NotFound
from streamloader.redaction import redact_address
from streamloader.stores.base import Store
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.stores.registry import select_options

__all__ = ["ShardWriter"]

_MAX_QUEUED_PIECES: Final = 4  # of about 1 MiB
_MAX_UPLOADS: Final = 2  # of shards at a time
_MAX_REQUESTS: Final = 32
_KEY_DIGITS: Final = 9
_MAX_LIMIT: Final = 1 << 62  # for "no limit"
_OWN_NAME: Final = re.compile(r"[0-9]{5,}\.tar(?:\.gz|\.zst)?")


class ShardWriter:
    """Writes samples into tar files of a folder, with an index beside each, and a manifest at the end.

    Use it as a context manager. Without an exception, the end of the block completes the data set::

        with sl.ShardWriter("s3://bucket/folder", maxcount=10_000) as writer:
            for image, label in samples[writer.samples_written :]:
                writer.write({"png": image, "cls": label})

    A shard is uploaded while it is filled, so it needs little memory, whatever its size. It becomes visible as a whole,
    after its index; the manifest comes last, so that readers never take a part for the whole (DatasetIncomplete).

    A writer that was interrupted is continued by the same call: complete shards are kept, and `samples_written` says
    how many samples they contain. Pass the samples from there on, in the same order.

    Args:
        address: Address of the folder. It has no other shards.
        maxsize: Maximum size of a shard in bytes, before compression. A larger sample gets a shard of its own.
        maxcount: Maximum number of samples of a shard.
        compression: "gzip" or "zstd" for ``.tar.gz`` or ``.tar.zst``. Defaults to None. Images do not get smaller.
        settings: Plain JSON that is written into the manifest, and that a continued writer has to have as well.
        overwrite: Whether a data set that is there already is replaced. Defaults to False.
        storage_options: Options of the store, see :func:`streamloader.stores.open_store`.

    Attributes:
        samples_written: Number of samples that are written, with those of an interrupted writer.
        is_complete: Whether the data set was complete before. Nothing can be written then.

    Raises:
        DatasetExists: If there is another data set in the folder, or one that was written with other settings.
        ConfigError: If an argument is invalid.
        StoreError: If the store denies access or fails otherwise.
    """

    def __init__(
        self,
        address: str,
        *,
        maxsize: float = 1e8,
        maxcount: float = 100_000,
        compression: str | None = None,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if maxsize < 1 or maxcount < 1 or compression not in COMPRESSION_SUFFIXES:
            raise ConfigError(
                "ShardWriter: maxsize and maxcount must be 1 or more, and compression 'gzip', 'zstd' or None"
            )
        self.address = redact_address(address)
        self._suffix = COMPRESSION_SUFFIXES[compression]
        self._compression = compression
        self._limits = tuple(int(min(limit, _MAX_LIMIT)) for limit in (maxsize, maxcount))
        own = {"maxsize": self._limits[0], "maxcount": self._limits[1], "compression": compression}
        self._settings: dict[str, Any] = json.loads(json.dumps({**own, **(settings or {})}))
        self._handle, manifest_path = open_shared_store(
            join_address(address, MANIFEST_NAME), select_options(address, storage_options)
        )
        self._folder = manifest_path.removesuffix(MANIFEST_NAME)
        self._shards: list[ShardInfo] = []
        self._uploads: list[_Upload] = []
        self._current: _Upload | None = None
        self._keys: set[str] = set()  # of the current shard
        self._stale: set[str] = set()
        self._state = "open"
        self.is_complete = False
        try:
            self._handle.call(self._open(self._handle.store, overwrite=overwrite))
        except BaseException:
            self._handle.close()
            raise
        self.samples_written = sum(info.samples for info in self._shards)

    def write(self, sample: Mapping[str, Any]) -> None:
        """Write a sample: see :func:`streamloader.datasets.shards.encode.encode_sample` for its fields.

        Args:
            sample: Fields of the sample. ``"__key__"`` is its key; defaults to its number.

        Raises:
            ConfigError: If the key or a field is invalid, or the shard has the key already. Nothing is written then,
                and the writer goes on.
            StoreError: If an upload has failed.
        """
        key = check_key(sample.get("__key__", f"{self.samples_written:0{_KEY_DIGITS}}"))
        self.write_encoded(key, encode_sample(key, sample))

    def write_encoded(self, key: str, members: list[tuple[str, bytes]]) -> None:
        """Write a sample whose fields are encoded already. Errors are those of :meth:`write`."""
        self._check_open()
        if key in self._keys:
            raise ConfigError(f"the key {key!r} occurs twice in a shard of {self.address}")
        try:
            self._append(key, members)
        except BaseException:  # pieces of the shard may be missing
            self.abort()
            raise
        self.samples_written += 1

    def _append(self, key: str, members: list[tuple[str, bytes]]) -> None:
        max_size, max_count = self._limits
        size = sum(len(content) for _, content in members)
        upload = self._current
        if upload is not None and (upload.tar.samples >= max_count or upload.tar.data_size + size > max_size):
            self._finish_shard(upload)
            upload = None
        if upload is None:
            upload = self._current = self._start_shard()
        self._keys.add(key)
        for piece in upload.tar.add(key, members):
            upload.put(piece)

    def close(self) -> None:
        """Complete the data set: finish the last shard and write the manifest. Calling it twice is allowed.

        Raises:
            StoreError: If an upload fails. The same call of the writer goes on.
        """
        if self._state != "open":
            return
        try:
            if not self.is_complete:
                if self._current is not None:
                    self._finish_shard(self._current)
                self._shards += [upload.wait() for upload in self._uploads]
                self._uploads = []
                self._handle.call(self._write_manifest(self._handle.store))
        except BaseException:
            self.abort()
            raise
        self._state = "closed"
        self._handle.close()

    def abort(self) -> None:
        """Stop writing. Shards that are complete stay, and a new writer continues behind them."""
        if self._state == "open":
            self._state = "aborted"
            for upload in [*self._uploads, *([self._current] if self._current else [])]:
                upload.abort()
            self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    # --- shards ------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._state != "open":
            raise ClosedError(f"the writer of {self.address} is {self._state}", address=self.address)
        if self.is_complete:
            raise DatasetExists(
                f"the data set {self.address} is complete, with {self.samples_written} samples: pass overwrite=True to "
                "write it again",
                address=self.address,
                dataset=self.address,
            )

    def _start_shard(self) -> _Upload:
        number = len(self._shards) + len(self._uploads)
        name = f"{number:05}{self._suffix}"
        self._keys = set()
        upload = _Upload(TarStream(name, self._compression), self._handle)
        upload.start(f"{self._folder}{name}")
        return upload

    def _finish_shard(self, upload: _Upload) -> None:
        pieces, index = upload.tar.finish({**self._settings, "first_sample": self._count_samples()})
        self._current = None
        self._uploads.append(upload)
        for piece in pieces:
            upload.put(piece)
        upload.put(index)
        while len(self._uploads) >= _MAX_UPLOADS:
            self._shards.append(self._uploads[0].wait())
            del self._uploads[0]

    def _count_samples(self) -> int:
        return sum(info.samples for info in self._shards) + sum(upload.tar.samples for upload in self._uploads)

    async def _write_manifest(self, store: Store) -> None:
        await store.write(f"{self._folder}{MANIFEST_NAME}", Manifest(self._shards, self._settings).pack())

    # --- what is there already ---------------------------------------------------------------------------------------

    async def _open(self, store: Store, *, overwrite: bool) -> None:
        """Find out what is in the folder."""
        manifest_path = f"{self._folder}{MANIFEST_NAME}"
        try:
            data = await store.read(manifest_path)
        except NotFound:
            data = None
        if data is not None:
            if not overwrite:
                manifest = Manifest.parse(data, f"{self.address}/{MANIFEST_NAME}")
                self._compare(manifest.settings)
                self._shards = list(manifest.shards)
                self.is_complete = True
                return
            await store.delete(manifest_path)
        sizes = {}
        async with contextlib.aclosing(store.list(self._folder.rstrip("/"), recursive=False)) as entries:
            async for info in entries:
                sizes[info.path.removeprefix(self._folder)] = info.size
        shards = {name for name in sizes if name.endswith(SHARD_SUFFIXES)}
        foreign = [name for name in shards if f"{name}{INDEX_SUFFIX}" not in sizes or not _OWN_NAME.fullmatch(name)]
        if foreign and not overwrite:
            # An index is written before its shard, so these are of another writer.
            raise DatasetExists(
                f"{self.address} has shards of another writer, such as {min(foreign)!r:.200}: choose an empty "
                "folder, or pass overwrite=True",
                address=self.address,
                dataset=self.address,
            )
        self._stale = {name for name in shards if _OWN_NAME.fullmatch(name)}
        if overwrite:
            await self._delete_stale(store)
            return
        self._shards = await self._find_complete(store, sizes)
        await self._delete_stale(store)

    async def _find_complete(self, store: Store, sizes: Mapping[str, int | None]) -> list[ShardInfo]:
        """Return the complete shards of an interrupted writer: all before the first one that is missing."""
        others = [
            name
            for name in self._stale
            if not name.endswith(self._suffix) or name.count(".") != self._suffix.count(".")
        ]
        if others:
            raise DatasetExists(
                f"{self.address} has shards that were written with another compression, such as {min(others)}: "
                "pass overwrite=True to replace them",
                address=self.address,
                dataset=self.address,
            )
        names: list[str] = []
        while (name := f"{len(names):05}{self._suffix}") in sizes:
            names.append(name)
        reads = (store.read(f"{self._folder}{name}{INDEX_SUFFIX}") for name in names)
        files = await gather_bounded(reads, limit=_MAX_REQUESTS)
        complete: list[ShardInfo] = []
        for name, data in zip(names, files, strict=True):
            try:
                index = ShardIndex.parse(data, f"{self.address}/{name}{INDEX_SUFFIX}")
            except DatasetError:
                break
            settings = dict(index.settings)
            if settings.pop("first_sample", None) != sum(info.samples for info in complete):
                break
            self._compare(settings)
            if index.size != sizes[name]:
                break
            complete.append(ShardInfo(name, len(index), index.size, index.data_size, digest_index(data)))
        return complete

    async def _delete_stale(self, store: Store) -> None:
        """Delete shards that are written again. An index without a shard is never taken for one of another writer."""
        for name in sorted(self._stale - {info.name for info in self._shards}):
            await store.delete(f"{self._folder}{name}")
            await store.delete(f"{self._folder}{name}{INDEX_SUFFIX}")

    def _compare(self, settings: Mapping[str, Any]) -> None:
        different = [
            name for name in sorted({*settings, *self._settings}) if settings.get(name) != self._settings.get(name)
        ]
        if different:
            shown = ", ".join(
                f"{name}={settings.get(name)!r:.60} there and {self._settings.get(name)!r:.60} here"
                for name in different
            )
            raise DatasetExists(
                f"{self.address} has a data set that was written with other settings: {shown}. Use the same ones to "
                "continue it, or pass overwrite=True to replace it",
                address=self.address,
                dataset=self.address,
            )


class _Upload:
    """The upload of one shard, which is being filled.

    Args:
        tar: Content of the shard.
        handle: Store of the shard.

    Attributes:
        tar: Content of the shard.
        future: Upload on the I/O thread.
    """

    future: concurrent.futures.Future[ShardInfo]

    def __init__(self, tar: TarStream, handle: SharedStore) -> None:
        self.tar = tar
        self._handle = handle
        self._pieces: asyncio.Queue[bytes | ShardIndex] = asyncio.Queue(_MAX_QUEUED_PIECES)
        self._task: asyncio.Task[Any] | None = None
        self._is_aborted = False

    def start(self, path: str) -> None:
        """Start to upload what is passed on."""
        self.future = self._handle.submit(self._run(self._handle.store, path))

    def put(self, item: bytes | ShardIndex) -> None:
        """Wait for room, and pass on a piece, or the index after the last one. Raise what made the upload fail."""
        putting = self._handle.submit(self._pieces.put(item))
        pending: list[concurrent.futures.Future[Any]] = [putting, self.future]
        try:
            concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
        if self.future.done():
            self.future.result()

    def wait(self) -> ShardInfo:
        """Wait until the shard is visible. Raise what made the upload fail."""
        return self.future.result()

    def abort(self) -> None:
        """Abort the upload, and wait for that."""
        if not self.future.done():
            self._handle.call(self._cancel())

    async def _run(self, store: Store, path: str) -> ShardInfo:
        """Upload the shard, with its index before it becomes visible."""
        self._task = asyncio.current_task()
        if self._is_aborted:
            raise _ShardAborted
        described: list[ShardInfo] = []

        async def read_pieces() -> AsyncIterator[bytes]:
            while not isinstance(piece := await self._pieces.get(), ShardIndex):
                yield piece
            data = piece.pack()
            await store.write(f"{path}{INDEX_SUFFIX}", data)
            described.append(ShardInfo(piece.shard, len(piece), piece.size, piece.data_size, digest_index(data)))

        await store.write(path, read_pieces())
        return described[0]

    async def _cancel(self) -> None:
        self._is_aborted = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class _ShardAborted(Exception):
    """Raised inside a store to have it discard what it has received."""
