"""Define what a container is: one object of a store that holds named members, such as a tar file.

A class of a format says how members are found (:meth:`Container._scan`) and how their bytes are read
(:meth:`Container._read`). The public methods are implemented here: they check what the format's class returns, so a
caller receives exactly the bytes of a member, or one typed error. Nothing is ever written to disk.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import AsyncGenerator
from typing import ClassVar, Final, NamedTuple

from streamloader.common.printable import make_printable
from streamloader.config import Limits
from streamloader.errors import ClosedError, CorruptContainer, NotSupported
from streamloader.stores.base import Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Container", "ContainerSource", "Member", "describe_unsafe_name"]

_MAX_NAME_BYTES: Final = 4096  # PATH_MAX of Linux


class Member(NamedTuple):  # a million of them are made for a large container, and a dataclass takes four times as long
    """One member of a container. Directories are not members.

    Attributes:
        name: Name within the container, without leading "./": segments joined by "/".
        size: Size of the content in bytes.
        offset: Offset of the member's header, for error messages and as its identity. In a compressed tar file it
            counts decompressed bytes.
        data: Offset of the content. What it counts is up to the format.
        stored_size: Number of bytes that the content takes in the container.
        method: Number of the compression method in the format. Defaults to 0: none.
        checksum: CRC-32 of the content. None if the format has none.
        modified: Time of the last modification, in seconds since 1970. None if unknown.
        problem: Reason why the content is never read, such as "a symbolic link". None for ordinary files.
    """

    name: str
    size: int
    offset: int
    data: int
    stored_size: int
    method: int = 0
    checksum: int | None = None
    modified: float | None = None
    problem: str | None = None


class ContainerSource:
    """The bytes of a container: one object of a store, in one version.

    Args:
        store: Store of the object.
        info: Metadata of the object. Its size is known.

    Attributes:
        address: Address of the object without secrets, for messages.
        size: Size of the object in bytes.
        info: Metadata of the object.
        limits: Limits of the store.
    """

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        assert info.size is not None
        self._store = store
        self.info = info
        self.address = store.address(info.path)
        self.size = info.size
        self.limits: Limits = store.limits

    async def read(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end).

        Raises:
            CorruptContainer: If the object ends before `end`.
            StoreError: If the store fails to deliver them.
        """
        self._check_range(start, end)
        return await self._store.read(
            self.info.path, ByteRange(start, end), version=self.info.version, size=self.info.size
        )

    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end) in pieces. Errors are those of :meth:`read`."""
        self._check_range(start, end)
        if start == end:
            return
        pieces = self._store.stream(
            self.info.path, ByteRange(start, end), version=self.info.version, size=self.info.size
        )
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    def make_error(self, detail: str, offset: int) -> CorruptContainer:
        """Build the error for a container that is cut, damaged or malformed at `offset`."""
        return CorruptContainer(
            f"{self.address}, byte {offset}: {detail}. Repair or replace the file", address=self.address, offset=offset
        )

    def _check_range(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self.size:
            raise self.make_error(f"it is cut: it has {self.size} bytes, and {end} are needed", min(start, self.size))


class Container(abc.ABC):
    """Members of one object, read by span from any store. It belongs to one event loop, and keeps no connection.

    Args:
        source: Bytes of the container.

    Attributes:
        suffixes: Endings of the names of such files, in lower case.
        source: Bytes of the container.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: ContainerSource) -> None:
        self.source = source

    # --- public methods ----------------------------------------------------------------------------------------------

    async def scan(self) -> AsyncGenerator[Member, None]:
        """Yield all members, in the order in which the container lists them. A name may occur more than once.

        Raises:
            CorruptContainer: If the container is cut, damaged or malformed.
            LimitExceeded: If it has too many members; see :class:`streamloader.config.Limits`.
            StoreError: If the store fails otherwise.
        """
        async with contextlib.aclosing(self._scan()) as members:
            async for member in members:
                yield member

    async def stream(self, member: Member, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end) of a member, in pieces. Close the generator unless you exhaust it.

        Args:
            member: Member, from :meth:`scan` of this container.
            start: Offset of the first byte. Defaults to 0.
            end: Offset after the last byte. Defaults to the end of the member.

        Raises:
            NotSupported: If the member is no ordinary file.
            CorruptContainer: If the bytes cannot be decompressed, or the container is cut.
            IntegrityError: If the whole member is read and its checksum is wrong. The error comes with the last piece.
            StoreError: If the store fails otherwise.
        """
        self.check_readable(member)
        start, end = ByteRange(start, end).within(member.size, self.describe(member))
        received = 0
        async with contextlib.aclosing(self._read(member, start, end)) as pieces:
            async for piece in pieces:
                received += len(piece)
                if received > end - start:
                    break
                if piece:
                    yield piece
        if received != end - start:
            raise self.source.make_error(
                f"the member {make_printable(member.name)} has other than its declared {member.size} bytes",
                member.offset,
            )

    async def iterate(self) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
        """Yield each member with its bytes, in one pass over the container, while the rest of it still arrives.

        The bytes of a member can be read until the next member is requested. What was not read is skipped.

        Raises:
            CorruptContainer: If the container is cut, damaged or malformed.
            StoreError: If the store fails otherwise.
        """
        async with contextlib.aclosing(self._iterate()) as members:
            async for pair in members:
                yield pair

    def check_readable(self, member: Member) -> None:
        """Check that a member is an ordinary file.

        Raises:
            NotSupported: If it is a link, a device or something else that has no bytes of its own, if its name is
                unsafe, or if its format is not supported.
        """
        if member.problem is not None:
            raise NotSupported(
                f"{self.describe(member)}: it is {member.problem}, which is never read",
                address=self.source.address,
                offset=member.offset,
            )

    def describe(self, member: Member) -> str:
        """Return the address of a member, for messages."""
        return f"{self.source.address}!/{make_printable(member.name)}"

    def make_expired_error(self, member: Member) -> ClosedError:
        """Build the error for reading a member of :meth:`iterate` after the next one was requested.

        Raises:
            NotSupported: If the member could not be read before, either.
        """
        self.check_readable(member)
        return ClosedError(
            f"{self.describe(member)}: its bytes can be read only until the next member is requested",
            address=self.source.address,
            offset=member.offset,
        )

    # --- methods to implement ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _scan(self) -> AsyncGenerator[Member, None]:
        """Yield all members in their order, those with a `problem` too, without directories."""

    @abc.abstractmethod
    def _read(self, member: Member, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end) of an ordinary member. The caller counts them."""

    @abc.abstractmethod
    def _iterate(self) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
        """Yield each member with its bytes."""


def describe_unsafe_name(name: str) -> str | None:
    """Return what is unsafe about the name of a member, for :attr:`Member.problem`. None if nothing is.

    Args:
        name: Name as it is stored, without a leading "./".
    """
    if not name or "\0" in name:
        return "a member with an invalid name"
    if name.startswith("/") or name[1:3] in (":/", ":\\"):
        return "a member with an absolute name"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "a member whose name contains an empty, '.' or '..' part"
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES:
        return f"a member whose name has more than {_MAX_NAME_BYTES} bytes"
    return None
