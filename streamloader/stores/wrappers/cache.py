"""What was read from a store is kept in a directory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, Final

import anyio.to_thread

from streamloader.errors import ConfigError, Interrupted, ObjectChanged
from streamloader.stores.base import OnBegin, Store
from streamloader.stores.wrappers.base import Wrapper
from streamloader.stores.wrappers.cache_blocks import BLOCK, Blocks, Part
from streamloader.stores.wrappers.single_flight import Flights
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Cache"]

_KNOWN: Final = 4096  # objects whose sizes are remembered
_RACES: Final = 5  # times that an object may be replaced between looking at it and reading it
_REST: Final = 30.0  # seconds in which nothing is written after the directory failed
_log: Final = logging.getLogger("streamloader")


class Cache(Wrapper):
    """Keeps what was read in a directory, which any number of processes, and stores, may share.

    Objects are kept in aligned blocks of 4 MiB, so random access to a large one fetches and keeps only the blocks that
    it touches; blocks that follow each other are fetched in one request. What several tasks of this process want at
    the same time is fetched once.

    A block belongs to one version of its object. Reading without a version asks the store for the present one first
    (one ``head``); reading with a version that is here asks nobody. Objects of which the store tells no version, or no
    size, are not kept. Listings, and what is written, pass as they are.

    Every read of a block is checked: one that was damaged is fetched again. If the directory cannot be used (it is
    full, or read-only) objects come from the store, and a warning says so once. A process that is killed leaves whole
    blocks, and at most one unfinished file a thread, which others delete after ten minutes.

    Args:
        inner: the store. Its address and its realm are part of the blocks' names.
        cache_dir: the directory; it is made when it is needed, for this user alone.
        cache_bytes: how much may be kept, or None for as much as fits on the disk. Beyond that, what was not used for
            the longest time goes. It is passed by at most 2 % for each process that writes at the same time.

    Raises:
        ConfigError: `cache_bytes` is too little for ten blocks.
    """

    def __init__(self, inner: Store, cache_dir: str | os.PathLike[str], cache_bytes: int | None = None) -> None:
        super().__init__(inner)
        if cache_bytes is not None and cache_bytes < 10 * BLOCK:
            raise ConfigError(f"cache_bytes={cache_bytes} is too little: it takes {10 * BLOCK}, ten blocks, at least")
        self._blocks = Blocks(os.path.abspath(os.path.expanduser(os.fspath(cache_dir))), cache_bytes)
        self._flights: Flights[bytes] = Flights()
        self._sizes: OrderedDict[tuple[str, str], ObjectInfo] = OrderedDict()
        self._resting = 0.0  # until then nothing is written
        self._warned = False

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`."""
        return await Store.read(self, path, span, version=version)

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`Store.stream`."""
        self._enter(path)
        tries, begun = 1 if version is not None else _RACES, False
        while True:
            tries -= 1
            try:
                async with contextlib.aclosing(self._present(path, span or ByteRange(), version, on_begin)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except ObjectChanged:  # between looking at it and reading it: nobody asked for the one before
                if begun or not tries:
                    raise

    async def forget(self, path: str, version: str) -> None:
        """Delete what is kept of one version of an object: it was wrong from the beginning."""
        info = self._sizes.pop((path, version), None)
        if info is not None and info.size is not None:
            for number in range(-(-info.size // BLOCK)):
                name = self._name(path, version, number)
                with contextlib.suppress(OSError):  # then it is read, and found wrong, again
                    await anyio.to_thread.run_sync(self._blocks.delete, name, abandon_on_cancel=True)

    # --- help --------------------------------------------------------------------------------------------------------

    async def _present(
        self, path: str, span: ByteRange, version: str | None, on_begin: OnBegin | None
    ) -> AsyncGenerator[bytes, None]:
        info = await self._look(path, span, version)
        if info.version is None or info.size is None or span.start == span.end:
            chunks = self.inner.stream(path, span, version=version, on_begin=on_begin)
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
            return
        self._check_version(info, version, max(0, span.start))
        start, end = span.within(info.size, self.address(path))
        fetch = _Fetch(self.inner, info, end)
        try:
            for number in range(start // BLOCK, -(-end // BLOCK)):
                base = number * BLOCK
                data = await self._cut(fetch, number, max(0, start - base), min(BLOCK, end - base))
                if on_begin is not None:
                    on_begin(info, start)
                    on_begin = None
                yield data
        finally:
            await fetch.aclose()
        if on_begin is not None:
            on_begin(info, start)  # of nothing

    async def _look(self, path: str, span: ByteRange, version: str | None) -> ObjectInfo:
        """Return what the object is: from what is known of this version, or from the store."""
        if version is not None:
            known = self._sizes.get((path, version))
            if known is not None:
                return known
            if span.start >= 0:
                part = await self._load(self._name(path, version, span.start // BLOCK), 0, 0)
                if part is not None:
                    return self._remember(ObjectInfo(path, part.size, version))
        return self._remember(await self.inner.head(path))

    def _remember(self, info: ObjectInfo) -> ObjectInfo:
        if info.version is not None and info.size is not None:
            self._sizes[info.path, info.version] = info
            if len(self._sizes) > _KNOWN:
                self._sizes.popitem(last=False)
        return info

    async def _cut(self, fetch: _Fetch, number: int, start: int, end: int) -> bytes:
        """Return bytes of one block: from the directory, or from the store."""
        info = fetch.info
        assert info.version is not None
        name = self._name(info.path, info.version, number)
        part = await self._load(name, start, end)
        if part is not None and part.size == info.size and len(part.data) == end - start:
            return part.data
        if time.monotonic() < self._resting:  # then no more is fetched than is wanted now
            span = ByteRange(number * BLOCK + start, number * BLOCK + end)
            return await self.inner.read(info.path, span, version=info.version)
        if self._flights.is_busy(name):
            await fetch.aclose()  # nobody waits for a turn with another one in hand

        async def get() -> bytes:
            late = await self._load(name, 0, None)  # somebody else may have been faster
            if late is not None and late.size == info.size:
                return late.data
            data = await fetch.block(number)
            await self._save(name, data, info.size or 0)
            return data

        return (await self._flights.once(name, get))[start:end]

    async def _load(self, name: str, start: int, end: int | None) -> Part | None:
        try:
            return await anyio.to_thread.run_sync(self._blocks.read, name, start, end, abandon_on_cancel=True)
        except OSError as error:
            self._warn(error)
            return None

    async def _save(self, name: str, data: bytes, size: int) -> None:
        try:
            await anyio.to_thread.run_sync(self._blocks.write, name, data, size, abandon_on_cancel=True)
        except OSError as error:
            self._resting = time.monotonic() + _REST
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "the cache %s cannot be used: %s. What it does not have comes from %s each time",
                self._blocks.folder,
                error.strerror or error,
                self.url,
            )

    def _name(self, path: str, version: str, number: int) -> str:
        key = "\0".join((self.realm, self.inner.address(path), path, version)).encode("utf-8", "surrogatepass")
        return f"{hashlib.blake2b(key, digest_size=20, usedforsecurity=False).hexdigest()}-{number:x}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is remembered."""
        return {**super().__getstate__(), "_sizes": OrderedDict()}


class _Fetch:
    """Blocks of one object out of one transfer, as long as they follow each other."""

    def __init__(self, inner: Store, info: ObjectInfo, end: int) -> None:
        self.info = info
        self._inner = inner
        self._end = min(-(-end // BLOCK) * BLOCK, info.size or 0)  # whole blocks
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._next = -1  # the block that comes next
        self._held = b""  # what came of it with the one before

    async def block(self, number: int) -> bytes:
        """Return a whole block."""
        if self._chunks is None or self._next != number:
            await self.aclose()
            whole = number == 0 and self._end == self.info.size
            span = None if whole else ByteRange(number * BLOCK, self._end)
            self._chunks = self._inner.stream(self.info.path, span, version=self.info.version)
            self._next = number
        wanted = min(BLOCK, self._end - number * BLOCK)
        data = bytearray(self._held)
        while len(data) < wanted:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                address = self._inner.address(self.info.path)
                at = number * BLOCK + len(data)
                raise Interrupted(f"{address} ended at byte {at}", address=address, offset=at)
            data += chunk
        self._held = bytes(data[wanted:])
        self._next = number + 1
        return bytes(data[:wanted])

    async def aclose(self) -> None:
        """End the transfer."""
        chunks, self._chunks, self._held = self._chunks, None, b""
        if chunks is not None:
            await chunks.aclose()
