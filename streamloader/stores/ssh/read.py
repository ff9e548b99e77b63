"""Reading one file over SFTP: many blocks in flight, whole in order, and of one version."""

from __future__ import annotations

import contextlib
import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from streamloader.errors import (
    AccessDenied,
    Interrupted,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolFault,
    StoreError,
    Unreachable,
)
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.packets import Attrs, BadReply
from streamloader.stores.ssh.sftp import Asked, Lost, Sftp, SftpError
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Reading", "connected", "info_of", "translated"]

_BEGIN: Final = 4  # blocks in flight at first; two more with each that came
_SMALLEST: Final = 32 << 10  # bytes of a block: what every server can send
_CHECK: Final = 32 << 20  # bytes after which one looks whether the file is still the same


@dataclass(slots=True)
class _Block:
    at: int
    end: int
    asked: Asked
    check: Asked | None  # how the file was when this had been read
    looks: bool  # whether to look at it then


class Reading:
    """One span of an open file. Begin with :meth:`open`; the chunks are the bytes; :meth:`close` at the end.

    Args:
        channel: on which it is read.
        handle: of the file.
        address: for errors.
        depth: tells how many blocks of so many bytes may be in flight now.

    Attributes:
        info: of the file, when it was opened.
        start: of the span.
        end: of the span.
    """

    def __init__(self, channel: Sftp, handle: bytes, address: str, depth: Callable[[int], int]) -> None:
        self._channel = channel
        self._handle = handle
        self._address = address
        self._depth = depth
        self._blocks: deque[_Block] = deque()
        self._next = 0  # the first byte not yet asked for
        self._allowed = _BEGIN
        self.info = ObjectInfo("")
        self.start = self.end = 0

    @classmethod
    async def open(
        cls, channel: Sftp, remote: str, path: str, span: ByteRange, address: str, depth: Callable[[int], int]
    ) -> Reading:
        """Open a file, look at it, and ask for its first bytes at the same time.

        Raises:
            StoreError: there is none, it may not be read, it is no file, or it does not have these bytes.
        """
        begin = max(0, span.start)
        with translated(address, begin):
            handle = sftp.handle_of(await channel.open_file(remote, sftp.FOR_READING).answer())
        reading = cls(channel, handle, address, depth)
        try:
            with translated(address, begin):
                look = channel.fstat(handle)
                count = channel.block if span.end is None else min(channel.block, span.end - begin)
                early = channel.read(handle, begin, count) if span.start >= 0 else None
                reading.info = info_of(path, sftp.attrs_of(await look.answer()), address)
            if reading.info.size is None:
                raise NotSupported(f"{address}: the server does not tell the size of its files", address=address)
            reading.start, reading.end = span.within(reading.info.size, address)
            reading._next = reading.start
            if early is not None and reading.start < reading.end:
                reading._add(early, min(count, reading.end - reading.start))
        except BaseException:
            reading.close()
            raise
        return reading

    def close(self) -> None:
        """Give the file back; what is still coming of it is thrown away as it comes."""
        self._blocks.clear()
        self._channel.close_handle(self._handle)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes in order.

        Raises:
            ObjectChanged: the file was changed meanwhile.
            Interrupted: the connection was lost.
            ProtocolFault: the server says that the file has fewer bytes than it said before.
        """
        at = self.start
        while at < self.end:
            self._fill()
            block = self._blocks[0]
            if not block.asked.reply.done():
                await block.asked.some()
            if not block.asked.reply.done():
                chunk = block.asked.drain()
                at += len(chunk)
            else:
                with translated(self._address, at, under_way=True):
                    chunk = await self._whole(block)
                at = await self._advance(block, at + len(chunk))
            if chunk:
                yield chunk

    async def _whole(self, block: _Block) -> bytes:
        try:
            return await block.asked.answer()
        except SftpError as error:
            if error.code != sftp.EOF:
                raise
            return b""

    async def _advance(self, block: _Block, at: int) -> int:
        """Go to the next block, or ask for what is missing of this one; return `at`, up to where all has come."""
        if at < block.end:
            came = at - block.at
            if not came:
                await self._check(None, at)
                raise ProtocolFault(
                    f"{self._address} ends at byte {at}, says the server, which announced {self.info.size} bytes",
                    address=self._address,
                    offset=at,
                )
            # Not a fault: a server may send less than was asked for. It will get smaller questions from now on.
            self._channel.block = min(self._channel.block, max(_SMALLEST, came))
            block.at = at
            block.asked = self._channel.read(self._handle, at, block.end - at)
            if block.looks:
                block.check = None  # that was before
            return at
        if block.looks:
            await self._check(block.check, at)
        self._blocks.popleft()
        self._allowed += 2
        return at

    def _fill(self) -> None:
        """Have as many blocks in flight as is our share."""
        block = self._channel.block
        allowed = min(self._allowed, self._depth(block), self._channel.worthwhile(block))
        while self._next < self.end and len(self._blocks) < allowed:
            count = min(block, self.end - self._next)
            self._add(self._channel.read(self._handle, self._next, count), count)

    def _add(self, asked: Asked, count: int) -> None:
        at, end = self._next, self._next + count
        looks = end == self.end or at // _CHECK != end // _CHECK
        # A server that answers in turn looks at the file when it has read the block: no round trip more.
        check = self._channel.fstat(self._handle) if looks and self._channel.ordered else None
        self._blocks.append(_Block(at, end, asked, check, looks))
        self._next = end

    async def _check(self, asked: Asked | None, at: int) -> None:
        with translated(self._address, at, under_way=True):
            attrs = sftp.attrs_of(await (asked or self._channel.fstat(self._handle)).answer())
        if info_of(self.info.path, attrs, self._address).version != self.info.version:
            raise ObjectChanged(
                f"{self._address} was changed while it was read, noticed at byte {at}", address=self._address, offset=at
            )


def info_of(path: str, attrs: Attrs, address: str) -> ObjectInfo:
    """Return what the attributes of a file say.

    Raises:
        NotFound: they are of a directory.
        StoreError: they are of something else that is no file.
    """
    if attrs.mode is not None and stat.S_IFMT(attrs.mode):
        if stat.S_ISDIR(attrs.mode):
            raise NotFound(f"{address} is a directory, not a file", address=address)
        if not stat.S_ISREG(attrs.mode):
            raise StoreError(f"{address} is a pipe, socket or device, not a file", address=address)
    version = None
    if attrs.size is not None and attrs.modified is not None:
        version = f"{attrs.size:x}-{attrs.modified:x}"
    return ObjectInfo(path, attrs.size, version, None if attrs.modified is None else float(attrs.modified))


@contextlib.contextmanager
def translated(address: str, offset: int | None = None, *, under_way: bool = False) -> Iterator[None]:
    """Turn what a channel raises into errors of ours.

    Args:
        address: of the object.
        offset: of the first byte that did not come, or was not taken.
        under_way: whether bytes were being transferred.
    """
    try:
        with connected(address, offset, under_way=under_way):
            yield
    except SftpError as error:
        raise _refusal(error, address, offset) from error


@contextlib.contextmanager
def connected(address: str, offset: int | None = None, *, under_way: bool = False) -> Iterator[None]:
    """The same, but let refusals of the server through as they are."""
    try:
        yield
    except Lost as error:
        if under_way:
            where = "" if offset is None else f" at byte {offset}"
            raise Interrupted(
                f"{address}: the connection was lost{where}: {error}", address=address, offset=offset
            ) from error
        raise Unreachable(f"{address}: the server hung up: {error}", address=address, offset=offset) from error
    except BadReply as error:
        raise ProtocolFault(f"{address}: the server sent {error}", address=address, offset=offset) from error


def _refusal(error: SftpError, address: str, offset: int | None) -> StoreError:
    if error.code == sftp.NO_SUCH_FILE:
        return NotFound(f"no such file: {address}", address=address, offset=offset)
    if error.code == sftp.PERMISSION_DENIED:
        return AccessDenied(f"{address}: {error}", address=address, offset=offset)
    if error.code == sftp.UNSUPPORTED:
        return NotSupported(f"{address}: the server cannot do that: {error}", address=address)
    if error.code in (sftp.NO_CONNECTION, sftp.CONNECTION_LOST):
        return Interrupted(f"{address}: the server lost its connection: {error}", address=address, offset=offset)
    return StoreError(f"{address}: the server failed: {error} (status {error.code})", address=address, offset=offset)
