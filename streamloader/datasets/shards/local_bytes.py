"""Read shards on this machine."""

from __future__ import annotations

import errno
import mmap
import os
import time
from typing import Final

from streamloader.common.file_systems import is_local_folder
from streamloader.common.lru import LruCache
from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.datasets.shards.open_files import MAX_OPEN_FILES, get_open_files
from streamloader.errors import AccessDenied, CorruptShard, NotFound, StoreError, StreamloaderError
from streamloader.stores.local import open_regular_file

__all__ = ["LocalShards", "make_shard_error"]

_CHECK_INTERVAL_S: Final = 0.001


class LocalShards:
    """Files of shards, opened when they are first needed. At most 128 of a process are open.

    Files on a disk of this machine are mapped: no bytes are held besides those in the page cache. On the file systems
    of servers, and on unknown ones, a mapping could end the process (SIGBUS), and spans are read instead.

    They stay open until the data set is closed or collected, or until others of the process need their place.

    Args:
        shards: Data set.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._files: LruCache[tuple[int, int], _OpenFile] = get_open_files()
        self._identities: dict[int, tuple[int, int, int]] = {}
        self._local_folders: dict[str, bool] = {}
        self._checked_s = -_CHECK_INTERVAL_S
        self._are_intact = True

    @property
    def may_be_kept(self) -> bool:
        """Whether mappings may be kept for longer than one access, because all files together are no more than 128."""
        return len(self._shards) <= MAX_OPEN_FILES

    def map(self, shard: int, path: str) -> mmap.mmap | None:
        """Return a shard's file, mapped. None if it has to be read by :meth:`read`.

        Raises:
            CorruptShard: If the file is missing or cut, or is another one than its index describes.
            StoreError: If it cannot be opened.
        """
        file = self._files.get((self._shards.number, shard)) or self._open(shard, path)
        mapped = file.mapped
        if mapped is not None and mapped.size() != len(mapped):
            self._check_size(shard, file)
        return mapped

    def are_intact(self) -> bool:
        """Return whether no mapped file was cut until now, or until one millisecond ago.

        If this is False, :meth:`map` raises the error of the file.
        """
        now = time.monotonic()
        if now - self._checked_s > _CHECK_INTERVAL_S:
            self._checked_s = now
            self._are_intact = all(
                file.mapped is None or file.mapped.size() == len(file.mapped) for file in self._files.list_values()
            )
        return self._are_intact

    def read(self, shard: int, path: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of a shard's file.

        Raises:
            CorruptShard: If the file is missing or cut, or is another one than its index describes.
            StoreError: If it cannot be read otherwise.
        """
        file = self._files.get((self._shards.number, shard)) or self._open(shard, path)
        if file.mapped is not None:
            self._check_size(shard, file)
            return file.mapped[start:end]
        try:
            data = os.pread(file.fd, end - start, start)
            while len(data) < end - start:  # a call reads at most 2 GiB
                more = os.pread(file.fd, end - start - len(data), start + len(data))
                if not more:
                    raise make_shard_error(self._shards, shard, "was cut while it was read", start + len(data))
                data += more
        except OSError as error:
            if isinstance(error, StreamloaderError):
                raise
            raise self._translate(shard, error) from error
        return data

    def _open(self, shard: int, path: str) -> _OpenFile:
        try:
            file = _OpenFile(open_regular_file(path))
        except (FileNotFoundError, NotFound) as error:
            raise make_shard_error(self._shards, shard, "is missing", 0) from error
        except StreamloaderError:
            raise
        except OSError as error:
            raise self._translate(shard, error) from error
        status = os.fstat(file.fd)
        identity = status.st_dev, status.st_ino, status.st_mtime_ns
        if self._identities.setdefault(shard, identity) != identity:
            raise make_shard_error(self._shards, shard, "was replaced while it was read", 0)
        self._check_size(shard, file)
        if self._may_be_mapped(path):
            try:
                file.map()
            except OSError as error:
                raise self._translate(shard, error) from error
        self._files.put((self._shards.number, shard), file, 1)
        return file

    def _may_be_mapped(self, path: str) -> bool:
        folder = os.path.dirname(os.path.realpath(path))
        if folder not in self._local_folders:
            self._local_folders[folder] = is_local_folder(folder)
        return self._local_folders[folder]

    def _check_size(self, shard: int, file: _OpenFile) -> None:
        size, expected = file.size, self._shards.infos[shard].bytes
        if size != expected:
            problem = f"has {size} bytes, and its index describes {expected}: it was cut or replaced"
            raise make_shard_error(self._shards, shard, problem, min(size, expected))

    def _translate(self, shard: int, error: OSError) -> StoreError:
        """Return the error for a file that cannot be read for reasons that do not lie in it."""
        address = self._shards.shard_address(shard)
        kind = AccessDenied if isinstance(error, PermissionError) else StoreError
        return kind(f"{address} cannot be read: {error.strerror}", address=address)


def make_shard_error(shards: ShardSet, shard: int, problem: str, offset: int) -> CorruptShard:
    """Build the error for a shard that is missing, cut or another one than its index describes."""
    return CorruptShard(
        f"{shards.shard_address(shard)}, byte {offset}: the shard {problem} (data set {shards.address}). Write it "
        "again, or leave its samples out with on_error='skip'",
        address=shards.shard_address(shard),
        offset=offset,
        dataset=shards.address,
        shard=shards.infos[shard].name,
    )


class _OpenFile:
    """An open file, closed when nothing refers to it any more.

    Attributes:
        fd: Descriptor. -1 if the file is mapped: the mapping has its own.
        mapped: Whole file as a mapping. None if it is not mapped.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.mapped: mmap.mmap | None = None

    @property
    def size(self) -> int:
        """Present size of the file in bytes."""
        return os.fstat(self.fd).st_size if self.mapped is None else self.mapped.size()

    def map(self) -> None:
        """Map the file, if its file system can."""
        try:
            self.mapped = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
        except ValueError:  # the file is empty
            return
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EACCES, errno.EINVAL):  # not on this file system
                return
            raise
        self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self._close()
