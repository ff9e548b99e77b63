"""Checksums of blocks of members, with which small members are verified many at a time."""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

__all__ = ["BLOCK_CHECKSUMS_KEY", "BLOCK_ROWS", "MAX_BLOCK_BYTES", "BlockChecksums", "parse_block_checksums"]

BLOCK_CHECKSUMS_KEY: Final = "block_checksums"  # in the metadata of a pack
BLOCK_ROWS: Final = 128
MAX_BLOCK_BYTES: Final = 64 << 10  # of a block that has a checksum: one member is read with all of its block
_MAX_BLOCKS: Final = 1 << 16  # which take a third of the maximum size of the metadata
_NUMBER_BYTES: Final = 4


class BlockChecksums:
    """Computes the checksums of the blocks of a pack while its members are written."""

    def __init__(self) -> None:
        self._checksums = array("I")
        self._checksum = self._rows = self._bytes = 0

    def add_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Count stored bytes of the next member."""
        self._bytes += len(data)
        if self._bytes <= MAX_BLOCK_BYTES:
            self._checksum = crc32(data, self._checksum)

    def end_member(self) -> None:
        """Count a member, after its bytes."""
        self._rows += 1
        if self._rows == BLOCK_ROWS:
            self._end_block()

    def _end_block(self) -> None:
        self._checksums.append(self._checksum if self._bytes <= MAX_BLOCK_BYTES else 0)
        self._checksum = self._rows = self._bytes = 0

    def finish(self) -> str | None:
        """Return the value for the metadata. None if there are too many blocks, or if none is small enough."""
        if self._rows:
            self._end_block()
        if not any(self._checksums) or len(self._checksums) > _MAX_BLOCKS:
            return None
        if sys.byteorder == "big":
            self._checksums.byteswap()
        return base64.b64encode(self._checksums).decode("ascii")


def parse_block_checksums(metadata: Mapping[str, Any], count: int) -> array[int] | None:
    """Return the checksum of each block. None if the metadata have none: then members are verified one by one.

    Args:
        metadata: Metadata of a pack.
        count: Number of members.
    """
    text = metadata.get(BLOCK_CHECKSUMS_KEY)
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        return None
    if not data or len(data) != -(-count // BLOCK_ROWS) * _NUMBER_BYTES:
        return None
    checksums = array("I", data)
    if sys.byteorder == "big":
        checksums.byteswap()
    return checksums
