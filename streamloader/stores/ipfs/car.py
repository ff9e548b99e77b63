"""Read CAR files of version 1 as they arrive: https://ipld.io/specs/transport/car/carv1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from streamloader.errors import LimitExceeded, ProtocolError, TransferInterrupted
from streamloader.stores.ipfs.cid import Cid, read_varint

__all__ = ["CarReader"]

_MAX_HEADER_BYTES: Final = 64 << 10  # with a single root it has 60 bytes
_MAX_CID_BYTES: Final = 4 << 10
_MAX_VARINT_BYTES: Final = 10


class CarReader:
    """Read the blocks of a CAR one after the other. They are not compared with their CIDs.

    Memory is limited to one block and one received piece.

    Args:
        pieces: Bytes of the CAR, in pieces of any size.
        max_block_bytes: Maximum size of a block.
        origin: Sender of the CAR for messages.
    """

    def __init__(self, pieces: AsyncIterator[bytes], max_block_bytes: int, origin: str) -> None:
        self._pieces = pieces
        self._max_block_bytes = max_block_bytes
        self._origin = origin
        self._buffer = bytearray()
        self._header_done = False

    async def read_block(self) -> tuple[Cid, bytes] | None:
        """Return the next block with its CID, or None at the end.

        Raises:
            TransferInterrupted: If the CAR ends within a block.
            LimitExceeded: If a block is too large.
            ProtocolError: If the data is not a valid CAR.
        """
        if not self._header_done:
            self._check_header(await self._read_section(_MAX_HEADER_BYTES))
            self._header_done = True
        section = await self._read_section(self._max_block_bytes + _MAX_CID_BYTES)
        if section is None:
            return None
        cid, offset = Cid.read(section, 0)
        block = section[offset:]
        if len(block) > self._max_block_bytes:
            raise self._make_too_large_error()
        return cid, block

    def _check_header(self, section: bytes | None) -> None:
        import libipld  # cid.py reports it if it is missing

        try:
            header = libipld.decode_dag_cbor(section or b"")
        except (ValueError, RecursionError) as error:
            raise self.make_protocol_error(f"data that is not a CAR: {error}") from error
        if not isinstance(header, dict) or header.get("version") != 1:
            raise self.make_protocol_error("data that is not a CAR of version 1")

    async def _read_section(self, max_bytes: int) -> bytes | None:
        """Return the next section, which has its length in front, or None at the end."""
        while (head := self._parse_length()) is None:
            if not await self._receive():
                if self._buffer or not self._header_done:
                    raise self.make_truncated_error()
                return None
        length, start = head
        if length > max_bytes:
            if not self._header_done:
                raise self.make_protocol_error("data that is not a CAR")
            raise self._make_too_large_error()
        if not length:
            raise self.make_protocol_error("a CAR with an empty section")
        while len(self._buffer) < start + length:
            if not await self._receive():
                raise self.make_truncated_error()
        section = bytes(memoryview(self._buffer)[start : start + length])
        del self._buffer[: start + length]
        return section

    def _parse_length(self) -> tuple[int, int] | None:
        """Return the length at the start of the buffer and the offset after it, or None if it is incomplete."""
        try:
            return read_varint(self._buffer, 0)
        except ProtocolError:
            if len(self._buffer) >= _MAX_VARINT_BYTES:
                raise self.make_protocol_error("data that is not a CAR") from None
            return None

    async def _receive(self) -> bool:
        """Append the next piece to the buffer. Return False at the end."""
        piece = await anext(self._pieces, None)
        self._buffer += piece or b""
        return piece is not None

    def make_truncated_error(self) -> TransferInterrupted:
        """Return the error for a CAR that ends too early."""
        return TransferInterrupted(f"{self._origin} sent a truncated CAR")

    def make_protocol_error(self, what: str) -> ProtocolError:
        """Return the error for an invalid CAR. `what` describes what the server sent."""
        return ProtocolError(f"{self._origin} sent {what}")

    def _make_too_large_error(self) -> LimitExceeded:
        return LimitExceeded(f"{self._origin} sent a block of more than {self._max_block_bytes} bytes")
