"""Read packs that are mapped into memory: members are views of the mapping, and nothing is copied."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from mmap import mmap
from types import TracebackType
from typing import Any, Final, Self

from streamloader.common.printable import make_printable
from streamloader.config import Limits
from streamloader.containers.pack.content import decompress_member, expands_too_much
from streamloader.containers.pack.format import (
    CUSTOM,
    FOOTER_BYTES,
    STORED,
    MalformedPack,
    PackBytes,
    PackCompressor,
    PackFooter,
    PackIndex,
    check_header,
    describe_class,
    make_view,
    parse_footer,
)
from streamloader.containers.pack.mapping import map_file
from streamloader.errors import ClosedError, CorruptContainer, IntegrityError, LimitExceeded, NotSupported

__all__ = ["MappedPack"]

_DEFAULT_LIMITS: Final = Limits()


class MappedPack:
    """A pack in memory: a file that is mapped, or bytes. Many threads and forked processes can read it at once.

    Views keep the mapping alive, also after :meth:`close`. A pack is never altered in place: when
    :func:`~streamloader.containers.pack.build.write_pack` replaces it, this one still shows the old members. If another
    program makes the file shorter in place, reading it ends the process with SIGBUS, as with every mapped file.

    Args:
        data: Bytes of the pack.
        address: Address of the pack, for messages.
        compressor: Compressor of the members, if it is one of the user. Defaults to None.
        limits: Limits of the index, and of decompressed members. Defaults to those of stores.

    Attributes:
        index: Names, offsets and checksums of the members.
        find: Function that returns the row of a member by its name, and None if there is no such member. It is made on
            first use, in some milliseconds for 100,000 members.
        view: Function that returns the stored bytes of a row, without a copy. They may be compressed. A row that does
            not exist is an IndexError.

    Raises:
        CorruptContainer: If the pack is cut, damaged or malformed.
    """

    __slots__ = (
        "_checksums",
        "_compressor",
        "_data",
        "_is_closed",
        "_limits",
        "_methods",
        "_starts",
        "address",
        "find",
        "index",
        "view",
    )

    index: PackIndex
    find: Callable[[str], int | None]
    view: Callable[[int], memoryview]

    def __init__(
        self,
        data: PackBytes,
        *,
        address: str = "a pack in memory",
        compressor: PackCompressor | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.address = address
        self._compressor = compressor
        self._limits = limits or _DEFAULT_LIMITS
        self._data = memoryview(data).cast("B").toreadonly()
        try:
            check_header(self._data[:16])
            footer = parse_footer(self._data[-FOOTER_BYTES:], len(self._data))
            self._check_limits(footer)
            self.index = PackIndex(data if isinstance(data, bytes | mmap) else self._data, footer, footer.index_offset)
        except MalformedPack as error:
            raise self._make_error(str(error), error.offset) from None
        self._starts, self._checksums = self.index.starts_view, make_view(self.index.checksums)
        self._methods = None if self.index.methods is None else make_view(self.index.methods)
        self.view = _make_viewer(self._data, self._starts)
        self._is_closed = False

    def _check_limits(self, footer: PackFooter) -> None:
        """Check the size of the index before memory is allocated for it: a file with holes can be of any size."""
        checks = (("listed", footer.count, "members"), ("listing_bytes", footer.index_size, "bytes in its index"))
        for name, found, unit in checks:
            if found > (allowed := getattr(self._limits, name)):
                raise LimitExceeded(
                    f"{self.address}: it has {found} {unit}, more than {allowed}: raise Limits({name}=...)",
                    address=self.address,
                )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, compressor: PackCompressor | None = None, limits: Limits | None = None
    ) -> Self:
        """Map a file. No descriptor of it stays open.

        Args:
            path: Path of the pack.
            compressor: Compressor of the members, if it is one of the user. Defaults to None.
            limits: Limits for decompressed members. Defaults to those of stores.

        Raises:
            CorruptContainer: If the pack is cut, damaged or malformed.
            LimitExceeded: If its index is too large.
            OSError: If the file cannot be opened or mapped.
        """
        address = os.path.abspath(path)
        return cls(map_file(address), address=address, compressor=compressor, limits=limits)

    @classmethod
    def from_bytes(
        cls,
        data: bytes | memoryview,
        *,
        address: str = "a pack in memory",
        compressor: PackCompressor | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Read a pack in memory, such as `io.BytesIO.getbuffer()`. The bytes are not copied.

        Args:
            data: Bytes of the pack.
            address: Address of the pack, for messages.
            compressor: Compressor of the members, if it is one of the user. Defaults to None.
            limits: Limits for decompressed members. Defaults to those of stores.

        Raises:
            CorruptContainer: If the pack is cut, damaged or malformed.
        """
        return cls(data, address=address, compressor=compressor, limits=limits)

    def __len__(self) -> int:
        return len(self.index)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def views(self) -> Iterator[memoryview]:
        """Yield the stored bytes of all members in the order of the rows, as :meth:`view` does."""
        data = self._data
        for start, end in pairwise(self._starts):
            yield data[start:end]

    def items(self) -> Iterator[tuple[str, memoryview]]:
        """Yield name and stored bytes of all members in the order of the rows."""
        return zip(self.index.names(), self.views(), strict=True)

    def read(self, row: int, verify: bool = True) -> bytes | memoryview:
        """Return the content of a member: a view without a copy if it is stored as it is, and bytes otherwise.

        Args:
            row: Row of the member.
            verify: Whether to compare the content with its checksum. Defaults to True.

        Raises:
            IndexError: If there is no such row.
            CorruptContainer: If the content cannot be decompressed.
            IntegrityError: If the content differs from its checksum.
            LimitExceeded: If it expands too much, see :class:`streamloader.config.Limits`.
            NotSupported: If a compressor of the user has compressed it, which was not given.
            MissingDependency: If it is compressed with zstd, and the package for that is not installed.
            ClosedError: If the pack is closed.
        """
        return self.decode(row, self.view(row), verify)

    def decode(self, row: int, stored: bytes | memoryview, verify: bool = True) -> bytes | memoryview:
        """Return the content of a member from its stored bytes. Arguments and errors are those of :meth:`read`."""
        content = stored
        if self._methods is not None and self._methods[row] != STORED:
            content = self._decompress(row, content)
        if verify and (checksum := zlib.crc32(content)) != self._checksums[row]:
            raise IntegrityError(
                f"{self._describe(row)}: its checksum is {checksum:#010x}, and the index declares "
                f"{self._checksums[row]:#010x}. Repair or replace the file",
                address=self.address,
                offset=self._starts[row],
            )
        return content

    def _decompress(self, row: int, stored: bytes | memoryview) -> bytes | memoryview:
        assert self._methods is not None
        assert self.index.sizes is not None
        size = int(self.index.sizes[row])
        if expands_too_much(len(stored), size, self._limits):
            raise LimitExceeded(
                f"{self._describe(row)}: {len(stored)} bytes expand to {size}, as only files do that are made to "
                "exhaust their readers. If you trust this one, raise Limits(expansion_ratio=...)",
                address=self.address,
                offset=self._starts[row],
            )
        compressor = self._get_compressor(row) if self._methods[row] == CUSTOM else None
        try:
            if compressor is not None:
                return _use_compressor(compressor, stored, size)
            return decompress_member(self._methods[row], stored, size)
        except ValueError as error:
            raise self._make_error(f"the member {self._get_name(row)}: {error}", self._starts[row]) from error

    def _get_compressor(self, row: int) -> PackCompressor:
        if self._compressor is None:
            name = make_printable(self.index.metadata.get("compressor"))
            raise NotSupported(
                f"{self._describe(row)}: only the compressor {name} can decompress it: pass compressor=",
                address=self.address,
                offset=self._starts[row],
            )
        return self._compressor

    # --- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the mapping, which ends when the last view of it is gone. May be called more than once."""
        if not self._is_closed:
            self._is_closed = True
            for name in _GONE_WHEN_CLOSED:
                with contextlib.suppress(AttributeError):  # `find` may never have been used
                    delattr(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """Make `find` when it is first needed, and raise the error for a closed pack, whose attributes are gone."""
        if name not in _GONE_WHEN_CLOSED:
            raise AttributeError(f"MappedPack has no attribute {name!r}")
        if name != "find" or self._is_closed:
            raise ClosedError(f"{self.address} is closed", address=self.address)
        self.find = self.index.find
        return self.find

    # --- messages ----------------------------------------------------------------------------------------------------

    def _get_name(self, row: int) -> str:
        return make_printable(self.index.name(row))

    def _describe(self, row: int) -> str:
        return f"{self.address}!/{self._get_name(row)}"

    def _make_error(self, detail: str, offset: int) -> CorruptContainer:
        return CorruptContainer(
            f"{self.address}, byte {offset}: {detail}. Repair or replace the file", address=self.address, offset=offset
        )


_GONE_WHEN_CLOSED: Final = frozenset({"_data", "_starts", "_checksums", "_methods", "index", "find", "view"})


def _make_viewer(data: memoryview, starts: memoryview) -> Callable[[int], memoryview]:
    """Return the function `view`: a closure, because reading its variables takes less time than reading attributes."""

    def view(row: int, /) -> memoryview:
        if row < 0:
            raise IndexError(f"a pack has no row {row}")
        return data[starts[row] : starts[row + 1]]

    return view


def _use_compressor(compressor: PackCompressor, stored: bytes | memoryview, size: int) -> bytes:
    """Return what a compressor of the user makes of the stored bytes.

    Raises:
        ValueError: If it fails, or returns another number of bytes than `size`.
    """
    try:
        content = compressor.decompress(bytes(stored))
    except Exception as error:  # of any kind: the compressor is the user's
        raise ValueError(f"{describe_class(compressor)} cannot decompress it") from error
    if len(content) != size:
        raise ValueError(f"it decompresses to {len(content)} bytes, and not to the declared {size}")
    return content
