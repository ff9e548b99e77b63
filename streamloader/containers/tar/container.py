"""Read the members of tar files, plain or compressed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.containers.base import Container, ContainerSource, Member, describe_unsafe_name
from streamloader.containers.compression import CompressedRange, CompressionMethod
from streamloader.containers.tar.headers import (
    BLOCK_BYTES,
    Extensions,
    MalformedHeader,
    TarEntry,
    TarHeader,
    parse_header,
    parse_ordinary_member,
    round_up,
)
from streamloader.containers.tar.windows import RangeWindow, StreamWindow, Window
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget

__all__ = ["TarContainer"]

_MAX_EXTENSION_BYTES: Final = 1 << 20  # extended attributes of files can be that long
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_COMPRESSION: Final[dict[str, CompressionMethod]] = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
}


class TarContainer(Container):
    """Members of a tar file: ustar, pax, GNU and V7, plain or compressed with gzip or Zstandard.

    A plain file is scanned by ranged reads that leave out the contents of large members. Members are read by span.
    A compressed file is decompressed for that from a restart point on, see :class:`CompressedRange`.

    A tar file has checksums of headers only. What a compressed one adds is verified when :meth:`scan` or
    :meth:`iterate` come to the end, or, for Zstandard, with each frame.

    The file ends with two blocks of zeros, and with one if nothing follows. What follows two is undefined in POSIX, and
    is ignored. A hard link to an earlier member has that member's content in :meth:`scan`, and a problem in
    :meth:`iterate`, where that content is gone. Offsets in members and errors count decompressed bytes, except in those
    errors that concern the compressed data.

    Args:
        source: Bytes of the container. The end of its path names the compression.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar", *_COMPRESSION)

    def __init__(self, source: ContainerSource) -> None:
        super().__init__(source)
        path = source.info.path.partition("?")[0].lower()
        method = next((method for suffix, method in _COMPRESSION.items() if path.endswith(suffix)), None)
        self._decompressed = None if method is None else CompressedRange(source, method, 0, source.size)

    @override
    async def _scan(self) -> AsyncGenerator[Member, None]:
        budget = ListingBudget(self.source.limits, self.source.address)
        held = ListingBudget(self.source.limits, self.source.address, entry_bytes=HELD_ENTRY_BYTES)
        targets: dict[str, Member] | None = None  # of hard links, which most files do not have
        async with self._open_reader() as reader:
            while (member := await reader.read_next()) is not None:
                budget.count_entry(member.name)
                if reader.link is not None:
                    if targets is None:
                        targets = await self._find_targets(member.offset, held)
                    member = _resolve_link(member, targets.get(reader.link))
                if targets is not None and member.problem is None:
                    held.count_entry(member.name)
                    targets[member.name] = member
                yield member

    @override
    async def _iterate(self) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
        async with contextlib.aclosing(self._stream_bytes(0, None)) as pieces:
            window = self._make_stream_window(pieces)
            reader = _MemberReader(window, self.source)
            while (member := await reader.read_next()) is not None:
                content = _MemberBytes(self, window, member)
                try:
                    yield member, content
                finally:
                    content.expire()

    @override
    def _read(self, member: Member, start: int, end: int) -> AsyncGenerator[bytes, None]:
        return self._stream_bytes(member.data + start, member.data + end)

    def _stream_bytes(self, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        """Return the bytes [start, end) of the tar file. None for `end` stands for its end."""
        if self._decompressed is not None:
            return self._decompressed.stream(start, end)
        return self.source.stream(start, self.source.size if end is None else end)

    @contextlib.asynccontextmanager
    async def _open_reader(self) -> AsyncGenerator[_MemberReader, None]:
        if self._decompressed is None:
            yield _MemberReader(RangeWindow(self.source), self.source)
            return
        async with contextlib.aclosing(self._decompressed.stream(0)) as pieces:
            yield _MemberReader(self._make_stream_window(pieces), self.source)

    def _make_stream_window(self, pieces: AsyncGenerator[bytes, None]) -> StreamWindow:
        return StreamWindow(self.source, None if self._decompressed is not None else self.source.size, pieces)

    async def _find_targets(self, end: int, budget: ListingBudget) -> dict[str, Member]:
        """Return the readable members before the offset `end`, that of the first hard link, by name.

        Only files with hard links pay for this second pass, and for the memory.
        """
        targets: dict[str, Member] = {}
        async with self._open_reader() as reader:
            while (member := await reader.read_next()) is not None and member.offset < end:
                if member.problem is None:
                    budget.count_entry(member.name)
                    targets[member.name] = member
        return targets


class _MemberReader:
    """Reads the headers of a tar file one after the other.

    Args:
        window: Bytes of the tar file.
        source: Bytes of the container, for error messages.

    Attributes:
        link: Name of the target, if the last member is a hard link.
    """

    __slots__ = ("_extensions", "_next", "_source", "_window", "link")

    def __init__(self, window: Window, source: ContainerSource) -> None:
        self._window = window
        self._source = source
        self._extensions = Extensions()
        self._next = 0  # offset of the next header
        self.link: str | None = None

    async def read_next(self) -> Member | None:
        """Return the next member, or None at the end.

        Raises:
            CorruptContainer: If the next header is damaged, or the tar file is cut.
            StoreError: If the store fails otherwise.
        """
        window, extensions = self._window, self._extensions
        while True:
            offset = self._next
            position = offset - window.base
            block = window.piece[position : position + BLOCK_BYTES]
            if len(block) < BLOCK_BYTES:
                block = await window.read(offset, BLOCK_BYTES)
            member = None if extensions.apply else parse_ordinary_member(block, offset, extensions.modified)
            if member is not None:
                self._move_to(member.data + round_up(member.size))
                if extensions.are_pending:
                    extensions.use_up()
                self.link = None
                return member
            if block == _ZERO_BLOCK:
                await self._check_end(offset)
                return None
            if (entry := await self._read_entry(block, offset)) is not None and entry.member is not None:
                self.link = entry.link
                return entry.member

    def _move_to(self, end: int) -> None:
        """Continue at the offset `end`."""
        if end > self._window.size:
            raise self._source.make_error(
                f"it is cut or damaged: what begins here ends at byte {end}, which does not exist", self._next
            )
        self._next = end

    async def _read_entry(self, block: bytes, offset: int) -> TarEntry | None:
        """Return what an unusual header describes. None for extended headers."""
        data = offset + BLOCK_BYTES
        try:
            header = parse_header(block)
            if header.is_extension:
                self._move_to(data + round_up(header.size))
                self._extensions.add(header, await self._read_extension(header, data))
                return None
            if header.continues:
                data = await self._skip_sparse_map(data)
            entry = self._extensions.build_entry(header, offset, data)
        except MalformedHeader as error:
            raise self._source.make_error(f"it is damaged, or no tar file: {error}", offset) from None
        self._move_to(entry.end)
        self._extensions.use_up()
        return entry

    async def _read_extension(self, header: TarHeader, data: int) -> bytes:
        if header.size > _MAX_EXTENSION_BYTES:
            raise MalformedHeader(f"an extended header has {header.size} bytes, more than {_MAX_EXTENSION_BYTES}")
        position = data - self._window.base
        content = self._window.piece[position : position + header.size]
        return content if len(content) == header.size else await self._window.read(data, header.size)

    async def _skip_sparse_map(self, offset: int) -> int:
        """Return the offset after the blocks that continue the map of a sparse file in GNU's old format."""
        continues = True
        while continues:
            block = await self._window.read(offset, BLOCK_BYTES)
            continues = block[504] != 0
            offset += BLOCK_BYTES
        return offset

    async def _check_end(self, offset: int) -> None:
        """Check that the tar file may end with the block of zeros at `offset`, and finish."""
        if self._extensions.are_pending:
            raise self._source.make_error("it is cut: no header follows an extended header", offset)
        following = await self._window.read_available(offset + BLOCK_BYTES, BLOCK_BYTES)
        if following.strip(b"\0"):
            raise self._source.make_error("it is damaged: a header consists of zeros", offset)
        await self._window.finish()


class _MemberBytes(AsyncGenerator[bytes, None]):
    """The bytes of one member, as they arrive in a pass over the tar file.

    This is no generator function, because the event loop registers those when they start, for longer than reading a
    small member takes, and because nothing remains to be closed if the caller does not read to the end.

    Args:
        container: Container of the member.
        window: Bytes of the tar file.
        member: Member.
    """

    __slots__ = ("_container", "_end", "_member", "_offset", "_window")

    def __init__(self, container: Container, window: StreamWindow, member: Member) -> None:
        self._container = container
        self._member = member
        self._window: StreamWindow | None = None
        self._offset = self._end = member.data
        if member.problem is None:
            self._window = window
            self._end += member.size
        else:
            self._end += 1  # the first read raises, even if the member has no bytes

    def expire(self) -> None:
        """End this member, because the next one is requested."""
        self._window = None

    @override
    async def __anext__(self) -> bytes:
        offset = self._offset
        if offset >= self._end:
            raise StopAsyncIteration
        window = self._window
        if window is None:
            raise self._container.make_expired_error(self._member)
        while (position := offset - window.base) >= len(window.piece):
            if not await window.receive():
                raise window.make_cut_error(self._member.offset)
        part = window.piece[position : position + self._end - offset]
        self._offset = offset + len(part)
        return part

    @override
    async def asend(self, value: None) -> bytes:
        return await self.__anext__()

    @override
    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> bytes:
        await self.aclose()
        raise typ if val is None else val

    @override
    async def aclose(self) -> None:
        self._end = self._offset


def _resolve_link(link: Member, target: Member | None) -> Member:
    """Return a hard link as a member of its own, with the content of its target."""
    problem = describe_unsafe_name(link.name)
    if target is None:
        problem = f"{link.problem} without an earlier member that it names"
        target = link
    return Member(link.name, target.size, link.offset, target.data, target.size, 0, None, link.modified, problem)
