"""Copies of objects of servers without ranges, so that each byte is transferred once however often parts are read."""

from __future__ import annotations

import asyncio
import copy
import os
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from streamloader.errors import ProtocolError, StoreError, TransferInterrupted
from streamloader.stores.deadlines import TransferDeadline
from streamloader.stores.transfer import Body
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["WholeCopies", "WholeCopy"]

_PIECE_BYTES: Final = 256 << 10
_CONNECTIONS_PER_PAUSE: Final = 4


class WholeCopy:
    """A copy of one version of an object in a file without a name, which is filled as far as parts of it are read.

    Args:
        info: Metadata of the object. Size and version must be known.
        pieces: Bytes of the object, from its beginning.
        release: Function that releases the connection of `pieces`.
        deadline: Deadline of the transfer.
        address: Address of the object, for error messages.

    Attributes:
        info: Metadata of the object.
        error: Error that ended the transfer early, or None. The copy is of no use then.
    """

    def __init__(
        self,
        info: ObjectInfo,
        pieces: AsyncIterator[bytes],
        release: Callable[[], None],
        deadline: TransferDeadline,
        address: str,
    ) -> None:
        assert info.size is not None
        self.info = info
        self.error: StoreError | None = None
        self._size = info.size
        self._address = address
        self._pieces, self._release, self._deadline = pieces, release, deadline
        self._received = 0
        self._wanted = 0  # offset up to which somebody waits for bytes
        self._changed = asyncio.Event()
        self._file = tempfile.TemporaryFile(prefix="streamloader-", buffering=0)  # noqa: SIM115 - closed by `close`
        self._task = asyncio.get_running_loop().create_task(self._receive(), name=f"copy of {address}")

    def make_body(self, span: ByteRange) -> Body:
        """Return the response for a part of the object.

        Raises:
            RangeNotSatisfiable: If the object does not have these bytes.
        """
        start, end = span.within(self._size, self._address)
        first = min(self._received, start)  # what arrives before the part shows progress
        return Body(self.info, start, end, self._read(first, end), skip=start - first, bounded=True)

    @property
    def is_paused(self) -> bool:
        """Whether the transfer has not ended, and nobody waits for its bytes."""
        return not self._task.done() and self._received >= self._wanted

    def cancel(self) -> asyncio.Task[None]:
        """End the transfer, and return its task. The file is freed when nobody reads it any more."""
        self._task.cancel()
        return self._task

    async def _receive(self) -> None:
        self._deadline.offset = 0
        try:
            while self._received < self._size:
                while self._received >= self._wanted:
                    await self._wait()
                with self._deadline.limit_next_bytes("fetching"):
                    piece = await anext(self._pieces, b"")
                if not piece:
                    raise TransferInterrupted(
                        f"{self._address}: the transfer broke off at byte {self._received}",
                        address=self._address,
                        offset=self._received,
                    )
                if self._received + len(piece) > self._size:
                    raise ProtocolError(
                        f"{self._address}: received more than the announced {self._size} bytes",
                        address=self._address,
                        offset=self._size,
                    )
                await asyncio.to_thread(self._write, piece, self._received)
                self._deadline.count_received(len(piece))
                self._received += len(piece)
                self._notify()
        except StoreError as error:
            self.error = error
        except OSError as error:
            self.error = StoreError(
                f"{self._address}: its server does not support ranges, and a copy of it cannot be kept in "
                f"{tempfile.gettempdir()}: {error.strerror}. Set TMPDIR to another folder",
                address=self._address,
                errno=error.errno,
            )
        finally:
            self._release()
            self._notify()

    async def _read(self, position: int, end: int) -> AsyncGenerator[bytes, None]:
        while position < end:
            if position < self._received:
                count = min(_PIECE_BYTES, self._received - position, end - position)
                data = await asyncio.to_thread(os.pread, self._file.fileno(), count, position)
                position += len(data)
                yield data
                continue
            if self._task.done():
                raise (
                    copy.copy(self.error)
                    if self.error is not None
                    else TransferInterrupted(
                        f"{self._address}: the transfer broke off at byte {position}",
                        address=self._address,
                        offset=position,
                    )
                )
            self._wanted = max(self._wanted, end)
            self._notify()
            await self._wait()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _write(self, piece: bytes, offset: int) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[count:], offset + count

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()


class WholeCopies:
    """The copies of one store in one event loop, the least recently used first.

    Args:
        max_bytes: Maximum size of all copies in bytes. No copy is made of a larger object.
        connections: Maximum number of connections to the server. Transfers that pause use a part of them at most.
    """

    def __init__(self, max_bytes: int, connections: int) -> None:
        self._max_bytes = max_bytes
        self._max_paused = connections // _CONNECTIONS_PER_PAUSE
        self._copies: OrderedDict[str, WholeCopy] = OrderedDict()

    def find(self, path: str, version: str | None) -> WholeCopy | None:
        """Return the copy of this version of an object, or None."""
        found = self._copies.get(path)
        if found is None or version is None or found.info.version != version:
            return None
        if found.error is not None:
            del self._copies[path]
            return None
        self._copies.move_to_end(path)
        return found

    def has_copy(self, path: str) -> bool:
        """Return whether there is a copy of any version of an object."""
        return path in self._copies

    def accepts(self, info: ObjectInfo) -> bool:
        """Return whether a copy of this object may be made."""
        return info.version is not None and info.size is not None and info.size <= self._max_bytes

    def add(self, path: str, new: WholeCopy) -> None:
        """Keep a copy, and drop others if they are too large together."""
        replaced = self._copies.pop(path, None)
        if replaced is not None:
            replaced.cancel()
        self._copies[path] = new
        while sum(each.info.size or 0 for each in self._copies.values()) > self._max_bytes:
            self._copies.popitem(last=False)[1].cancel()
        paused = [name for name, each in self._copies.items() if each is not new and each.is_paused]
        for name in paused[: max(0, len(paused) - self._max_paused)]:
            self._copies.pop(name).cancel()

    async def aclose(self) -> None:
        """Drop all copies, and wait until their transfers have ended."""
        tasks = [each.cancel() for each in self._copies.values()]
        self._copies.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
