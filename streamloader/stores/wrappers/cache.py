"""Cache the objects of a store in a directory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, TypeVar

import anyio.to_thread
from typing_extensions import override

from streamloader.arguments import expand_path
from streamloader.common.guarded_files import UnsafePath
from streamloader.errors import ConfigError, ObjectChanged, TransferInterrupted
from streamloader.stores.base import OnStart, Store
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.stores.wrappers.cache_blocks import BLOCK_BYTES, BlockFiles, BlockPart
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["CachingStore"]

T = TypeVar("T")

_MIN_CACHE_BLOCKS: Final = 10
_MAX_REMEMBERED_OBJECTS: Final = 4096  # whose sizes are kept in memory
_MAX_VERSION_RACES: Final = 5  # attempts, if an object is replaced between its head request and its read
_WRITE_PAUSE_S: Final = 30.0  # after a failed write to the directory
_log: Final = logging.getLogger("streamloader")


class CachingStore(StoreWrapper):
    """Caches objects in a directory, which any number of processes and stores may share.

    Objects are cached in aligned blocks of 4 MiB, so random access to a large object fetches and caches only the blocks
    that it touches; consecutive blocks are fetched in one request. Bytes that several tasks of this process request at
    the same time are fetched once.

    A block belongs to one version of its object. A read without a version queries the current version from the store
    first (one ``head``); a read with a cached version sends no request. Objects whose store reports no version or no
    size are not cached. Listings and writes are forwarded unchanged.

    Every read of a block is checked, and a damaged block is fetched again. If the directory cannot be used (it is full
    or read-only), objects come from the store, and one warning is logged. A killed process leaves complete blocks and
    at most one unfinished file for each thread, which other processes delete after ten minutes.

    A cache belongs to one user, because a user who can write to it controls what is read. A directory that is a link,
    that belongs to another user than this one or root, or that others can write to (unless its sticky bit is set), is
    refused by a :class:`streamloader.errors.ConfigError` on first use. Users who share a disk need a directory each.

    Args:
        inner: Store to wrap. Its address and its identity are part of the blocks' names.
        cache_dir: Directory of the cache. It is created on first use, accessible to this user only.
        cache_bytes: Maximum size of the cache in bytes. Defaults to None: as much as the disk holds, except for 1 GiB
            or 1 % of it, whichever is less. Beyond the limit, the least recently used blocks are deleted. Each process
            that writes at the same time may exceed the limit by at most 2 %.

    Raises:
        ConfigError: If `cache_bytes` is less than ten blocks.
    """

    def __init__(self, inner: Store, cache_dir: str | os.PathLike[str], cache_bytes: int | None = None) -> None:
        super().__init__(inner)
        min_bytes = _MIN_CACHE_BLOCKS * BLOCK_BYTES
        if cache_bytes is not None and cache_bytes < min_bytes:
            raise ConfigError(f"cache_bytes={cache_bytes} is too small: it must be at least {min_bytes} (ten blocks)")
        self._blocks = BlockFiles(os.path.abspath(expand_path(cache_dir, create=True)), cache_bytes)
        self._single_flight: SingleFlight[bytes] = SingleFlight()
        self._infos: OrderedDict[tuple[str, str], ObjectInfo] = OrderedDict()
        self._writes_paused_until = 0.0  # time.monotonic()
        self._warned = False

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        return await Store.read(self, path, span, version=version, size=size)

    @override
    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        self._prepare_call(path)
        attempts_left, started = 1 if version is not None else _MAX_VERSION_RACES, False
        while True:
            attempts_left -= 1
            try:
                pieces = self._stream_current_version(path, span or ByteRange(), version, size, on_start)
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        started = True
                        yield piece
                return
            except ObjectChanged:  # replaced after the head request; the caller requested no particular version
                if started or not attempts_left:
                    raise

    async def forget(self, path: str, version: str) -> None:
        """Delete the cached blocks of one version of an object, whose content has proved wrong."""
        info = self._infos.pop((path, version), None)
        if info is not None and info.size is not None:
            # A larger object was never read, whatever size its server declares.
            for number in range(-(-min(info.size, self.limits.stream_bytes) // BLOCK_BYTES)):
                name = self._block_name(path, version, number)
                with contextlib.suppress(OSError):  # then a later read finds it wrong again
                    await self._run_in_thread(self._blocks.delete, name)

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _stream_current_version(
        self, path: str, span: ByteRange, version: str | None, size: int | None, on_start: OnStart | None
    ) -> AsyncGenerator[bytes, None]:
        info = await self._get_info(path, span, version)
        if info.version is None or info.size is None or span.start == span.end:
            pieces = self.inner.stream(path, span, version=version, size=size, on_start=on_start)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece
            return
        self._check_version(info, version, max(0, span.start))
        self._check_size(info, size, max(0, span.start))
        start, end = span.within(info.size, self.address(path))
        fetcher = _BlockRunFetcher(self.inner, info, end)
        try:
            for number in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                base = number * BLOCK_BYTES
                data = await self._read_block(fetcher, number, max(0, start - base), min(BLOCK_BYTES, end - base))
                if on_start is not None:
                    on_start(info, start)
                    on_start = None
                yield data
        finally:
            await fetcher.aclose()
        if on_start is not None:
            on_start(info, start)  # the span is empty

    async def _get_info(self, path: str, span: ByteRange, version: str | None) -> ObjectInfo:
        """Return the metadata of an object: from memory or a cached block of this version, or from the store."""
        if version is not None:
            cached = self._infos.get((path, version))
            if cached is not None:
                return cached
            if span.start >= 0:
                part = await self._load_block(self._block_name(path, version, span.start // BLOCK_BYTES), 0, 0)
                if part is not None:
                    return self._remember_info(ObjectInfo(path, part.object_size, version))
        return self._remember_info(await self.inner.head(path))

    def _remember_info(self, info: ObjectInfo) -> ObjectInfo:
        if info.version is not None and info.size is not None:
            self._infos[info.path, info.version] = info
            if len(self._infos) > _MAX_REMEMBERED_OBJECTS:
                self._infos.popitem(last=False)
        return info

    async def _read_block(self, fetcher: _BlockRunFetcher, number: int, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of one block: from the directory, or from the store."""
        info = fetcher.info
        assert info.version is not None
        name = self._block_name(info.path, info.version, number)
        part = await self._load_block(name, start, end)
        if part is not None and part.object_size == info.size and len(part.data) == end - start:
            return part.data
        if time.monotonic() < self._writes_paused_until:  # the block could not be stored, so fetch only these bytes
            span = ByteRange(number * BLOCK_BYTES + start, number * BLOCK_BYTES + end)
            return await self.inner.read(info.path, span, version=info.version, size=info.size)
        if self._single_flight.is_running(name):
            await fetcher.aclose()  # do not hold one request while waiting for another

        async def fetch_block() -> bytes:
            cached = await self._load_block(name, 0, None)  # another process may have stored it by now
            if cached is not None and cached.object_size == info.size:
                return cached.data
            data = await fetcher.fetch_block(number)
            await self._store_block(name, data, info.size or 0)
            return data

        return (await self._single_flight.do(name, fetch_block))[start:end]

    async def _load_block(self, name: str, start: int, end: int | None) -> BlockPart | None:
        try:
            return await self._run_in_thread(self._blocks.read, name, start, end)
        except OSError as error:
            self._warn_once(error)
            return None

    async def _store_block(self, name: str, data: bytes, object_size: int) -> None:
        try:
            await self._run_in_thread(self._blocks.write, name, data, object_size)
        except OSError as error:
            self._writes_paused_until = time.monotonic() + _WRITE_PAUSE_S
            self._warn_once(error)

    async def _run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a blocking function of the cache in a thread.

        Raises:
            ConfigError: If another user can change what is in the cache.
        """
        try:
            return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
        except UnsafePath as error:
            folder = self._blocks.folder
            raise ConfigError(f"the cache cache_dir={folder!r} is not used: {error.message}", address=folder) from error

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "the cache %s cannot be used: %s. Objects that are not cached are fetched from %s each time",
                self._blocks.folder,
                error.strerror or str(error),
                self.url,
            )

    def _block_name(self, path: str, version: str, number: int) -> str:
        key = "\0".join((self.identity, self.inner.address(path), path, version)).encode("utf-8", "surrogatepass")
        return f"{hashlib.blake2b(key, digest_size=20, usedforsecurity=False).hexdigest()}-{number:x}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out remembered metadata."""
        return {**super().__getstate__(), "_infos": OrderedDict()}


class _BlockRunFetcher:
    """Fetches consecutive blocks of one object in one transfer."""

    def __init__(self, inner: Store, info: ObjectInfo, end: int) -> None:
        self.info = info
        self._inner = inner
        self._end = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, info.size or 0)  # at the end of a block
        self._pieces: AsyncGenerator[bytes, None] | None = None
        self._next_number = -1
        self._surplus = b""  # bytes of the next block that came with the previous one

    async def fetch_block(self, number: int) -> bytes:
        """Return a complete block."""
        if self._pieces is None or self._next_number != number:
            await self.aclose()
            is_whole = number == 0 and self._end == self.info.size
            span = None if is_whole else ByteRange(number * BLOCK_BYTES, self._end)
            self._pieces = self._inner.stream(self.info.path, span, version=self.info.version, size=self.info.size)
            self._next_number = number
        length = min(BLOCK_BYTES, self._end - number * BLOCK_BYTES)
        data = bytearray(self._surplus)
        while len(data) < length:
            piece = await anext(self._pieces, None)
            if piece is None:
                address = self._inner.address(self.info.path)
                offset = number * BLOCK_BYTES + len(data)
                raise TransferInterrupted(
                    f"{address}: the transfer ended at byte {offset}", address=address, offset=offset
                )
            data += piece
        self._surplus = bytes(data[length:])
        self._next_number = number + 1
        return bytes(data[:length])

    async def aclose(self) -> None:
        """End the transfer."""
        pieces, self._pieces, self._surplus = self._pieces, None, b""
        if pieces is not None:
            await pieces.aclose()
