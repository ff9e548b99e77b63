"""CAR files of version 1, read as they come: https://ipld.io/specs/transport/car/carv1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import libipld

from streamloader.errors import Interrupted, LimitExceeded, ProtocolFault
from streamloader.stores.ipfs.cid import Cid, read_varint

__all__ = ["CarReader"]

_HEADER: Final = 64 << 10  # bytes at most; one root makes 60
_NAME: Final = 4 << 10  # bytes of a CID at most
_LONGEST_VARINT: Final = 10  # bytes


class CarReader:
    """Reads the blocks of a CAR one after the other. It does not compare them with their CIDs.

    Memory is that of one block, and of one chunk.

    Args:
        chunks: the bytes.
        most: bytes of one block.
        where: the CAR comes from, for errors.
    """

    def __init__(self, chunks: AsyncIterator[bytes], most: int, where: str) -> None:
        self._chunks = chunks
        self._most = most
        self._where = where
        self._buffer = bytearray()
        self._begun = False

    async def next(self) -> tuple[Cid, bytes] | None:
        """Return the next block with its name, None at the end.

        Raises:
            Interrupted: the CAR ends within a block.
            LimitExceeded: a block is too large.
            ProtocolFault: that is no CAR.
        """
        if not self._begun:
            self._check_header(await self._section(_HEADER))
            self._begun = True
        section = await self._section(self._most + _NAME)
        if section is None:
            return None
        cid, at = Cid.read(section, 0)
        block = section[at:]
        if len(block) > self._most:
            raise self._too_large()
        return cid, block

    def _check_header(self, section: bytes | None) -> None:
        try:
            header = libipld.decode_dag_cbor(section or b"")
        except (ValueError, RecursionError) as error:
            raise self.fault(f"something that is no CAR: {error}") from error
        if not isinstance(header, dict) or header.get("version") != 1:
            raise self.fault("something that is no CAR of version 1")

    async def _section(self, most: int) -> bytes | None:
        """Return what comes next, with its length in front of it; None at the end."""
        while (head := self._length()) is None:
            if not await self._more():
                if self._buffer or not self._begun:
                    raise self.cut_off()
                return None
        length, at = head
        if length > most:
            if not self._begun:
                raise self.fault("something that is no CAR")
            raise self._too_large()
        if not length:
            raise self.fault("a CAR with a section of no bytes")
        while len(self._buffer) < at + length:
            if not await self._more():
                raise self.cut_off()
        section = bytes(memoryview(self._buffer)[at : at + length])
        del self._buffer[: at + length]
        return section

    def _length(self) -> tuple[int, int] | None:
        """Return the length that the buffer begins with, and where it ends; None if more is needed to know."""
        try:
            return read_varint(self._buffer, 0)
        except ProtocolFault:
            if len(self._buffer) >= _LONGEST_VARINT:
                raise self.fault("something that is no CAR") from None
            return None

    async def _more(self) -> bool:
        chunk = await anext(self._chunks, None)
        self._buffer += chunk or b""
        return chunk is not None

    def cut_off(self) -> Interrupted:
        """Return the error for a CAR that ends too early."""
        return Interrupted(f"{self._where} sends a CAR that ends in the middle")

    def fault(self, what: str) -> ProtocolFault:
        """Return the error for a CAR that is not as it should be."""
        return ProtocolFault(f"{self._where} sends {what}")

    def _too_large(self) -> LimitExceeded:
        return LimitExceeded(f"{self._where} sends a block of more than {self._most} bytes")
