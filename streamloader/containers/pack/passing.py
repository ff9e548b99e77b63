"""Receive the stored bytes of a pack in one stream."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator
from typing import Final

from typing_extensions import override

from streamloader.containers.base import ContainerSource
from streamloader.errors import ClosedError, StreamloaderError

__all__ = ["PassSource"]

_MAX_SKIPPED_BYTES: Final = 4 << 20  # that are received to save a request


class PassSource(ContainerSource):
    """The stored bytes of the members, received in one stream that only moves forward.

    Large members that are not read are not received: another stream begins after them.

    Args:
        source: Bytes of the pack.
        end: Offset after the last member.
    """

    def __init__(self, source: ContainerSource, end: int) -> None:
        super().__init__(source._store, source.info)  # noqa: SLF001 - the same source
        self._end = end
        self._pieces: AsyncGenerator[bytes, None] | None = None
        self._piece = b""
        self._base = 0  # offset of the piece
        self._is_broken = False
        self._error: StreamloaderError | None = None

    def peek(self, start: int, end: int) -> bytes:
        """Return those of the bytes [start, end) that are in memory, up to the first one that is not."""
        base = self._base
        return self._piece[start - base : end - base] if start >= base else b""

    @override
    async def read(self, start: int, end: int) -> bytes:
        async with contextlib.aclosing(self.stream(start, end)) as pieces:
            return b"".join([piece async for piece in pieces])

    @override
    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if start == end:
            return
        await self._move_to(start)
        while start < end:
            while not (part := self.peek(start, end)):
                await self._receive()
            start += len(part)
            yield part

    async def aclose(self) -> None:
        """End the stream."""
        if self._pieces is not None:
            await self._pieces.aclose()

    async def _move_to(self, offset: int) -> None:
        """Drop what lies before `offset`."""
        if self._pieces is None or offset - self._base - len(self._piece) > _MAX_SKIPPED_BYTES:
            await self.aclose()
            self._pieces = super().stream(offset, self._end)
            self._piece, self._base = b"", offset
        while self._base + len(self._piece) < offset:
            await self._receive()

    async def _receive(self) -> None:
        """Replace the piece by the next one.

        Raises:
            ClosedError: If an earlier call was cancelled.
            StoreError: If the store fails to deliver it, or failed to deliver an earlier one.
        """
        if self._is_broken or self._pieces is None:
            raise self._make_broken_error()
        self._is_broken = True  # a generator that failed would pretend to have ended
        try:
            piece = await anext(self._pieces)
        except StreamloaderError as error:
            self._error = copy.copy(error)  # without its traceback, which refers to this object
            raise
        except StopAsyncIteration:
            raise self.make_error("it is cut", self._base + len(self._piece)) from None
        self._is_broken = False
        self._base += len(self._piece)
        self._piece = piece
        await asyncio.sleep(0)  # a store in memory never waits, and other tasks have to run

    def _make_broken_error(self) -> StreamloaderError:
        if self._error is not None:
            return copy.copy(self._error)
        return ClosedError(f"{self.address}: a cancellation ended this pass: start another one", address=self.address)
