"""Write a data set of shards into any store, so that a writer that was killed goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from streamloader.datasets.shards.all_shards import join_address
from streamloader.datasets.shards.encode import encode_sample
from streamloader.datasets.shards.manifest import MANIFEST_NAME, ShardInfo
from streamloader.datasets.shards.naming import check_key
from streamloader.datasets.shards.pending_shard import PendingShard
from streamloader.datasets.shards.tar_stream import COMPRESSION_SUFFIXES, TarSample, TarStream
from streamloader.datasets.shards.unique_keys import make_default_key
from streamloader.datasets.shards.writer_folder import FIRST_SAMPLE, WriterFolder, advise_on_failure, make_shard_name
from streamloader.errors import ClosedError, ConfigError, DatasetExists
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.registry import select_options

__all__ = ["ShardWriter"]

_MAX_UPLOADS: Final = 2  # of shards at a time
_MAX_LIMIT: Final = 1 << 62  # for "no limit"
_RESERVED: Final = ("maxsize", "maxcount", "compression", FIRST_SAMPLE, "writer")  # "writer" says who has made an index
_log: Final = logging.getLogger("streamloader")


class ShardWriter:
    """Writes samples into tar files of a folder, with an index beside each, and a manifest at the end.

    Use it as a context manager. Without an exception, the end of the block completes the data set::

        with sl.ShardWriter("s3://bucket/folder", maxcount=10_000) as writer:
            for image, label in samples[writer.samples_written :]:
                writer.write({"png": image, "cls": label})

    A shard is uploaded while it is filled, so it needs little memory, whatever its size. It becomes visible as a whole,
    after its index; the manifest comes last, so that readers never take a part for the whole (DatasetIncomplete).

    A writer that was interrupted is continued by the same call: complete shards are kept, and `samples_written` says
    how many samples they contain. Pass the samples from there on, in the same order. An entry of `settings` that
    identifies them, such as a name with a version, has other samples refused.

    One writer at a time may write into a folder. If another one starts, the earlier one stops with an error before it
    makes anything visible: it cannot be distinguished from one that was killed.

    Args:
        address: Address of the folder. It has no other shards.
        maxsize: Maximum size of a shard in bytes, with tar's headers and padding, before compression. A larger sample
            gets a shard of its own.
        maxcount: Maximum number of samples of a shard.
        compression: "gzip" or "zstd" for ``.tar.gz`` or ``.tar.zst``. Defaults to None. Images do not get smaller.
        settings: Plain JSON that is written into the manifest, and that a continued writer has to have as well.
        overwrite: Whether a data set that is there already, or a part of one, is replaced. Defaults to False.
        storage_options: Options of the store, see :func:`streamloader.stores.open_store`.

    Attributes:
        samples_written: Number of samples that are written, with those of an interrupted writer.
        is_complete: Whether the data set was complete before. Nothing can be written then.

    Raises:
        DatasetExists: If there is another data set in the folder, or one that was written with other settings.
        ConfigError: If an argument is invalid, or `settings` are no plain JSON.
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
        limits = tuple(map(_as_limit, (maxsize, maxcount)))
        is_name = compression is None or isinstance(compression, str)
        if not min(limits) or not is_name or compression not in COMPRESSION_SUFFIXES:
            raise ConfigError(
                "ShardWriter: maxsize and maxcount must be 1 or more, and compression 'gzip', 'zstd' or None"
            )
        if not isinstance(address, (str, os.PathLike)):
            raise ConfigError(f"ShardWriter: the address must be a string or a path, got {address!r:.80}")
        address = os.fspath(address)
        self.address = redact_address(address)
        self._suffix = COMPRESSION_SUFFIXES[compression]
        self._compression = compression
        self._limits = limits
        own = {"maxsize": self._limits[0], "maxcount": self._limits[1], "compression": compression}
        self._settings = {**own, **_copy_settings(settings)}
        self._handle, manifest_path = open_shared_store(
            join_address(address, MANIFEST_NAME), select_options(address, storage_options)
        )
        self._path = manifest_path.removesuffix(MANIFEST_NAME)
        self._folder = WriterFolder(self._handle.store, self._path, self.address, self._suffix, self._settings)
        self._pid = os.getpid()
        self._state = "open"
        try:
            with advise_on_failure(self.address):
                self._handle.call(self._folder.open(overwrite=overwrite))
        except BaseException:
            self._handle.close()
            raise
        self.is_complete = self._folder.is_complete
        self._shards: list[ShardInfo] = list(self._folder.shards)
        self._pending: list[PendingShard] = []
        self._current: PendingShard | None = None  # the last one of them
        self.samples_written = sum(info.samples for info in self._shards)
        self._finalizer = weakref.finalize(self, _abandon, self.address, self._pending, self._pid)
        if self.is_complete:
            self._finalizer.detach()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Write a sample: see :func:`streamloader.datasets.shards.encode.encode_sample` for its fields.

        Args:
            sample: Fields of the sample. ``"__key__"`` is its key; defaults to its number.

        Raises:
            ConfigError: If the key or a field is invalid, or another sample has the key already. Nothing is written
                then, and the writer goes on.
            DatasetExists: If another writer has started in the same folder.
            StorageFull: If the disk or the bucket is full.
            StoreError: If an upload has failed otherwise.
            ClosedError: If the writer was closed, or was inherited from the parent process.
        """
        key = check_key(sample.get("__key__", make_default_key(self.samples_written)))
        self.write_encoded(key, encode_sample(key, sample))

    def write_encoded(self, key: str, members: list[tuple[str, bytes]]) -> None:
        """Write a sample whose fields are encoded already. Errors are those of :meth:`write`."""
        self._check_open()
        if self._folder.keys.find(key, self.samples_written):
            raise ConfigError(f"the key {key!r} occurs twice in {self.address}: each sample needs its own")
        sample = TarSample(key, members)
        try:
            with advise_on_failure(self.address):
                self._append(sample)
        except BaseException:  # pieces of the shard may be missing
            self.abort()
            raise
        self._folder.keys.add(key, self.samples_written)
        self.samples_written += 1

    def _append(self, sample: TarSample) -> None:
        max_size, max_count = self._limits
        for upload in self._pending:
            upload.check()
        current = self._current
        if current is not None and (current.tar.samples >= max_count or current.tar.compute_size(sample) > max_size):
            self._finish_shard(current)
            current = None
        if current is None:
            current = self._start_shard()
        for piece in current.tar.add(sample):
            current.put(piece)

    def close(self) -> None:
        """Complete the data set: finish the last shard and write the manifest. Calling it twice is allowed.

        Raises:
            DatasetExists: If another writer has started in the same folder.
            DatasetError: If shards were deleted or replaced while the data set was written.
            StorageFull: If the disk or the bucket is full.
            StoreError: If an upload fails otherwise. The same call of the writer goes on.
            ClosedError: If the writer was inherited from the parent process.
        """
        if self._state != "open":
            return
        self._check_process()
        try:
            if not self.is_complete:
                with advise_on_failure(self.address):
                    self._complete()
        except BaseException:
            self.abort()
            raise
        self._end("closed")

    def _complete(self) -> None:
        if self._current is not None:
            self._finish_shard(self._current)
        while self._pending:
            self._wait_for_first()
        self._handle.call(self._folder.complete(self._shards))

    def abort(self) -> None:
        """Stop writing. Shards that are complete stay, and a new writer continues behind them."""
        if self._state == "open" and self._pid == os.getpid():
            try:
                for upload in self._pending:
                    upload.abort()
            finally:
                self._end("aborted")

    def _end(self, state: str) -> None:
        self._state = state
        self._finalizer.detach()
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
        self._check_process()
        if self.is_complete:
            raise DatasetExists(
                f"the data set {self.address} is complete, with {self.samples_written} samples: pass overwrite=True to "
                "write it again",
                address=self.address,
                dataset=self.address,
            )

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError(
                f"the writer of {self.address} belongs to the parent process: write there, or into another folder",
                address=self.address,
            )

    def _start_shard(self) -> PendingShard:
        name = make_shard_name(len(self._shards) + len(self._pending), self._suffix)
        upload = PendingShard(TarStream(name, self._compression), self._handle, self._folder.claim)
        upload.start(f"{self._path}{name}")
        self._pending.append(upload)
        self._current = upload
        return upload

    def _finish_shard(self, upload: PendingShard) -> None:
        first_sample = self._count_samples() - upload.tar.samples
        pieces, index = upload.tar.finish({**self._settings, FIRST_SAMPLE: first_sample})
        self._current = None
        for piece in pieces:
            upload.put(piece)
        upload.put(index)
        while len(self._pending) >= _MAX_UPLOADS:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        self._shards.append(self._pending[0].wait())
        del self._pending[0]

    def _count_samples(self) -> int:
        return sum(info.samples for info in self._shards) + sum(upload.tar.samples for upload in self._pending)


def _copy_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings as the JSON that a reader gets.

    Raises:
        ConfigError: If they are no plain JSON, or have a name that the writer needs.
    """
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings must be a mapping of plain JSON, got {type(settings).__name__}")
    reserved = sorted(name for name in _RESERVED if name in settings)
    if reserved:
        raise ConfigError(f"settings must not have {reserved[0]!r}, which the writer uses itself")
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"settings must be plain JSON: {error}") from error
    return copied


def _as_limit(value: Any) -> int:
    """Return a number of bytes or samples, or 0 if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(min(number, _MAX_LIMIT)) if number >= 1 else 0


def _abandon(address: str, pending: list[PendingShard], pid: int) -> None:
    """Abort the uploads of a writer that nobody has closed, when it is collected or the program ends."""
    if pid == os.getpid():
        for upload in pending:
            upload.abandon()
        _log.warning("%s: the writer was not closed, so the data set is incomplete: use it in a with block", address)
