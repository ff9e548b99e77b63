"""Fetch spans of shards from stores, many at a time, on the I/O thread."""

from __future__ import annotations

import concurrent.futures

from streamloader.datasets.shards.all_shards import ShardSet
from streamloader.datasets.shards.local_bytes import make_shard_error
from streamloader.errors import CorruptShard, NotFound, ObjectChanged, RangeNotSatisfiable
from streamloader.stores.base import Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["RemoteShards"]


class RemoteShards:
    """Shards in stores. Every byte of a shard comes from the same version of it.

    Args:
        shards: Data set.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._versions: dict[int, object] = {}  # those of the first responses
        self._failures: dict[int, CorruptShard] = {}

    def submit(self, shard: int, start: int, end: int) -> concurrent.futures.Future[bytes]:
        """Start to fetch the bytes [start, end) of a shard's file.

        The future raises a CorruptShard if the shard is missing or cut, or is another one than its index describes, and
        a StoreError if the store fails otherwise.
        """
        handle, path = self._shards.store(shard)
        return handle.submit(self._fetch(handle.store, path, shard, start, end))

    async def _fetch(self, store: Store, path: str, shard: int, start: int, end: int) -> bytes:
        if shard in self._failures:
            raise self._failures[shard].with_traceback(None)
        parts: list[bytes] = []
        try:
            await store.fetch(
                path,
                ByteRange(start, end),
                parts.append,
                version=self._get_version(shard),
                on_start=lambda info, _: self._check(shard, info),
            )
        except NotFound:
            raise self._fail(shard, "is missing", 0) from None
        except (ObjectChanged, RangeNotSatisfiable):
            raise self._fail(shard, "was cut or replaced while it was read", start) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _get_version(self, shard: int) -> str | None:
        version = self._versions.get(shard)
        return version if isinstance(version, str) else None

    def _check(self, shard: int, info: ObjectInfo) -> None:
        """Compare the object that a response describes with the index, and with earlier responses."""
        expected = self._shards.infos[shard].bytes
        if info.size is not None and info.size != expected:
            problem = f"has {info.size} bytes, and its index describes {expected}: it was cut or replaced"
            raise self._fail(shard, problem, min(info.size, expected))
        if self._versions.setdefault(shard, info.version) != info.version:
            raise self._fail(shard, "was replaced while it was read", 0)

    def _fail(self, shard: int, problem: str, offset: int) -> CorruptShard:
        """Remember the failure of a shard, so that its other samples cost no requests."""
        return self._failures.setdefault(shard, make_shard_error(self._shards, shard, problem, offset))
