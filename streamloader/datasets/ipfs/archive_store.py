"""Read an archive on IPFS in pieces that are kept for a while, because neighbouring members share blocks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Final

from typing_extensions import override

from streamloader.common.gather import gather_bounded
from streamloader.common.lru import LruCache
from streamloader.containers.base import Container, ContainerSource
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer
from streamloader.datasets.ipfs.objects import RemoteFileType
from streamloader.errors import NotSupported
from streamloader.stores.base import Body, OnStart, Store
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["ArchivePieces", "open_archive"]

# The first bytes of RFC 1952, RFC 8878 (frames, and skippable frames), bzip2 and xz.
_TAR_ENDINGS: Final = (
    (b"\x1f\x8b", ".tar.gz"),
    (b"\x28\xb5\x2f\xfd", ".tar.zst"),
    *((bytes([first]) + b"\x2a\x4d\x18", ".tar.zst") for first in range(0x50, 0x60)),
)
_OTHER_COMPRESSION: Final = ((b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))
_MAGIC_BYTES: Final = 6
_MAX_CACHED_PIECES: Final = 32  # larger reads are not kept
_MAX_CONCURRENT: Final = 16


class ArchivePieces(Store):
    """One archive as a store of its own, under a name that ends as its format demands. Read-only.

    The address of an object on IPFS is often a CID alone, from which nothing about its format can be seen.

    Args:
        inner: Store that has the archive. It is not closed with this one.
        info: Metadata of the archive in `inner`. Its version is a CID.
        cache: Pieces of all archives of a data set, by path and number.
        piece_bytes: Size of a piece in bytes.
        requests: Semaphore that limits the requests of pieces.
    """

    supports_writes: ClassVar[bool] = False
    supports_listing: ClassVar[bool] = False

    def __init__(
        self,
        inner: Store,
        info: ObjectInfo,
        cache: LruCache[tuple[str, int], bytes],
        piece_bytes: int,
        requests: asyncio.Semaphore,
    ) -> None:
        super().__init__(inner.address(info.path), timeouts=inner.timeouts, limits=inner.limits)
        self._inner = inner
        self._info = info
        self._size = info.size or 0
        self._cache = cache
        self._piece_bytes = piece_bytes
        self._requests = requests
        self._flights: SingleFlight[bytes] = SingleFlight()

    @override
    def address(self, path: str) -> str:
        return self._inner.address(self._info.path)

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        start, end = (span or ByteRange()).within(self._size, self.url)
        if start == end:
            return b""
        first, last = start // self._piece_bytes, (end - 1) // self._piece_bytes
        if last - first >= _MAX_CACHED_PIECES:
            return await self._inner.read(
                self._info.path, ByteRange(start, end), version=self._info.version, size=self._info.size
            )
        if first == last:
            pieces = [await self._get_piece(first)]
        else:
            coroutines = (self._get_piece(number) for number in range(first, last + 1))
            pieces = await gather_bounded(coroutines, limit=_MAX_CONCURRENT)
        offset = first * self._piece_bytes
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return data[start - offset : end - offset]

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
        start, end = (span or ByteRange()).within(self._size, self.url)
        if end - start <= self._piece_bytes:
            yield await self.read(path, ByteRange(start, end))
            return
        pieces = self._inner.stream(
            self._info.path, ByteRange(start, end), version=self._info.version, size=self._info.size
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _get_piece(self, number: int) -> bytes:
        key = self._info.path, number
        data = self._cache.get(key)
        if data is None:
            data = await self._flights.do(number, lambda: self._fetch_piece(number))
            self._cache.put(key, data, len(data))
        return data

    async def _fetch_piece(self, number: int) -> bytes:
        start = number * self._piece_bytes
        span = ByteRange(start, min(self._size, start + self._piece_bytes))
        async with self._requests:
            return await self._inner.read(self._info.path, span, version=self._info.version, size=self._info.size)

    @override
    async def _head(self, path: str) -> ObjectInfo:
        return self._info

    @override
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        raise NotImplementedError  # the public methods do not call it


async def open_archive(pieces: ArchivePieces, info: ObjectInfo, kind: RemoteFileType) -> tuple[Container, bool]:
    """Open a tar or zip file, whatever its name is. The first bytes of a tar file show its compression.

    Args:
        pieces: Archive, read in pieces.
        info: Metadata of the archive, with its size.
        kind: TAR or ZIP.

    Returns:
        (container, is_sequential): whether its members can only be read well one after the other.

    Raises:
        NotSupported: If the compression of a tar file is not supported.
        StoreError: If the first bytes cannot be read.
    """
    if kind is RemoteFileType.ZIP:
        return ZipContainer(ContainerSource(pieces, _rename(info, ".zip"))), False
    head = await pieces.read("head", ByteRange(0, min(info.size or 0, _MAGIC_BYTES)))
    if (method := _match_magic(head, _OTHER_COMPRESSION)) is not None:
        address = pieces.url
        raise NotSupported(
            f"{address} is compressed with {method}: compress the tar file with gzip or Zstandard", address=address
        )
    ending = _match_magic(head, _TAR_ENDINGS)
    return TarContainer(ContainerSource(pieces, _rename(info, ending or ".tar"))), ending is not None


def _match_magic(head: bytes, table: Iterable[tuple[bytes, str]]) -> str | None:
    return next((name for magic, name in table if head.startswith(magic)), None)


def _rename(info: ObjectInfo, ending: str) -> ObjectInfo:
    return ObjectInfo(f"archive{ending}", info.size, info.version, info.modified)
