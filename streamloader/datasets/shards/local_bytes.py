"""Read spans of shards on this machine."""

from __future__ import annotations

import os
from typing import Final

from streamloader.common.lru import LruCache
from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.errors import AccessDenied, CorruptShard, NotFound, StoreError, StreamloaderError
from streamloader.stores.local import open_regular_file

__all__ = ["LocalShards", "make_shard_error"]

_MAX_OPEN_FILES: Final = 128


class LocalShards:
    """Files of shards, opened when they are first needed. At most 128 are open.

    Spans are read with ``pread``, which costs about a microsecond more for each span than a memory map. But a file that
    becomes shorter while it is mapped kills the process (SIGBUS), and here is one typed error.

    Args:
        shards: Data set.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._files: LruCache[int, _OpenFile] = LruCache(_MAX_OPEN_FILES, _MAX_OPEN_FILES)
        self._identities: dict[int, tuple[int, int, int]] = {}

    def read(self, shard: int, path: str, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of a shard's file.

        Raises:
            CorruptShard: If the file is missing or cut, or is another one than its index describes.
            StoreError: If it cannot be read otherwise.
        """
        file = self._files.get(shard)
        if file is None:
            file = self._open(shard, path)
            self._files.put(shard, file, 1)
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

    def close(self) -> None:
        """Close all files."""
        self._files = LruCache(_MAX_OPEN_FILES, _MAX_OPEN_FILES)

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
        size, expected = status.st_size, self._shards.infos[shard].bytes
        if size != expected:
            problem = f"has {size} bytes, and its index describes {expected}: it was cut or replaced"
            raise make_shard_error(self._shards, shard, problem, min(size, expected))
        return file

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
    """A file descriptor, closed when nothing refers to it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)
