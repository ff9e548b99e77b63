"""Uploads in parts, which are taken back when they cannot be finished."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, NoReturn, TypeVar

from streamloader.config import Timeouts
from streamloader.errors import StoreTimeout
from streamloader.stores.base import Data

__all__ = ["PART", "pieces_of", "upload", "within"]

T = TypeVar("T")

PART: Final = 8 << 20  # bytes; what is not larger is sent in one request
_BLIND_PART: Final = 16 << 20  # where the size is not known: a server takes 10,000 parts
_PARTS: Final = 9_000
_TOGETHER: Final = 4  # parts under way
_PIECE: Final = 1 << 20  # smaller ones are joined before they are handed over


class _Abandoned(Exception):
    """What ends an upload that shall not be finished."""


class _Feed:
    """The pieces of an upload, as obstore asks for them.

    An upload whose source raises is taken back by obstore; one whose future is cancelled is not. So this raises.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[memoryview | bytes | None] = asyncio.Queue(1)
        self._abandoned = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[memoryview | bytes]:
        return self

    async def __anext__(self) -> memoryview | bytes:
        getting = asyncio.ensure_future(self._queue.get())
        ending = asyncio.ensure_future(self._abandoned.wait())
        try:
            await asyncio.wait({getting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if self._abandoned.is_set():
                raise _Abandoned
            piece = getting.result()
        finally:
            getting.cancel()
            ending.cancel()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def put(self, piece: memoryview | bytes | None) -> None:
        """Hand over a piece, None for the end, once there is room."""
        await self._queue.put(piece)

    def abandon(self) -> None:
        """Let the upload fail."""
        self._abandoned.set()


async def within(work: Awaitable[T], seconds: float, address: str, stage: str) -> T:
    """Await `work` to a deadline.

    Raises:
        StoreTimeout: it passed.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            _raise_late(seconds, address, stage, error)
        raise


async def pieces_of(data: Data) -> AsyncIterator[memoryview | bytes]:
    """Yield data in pieces that are worth handing over."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PART):
            yield view[at : at + PART]
        return
    joined = bytearray()
    async for piece in data:
        joined += piece
        if len(joined) >= _PIECE:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


async def upload(
    library: Any,
    client: Any,
    path: str,
    first: bytes | memoryview,
    rest: AsyncIterator[memoryview | bytes],
    *,
    size: int | None,
    timeouts: Timeouts,
    address: str,
) -> None:
    """Upload an object in parts: whole, or not at all.

    Args:
        library: obstore.
        client: its store.
        path: of the object.
        first: its first bytes.
        rest: all others.
        size: of it, in bytes, or None.
        timeouts: each step has `connect` and `response`, and `window` for each part that is under way.
        address: for errors.
    """
    part = _BLIND_PART if size is None else max(PART, -(-size // _PARTS))
    seconds = timeouts.connect + timeouts.response + timeouts.window * _TOGETHER
    feed = _Feed()
    sending = asyncio.ensure_future(
        library.put_async(client, path, feed, use_multipart=True, chunk_size=part, max_concurrency=_TOGETHER)
    )
    try:
        await _hand_over(feed, first, sending, seconds, address)
        async for piece in rest:
            await _hand_over(feed, piece, sending, seconds, address)
        await _hand_over(feed, None, sending, seconds, address)
        await within(asyncio.shield(sending), seconds, address, "finishing the upload")
    except BaseException:
        feed.abandon()
        await _end(sending, timeouts)
        raise


async def _hand_over(
    feed: _Feed, piece: memoryview | bytes | None, sending: asyncio.Future[Any], seconds: float, address: str
) -> None:
    handing = asyncio.ensure_future(feed.put(piece))
    try:
        done, _ = await asyncio.wait({handing, sending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if sending in done:
            sending.result()  # raises: it cannot have ended well before its end was told
        elif not done:
            _raise_late(seconds, address, "uploading")
    finally:
        handing.cancel()


async def _end(sending: asyncio.Future[Any], timeouts: Timeouts) -> None:
    """Wait until an abandoned upload was taken back; where the server does not answer, leave it."""
    try:
        await asyncio.wait({sending}, timeout=timeouts.close + timeouts.response)
    finally:
        sending.cancel()
        if sending.done() and not sending.cancelled():
            sending.exception()  # the one that matters is on its way already
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({sending}, timeout=timeouts.close)


def _raise_late(seconds: float, address: str, stage: str, cause: BaseException | None = None) -> NoReturn:
    raise StoreTimeout(
        f"waited {seconds:.1f} s for {address} ({stage}): no progress", address=address, waited=seconds, stage=stage
    ) from cause
