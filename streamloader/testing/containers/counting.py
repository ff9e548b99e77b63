"""Provide a store that counts what a container requests, and one that delivers only a part of it for now."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator

from typing_extensions import override

from streamloader.stores.base import OnStart, Store
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["CountingStore", "StallingStore"]


class CountingStore(StoreWrapper):
    """Counts the requests of another store, and lets other tasks run before each piece, as networks do.

    Attributes:
        requests: Number of requests for bytes.
        bytes_received: Number of bytes that were delivered.
        open_transfers: Number of transfers that were started and have not ended.
    """

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.requests = 0
        self.bytes_received = 0
        self.open_transfers = 0

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        with self._count_transfer():
            await asyncio.sleep(0)
            data = await self.inner.read(path, span, version=version, size=size)
            await asyncio.sleep(0)
        self.bytes_received += len(data)
        return data

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
        with self._count_transfer():
            async with contextlib.aclosing(self._stream_inner(path, span, version, size, on_start)) as pieces:
                async for piece in pieces:
                    self.bytes_received += len(piece)
                    await asyncio.sleep(0)
                    yield piece

    def reset(self) -> None:
        """Count from zero again."""
        self.requests = self.bytes_received = 0

    def _stream_inner(
        self, path: str, span: ByteRange | None, version: str | None, size: int | None, on_start: OnStart | None
    ) -> AsyncGenerator[bytes, None]:
        return self.inner.stream(path, span, version=version, size=size, on_start=on_start)

    @contextlib.contextmanager
    def _count_transfer(self) -> Iterator[None]:
        self.requests += 1
        self.open_transfers += 1
        try:
            yield
        finally:
            self.open_transfers -= 1


class StallingStore(CountingStore):
    """Delivers the bytes of an object up to an offset, and the rest only when :attr:`released` is set.

    Transfers that start at the offset or after it are not delayed: the directory of a zip file may be read first.

    Args:
        inner: Store to wrap.
        offset: Offset of the first byte that is withheld.

    Attributes:
        released: Event that ends the stall.
    """

    def __init__(self, inner: Store, offset: int) -> None:
        super().__init__(inner)
        self._offset = offset
        self.released = asyncio.Event()

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        start, end = (span or ByteRange()).within((await self.inner.head(path)).size or 0)
        if start < self._offset < end:
            await self.released.wait()
        return await super().read(path, span, version=version, size=size)

    @override
    async def _stream_inner(
        self, path: str, span: ByteRange | None, version: str | None, size: int | None, on_start: OnStart | None
    ) -> AsyncGenerator[bytes, None]:
        info: ObjectInfo = await self.inner.head(path)
        start, end = (span or ByteRange()).within(info.size or 0)
        borders = [start, self._offset, end] if start < self._offset < end else [start, end]
        for part_start, part_end in itertools.pairwise(borders):
            if part_start == self._offset:
                await self.released.wait()
            part = ByteRange(part_start, part_end)
            async with contextlib.aclosing(self.inner.stream(path, part, version=version, size=size)) as pieces:
                async for piece in pieces:
                    yield piece
