"""Read the members of a pack in any store by span, or one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncGenerator, Iterator
from operator import attrgetter
from types import TracebackType
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, ContainerSource, Member, describe_unsafe_name
from streamloader.containers.compression import CompressedRange, CompressionMethod
from streamloader.containers.member_reads import MemberReads
from streamloader.containers.pack.content import decompress_member
from streamloader.containers.pack.format import (
    CUSTOM,
    FOOTER_BYTES,
    HEADER,
    STORED,
    ZLIB,
    ZSTD,
    MalformedPack,
    PackFooter,
    PackIndex,
    check_header,
    parse_footer,
)
from streamloader.containers.pack.passing import PassSource
from streamloader.errors import LimitExceeded, NotSupported

__all__ = ["PackContainer", "read_index_bytes"]

_TAIL_BYTES: Final = 64 << 10  # footer, and the index of about 1,000 members
_MAX_PIECE_BYTES: Final = 256 << 10  # of a member that is decoded in one go
_MAX_INLINE_BYTES: Final = 1 << 20  # of an index that is parsed on the event loop
_METHODS: Final[dict[int, CompressionMethod]] = {ZLIB: "zlib", ZSTD: "zstd"}


class PackContainer(Container):
    """A pack: an index at the end of the file, and the bytes of the members, each stored or compressed by itself.

    The index is read in one request, or in two if it has more than 64 KiB. :meth:`iterate` then receives the members in
    one stream. The offset of a member is that of its entry in the index, because empty members share their bytes'
    offset with the next one.

    Packs that were made with a compressor or serializer of the user are not supported: `VirtualDirectory` opens them.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".pack",)

    def __init__(self, source: ContainerSource) -> None:
        super().__init__(source)
        self._reads = MemberReads(source, "index", attrgetter("data"))

    # --- the members -------------------------------------------------------------------------------------------------

    @override
    async def _scan(self) -> AsyncGenerator[Member, None]:
        footer, index = await self._read_index()
        blocks = self._make_blocks(footer, index)
        while (members := next(blocks, None)) is not None:
            for member in members:
                yield member
            await asyncio.sleep(0)

    @override
    async def _iterate(self) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
        footer, index = await self._read_index()
        if not len(index):
            return
        async with contextlib.aclosing(PassSource(self.source, footer.index_offset)) as source:
            self._check_header(await source.read(0, len(HEADER)))
            for members in self._make_blocks(footer, index):
                for member in members:
                    pieces = _PassMember(self, source, member)
                    try:
                        yield member, pieces
                    finally:
                        await pieces.expire()
                await asyncio.sleep(0)

    async def _read_index(self) -> tuple[PackFooter, PackIndex]:
        footer, data, base = await read_index_bytes(self.source)
        try:
            if footer.index_size > _MAX_INLINE_BYTES:
                index = await asyncio.to_thread(PackIndex, data, footer, base)
            else:
                index = PackIndex(data, footer, base)
        except MalformedPack as error:
            raise self.source.make_error(str(error), error.offset) from None
        self._check_supported(index)
        return footer, index

    def _make_blocks(self, footer: PackFooter, index: PackIndex) -> Iterator[list[Member]]:
        """Yield the members of some thousand rows at a time."""
        try:
            for start, names in index.blocks():
                yield _make_members(footer, index, start, names)
        except MalformedPack as error:
            raise self.source.make_error(str(error), error.offset) from None

    def _check_header(self, data: bytes | memoryview) -> None:
        try:
            check_header(data)
        except MalformedPack as error:
            raise self.source.make_error(str(error), error.offset) from None

    def _check_supported(self, index: PackIndex) -> None:
        is_custom = index.methods is not None and bool((index.methods == CUSTOM).any())
        if not is_custom and "serializer" not in index.metadata:
            return
        classes = " and ".join(
            f"the {kind} {make_printable(index.metadata[kind])}"
            for kind in ("serializer", "compressor")
            if kind in index.metadata
        )
        raise NotSupported(
            f"{self.source.address} was made with {classes or 'a compressor that it does not name'}, and only "
            "VirtualDirectory opens it, with these objects as its arguments",
            address=self.source.address,
            offset=0,
        )

    # --- their bytes -------------------------------------------------------------------------------------------------

    @override
    async def _read(self, member: Member, start: int, end: int) -> AsyncGenerator[bytes, None]:
        if start == 0 and end == member.size:
            pieces = self.read_whole(member, self.source)
        elif member.method == STORED:
            pieces = self._reads.verify(
                self, member, self.source.stream(member.data + start, member.data + end), start, end
            )
        else:
            stop = None if end == member.size else end
            pieces = self._reads.verify(
                self,
                member,
                self._reads.get_range(member, _METHODS[member.method], member.data).stream(start, stop),
                start,
                end,
            )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def read_whole(self, member: Member, source: ContainerSource) -> AsyncGenerator[bytes, None]:
        """Yield all bytes of a member from a source that has its stored bytes."""
        self.check_readable(member)
        data_end = member.data + member.stored_size
        if self.is_small(member):
            yield self.decode_piece(member, await source.read(member.data, data_end) if member.stored_size else b"")
            return
        if member.method == STORED:
            pieces = source.stream(member.data, data_end)
        else:
            pieces = CompressedRange(source, _METHODS[member.method], member.data, data_end).stream(0)
        async with contextlib.aclosing(self._reads.verify(self, member, pieces, 0, member.size)) as verified:
            async for piece in verified:
                yield piece

    def is_small(self, member: Member) -> bool:
        """Return whether :meth:`decode_piece` is for this member."""
        return member.size <= _MAX_PIECE_BYTES and member.stored_size <= 2 * _MAX_PIECE_BYTES and not member.problem

    def decode_piece(self, member: Member, stored: bytes) -> bytes:
        """Return the content of a small member, in a fraction of the time that pieces take."""
        try:
            content = bytes(decompress_member(member.method, stored, member.size))
        except ValueError as error:
            detail = f"the member {make_printable(member.name)}: {error}"
            raise self.source.make_error(detail, member.data) from error
        self._reads.check_content(self, member, len(content), zlib.crc32(content))
        return content


class _PassMember(AsyncGenerator[bytes, None]):
    """The bytes of one member, until the next member is requested.

    This is no generator function, because the event loop registers those when they start, for longer than reading a
    small member takes.

    Args:
        container: Container of the member.
        source: Stored bytes of the pack.
        member: Member.
    """

    __slots__ = ("_container", "_is_expired", "_is_finished", "_member", "_pieces", "_source")

    def __init__(self, container: PackContainer, source: PassSource, member: Member) -> None:
        self._container = container
        self._source = source
        self._member = member
        self._pieces: AsyncGenerator[bytes, None] | None = None
        self._is_expired = self._is_finished = False

    async def expire(self) -> None:
        """End this member, because the next one is requested."""
        self._is_expired = True
        if self._pieces is not None:
            await self._pieces.aclose()

    @override
    async def __anext__(self) -> bytes:
        if self._is_finished:
            raise StopAsyncIteration
        if self._is_expired:
            raise self._container.make_expired_error(self._member)
        if self._pieces is None:
            member, source = self._member, self._source
            stored = source.peek(member.data, member.data + member.stored_size)
            if len(stored) == member.stored_size and self._container.is_small(member):
                self._is_finished = True
                if content := self._container.decode_piece(member, stored):
                    return content
                raise StopAsyncIteration
            self._pieces = self._container.read_whole(member, source)
        return await anext(self._pieces)

    @override
    async def asend(self, value: None) -> bytes:
        return await self.__anext__()

    @override
    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> bytes:
        await self.aclose()
        raise typ if val is None else val

    @override
    async def aclose(self) -> None:
        self._is_finished = True
        if self._pieces is not None:
            await self._pieces.aclose()


async def read_index_bytes(source: ContainerSource) -> tuple[PackFooter, bytes | memoryview, int]:
    """Return the footer of a pack, bytes that contain its index, and the offset of the index in these.

    This takes one request, or two if the index has more than 64 KiB.

    Raises:
        CorruptContainer: If it is no pack, or if it is cut or damaged. The index itself is not checked.
        LimitExceeded: If it has too many members; see :class:`streamloader.config.Limits`.
        StoreError: If the store fails otherwise.
    """
    tail_start = max(0, source.size - _TAIL_BYTES)
    data: bytes | memoryview = await source.read(tail_start, source.size)
    try:
        if tail_start == 0:
            check_header(data[: len(HEADER)])
        footer = parse_footer(data[-FOOTER_BYTES:], source.size)
    except MalformedPack as error:
        raise source.make_error(str(error), error.offset) from None
    _check_limits(footer, source)
    base = footer.index_offset - tail_start
    if base < 0:
        data, base = await _receive(source, footer.index_offset, source.size - FOOTER_BYTES), 0
    return footer, data, base


def _check_limits(footer: PackFooter, source: ContainerSource) -> None:
    limits, address = source.limits, source.address
    if footer.count > limits.listed:
        raise LimitExceeded(
            f"{address}: it has {footer.count} members, more than {limits.listed}: raise Limits(listed=...)",
            address=address,
        )
    if footer.index_size > limits.listing_bytes:
        raise LimitExceeded(
            f"{address}: its index has {footer.index_size} bytes, more than {limits.listing_bytes}: raise "
            "Limits(listing_bytes=...)",
            address=address,
        )


async def _receive(source: ContainerSource, start: int, end: int) -> memoryview:
    """Return the bytes [start, end). They are received where they stay: joining pieces takes twice the memory."""
    data = bytearray(end - start)
    position = 0
    async with contextlib.aclosing(source.stream(start, end)) as pieces:
        async for piece in pieces:
            data[position : position + len(piece)] = piece
            position += len(piece)
    return memoryview(data).toreadonly()


def _make_members(footer: PackFooter, index: PackIndex, start: int, names: list[bytes]) -> list[Member]:
    end = start + len(names)
    starts = index.starts[start : end + 1].tolist()
    sizes = (
        index.starts[start + 1 : end + 1] - index.starts[start:end] if index.sizes is None else index.sizes[start:end]
    )
    methods = [STORED] * len(names) if index.methods is None else index.methods[start:end].tolist()
    rows = zip(
        names,
        sizes.tolist(),
        range(footer.index_offset + footer.width * start, footer.index_offset + footer.width * end, footer.width),
        starts,
        starts[1:],
        methods,
        index.checksums[start:end].tolist(),
        index.modified[start:end].tolist(),
        strict=False,
    )
    return [
        Member(
            text := name.decode("utf-8", "surrogateescape"),
            size,
            offset,
            data,
            data_end - data,
            method,
            checksum,
            modified / 1e9 if modified else None,
            describe_unsafe_name(text) if text[1:2] == ":" else None,  # the format has excluded all others
        )
        for name, size, offset, data, data_end, method, checksum, modified in rows
    ]
