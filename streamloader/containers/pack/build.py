"""Write packs: to any file object, or atomically to a path."""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.containers.pack.block_checksums import BLOCK_CHECKSUMS_KEY, BlockChecksums
from streamloader.containers.pack.format import (
    CUSTOM,
    HEADER,
    MAX_MEMBERS,
    MAX_NAMES_BYTES,
    STORED,
    ZLIB,
    ZSTD,
    PackCompressor,
    PackFooter,
    describe_class,
    describe_invalid_name,
    encode_name,
    pack_footer,
    pack_index,
    round_up,
)

__all__ = ["PackBuilder", "PackData", "PackMember", "PackOutput", "create_pack", "get_method", "write_pack"]

PackData: TypeAlias = bytes | bytearray | memoryview

_MAX_NARROW: Final = (1 << 32) - 1  # largest offset of 4 bytes
_UNFINISHED_PREFIX: Final = ".streamloader-new-"  # that of a local store, whose listings leave such files out
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_BUFFER_BYTES: Final = 1 << 20


class PackMember(NamedTuple):
    """A member to write.

    Attributes:
        name: Name: segments joined by "/".
        data: Content.
        modified: Time of the last modification in nanoseconds since 1970. Defaults to 0: unknown.
    """

    name: str
    data: PackData
    modified: int = 0


class PackOutput(Protocol):
    """Destination of a pack: an object with `write`."""

    def write(self, data: PackData, /) -> int | None:
        """Write bytes, and return their number. None stands for all of them."""


class PackBuilder:
    """Writes a pack: add all members in ascending order of the bytes of their names, then call :meth:`finish`.

    Members are written at once; for each of them, about 40 bytes besides its name stay in memory. A pack can be read
    only after :meth:`finish`. When the file object fails, the pack cannot be completed.

    Args:
        file: Destination, such as a file in binary mode or :class:`io.BytesIO`, at its beginning. It is not closed.
        compressor: Compressor of the members. One with an attribute `method` (1 for zlib, 2 for Zstandard) makes packs
            that open without it; members that it does not make smaller are stored as they are. Any other one, also with
            another `method`, compresses all members, and is named in the metadata. Defaults to None: members are stored
            as they are.
        metadata: Metadata, which JSON can express. Defaults to none.

    Attributes:
        metadata: Metadata, which can be changed until :meth:`finish`.
    """

    def __init__(
        self,
        file: PackOutput,
        *,
        compressor: PackCompressor | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._file = file
        self._compressor = compressor
        self._method = STORED if compressor is None else get_method(compressor)
        self.metadata = dict(metadata or {})
        if self._method == CUSTOM:
            self.metadata.setdefault("compressor", describe_class(compressor))
        self._starts, self._sizes = array("Q"), array("Q")
        self._modified = array("q")
        self._hashes, self._checksums = array("I"), array("I")
        self._methods = array("B")
        self._blocks = BlockChecksums()
        self._names, self._name_ends = bytearray(), array("I", [0])
        self._last = b""
        self._offset = 0
        self._is_usable = True
        self._write(HEADER)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, name: str, data: PackData, *, modified: int = 0) -> None:
        """Add a member.

        Args:
            name: Name: segments joined by "/". In ascending order of its bytes in UTF-8.
            data: Content.
            modified: Time of the last modification in nanoseconds since 1970. Defaults to 0: unknown.

        Raises:
            ValueError: If a pack cannot hold the name, or if the name is not after the one before.
            OSError: If the file object fails. The pack cannot be completed then.
        """
        encoded = self._check_name(name)
        content = data if isinstance(data, bytes) else memoryview(data).cast("B")
        stored, method = self._compress(content)
        start = self._offset
        self._is_usable = False  # nobody knows what was written when the file object fails
        self._write(stored)
        self._blocks.add_bytes(stored)
        self._note_member(encoded, start, len(content), modified, zlib.crc32(content), method)
        self._is_usable = True

    def add_stream(self, name: str, pieces: Iterable[PackData], *, size: int | None = None, modified: int = 0) -> None:
        """Add a member of any size without holding it in memory. It is stored as it is.

        Args:
            name: Name, as for :meth:`add`.
            pieces: Content in pieces.
            size: Expected size in bytes. Defaults to None: any.
            modified: Time of the last modification in nanoseconds since 1970. Defaults to 0: unknown.

        Raises:
            ValueError: If a pack cannot hold the name, if the name is not after the one before, if a compressor is used
                that the metadata name, or if the content has another size. In the last case, the pack cannot be
                completed.
            OSError: If the file object fails. The pack cannot be completed then.
        """
        encoded = self._check_name(name)
        if self._method == CUSTOM:
            raise ValueError(f"{describe_class(self._compressor)} compresses whole members only")
        start, checksum = self._offset, 0
        self._is_usable = False
        for piece in pieces:
            content = memoryview(piece).cast("B")
            self._write(content)
            self._blocks.add_bytes(content)
            checksum = zlib.crc32(content, checksum)
        if size not in (None, self._offset - start):
            raise ValueError(f"{make_printable(name)} has {self._offset - start} bytes instead of {size}")
        self._note_member(encoded, start, self._offset - start, modified, checksum, STORED)
        self._is_usable = True

    def finish(self) -> int:
        """Write the index and the footer, and return the size of the pack in bytes. Nothing can be added afterwards.

        Raises:
            ValueError: If JSON cannot express the metadata, or if they are too long.
            OSError: If the file object fails. The pack cannot be completed then.
        """
        self._check_usable()
        end = self._offset
        width = 4 if max(end, max(self._sizes, default=0)) <= _MAX_NARROW else 8
        parts, footer = self._pack_index(width)
        self._is_usable = False
        self._write(bytes(round_up(end) - end))
        footer = replace(footer, index_offset=self._offset)
        while parts:
            self._write(parts.pop(0))
        self._write(pack_footer(footer))
        return self._offset

    def _pack_index(self, width: int) -> tuple[list[bytes | bytearray], PackFooter]:
        """Return the index, with the checksums of blocks if none is compressed and the metadata have room for them."""
        columns, names = self._collect_columns(), bytes(self._names)
        metadata = {key: value for key, value in self.metadata.items() if key != BLOCK_CHECKSUMS_KEY}
        checksums = None if any(self._methods) else self._blocks.finish()
        if checksums is not None:
            with contextlib.suppress(ValueError):
                return pack_index(columns, names, metadata | {BLOCK_CHECKSUMS_KEY: checksums}, width)
        return pack_index(columns, names, metadata, width)

    def _collect_columns(self) -> dict[str, Any]:
        columns = {
            "starts": np.append(np.frombuffer(self._starts, np.uint64), np.uint64(self._offset)),
            "modified": np.frombuffer(self._modified, np.int64),
            "hashes": np.frombuffer(self._hashes, np.uint32),
            "checksums": np.frombuffer(self._checksums, np.uint32),
            "name_ends": np.frombuffer(self._name_ends, np.uint32),
        }
        if any(self._methods):
            columns["sizes"] = np.frombuffer(self._sizes, np.uint64)
            columns["methods"] = np.frombuffer(self._methods, np.uint8)
        return columns

    def _check_name(self, name: str) -> bytes:
        self._check_usable()
        try:
            encoded = encode_name(name)
        except UnicodeEncodeError as error:
            raise ValueError(f"a pack cannot hold the name {make_printable(name)}: it is no text") from error
        if (problem := describe_invalid_name(encoded)) is not None:
            raise ValueError(f"a pack cannot hold the name {make_printable(name)!r}: {problem}")
        if encoded <= self._last:
            last = make_printable(self._last.decode("utf-8", "surrogateescape"))
            raise ValueError(
                f"add members in ascending order of the bytes of their names, each name once: {make_printable(name)!r} "
                f"came after {last!r}"
            )
        if len(self) == MAX_MEMBERS or len(self._names) + len(encoded) > MAX_NAMES_BYTES:
            raise ValueError("the pack has the maximum number of members or bytes of names: make several packs")
        return encoded

    def _check_usable(self) -> None:
        if not self._is_usable:
            raise ValueError("the pack is finished, or an error has ended it: make a new one")

    def _compress(self, content: bytes | memoryview) -> tuple[bytes | memoryview, int]:
        if self._compressor is None:
            return content, STORED
        stored = self._compressor.compress(bytes(content))
        if self._method != CUSTOM and len(stored) >= len(content):
            return content, STORED
        return stored, self._method

    def _note_member(self, name: bytes, start: int, size: int, modified: int, checksum: int, method: int) -> None:
        self._starts.append(start)
        self._sizes.append(size)
        self._modified.append(modified)
        self._checksums.append(checksum)
        self._methods.append(method)
        self._names += name
        self._name_ends.append(len(self._names))
        self._hashes.append(zlib.crc32(name))
        self._blocks.end_member()
        self._last = name

    def _write(self, data: PackData) -> None:
        written = self._file.write(data)
        while written is not None and written < len(data):  # an unbuffered file may take a part
            self._offset += written
            data = memoryview(data)[written:]
            written = self._file.write(data)
        self._offset += len(data)


def get_method(compressor: PackCompressor) -> int:
    """Return the number of the method in a pack: that of the compressor if it is known, and else the one for users'."""
    method = getattr(compressor, "method", None)
    return method if type(method) is int and method in (ZLIB, ZSTD) else CUSTOM


@contextlib.contextmanager
def create_pack(
    path: str | os.PathLike[str],
    *,
    compressor: PackCompressor | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Iterator[PackBuilder]:
    """Create a pack atomically: a context manager that yields its builder, and finishes the pack at its end.

    The pack is written under a hidden name in the same folder, and renamed when it is on disk. A file of its name is
    replaced; who has mapped that one, goes on with it. After an error, nothing is left, and the old file is intact.

    Args:
        path: Path of the pack.
        compressor: Compressor, as for :class:`PackBuilder`.
        metadata: Metadata. They can be changed until the end of the block: `builder.metadata`.

    Raises:
        OSError: If the pack cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    unfinished = os.path.join(folder, f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, _CREATE_FLAGS, 0o666)
    try:
        with open(descriptor, "wb", _BUFFER_BYTES) as file:
            builder = PackBuilder(file, compressor=compressor, metadata=metadata)
            yield builder
            builder.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
    _sync_folder(folder)


def write_pack(
    path: str | os.PathLike[str],
    members: Iterable[tuple[str, PackData, int]],
    *,
    compressor: PackCompressor | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write a pack atomically, as :func:`create_pack` does, and return the number of members.

    Args:
        path: Path of the pack. A file of that name is replaced.
        members: Members (:class:`PackMember`, or name, content and time), in ascending order of their names.
        compressor: Compressor, as for :class:`PackBuilder`.
        metadata: Metadata, which JSON can express. Defaults to none.

    Raises:
        ValueError: If a pack cannot hold a name, or if the names are not in ascending order.
        OSError: If the pack cannot be written.
    """
    with create_pack(path, compressor=compressor, metadata=metadata) as builder:
        for name, data, modified in members:
            builder.add(name, data, modified=modified)
    return len(builder)


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some file systems do not support it
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
