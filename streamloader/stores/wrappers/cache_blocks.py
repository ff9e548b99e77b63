"""Blocks of objects in a directory that many processes share: what a cache keeps on disk.

A block is one file::

    magic (8) | bytes of the object (u64) | bytes of the block (u64) | digest of each page (16 a page) |
    digest of all before (16) | the bytes

numbers in little-endian order, digests by BLAKE2b with 16 bytes. They begin with the block's name, so that a file in
the wrong place is no block. A page is 64 KiB: reading a span reads, and checks, the pages it touches.

Files appear by a rename and are never changed, so there is nothing to lock: whoever reads, writes or deletes at the
same time has whole blocks or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["BLOCK", "Blocks", "Part"]

BLOCK: Final = 4 << 20  # bytes of an object that are kept together

_PAGE: Final = 64 << 10
_MAGIC: Final = b"slcache1"
_HEAD: Final = struct.Struct("<8sQQ")
_DIGEST: Final = 16
_SHELF: Final = 2  # letters of the names that are kept in one directory
_UNFINISHED: Final = ".new-"
_ABANDONED: Final = 600.0  # seconds after which an unfinished file belongs to nobody any more
_FRESH: Final = 60.0  # seconds in which a block's use is not noted again
_LOW: Final = 0.9  # of the limit is left by clearing
_SLACK: Final = 0.02  # of the limit is written between two looks at the directory
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a block.

    Attributes:
        data: the bytes.
        size: of the whole object.
    """

    data: bytes
    size: int


class Blocks:
    """Reads and writes blocks. All methods block, and raise OSError where the directory fails.

    Args:
        folder: where they are kept.
        limit: bytes of all of them, or None for as many as fit. It is passed by at most 2 % (and a block) for each
            process that writes; then the blocks that were not used for the longest time go.
    """

    def __init__(self, folder: str, limit: int | None) -> None:
        self.folder = folder
        self.limit = limit
        self._room = 0  # bytes that may be written until the next look at the directory

    def read(self, name: str, start: int, end: int | None) -> Part | None:
        """Return the bytes [start, end) of a block, up to its end at most; None if it is not here, or damaged.

        A damaged one is deleted.
        """
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            part = _read(file, name, start, end)
            if part is not None:
                _note_use(file)
        finally:
            os.close(file)
        if part is None:
            _log.warning("a block of the cache was damaged, and is fetched again: %s", path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return part

    def write(self, name: str, data: bytes, size: int) -> None:
        """Keep a block of an object of `size` bytes."""
        path = self._path(name)
        parts = [_head(name, data, size), data]
        if self.limit is not None:
            self._room -= sum(map(len, parts))
            if self._room < 0:
                self._room = max(0, self.clear() + self._room)
        unfinished = os.path.join(os.path.dirname(path), f"{_UNFINISHED}{secrets.token_hex(8)}")
        try:
            file = _create(unfinished)
            try:
                for part in parts:
                    _write_all(file, part)
            finally:
                os.close(file)
            os.replace(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise

    def delete(self, name: str) -> None:
        """Delete a block, if it is here."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def clear(self) -> int:
        """Delete what was not used for the longest time, if there is too much; return what may be written after that.

        Processes may do so at the same time: they choose the same blocks.
        """
        now = time.time()
        found: list[tuple[float, int, str]] = []
        total = 0
        for entry in _files(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(_UNFINISHED):
                    found.append((status.st_mtime, status.st_size, entry.path))
                elif now - status.st_mtime > _ABANDONED:
                    os.unlink(entry.path)
                    continue
                total += status.st_size
        if self.limit is None:
            return 0
        slack = int(self.limit * _SLACK)
        if total + slack > self.limit:
            for _, size, path in sorted(found):
                if total + slack <= self.limit * _LOW:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
        return slack

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name[:_SHELF], name)


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        shelf = os.path.dirname(path)
        for folder in (os.path.dirname(shelf), shelf):  # only the last one of those that are made gets the mode
            os.makedirs(folder, mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _digest(name: str, data: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(name.encode(), digest_size=_DIGEST, usedforsecurity=False)
    hasher.update(data)
    return hasher.digest()


def _head(name: str, data: bytes, size: int) -> bytes:
    view = memoryview(data)
    pages = b"".join(_digest(f"{name} {at}", view[at : at + _PAGE]) for at in range(0, len(data), _PAGE))
    head = _HEAD.pack(_MAGIC, size, len(data)) + pages
    return head + _digest(name, head)


def _read(file: int, name: str, start: int, end: int | None) -> Part | None:
    """Return checked bytes, or None if this is not what it should be."""
    head = os.pread(file, _HEAD.size, 0)
    magic, size, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
    if magic != _MAGIC or length > BLOCK:
        return None
    count = -(-length // _PAGE)
    table = os.pread(file, (count + 1) * _DIGEST, _HEAD.size)
    pages = table[: count * _DIGEST]
    if table[len(pages) :] != _digest(name, head + pages):
        return None
    end = length if end is None else min(end, length)
    if start >= end:
        return Part(b"", size)
    base, top = start // _PAGE * _PAGE, min(-(-end // _PAGE) * _PAGE, length)  # of whole pages
    data = memoryview(os.pread(file, top - base, _HEAD.size + len(table) + base))
    for at in range(base, top, _PAGE):
        wanted = pages[at // _PAGE * _DIGEST :][:_DIGEST]
        if _digest(f"{name} {at}", data[at - base : at - base + _PAGE]) != wanted:
            return None
    return Part(bytes(data[start - base : end - base]), size)


def _note_use(file: int) -> None:
    now = time.time()
    if now - os.fstat(file).st_mtime > _FRESH:
        with contextlib.suppress(OSError):  # a directory that is only read from
            os.utime(file)


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as shelves:
            for shelf in shelves:
                if shelf.is_dir(follow_symlinks=False) and len(shelf.name) == _SHELF:
                    with contextlib.suppress(FileNotFoundError), os.scandir(shelf.path) as entries:
                        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return
