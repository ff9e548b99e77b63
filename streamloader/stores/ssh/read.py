"""Read a file over SFTP: many blocks in flight, delivered in order, all of the same version of the file."""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from streamloader.common.error_translation import error_translator
from streamloader.errors import (
    AccessDenied,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreError,
    TransferInterrupted,
    Unreachable,
)
from streamloader.stores.ssh import packets as sftp
from streamloader.stores.ssh.packets import Attrs, BadReply
from streamloader.stores.ssh.sftp import ChannelLost, PendingRequest, SftpChannel, SftpError
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["FileTransfer", "make_object_info", "translate_connection_errors", "translate_errors"]

_INITIAL_QUEUE_DEPTH: Final = 4  # grows by two with each received block
_MIN_BLOCK_BYTES: Final = 32 << 10  # every server can send blocks of this size
_VERSION_CHECK_INTERVAL_BYTES: Final = 32 << 20


@dataclass(slots=True)
class _ReadBlock:
    """A block in flight.

    Attributes:
        start: Offset of the first byte that is still missing.
        end: Offset after the last byte.
        request: Pending read.
        check: Pending request for the file's attributes after this block, or None.
        needs_check: Whether the version of the file is checked after this block.
    """

    start: int
    end: int
    request: PendingRequest
    check: PendingRequest | None
    needs_check: bool


class FileTransfer:
    """Transfer of one span of an open file. Created with :meth:`open`; call :meth:`close` at the end.

    Args:
        channel: Channel to read on.
        handle: Handle of the open file.
        address: Address of the file for messages.
        max_queue_depth: Function that returns how many blocks of a given size may be in flight at the moment.

    Attributes:
        info: Size and version of the file when it was opened.
        start: Offset of the first byte of the span.
        end: Offset after the last byte of the span.
    """

    def __init__(
        self, channel: SftpChannel, handle: bytes, address: str, max_queue_depth: Callable[[int], int]
    ) -> None:
        self._channel = channel
        self._handle = handle
        self._address = address
        self._max_queue_depth = max_queue_depth
        self._blocks: deque[_ReadBlock] = deque()
        self._next_offset = 0  # first byte that has not been requested
        self._queue_depth = _INITIAL_QUEUE_DEPTH
        self.info = ObjectInfo("")
        self.start = self.end = 0

    @classmethod
    async def open(
        cls,
        channel: SftpChannel,
        remote: str,
        path: str,
        span: ByteRange,
        address: str,
        max_queue_depth: Callable[[int], int],
    ) -> FileTransfer:
        """Open a file, and request its attributes and its first bytes at the same time.

        Args:
            channel: Channel to read on.
            remote: Path of the file on the server.
            path: Path of the file in the store.
            span: Bytes to read.
            address: Address of the file for messages.
            max_queue_depth: Function that returns how many blocks of a given size may be in flight at the moment.

        Raises:
            StoreError: If the path does not exist, may not be read, is not a file, or does not have these bytes.
        """
        start = max(0, span.start)
        with translate_errors(address, start, opening=True):
            handle = await channel.open_for_reading(remote)
        transfer = cls(channel, handle, address, max_queue_depth)
        try:
            with translate_errors(address, start):
                fstat = channel.fstat(handle)
                block = channel.read_block_bytes
                count = block if span.end is None else min(block, span.end - start)
                first_read = channel.read(handle, start, count) if span.start >= 0 else None
                transfer.info = make_object_info(path, sftp.parse_attrs(await fstat.wait_for_reply()), address)
            if transfer.info.size is None:
                raise NotSupported(f"{address}: the server does not report the sizes of its files", address=address)
            transfer.start, transfer.end = span.within(transfer.info.size, address)
            transfer._next_offset = transfer.start
            if first_read is not None and transfer.start < transfer.end:
                transfer._append_block(first_read, min(count, transfer.end - transfer.start))
        except BaseException:
            transfer.close()
            raise
        return transfer

    def close(self) -> None:
        """Close the file. Bytes that are still in flight are discarded when they arrive."""
        self._blocks.clear()
        self._channel.close_file(self._handle)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of the span in order.

        Raises:
            ObjectChanged: If the file changed during the transfer.
            TransferInterrupted: If the connection is lost.
            ProtocolError: If the file ends before the size that the server reported.
        """
        offset = self.start
        while offset < self.end:
            self._request_blocks()
            block = self._blocks[0]
            if not block.request.reply.done():
                await block.request.wait_for_progress()
            if not block.request.reply.done():
                piece = block.request.take_received()
                offset += len(piece)
            else:
                with translate_errors(self._address, offset, in_transfer=True):
                    piece = await self._receive_block(block)
                offset = await self._advance(block, offset + len(piece))
            if piece:
                yield piece

    async def _receive_block(self, block: _ReadBlock) -> bytes:
        try:
            return await block.request.wait_for_reply()
        except SftpError as error:
            if error.code != sftp.EOF:
                raise
            return b""

    async def _advance(self, block: _ReadBlock, offset: int) -> int:
        """Go on to the next block, or request the rest of this one. `offset` is where the received bytes end."""
        if offset < block.end:
            received = offset - block.start
            if not received:
                await self._check_version(None, offset)
                raise ProtocolError(
                    f"{self._address} ends at byte {offset}, but the server announced {self.info.size} bytes",
                    address=self._address,
                    offset=offset,
                )
            # Servers may send less than requested. Smaller requests avoid that from now on.
            self._channel.read_block_bytes = min(self._channel.read_block_bytes, max(_MIN_BLOCK_BYTES, received))
            block.start = offset
            block.request = self._channel.read(self._handle, offset, block.end - offset)
            if block.needs_check:
                block.check = None  # its attributes are older than the rest of the block
            return offset
        if block.needs_check:
            await self._check_version(block.check, offset)
        self._blocks.popleft()
        self._queue_depth += 2
        return offset

    def _request_blocks(self) -> None:
        """Request further blocks, up to this transfer's share."""
        block = self._channel.read_block_bytes
        depth = min(self._queue_depth, self._max_queue_depth(block), self._channel.target_queue_depth(block))
        while self._next_offset < self.end and len(self._blocks) < depth:
            count = min(block, self.end - self._next_offset)
            self._append_block(self._channel.read(self._handle, self._next_offset, count), count)

    def _append_block(self, request: PendingRequest, count: int) -> None:
        start, end = self._next_offset, self._next_offset + count
        interval = _VERSION_CHECK_INTERVAL_BYTES
        needs_check = end == self.end or start // interval != end // interval
        # A server that processes requests in order reads the attributes after the block. That saves a round trip.
        check = self._channel.fstat(self._handle) if needs_check and self._channel.replies_in_order else None
        self._blocks.append(_ReadBlock(start, end, request, check, needs_check))
        self._next_offset = end

    async def _check_version(self, check: PendingRequest | None, offset: int) -> None:
        with translate_errors(self._address, offset, in_transfer=True):
            attrs = sftp.parse_attrs(await (check or self._channel.fstat(self._handle)).wait_for_reply())
        if make_object_info(self.info.path, attrs, self._address).version != self.info.version:
            raise ObjectChanged(
                f"{self._address} was changed while it was read (detected at byte {offset})",
                address=self._address,
                offset=offset,
            )


def make_object_info(path: str, attrs: Attrs, address: str) -> ObjectInfo:
    """Return the ObjectInfo for the attributes of a file.

    Raises:
        NotFound: If they belong to a directory.
        StoreError: If they belong to a pipe, socket or device.
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


@error_translator
def translate_errors(
    address: str, offset: int | None = None, *, in_transfer: bool = False, opening: bool = False
) -> Iterator[None]:
    """Translate all errors of a channel to errors of this package.

    Args:
        address: Address of the object.
        offset: Offset of the first byte that was not transferred. None if it is unknown.
        in_transfer: Whether bytes were being transferred. A lost connection is then an interruption.
        opening: Whether a file or a directory is opened for reading. A failure without a reason is then a lack of
            handles, memory or the like, which passes: all other reasons have a status of their own.
    """
    try:
        with translate_connection_errors(address, offset, in_transfer=in_transfer):
            yield
    except SftpError as error:
        raise _translate_status(error, address, offset, opening=opening) from error


@error_translator
def translate_connection_errors(
    address: str, offset: int | None = None, *, in_transfer: bool = False
) -> Iterator[None]:
    """Translate errors as :func:`translate_errors` does, except error statuses of the server (SftpError)."""
    try:
        yield
    except ChannelLost as error:
        if in_transfer:
            where = "" if offset is None else f" at byte {offset}"
            raise TransferInterrupted(
                f"{address}: the connection was lost{where}: {error}", address=address, offset=offset
            ) from error
        raise Unreachable(
            f"{address}: the server closed the connection: {error}", address=address, offset=offset
        ) from error
    except BadReply as error:
        raise ProtocolError(f"{address}: the server sent {error}", address=address, offset=offset) from error


def _translate_status(error: SftpError, address: str, offset: int | None, *, opening: bool) -> StoreError:
    if error.code == sftp.NO_SUCH_FILE:
        return NotFound(f"no such file: {address}", address=address, offset=offset)
    if error.code == sftp.PERMISSION_DENIED:
        return AccessDenied(f"{address}: {error}", address=address, offset=offset)
    if error.code == sftp.UNSUPPORTED:
        return NotSupported(f"{address}: the server does not support this operation: {error}", address=address)
    if error.code in (sftp.NO_CONNECTION, sftp.CONNECTION_LOST):
        return TransferInterrupted(
            f"{address}: the server lost its connection: {error}", address=address, offset=offset
        )
    if error.code == sftp.FAILURE and opening:
        return ServerBusy(
            f"{address}: the server cannot open it at the moment: {error}. Servers that allow few open files need "
            "Limits(requests=...)",
            address=address,
            offset=offset,
        )
    return StoreError(f"{address}: the server failed: {error} (status {error.code})", address=address, offset=offset)
