"""Upload one shard while it is being filled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from streamloader.datasets.shards.claim import WriterClaim
from streamloader.datasets.shards.index import INDEX_SUFFIX, ShardIndex, digest_index
from streamloader.datasets.shards.manifest import ShardInfo
from streamloader.datasets.shards.tar_stream import TarStream
from streamloader.errors import ClosedError
from streamloader.stores.io_thread import SharedStore

__all__ = ["PendingShard"]

_MAX_QUEUED_PIECES: Final = 4  # of about 1 MiB


class PendingShard:
    """The upload of one shard. It becomes visible as a whole, after its index.

    Args:
        tar: Content of the shard.
        handle: Store of the shard.
        claim: Claim of the writer, which is checked before anything becomes visible.

    Attributes:
        tar: Content of the shard.
        future: Upload on the I/O thread.
    """

    future: concurrent.futures.Future[ShardInfo]

    def __init__(self, tar: TarStream, handle: SharedStore, claim: WriterClaim) -> None:
        self.tar = tar
        self._handle = handle
        self._claim = claim
        self._pieces: asyncio.Queue[bytes | ShardIndex] = asyncio.Queue(_MAX_QUEUED_PIECES)
        self._task: asyncio.Task[Any] | None = None
        self._is_aborted = False

    def start(self, path: str) -> None:
        """Start to upload what is passed on.

        Args:
            path: Path of the shard.
        """
        self.future = self._handle.submit(self._run(path))

    def put(self, item: bytes | ShardIndex) -> None:
        """Wait for room, and pass on a piece, or the index after the last one. Raise what made the upload fail."""
        putting = self._handle.submit(self._pieces.put(item))
        pending: list[concurrent.futures.Future[Any]] = [putting, self.future]
        try:
            concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
        self.check()

    def check(self) -> None:
        """Raise what made the upload fail, if it has failed."""
        if self.future.done():
            self.wait()

    def wait(self) -> ShardInfo:
        """Wait until the shard is visible. Raise what made the upload fail."""
        try:
            return self.future.result()
        except concurrent.futures.CancelledError as error:
            store = self._handle.store
            raise ClosedError(f"the shared {store!r} was closed while it was written", address=store.url) from error

    def abort(self) -> None:
        """Abort the upload, and wait for that."""
        if not self.future.done():
            with contextlib.suppress(ClosedError):  # then its upload was cancelled
                self._handle.call(self._cancel())

    def abandon(self) -> None:
        """Abort the upload without waiting, from any thread."""
        self.future.cancel()

    async def _run(self, path: str) -> ShardInfo:
        """Upload the shard, with its index before it becomes visible."""
        self._task = asyncio.current_task()
        if self._is_aborted:
            raise _ShardAborted
        described: list[ShardInfo] = []

        async def read_pieces() -> AsyncIterator[bytes]:
            while not isinstance(piece := await self._pieces.get(), ShardIndex):
                yield piece
            data = piece.pack()
            await self._claim.check()
            await self._claim.write(f"{path}{INDEX_SUFFIX}", data)
            described.append(ShardInfo(piece.shard, len(piece), piece.size, piece.data_size, digest_index(data)))

        await self._claim.write(path, read_pieces())
        return described[0]

    async def _cancel(self) -> None:
        self._is_aborted = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


class _ShardAborted(Exception):
    """Raised inside a store to have it discard what it has received."""
