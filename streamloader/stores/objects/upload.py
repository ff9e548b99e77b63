"""Upload objects in parts, and abort uploads that cannot be completed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, NoReturn, TypeVar

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout
from streamloader.stores.base import Data

__all__ = ["MAX_PARTS_IN_FLIGHT", "PART_BYTES", "find_part_bytes", "run_with_deadline", "split_data", "upload_in_parts"]

T = TypeVar("T")

PART_BYTES: Final = 8 << 20  # objects up to this size are sent in one request
_PART_BYTES_FOR_UNKNOWN_SIZE: Final = 16 << 20  # because servers accept at most 10,000 parts
_MAX_PARTS: Final = 9_000
MAX_PARTS_IN_FLIGHT: Final = 4
_MIN_PIECE_BYTES: Final = 1 << 20  # smaller pieces are joined


class _UploadAborted(Exception):
    """Raised inside obstore to make it abort an upload."""


class _UploadSource:
    """Queue of pieces that obstore reads an upload from.

    obstore aborts an upload on the server if its source raises, but not if its future is cancelled. :meth:`abort`
    therefore makes the source raise.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[memoryview | bytes | None] = asyncio.Queue(1)
        self._aborted = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[memoryview | bytes]:
        return self

    async def __anext__(self) -> memoryview | bytes:
        getting = asyncio.ensure_future(self._queue.get())
        aborting = asyncio.ensure_future(self._aborted.wait())
        try:
            await asyncio.wait({getting, aborting}, return_when=asyncio.FIRST_COMPLETED)
            if self._aborted.is_set():
                raise _UploadAborted
            piece = getting.result()
        finally:
            getting.cancel()
            aborting.cancel()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def put(self, piece: memoryview | bytes | None) -> None:
        """Wait for room and add a piece, or None for the end of the object."""
        await self._queue.put(piece)

    def abort(self) -> None:
        """Make the upload fail."""
        self._aborted.set()


def find_part_bytes(size: int | None) -> int:
    """Return the size of the parts of an object of this size, or of unknown size."""
    return _PART_BYTES_FOR_UNKNOWN_SIZE if size is None else max(PART_BYTES, -(-size // _MAX_PARTS))


async def run_with_deadline(work: Awaitable[T], seconds: float, address: str, stage: str) -> T:
    """Await `work` for at most `seconds`.

    Args:
        work: Awaitable to run.
        seconds: Time limit.
        address: Address of the object for the error message.
        stage: Name of the current step for the error message.

    Raises:
        StoreTimeout: If the time limit passes.
    """
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await work
    except TimeoutError as error:
        if deadline.expired():
            _raise_timeout(seconds, address, stage, error)
        raise


async def split_data(data: Data) -> AsyncIterator[memoryview | bytes]:
    """Yield data in pieces of a size that suits uploads."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data).cast("B")
        for offset in range(0, len(view), PART_BYTES):
            yield view[offset : offset + PART_BYTES]
        return
    joined = bytearray()
    async for piece in data:
        joined += piece
        if len(joined) >= _MIN_PIECE_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


async def upload_in_parts(
    obstore: Any,
    client: Any,
    path: str,
    first: bytes | memoryview,
    rest: AsyncIterator[memoryview | bytes],
    *,
    size: int | None,
    timeouts: Timeouts,
    address: str,
) -> None:
    """Upload an object in parts. It appears completely or not at all.

    Args:
        obstore: Package obstore.
        client: Store object of obstore.
        path: Key of the object.
        first: First bytes of the object.
        rest: Remaining bytes, in pieces.
        size: Size of the object in bytes, or None if it is not known.
        timeouts: Time limits. Each step may take `connect` and `response`, and `window` for each part in flight.
        address: Address of the object for messages.
    """
    part_bytes = find_part_bytes(size)
    seconds = timeouts.connect + timeouts.response + timeouts.window * MAX_PARTS_IN_FLIGHT
    source = _UploadSource()
    uploading = asyncio.ensure_future(
        obstore.put_async(
            client, path, source, use_multipart=True, chunk_size=part_bytes, max_concurrency=MAX_PARTS_IN_FLIGHT
        )
    )
    try:
        await _put_piece(source, first, uploading, seconds, address)
        async for piece in rest:
            await _put_piece(source, piece, uploading, seconds, address)
        await _put_piece(source, None, uploading, seconds, address)
        await run_with_deadline(asyncio.shield(uploading), seconds, address, "finishing the upload")
    except BaseException:
        source.abort()
        await _wait_for_abort(uploading, timeouts)
        raise


async def _put_piece(
    source: _UploadSource,
    piece: memoryview | bytes | None,
    uploading: asyncio.Future[Any],
    seconds: float,
    address: str,
) -> None:
    putting = asyncio.ensure_future(source.put(piece))
    try:
        done, _ = await asyncio.wait({putting, uploading}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if uploading in done:
            uploading.result()  # raises, because an upload cannot succeed before it gets the end of the object
        elif not done:
            _raise_timeout(seconds, address, "uploading")
    finally:
        putting.cancel()


async def _wait_for_abort(uploading: asyncio.Future[Any], timeouts: Timeouts) -> None:
    """Wait until the server has aborted the upload. Give up if it does not answer."""
    try:
        await asyncio.wait({uploading}, timeout=timeouts.close + timeouts.response)
    finally:
        uploading.cancel()
        if uploading.done() and not uploading.cancelled():
            uploading.exception()  # mark it as retrieved; the caller raises the original error
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({uploading}, timeout=timeouts.close)


def _raise_timeout(seconds: float, address: str, stage: str, cause: BaseException | None = None) -> NoReturn:
    raise StoreTimeout(
        f"waited {seconds:.1f} s for {address} ({stage}): no progress", address=address, waited=seconds, stage=stage
    ) from cause
