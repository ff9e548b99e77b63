"""Verify the members of a container while they are read, and let later reads go on where earlier ones stopped."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import AsyncGenerator, Callable
from typing import Final

from streamloader.common.lru import LruCache
from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, ContainerSource, Member
from streamloader.containers.compression import CompressedRange, CompressionMethod
from streamloader.errors import IntegrityError

__all__ = ["MemberReads"]

_MAX_KNOWN_CHECKSUMS: Final = 1 << 10
_MAX_RANGES: Final = 64
_MAX_RANGES_BYTES: Final = 64 << 20
_DECODER_BYTES: Final = 44 << 10  # window and tables of zlib
_MAX_DECODERS: Final = 260  # of one range


class MemberReads:
    """What reads of a container's members leave behind: decoders that can go on, and checksums of first parts.

    Both are found by the member's offset. They follow from the content, so the order of readers does not matter.

    Args:
        source: Bytes of the container.
        table: Name of what declares sizes and checksums in the format, for messages, such as "directory".
        get_offset: Function of a member that returns the offset for errors about its content.
    """

    def __init__(self, source: ContainerSource, table: str, get_offset: Callable[[Member], int]) -> None:
        self._source = source
        self._table = table
        self._get_offset = get_offset
        self._checksums: LruCache[tuple[int, int], int] = LruCache(_MAX_KNOWN_CHECKSUMS, _MAX_KNOWN_CHECKSUMS)
        self._ranges: LruCache[int, CompressedRange] = LruCache(_MAX_RANGES, _MAX_RANGES_BYTES)

    def get_range(self, member: Member, method: CompressionMethod, data: int) -> CompressedRange:
        """Return the range of a compressed member, which knows where earlier reads have stopped.

        Args:
            member: Member.
            method: Method of its compression.
            data: Offset of its content.
        """
        found = self._ranges.get(member.offset)
        if found is None:
            found = CompressedRange(self._source, method, data, data + member.stored_size)
            max_bytes = _DECODER_BYTES * min(_MAX_DECODERS, 5 + (member.size >> 20))
            self._ranges.put(member.offset, found, max_bytes)
        return found

    async def verify(
        self, container: Container, member: Member, pieces: AsyncGenerator[bytes, None], start: int, end: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end) of a member. At its end, verify size and checksum before the last piece.

        The checksum of what precedes `start` is known if earlier reads began at 0 and continued where others ended.
        """
        position = start
        checksum = 0 if start == 0 else self._checksums.get((member.offset, start))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                position += len(piece)
                if checksum is not None:
                    checksum = zlib.crc32(piece, checksum)
                if position >= member.size:
                    self.check_content(container, member, position, checksum)
                yield piece
        if end == member.size:
            self.check_content(container, member, position, checksum)
        elif checksum is not None:
            self._checksums.put((member.offset, position), checksum, 1)

    def check_content(self, container: Container, member: Member, size: int, checksum: int | None) -> None:
        """Compare size and checksum of a whole member with the declared ones. None stands for an unknown checksum.

        Raises:
            CorruptContainer: If the size is wrong.
            IntegrityError: If the checksum is wrong.
        """
        if size != member.size:
            detail = f"the member {make_printable(member.name)} has other than its declared {member.size} bytes"
            raise self._source.make_error(detail, self._get_offset(member))
        if checksum not in (None, member.checksum):
            raise IntegrityError(
                f"{container.describe(member)}: its checksum is {checksum:#010x}, and the {self._table} declares "
                f"{member.checksum:#010x}. Repair or replace the file",
                address=self._source.address,
                offset=self._get_offset(member),
            )
