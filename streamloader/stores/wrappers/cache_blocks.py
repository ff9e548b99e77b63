"""Store blocks of objects in a directory that many processes share.

A block is one file::

    magic (8) | bytes of the object (u64) | bytes of the block (u64) | digest of each page (16 a page) |
    digest of all before (16) | the bytes

Numbers are little-endian; digests are BLAKE2b with 16 bytes. Digests begin with the block's name, so that a file under
the wrong name is invalid. A page is 64 KiB: reading a span reads and checks the pages that it touches.

Files appear by a rename and are never changed, so no locks are needed: concurrent readers, writers and deleters see
complete blocks or none.

Digests do not protect from someone who can write to the directory, so it is used only if no other user can: see
:mod:`streamloader.common.guarded_files`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from streamloader.common.guarded_files import GuardedFolder, UnsafePath

__all__ = ["BLOCK_BYTES", "BlockFiles", "BlockPart"]

BLOCK_BYTES: Final = 4 << 20

_PAGE_BYTES: Final = 64 << 10
_MAGIC: Final = b"slcache1"
_HEADER: Final = struct.Struct("<8sQQ")
_DIGEST_BYTES: Final = 16
_SUBFOLDER_LETTERS: Final = 2  # first letters of a block's name
_UNFINISHED_PREFIX: Final = ".new-"
_FILE_NAME: Final = re.compile(r"[0-9a-f]{2,}-[0-9a-f]+|\.new-\w+")  # of blocks and of unfinished ones
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
    """Reads and writes blocks. All methods block.

    They raise OSError if the directory fails, and :class:`streamloader.common.guarded_files.UnsafePath` if another user
    can change what is in it.

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
        try:
            with self._open_subfolder(name) as subfolder:
                return self._read_block(subfolder, name, start, end)
        except FileNotFoundError:
            return None

    def _read_block(self, subfolder: GuardedFolder, name: str, start: int, end: int | None) -> BlockPart | None:
        problem = "damaged"
        try:
            file = subfolder.open_file(name)
        except UnsafePath as error:
            problem, part = f"untrusted ({error.strerror})", None
        else:
            try:
                part = _read_checked(file, name, start, end)
                if part is not None:
                    _touch(file)
            finally:
                os.close(file)
        if part is None:
            path = f"{subfolder.path}/{name}"
            _log.warning("deleted a block of the cache, which is %s and will be fetched again: %s", problem, path)
            with contextlib.suppress(FileNotFoundError):
                subfolder.unlink(name)
        return part

    def write(self, name: str, data: bytes, object_size: int) -> None:
        """Store a block of an object of `object_size` bytes."""
        parts = [_make_header(name, data, object_size), data]
        self._bytes_until_scan -= sum(map(len, parts))
        if self._bytes_until_scan < 0:
            if self.limit is None:
                _require_free_space(self.folder)
                self._bytes_until_scan = _FREE_CHECK_BYTES
            else:
                self._bytes_until_scan = max(0, self.evict() + self._bytes_until_scan)
        unfinished = f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}"
        with self._open_subfolder(name, create=True) as subfolder:
            try:
                file = subfolder.open_file(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    for part in parts:
                        _write_all(file, part)
                finally:
                    os.close(file)
                subfolder.replace(unfinished, name)
            except OSError:
                with contextlib.suppress(OSError):
                    subfolder.unlink(unfinished)
                raise

    def delete(self, name: str) -> None:
        """Delete a block, if it exists."""
        with contextlib.suppress(FileNotFoundError), self._open_subfolder(name) as subfolder:
            subfolder.unlink(name)

    def evict(self) -> int:
        """Delete the least recently used blocks if the limit is exceeded.

        Several processes may do so at the same time: they choose the same blocks.

        Returns:
            Number of bytes that may be written until the next scan.
        """
        with contextlib.suppress(FileNotFoundError), GuardedFolder(self.folder) as folder:
            return self._evict_from(folder)
        return self._count_scan_bytes()

    def _evict_from(self, folder: GuardedFolder) -> int:
        now = time.time()
        blocks: list[tuple[float, int, str]] = []
        total = 0
        for name, status in _iterate_files(folder):
            if not name.startswith(_UNFINISHED_PREFIX, _SUBFOLDER_LETTERS + 1):
                blocks.append((status.st_mtime, status.st_size, name))
            elif now - status.st_mtime > _MAX_UNFINISHED_AGE_S:
                _delete_file(folder, name)
                continue
            total += status.st_size
        scan_bytes = self._count_scan_bytes()
        if self.limit is not None and total + scan_bytes > self.limit:
            for _, size, name in sorted(blocks):
                if total + scan_bytes <= self.limit * _EVICTION_TARGET:
                    break
                _delete_file(folder, name)
                total -= size
        return scan_bytes

    def _count_scan_bytes(self) -> int:
        return 0 if self.limit is None else int(self.limit * _SCAN_INTERVAL)

    def _open_subfolder(self, name: str, *, create: bool = False) -> GuardedFolder:
        """Open the folder of a block."""
        with GuardedFolder(self.folder, create=create) as folder:
            return folder.open_folder(name[:_SUBFOLDER_LETTERS], create=create)


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


def _iterate_files(folder: GuardedFolder) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files of the cache, with their paths in `folder`. Files of other names are not of the cache."""
    for name in os.listdir(folder.fd):
        if len(name) != _SUBFOLDER_LETTERS:
            continue
        with contextlib.suppress(OSError), folder.open_folder(name) as subfolder, os.scandir(subfolder.fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                    if _FILE_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        yield f"{name}/{entry.name}", entry.stat(follow_symlinks=False)


def _delete_file(folder: GuardedFolder, path: str) -> None:
    with contextlib.suppress(FileNotFoundError), folder.open_folder(path[:_SUBFOLDER_LETTERS]) as subfolder:
        subfolder.unlink(path[_SUBFOLDER_LETTERS + 1 :])
