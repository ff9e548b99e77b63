"""Find blocks of a tar file: by ranged reads, or in one pass over everything.

Both kinds hold the bytes that arrived last as `piece`, so that most headers are found without a call.
"""

from __future__ import annotations

import abc
import asyncio
import copy
import sys
from collections.abc import AsyncGenerator
from typing import Final

from typing_extensions import override

from streamloader.containers.base import ContainerSource
from streamloader.errors import ClosedError, CorruptContainer, StreamloaderError

__all__ = ["RangeWindow", "StreamWindow", "Window"]

_MIN_READ_BYTES: Final = 32 << 10  # costs little more than a header alone, and contains the next ones if they are near
_MAX_READ_BYTES: Final = 8 << 20
_MAX_READ_THROUGH_BYTES: Final = 256 << 10  # a local disk reads so much in the time of one more request


class Window(abc.ABC):
    """A part of a tar file that moves forward.

    Args:
        source: Bytes of the container.
        size: Size of the tar file in bytes. None if only its end shows it.

    Attributes:
        piece: Bytes of the part.
        base: Offset of `piece` in the tar file.
        size: Size of the tar file, or a number that no offset reaches.
    """

    __slots__ = ("_source", "base", "piece", "size")

    def __init__(self, source: ContainerSource, size: int | None) -> None:
        self._source = source
        self.piece = b""
        self.base = 0
        self.size = sys.maxsize if size is None else size

    async def read(self, offset: int, count: int) -> bytes:
        """Return the bytes [offset, offset + count), which do not lie before those returned earlier.

        Raises:
            CorruptContainer: If the tar file ends before.
            StoreError: If the store fails to deliver them.
        """
        data = await self.read_available(offset, count)
        if len(data) < count:
            raise self.make_cut_error(offset)
        return data

    async def finish(self) -> None:  # noqa: B027 - nothing follows ranged reads
        """Receive what follows the end marker."""

    def make_cut_error(self, offset: int) -> CorruptContainer:
        """Build the error for a tar file that ends within what begins at `offset`."""
        offset = min(offset, self.base + len(self.piece))
        return self._source.make_error("it is cut: its end marker, two blocks of zeros, is missing", offset)

    @abc.abstractmethod
    async def read_available(self, offset: int, count: int) -> bytes:
        """Return the bytes [offset, offset + count) as :meth:`read`, or fewer at the end of the tar file."""


class RangeWindow(Window):
    """Reads blocks by span, and leaves out what lies between distant ones.

    Near blocks are read together, with all between them: each read is twice as long as the last one, until the next
    block is far away. A tar file of small members is so read in few large requests, and one of large members in as many
    small ones.
    """

    __slots__ = ("_read_bytes",)

    def __init__(self, source: ContainerSource) -> None:
        super().__init__(source, source.size)
        self._read_bytes = _MIN_READ_BYTES

    @override
    async def read_available(self, offset: int, count: int) -> bytes:
        position = offset - self.base
        if position + count > len(self.piece):
            end = min(self.size, offset + max(count, self._grow(offset)))
            self.piece = b""  # before the next one arrives
            self.piece = await self._source.read(offset, end) if offset < end else b""
            self.base = offset
            position = 0
            await asyncio.sleep(0)  # a store in memory never waits, and other tasks have to run
        return self.piece[position : position + count]

    def _grow(self, offset: int) -> int:
        """Return the length of the read at `offset`."""
        is_far = offset - self.base - len(self.piece) > _MAX_READ_THROUGH_BYTES
        self._read_bytes = _MIN_READ_BYTES if is_far else min(2 * self._read_bytes, _MAX_READ_BYTES)
        return min(self._read_bytes, self._source.limits.object_bytes)


class StreamWindow(Window):
    """Receives the tar file in one pass.

    Args:
        source: Bytes of the container, for error messages.
        size: Size of the tar file in bytes. None if only its end shows it.
        pieces: All bytes of the tar file. The caller closes it.
    """

    __slots__ = ("_error", "_is_broken", "_pieces")

    def __init__(self, source: ContainerSource, size: int | None, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__(source, size)
        self._pieces = pieces
        self._is_broken = False
        self._error: StreamloaderError | None = None

    @override
    async def read_available(self, offset: int, count: int) -> bytes:
        while self.base + len(self.piece) <= offset:
            if not await self.receive():
                return b""
        position = offset - self.base
        parts = [self.piece[position : position + count]]
        missing = count - len(parts[0])
        while missing and await self.receive():
            parts.append(self.piece[:missing])
            missing -= len(parts[-1])
        return b"".join(parts)

    @override
    async def finish(self) -> None:
        """Receive what follows, which verifies the last checksum, and frees the connection for the next request."""
        while await self.receive():
            pass

    async def receive(self) -> bool:
        """Replace the piece by the next one. Return whether there is one.

        Raises:
            ClosedError: If an earlier call was cancelled.
            StoreError: If the store fails to deliver it, or failed to deliver an earlier one.
        """
        if self._is_broken:
            raise self._make_broken_error()
        self._is_broken = True  # a generator that failed would pretend to have ended
        try:
            piece = await anext(self._pieces, None)
        except StreamloaderError as error:
            self._error = copy.copy(error)  # without its traceback, which refers to this window
            raise
        self._is_broken = False
        self.base += len(self.piece)
        self.piece = piece or b""
        await asyncio.sleep(0)  # a store in memory never waits, and other tasks have to run
        return piece is not None

    def _make_broken_error(self) -> StreamloaderError:
        if self._error is not None:
            return copy.copy(self._error)
        address = self._source.address
        return ClosedError(f"{address}: a cancellation ended this pass: start another one", address=address)
