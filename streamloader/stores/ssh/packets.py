"""Packet kinds and field encoding of SFTP version 3 (draft-ietf-secsh-filexfer-02)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

# Packet kinds.
INIT, VERSION, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
FSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR, REALPATH, STAT, RENAME = 8, 10, 11, 12, 13, 14, 16, 17, 18
READLINK = 19
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
# Status codes.
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = range(9)
# Flags of OPEN.
FOR_READING, FOR_WRITING, CREATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x20


_U32: Final = struct.Struct(">I")


class BadReply(Exception):
    """The server's reply is not valid SFTP, or does not match the request."""


class Attrs(NamedTuple):
    """Attributes of a file. Those that the server does not report are None.

    Attributes:
        size: Size in bytes.
        mode: File type and permissions, as in `os.stat_result.st_mode`.
        modified: Time of the last change, in seconds since 1970.
    """

    size: int | None
    mode: int | None
    modified: int | None


Names: TypeAlias = "Sequence[tuple[str, Attrs]]"


def parse_handle(body: bytes) -> bytes:
    """Return the handle of a HANDLE reply."""
    return FieldReader(body).read_string()


def parse_attrs(body: bytes) -> Attrs:
    """Return the file attributes of an ATTRS reply."""
    return FieldReader(body).read_attrs()


def parse_names(body: bytes) -> Names:
    """Return the file names of a NAME reply, each with its attributes."""
    reader = FieldReader(body)
    names = []
    for _ in range(reader.read_uint32()):
        name = reader.read_string().decode(errors="surrogateescape")
        reader.read_string()  # the line that `ls -l` would show
        names.append((name, reader.read_attrs()))
    return names


def parse_name(body: bytes) -> str:
    """Return the file name of a NAME reply that has only one.

    Raises:
        BadReply: If it has none.
    """
    names = parse_names(body)
    if not names:
        raise BadReply("a reply without a name")
    return names[0][0]


def encode_path(path: str) -> bytes:
    """Return a path in the server's encoding. Names that are not UTF-8 survive decoding and encoding."""
    return path.encode(errors="surrogateescape")


def pack_string(data: bytes) -> bytes:
    """Return a string field: the length, followed by the bytes."""
    return _U32.pack(len(data)) + data


def pack_path(path: str) -> bytes:
    """Return a path as a string field."""
    return pack_string(encode_path(path))


class FieldReader:
    """Read the fields of a packet one after the other. All methods raise BadReply if the packet is truncated.

    Args:
        data: Body of the packet.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def has_more(self) -> bool:
        """Return whether any bytes remain."""
        return self._position < len(self._data)

    def read_uint32(self) -> int:
        """Read a number of four bytes."""
        return int.from_bytes(self._take(4))

    def read_uint64(self) -> int:
        """Read a number of eight bytes."""
        return int.from_bytes(self._take(8))

    def read_string(self) -> bytes:
        """Read a string field."""
        return self._take(self.read_uint32())

    def read_attrs(self) -> Attrs:
        """Read the attributes of a file."""
        flags = self.read_uint32()
        size = self.read_uint64() if flags & 1 else None
        if flags & 2:
            self._take(8)  # user and group
        mode = self.read_uint32() if flags & 4 else None
        modified = None
        if flags & 8:
            self._take(4)  # time of the last access
            modified = self.read_uint32()
        if flags & 0x80000000:
            for _ in range(self.read_uint32()):
                self.read_string(), self.read_string()
        return Attrs(size, mode, modified)

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise BadReply("a truncated reply")
        data, self._position = self._data[self._position : end], end
        return data
