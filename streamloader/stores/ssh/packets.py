"""What SFTP version 3 packets hold (draft-ietf-secsh-filexfer-02): their kinds, and values in and out of bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

# Kinds of packets.
INIT, VERSION, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
FSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR, REALPATH, STAT, RENAME = 8, 10, 11, 12, 13, 14, 16, 17, 18
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
# Codes of STATUS.
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, NO_CONNECTION, CONNECTION_LOST, UNSUPPORTED = range(9)
# Flags of OPEN.
FOR_READING, FOR_WRITING, CREATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x20


_U32: Final = struct.Struct(">I")


class BadReply(Exception):
    """What the server sent is no SFTP, or no answer to what was asked."""


class Attrs(NamedTuple):
    """What is told of a file. None: it was not."""

    size: int | None
    mode: int | None
    modified: int | None


Names: TypeAlias = "Sequence[tuple[str, Attrs]]"


def handle_of(body: bytes) -> bytes:
    """Return the handle of a reply."""
    return Reader(body).string()


def attrs_of(body: bytes) -> Attrs:
    """Return the attributes of a reply."""
    return Reader(body).attrs()


def names_of(body: bytes) -> Names:
    """Return the names of a reply, with what is told of them."""
    reader = Reader(body)
    found = []
    for _ in range(reader.number()):
        name = reader.string().decode(errors="surrogateescape")
        reader.string()  # as `ls -l` would show it
        found.append((name, reader.attrs()))
    return found


def encoded(path: str) -> bytes:
    """Return a path as the server knows it; names that are no UTF-8 survive the way there and back."""
    return path.encode(errors="surrogateescape")


def packed(data: bytes) -> bytes:
    """Return a string as SFTP writes it."""
    return _U32.pack(len(data)) + data


def packed_path(path: str) -> bytes:
    """Return a path as SFTP writes it."""
    return packed(encoded(path))


class Reader:
    """Reads values from a packet; all raise BadReply where it breaks off."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> bool:
        """Whether there is more."""
        return self._at < len(self._data)

    def number(self) -> int:
        """Read four bytes."""
        return int.from_bytes(self._take(4))

    def long(self) -> int:
        """Read eight bytes."""
        return int.from_bytes(self._take(8))

    def string(self) -> bytes:
        """Read bytes with their length in front."""
        return self._take(self.number())

    def attrs(self) -> Attrs:
        """Read the attributes of a file."""
        flags = self.number()
        size = self.long() if flags & 1 else None
        if flags & 2:
            self._take(8)  # user and group
        mode = self.number() if flags & 4 else None
        modified = None
        if flags & 8:
            self._take(4)  # of the last access
            modified = self.number()
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.string(), self.string()
        return Attrs(size, mode, modified)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise BadReply("a reply that breaks off")
        taken, self._at = self._data[self._at : end], end
        return taken
