"""Store blocks of objects in a directory that many processes share.

A block is one file::

    magic (8) | bytes of the object (u64) | bytes of the block (u64) | digest of each page (16 a page) |
    digest of all before (16) | the bytes

Numbers are little-endian; digests are BLAKE2b with 16 bytes. Digests begin with the block's name, so that a file under
the wrong name is invalid. A page is 64 KiB: reading a span reads and checks the pages that it touches.

Files appear by a rename and are never changed, so no locks are needed: concurrent readers, writers and deleters see
complete blocks or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["BLOCK_BYTES", "BlockFiles", "BlockPart"]

BLOCK_BYTES: Final = 4 << 20

_PAGE_BYTES: Final = 64 << 10
_MAGIC: Final = b"slcache1"
_HEADER: Final = struct.Struct("<8sQQ")
_DIGEST_BYTES: Final = 16
_SUBFOLDER_LETTERS: Final = 2  # first letters of a block's name
_UNFINISHED_PREFIX: Final = ".new-"
_MAX_UNFINISHED_AGE_S: Final = 600.0  # older files belong to killed writers
_MIN_TOUCH_INTERVAL_S: Final = 60.0
_EVICTION_TARGET: Final = 0.9  # fraction of the limit that eviction keeps
_SCAN_INTERVAL: Final = 0.02  # fraction of the limit that is written between two scans of the directory
# Without a limit, this much of the disk stays free for others.
_MAX_RESERVE_BYTES: Final = 1 << 30
_RESERVE: Final = 0.01  # fraction of the disk
_FREE_CHECK_BYTES: Final = 64 << 20  # written between two looks at the free space
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class BlockPart:
    """Bytes of a block.

    Attributes:
        data: The bytes.
        object_size: Size of the whole object in bytes.
    """

    data: bytes
    object_size: int


class BlockFiles:
    """Reads and writes blocks. All methods block, and raise OSError if the directory fails.

    Args:
        folder: Directory of the blocks.
        limit: Maximum size of all blocks in bytes. None for as much as the disk holds, except for 1 GiB or 1 % of it,
            whichever is less. Each process that writes may exceed the limit by at most 2 % (and a block); then the
            least recently used blocks are deleted.
    """

    def __init__(self, folder: str, limit: int | None) -> None:
        self.folder = folder
        self.limit = limit
        self._bytes_until_scan = 0

    def read(self, name: str, start: int, end: int | None) -> BlockPart | None:
        """Return the bytes [start, end) of a block, clipped to its length; or None if it is missing or damaged.

        A damaged block is deleted.
        """
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            part = _read_checked(file, name, start, end)
            if part is not None:
                _touch(file)
        finally:
            os.close(file)
        if part is None:
            _log.warning("deleted a damaged block of the cache, which will be fetched again: %s", path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return part

    def write(self, name: str, data: bytes, object_size: int) -> None:
        """Store a block of an object of `object_size` bytes."""
        path = self._path(name)
        parts = [_make_header(name, data, object_size), data]
        self._bytes_until_scan -= sum(map(len, parts))
        if self._bytes_until_scan < 0:
            if self.limit is None:
                _require_free_space(self.folder)
                self._bytes_until_scan = _FREE_CHECK_BYTES
            else:
                self._bytes_until_scan = max(0, self.evict() + self._bytes_until_scan)
        unfinished = os.path.join(os.path.dirname(path), f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}")
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
        """Delete a block, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def evict(self) -> int:
        """Delete the least recently used blocks if the limit is exceeded.

        Several processes may do so at the same time: they choose the same blocks.

        Returns:
            Number of bytes that may be written until the next scan.
        """
        now = time.time()
        blocks: list[tuple[float, int, str]] = []
        total = 0
        for entry in _iterate_files(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(_UNFINISHED_PREFIX):
                    blocks.append((status.st_mtime, status.st_size, entry.path))
                elif now - status.st_mtime > _MAX_UNFINISHED_AGE_S:
                    os.unlink(entry.path)
                    continue
                total += status.st_size
        if self.limit is None:
            return 0
        scan_bytes = int(self.limit * _SCAN_INTERVAL)
        if total + scan_bytes > self.limit:
            for _, size, path in sorted(blocks):
                if total + scan_bytes <= self.limit * _EVICTION_TARGET:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
        return scan_bytes

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name[:_SUBFOLDER_LETTERS], name)


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        subfolder = os.path.dirname(path)
        for folder in (os.path.dirname(subfolder), subfolder):  # makedirs applies the mode to the last level only
            os.makedirs(folder, mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _require_free_space(folder: str) -> None:
    """Raise an OSError if too little of the disk is free. The folder need not exist yet."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    usage = shutil.disk_usage(folder)
    if usage.free < min(_MAX_RESERVE_BYTES, int(usage.total * _RESERVE)):
        raise OSError(
            errno.ENOSPC, f"only {usage.free} bytes of its disk are free: give the cache a size, cache_bytes="
        )


def _write_all(file: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(file, remaining) :]


def _digest(name: str, data: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES, usedforsecurity=False)
    hasher.update(data)
    return hasher.digest()


def _make_header(name: str, data: bytes, object_size: int) -> bytes:
    view = memoryview(data)
    pages = b"".join(
        _digest(f"{name} {offset}", view[offset : offset + _PAGE_BYTES]) for offset in range(0, len(data), _PAGE_BYTES)
    )
    header = _HEADER.pack(_MAGIC, object_size, len(data)) + pages
    return header + _digest(name, header)


def _read_checked(file: int, name: str, start: int, end: int | None) -> BlockPart | None:
    """Return checked bytes of a block, or None if the block is damaged."""
    header = os.pread(file, _HEADER.size, 0)
    magic, object_size, length = _HEADER.unpack(header) if len(header) == _HEADER.size else (b"", 0, 0)
    if magic != _MAGIC or length > BLOCK_BYTES:
        return None
    page_count = -(-length // _PAGE_BYTES)
    table = os.pread(file, (page_count + 1) * _DIGEST_BYTES, _HEADER.size)
    pages = table[: page_count * _DIGEST_BYTES]
    if table[len(pages) :] != _digest(name, header + pages):
        return None
    end = length if end is None else min(end, length)
    if start >= end:
        return BlockPart(b"", object_size)
    first = start // _PAGE_BYTES * _PAGE_BYTES
    last = min(-(-end // _PAGE_BYTES) * _PAGE_BYTES, length)  # end of the last page
    data = memoryview(os.pread(file, last - first, _HEADER.size + len(table) + first))
    for offset in range(first, last, _PAGE_BYTES):
        expected = pages[offset // _PAGE_BYTES * _DIGEST_BYTES :][:_DIGEST_BYTES]
        if _digest(f"{name} {offset}", data[offset - first : offset - first + _PAGE_BYTES]) != expected:
            return None
    return BlockPart(bytes(data[start - first : end - first]), object_size)


def _touch(file: int) -> None:
    """Set the modification time of a block, which is the time of its last use."""
    now = time.time()
    if now - os.fstat(file).st_mtime > _MIN_TOUCH_INTERVAL_S:
        with contextlib.suppress(OSError):  # the directory may be read-only
            os.utime(file)


def _iterate_files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as subfolders:
            for subfolder in subfolders:
                if subfolder.is_dir(follow_symlinks=False) and len(subfolder.name) == _SUBFOLDER_LETTERS:
                    with contextlib.suppress(FileNotFoundError), os.scandir(subfolder.path) as entries:
                        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return
