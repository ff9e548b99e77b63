"""Read the members of a zip file by span, or one after the other (APPNOTE.TXT 6.3.10)."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from operator import attrgetter
from types import TracebackType
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.common.gather import map_bounded
from streamloader.common.lru import LruCache
from streamloader.containers.base import Container, ContainerSource, Member
from streamloader.containers.compression import CompressedRange
from streamloader.containers.member_reads import MemberReads
from streamloader.containers.zip.buffered import BufferedSource
from streamloader.containers.zip.directory import CentralDirectory, find_directory, is_directory
from streamloader.containers.zip.fields import STORED
from streamloader.containers.zip.local_header import TYPICAL_EXTRA_BYTES, find_content

__all__ = ["ZipContainer"]

_HEAD_BYTES: Final = 2 << 20  # content that is read together with the local header
_MAX_PIECE_BYTES: Final = 256 << 10  # of a member that is decoded in one go
_SPAN_HEAD_BYTES: Final = 256 << 10  # the same for a part of a member

_FIRST_GROUP_BYTES: Final = 256 << 10  # then twice as many each time, so that the first member is soon there
_MAX_GROUP_BYTES: Final = 4 << 20
_MAX_GROUP_MEMBERS: Final = 4096
_MAX_GROUPED_MEMBER_BYTES: Final = 2 << 20  # larger ones are transferred only when they are read
_MAX_GAP_BYTES: Final = 64 << 10  # between two members, transferred to save a request
_MAX_GROUPS: Final = 3  # in memory, the one in use included

_PAUSE_BYTES: Final = 1 << 20  # of work between two pauses, in about 5 ms
_MEMBER_WORK_BYTES: Final = 4 << 10  # that a member counts as, in addition to its content

_MAX_KNOWN_OFFSETS: Final = 1 << 16


class ZipContainer(Container):
    """A zip file: stored and deflated members, zip64, data descriptors.

    :meth:`scan` yields the members in the order of the central directory, and :meth:`iterate` in the order in which
    they lie in the file, which is the same for all common writers. Where it is not, :meth:`iterate` sorts about 1500
    entries of the directory at a time.

    Names without a sign of their encoding are UTF-8 if the member was made on Unix or macOS and the name is valid
    UTF-8, as by unzip, and CP437 otherwise.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".zip",)

    def __init__(self, source: ContainerSource) -> None:
        super().__init__(source)
        self._data_offsets: LruCache[int, int] = LruCache(
            _MAX_KNOWN_OFFSETS, _MAX_KNOWN_OFFSETS
        )  # by that of the member
        self._reads = MemberReads(source, "directory", attrgetter("offset"))

    # --- the members -------------------------------------------------------------------------------------------------

    @override
    async def _scan(self) -> AsyncGenerator[Member, None]:
        directory = await find_directory(self.source)
        async with contextlib.aclosing(directory.read_blocks()) as blocks:
            async for members in blocks:
                for member in members:
                    if not is_directory(member):
                        yield member

    @override
    async def _iterate(self) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
        directory = await find_directory(self.source)
        groups = map_bounded(self._fetch_group, _plan_groups(directory), limit=_MAX_GROUPS)
        work_bytes = 0
        async with contextlib.aclosing(groups):
            async for group, source in groups:
                for member, end in group.members:
                    pieces = _PassPieces(self, member, self._read_whole(member, source, end))
                    try:
                        yield member, pieces
                    finally:
                        await pieces.expire()
                    work_bytes += _MEMBER_WORK_BYTES + member.size
                    if work_bytes >= _PAUSE_BYTES:  # let other tasks run: a whole group needs no wait otherwise
                        work_bytes = 0
                        await asyncio.sleep(0)

    async def _fetch_group(self, group: _MemberGroup) -> tuple[_MemberGroup, ContainerSource]:
        if group.start == group.end:
            return group, self.source
        return group, await BufferedSource.read_span(self.source, group.start, group.end)

    # --- their bytes -------------------------------------------------------------------------------------------------

    @override
    async def _read(self, member: Member, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if start == 0 and end == member.size:
            pieces = self._read_whole(member, self.source, self.source.size)
        else:
            pieces = self._reads.verify(self, member, self._read_span(member, start, end), start, end)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _read_whole(self, member: Member, source: ContainerSource, end: int) -> AsyncGenerator[bytes, None]:
        """Yield all bytes of a member whose region ends at `end`. They are in memory if `source` has them."""
        self.check_readable(member)
        if not isinstance(source, BufferedSource):  # local header and content in one request
            head_end = member.data + TYPICAL_EXTRA_BYTES + min(member.stored_size, _HEAD_BYTES)
            source = await BufferedSource.read_span(source, member.offset, head_end)
        data = await find_content(source, member)
        data_end = data + member.stored_size
        if data_end > end:
            raise source.make_error("it is damaged or hostile: the member here overlaps the next one", member.offset)
        stored = source.peek(data, data_end) if 0 < member.size <= _MAX_PIECE_BYTES else b""
        if stored and len(stored) == member.stored_size:
            yield self._decode_piece(member, stored)
            return
        if member.method == STORED:
            pieces = source.stream(data, data_end)
        else:
            pieces = CompressedRange(source, "deflate", data, data_end).stream(0)
        async with contextlib.aclosing(self._reads.verify(self, member, pieces, 0, member.size)) as verified:
            async for piece in verified:
                yield piece

    def _decode_piece(self, member: Member, stored: bytes) -> bytes:
        """Return the content of a small member, in a fraction of the time that pieces take."""
        content = stored
        if member.method != STORED:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = inflater.decompress(stored, member.size + 1)
            except zlib.error as error:
                detail = f"its deflate data is damaged: {error}"
                raise self.source.make_error(detail, member.offset) from error
            if len(content) <= member.size and (not inflater.eof or inflater.unused_data):
                raise self.source.make_error("its deflate data is cut, or followed by something else", member.offset)
        self._reads.check_content(self, member, len(content), zlib.crc32(content))
        return content

    async def _read_span(self, member: Member, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield a part of a member's bytes."""
        if start == end:
            return
        source, data = await self._locate(member, end)
        if member.method == STORED:
            pieces = source.stream(data + start, data + end)
        else:
            pieces = self._reads.get_range(member, "deflate", data).stream(start, None if end == member.size else end)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _locate(self, member: Member, end: int) -> tuple[ContainerSource, int]:
        """Return the offset of a member's content, and a source that may have its first bytes in memory.

        Args:
            member: Member to locate.
            end: Offset in the content after the last byte that is needed.
        """
        data = self._data_offsets.get(member.offset)
        if data is not None:
            return self.source, data
        head_bytes = end if member.method == STORED and end <= _SPAN_HEAD_BYTES else 0
        source = await BufferedSource.read_span(
            self.source, member.offset, member.data + TYPICAL_EXTRA_BYTES + head_bytes
        )
        data = await find_content(source, member)
        self._data_offsets.put(member.offset, data, 1)
        return source, data


class _PassPieces(AsyncGenerator[bytes, None]):
    """The bytes of one member in an iteration, until the next member is requested.

    A generator would simply end then, and its bytes would look like a whole member.

    Args:
        container: Container of the member, for errors.
        member: Member.
        pieces: Bytes of the member.
    """

    __slots__ = ("_container", "_is_expired", "_member", "_pieces")

    def __init__(self, container: Container, member: Member, pieces: AsyncGenerator[bytes, None]) -> None:
        self._container = container
        self._member = member
        self._pieces = pieces
        self._is_expired = False

    async def expire(self) -> None:
        """End this member, because the next one is requested."""
        self._is_expired = True
        await self._pieces.aclose()

    @override
    async def asend(self, value: None) -> bytes:
        if self._is_expired:
            raise self._container.make_expired_error(self._member)
        return await anext(self._pieces)

    @override
    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> bytes:
        await self.aclose()
        raise typ if val is None else val

    @override
    async def aclose(self) -> None:
        await self._pieces.aclose()


# --- reading ahead ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _MemberGroup:
    """Members that lie next to each other and are transferred with one request.

    Attributes:
        members: Members, each with the offset at which the next entry begins.
        start: Offset of the first byte to transfer.
        end: Offset after the last one. Equal to `start` if nothing is transferred in advance.
    """

    members: list[tuple[Member, int]] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def add(self, member: Member, next_offset: int, max_bytes: int) -> bool:
        """Add a member. Return False if it does not fit, or is too far away."""
        if len(self.members) == _MAX_GROUP_MEMBERS:
            return False
        if member.problem is None:
            end = min(next_offset, member.data + TYPICAL_EXTRA_BYTES + member.stored_size)
            start = self.start if self.end else member.offset
            gap = member.offset - (self.end or start)
            if not -TYPICAL_EXTRA_BYTES <= gap <= _MAX_GAP_BYTES or (self.members and end - start > max_bytes):
                return False
            self.start, self.end = start, max(self.end, end)
        self.members.append((member, next_offset))
        return True


async def _plan_groups(directory: CentralDirectory) -> AsyncGenerator[_MemberGroup, None]:
    """Divide the members into groups, in the order of their offsets."""
    group, max_bytes = _MemberGroup(), _FIRST_GROUP_BYTES
    async with contextlib.aclosing(_pair_entries(directory)) as entries:
        async for member, next_offset in entries:
            is_alone = member.problem is None and member.stored_size > _MAX_GROUPED_MEMBER_BYTES
            if is_alone or not group.add(member, next_offset, max_bytes):
                if group.members:
                    yield group
                    max_bytes = min(2 * max_bytes, _MAX_GROUP_BYTES)
                group = _MemberGroup()
                if is_alone:
                    yield _MemberGroup([(member, next_offset)])
                else:
                    group.add(member, next_offset, max_bytes)
    if group.members:
        yield group


async def _pair_entries(directory: CentralDirectory) -> AsyncGenerator[tuple[Member, int], None]:
    """Yield the members in the order of their offsets, each with the offset at which the next entry begins."""
    async with contextlib.aclosing(directory.read_blocks()) as blocks:
        async for members in blocks:
            members.sort(key=attrgetter("offset"))
            next_offsets = [member.offset for member in members[1:]]
            for member, next_offset in zip(members, [*next_offsets, directory.start], strict=True):
                if not is_directory(member):
                    yield member, next_offset
