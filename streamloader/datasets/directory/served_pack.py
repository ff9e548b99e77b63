"""A pack from which files are served, with what is known of each member."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final
from zlib import crc32

import numpy as np

from streamloader.containers.pack.block_checksums import BLOCK_ROWS, MAX_BLOCK_BYTES
from streamloader.containers.pack.format import MalformedPack, make_view
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.codec import is_settled
from streamloader.datasets.directory.filenames import MAX_NAME_BYTES
from streamloader.datasets.directory.local_root import FileStatus

__all__ = ["CONTENT_CHECKED", "FILE_CHECKED", "HIDDEN", "READY", "ServedPack"]

FILE_CHECKED: Final = 1  # the file has not changed since the pack was made
CONTENT_CHECKED: Final = 2  # the content has its checksum
READY: Final = FILE_CHECKED | CONTENT_CHECKED
HIDDEN: Final = 4  # the file is gone, or the member is out of date
_LIST_ROWS: Final = 512  # members that are listed at once
_MARK_CONTENTS: Final = bytes(state | CONTENT_CHECKED for state in range(256))


class ServedPack:
    """A pack, and one byte for each member.

    Args:
        pack: Pack whose members are files.
        subdirectory: Name of the subdirectory that contains these files.
        state: First state of all members.
        has_file_sizes: Whether members have the size of their files, because they are copies.
        read_at: Time in nanoseconds before which the files were listed and read. 0 if unknown.

    Attributes:
        pack: Pack.
        subdirectory: Name of the subdirectory.
        states: State of each member, see the constants of this module.
        hidden: Number of members that are hidden.
        buffer: All bytes of the pack.
        data: View of the buffer.
        names_offset: Offset of the names in the buffer.
        name_ends: 0, and the offset in the names at which each name ends.
        starts: Offset in the buffer of each member, and the end of the last one.
        is_stored: Whether no member is compressed.
    """

    __slots__ = (
        "_has_file_sizes",
        "_modified",
        "_read_at",
        "_sizes",
        "buffer",
        "data",
        "hidden",
        "is_stored",
        "name_ends",
        "names_offset",
        "pack",
        "starts",
        "states",
        "subdirectory",
    )

    def __init__(
        self, pack: MappedPack, subdirectory: str, state: int, *, has_file_sizes: bool, read_at: int = 0
    ) -> None:
        self.pack = pack
        self.subdirectory = subdirectory
        self.states = bytearray([state]) * len(pack)
        self.hidden = 0
        self._has_file_sizes = has_file_sizes
        self._read_at = read_at
        index = pack.index
        self._sizes = None if index.sizes is None else make_view(index.sizes)
        self._modified = make_view(index.modified)
        self.starts, self.name_ends = index.starts_view, index.name_ends_view
        self.names_offset = index.names_offset
        self.is_stored, self.buffer = self._find_buffer(pack)
        self.data = memoryview(self.buffer).toreadonly()

    def _find_buffer(self, pack: MappedPack) -> tuple[bool, Any]:
        """Return whether members can be read from the buffer as they are, and the buffer, which also has the names."""
        buffer: Any = pack.view(0).obj if len(pack) else b""  # bytes or a mapping: slices of them are bytes
        return pack.index.methods is None, buffer

    def __len__(self) -> int:
        """Return the number of members that are not hidden."""
        return len(self.states) - self.hidden

    def hide(self, row: int) -> None:
        """Serve a member no longer."""
        if not self.states[row] & HIDDEN:
            self.states[row] |= HIDDEN
            self.hidden += 1

    def show(self, row: int, state: int) -> None:
        """Serve a member, in this state."""
        self.hidden -= bool(self.states[row] & HIDDEN)
        self.states[row] = state

    def list_visible(self) -> Iterator[tuple[str, int]]:
        """Yield name and row of each member that is not hidden, in ascending order of the bytes of the names."""
        states = self.states
        for row, name in enumerate(self.pack.index.names()):
            if not states[row] & HIDDEN:
                yield name, row

    def are_ready(self, start: int, count: int) -> bool:
        """Return whether members can be served without a check."""
        return self.states.count(READY, start, start + count) == count

    def list_blocks(self, *, as_views: bool = False) -> Iterator[tuple[int, list[str], Iterator[Any]]]:
        """Yield first row, names and stored bytes of all members in blocks. Single ones would take twice the time.

        Each stored bytes are made when they are taken: a list of them would take memory, and many views would have the
        garbage collector look at all objects of the process.

        Args:
            as_views: Whether the stored bytes are views instead of copies. Defaults to False.
        """
        buffer = self.data if as_views else self.buffer
        for start in range(0, len(self.states), _LIST_ROWS):
            stop = start + _LIST_ROWS
            contents = (buffer[begin:end] for begin, end in pairwise(self.starts[start : stop + 1].tolist()))
            yield start, self.pack.index.list_names(start, stop), contents

    # --- checks ------------------------------------------------------------------------------------------------------

    def verify_block(self, row: int) -> bool:
        """Compare a block of small members with its checksum, or one large member. Return whether this one is right.

        All members are marked whose content has its checksum. Only for packs whose members are stored, and for callers
        that hold the mutex of those who change states.

        Args:
            row: Row of a member of the block.
        """
        number = row // BLOCK_ROWS
        start, stop = number * BLOCK_ROWS, min((number + 1) * BLOCK_ROWS, len(self.states))
        return self._verify_block(number, start, stop) or self._verify_member(row)

    def _verify_block(self, number: int, start: int, stop: int) -> bool:
        """Return whether a block is known to be right. Large ones are not: they would be read with each member."""
        begin, end = self.starts[start], self.starts[stop]
        checksums = self.pack.index.block_checksums
        if checksums is None or end - begin > MAX_BLOCK_BYTES or crc32(self.data[begin:end]) != checksums[number]:
            return False
        self.states[start:stop] = self.states[start:stop].translate(_MARK_CONTENTS)
        return True

    def _verify_member(self, row: int) -> bool:
        is_right: bool = crc32(self.data[self.starts[row] : self.starts[row + 1]]) == self.pack.index.checksums[row]
        if is_right:
            self.states[row] |= CONTENT_CHECKED
        return is_right

    def verify_all(self) -> None:
        """Verify all blocks of small members, as :meth:`verify_block` does for one, unless all are marked."""
        if self.is_stored and self.states.translate(_MARK_CONTENTS) != self.states:
            count = len(self.states)
            for number, start in enumerate(range(0, count, BLOCK_ROWS)):
                self._verify_block(number, start, min(start + BLOCK_ROWS, count))

    def describe_bad_names(self) -> str | None:
        """Return why members are not files of one subdirectory, each of them once. None if they are."""
        index = self.pack.index
        try:
            index.check_names()
        except MalformedPack as error:
            return str(error)
        ends = index.name_ends
        if len(index) == 0:
            return None
        names = np.frombuffer(self.buffer, np.uint8, int(ends[-1]), self.names_offset)
        if b"/" in names.tobytes() or (names[ends[:-1]] == ord(".")).any():
            return "it has names of hidden files, or of files in further subdirectories"
        return "it has names that no file can have" if int((ends[1:] - ends[:-1]).max()) > MAX_NAME_BYTES else None

    def get_modified(self, row: int) -> int:
        """Return the modification time of the file of a member in nanoseconds. 0 if unknown."""
        modified: int = self._modified[row]
        return modified

    def is_same(self, row: int, status: FileStatus) -> bool | None:
        """Return whether the file has not changed since the pack was made. None if only its content can tell.

        A program can set the modification time of a file, and another file can be renamed to its name. Both change the
        time at which the system has noted the last change.
        """
        if self._has_file_sizes and self._get_size(row) != status.size:
            return False
        if self.get_modified(row) not in (0, status.modified):
            return False
        return True if is_settled(status.changed, self._read_at) else None

    def _get_size(self, row: int) -> int:
        size: int = self.starts[row + 1] - self.starts[row] if self._sizes is None else self._sizes[row]
        return size
