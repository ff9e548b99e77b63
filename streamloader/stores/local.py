"""Provide the files of this machine as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote, urlsplit

import anyio.to_thread
from typing_extensions import override

from streamloader.arguments import expand_path
from streamloader.common import guarded_files
from streamloader.errors import AccessDenied, ConfigError, NotFound, ObjectChanged, StorageFull, StoreError
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stores.local_search import walk_folders
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.stores.spelling_advice import explain_file_host
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["LocalStore", "local_path", "open_regular_file"]

T = TypeVar("T")

_PIECE_BYTES: Final = 4 << 20  # read or written in one call in a thread
_SHORT_READ_BYTES: Final = 256 << 10
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_UNFINISHED_PREFIX: Final = ".streamloader-new-"  # of files that a killed writer may leave; never listed


def local_path(address: str) -> str:
    """Return the path of a ``file://`` address. A path is returned unchanged.

    Raises:
        ConfigError: If the address names another machine.
    """
    if address[:7].lower() != "file://":
        return address
    # An unquoted "?" or "#" is part of the file's name, never a query or fragment.
    rest, host = address[7:], urlsplit(address).netloc
    if host.lower() not in ("", "localhost"):
        raise ConfigError(f"file://{host}/... names another machine; {explain_file_host(host, rest[len(host) :])}")
    return unquote(rest[len(host) :]) or "/"


def open_regular_file(path: str, address: str | None = None) -> int:
    """Open a regular file for reading, and return its descriptor. Links are followed.

    Args:
        path: Path of the file.
        address: Address for messages. Defaults to `path`.

    Raises:
        NotFound: If `path` is a directory.
        StoreError: If `path` is a pipe, socket or device.
        OSError: If the file does not exist or cannot be opened.
    """
    address = address or path
    try:
        return guarded_files.open_regular_file(path)
    except IsADirectoryError as error:
        raise NotFound(f"{address} is a directory, not a file", address=address) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise StoreError(f"{address} is a pipe, socket or device, not a file", address=address) from error


class LocalStore(Store):
    """Local files: ``/path`` or ``file:///path``. Links are followed. A version is size, modification time and inode.

    A write creates a hidden file next to the target and then renames it: even after a power failure, an object has
    either its old or its new content. A read compares the version before and after, so that overwriting a file in
    place during a read is an error.
    """

    schemes: ClassVar[tuple[str, ...]] = ("", "file")
    has_directories: ClassVar[bool] = True

    @classmethod
    @override
    def split(cls, address: str) -> tuple[str, str]:
        """Split a path, or a percent-encoded ``file://`` address, into ``file://`` and the path."""
        path = local_path(address)
        path = expand_path(path, create=True) if path is address else os.path.expanduser(path)
        return "file://", os.path.abspath(path).lstrip("/")

    @override
    def address(self, path: str) -> str:
        """Return the absolute path."""
        return f"/{path}"

    @override
    async def _head(self, path: str) -> ObjectInfo:
        return await self._run_in_thread(
            path, lambda: _make_info(path, _require_regular(os.stat(f"/{path}"), self.address(path)))
        )

    @override
    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        file = _CancellableFile()
        try:
            opened, *first = await self._run_in_thread(path, _open_and_read, file, f"/{path}", span)
            info = _make_info(path, opened)
            start, end = (span or ByteRange()).within(info.size or 0, self.address(path))
            yield Body(info, start, end, self._read_pieces(file, info, start, end, first), bounded=True)
        finally:
            file.release()

    async def _read_pieces(
        self,
        file: _CancellableFile,
        info: ObjectInfo,
        start: int,
        end: int,
        pieces: list[tuple[bytes, os.stat_result]],
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes [start, end). `pieces` are those that were read when the file was opened."""
        offset = start
        while offset < end:
            if pieces:
                piece, status = pieces.pop()
            else:
                piece, status = await self._run_in_thread(info.path, file.read, min(_PIECE_BYTES, end - offset), offset)
            if _make_info(info.path, status).version != info.version:
                raise ObjectChanged(
                    f"{self.address(info.path)} was changed while it was read, detected at byte {offset}",
                    address=self.address(info.path),
                    offset=offset,
                )
            if not piece:
                return
            yield piece
            offset += len(piece)

    @override
    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, recursive=recursive)

    @override
    def _search(self, prefix: str, search: TreeSearch, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, recursive=recursive, search=search)

    @override
    def _list_unfinished(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, unfinished=True)

    async def _walk(
        self, prefix: str, *, recursive: bool = True, unfinished: bool = False, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        problems: list[ListingProblem] = []
        pages = self._read_pages(prefix, recursive, unfinished, search, problems)
        while (page := await self._run_in_thread(prefix, next, pages, None)) is not None:
            while problems and search is not None:
                search.report(problems.pop(0))
            for info in page:
                yield info
        while problems and search is not None:
            search.report(problems.pop(0))

    def _read_pages(
        self,
        prefix: str,
        recursive: bool,
        unfinished: bool,
        search: TreeSearch | None,
        problems: list[ListingProblem],
    ) -> Iterator[list[ObjectInfo]]:
        """Yield the entries of one folder after the other, and append to `problems` what may not be read."""

        def on_unreadable(path: str, error: OSError) -> None:
            translated = _translate_error(error, path)
            if search is None or path == f"/{prefix}" or not isinstance(error, PermissionError):
                raise translated from error
            problems.append(ListingProblem(path[1:], translated, is_directory=True))

        folders = walk_folders(
            f"/{prefix}",
            ListingBudget(self.limits, self.address(prefix)),
            on_unreadable,
            show_hidden=search is None or search.show_hidden,
            recursive=recursive,
            create_page_budget=lambda path: ListingBudget(self.limits, path, entry_bytes=HELD_ENTRY_BYTES),
        )
        for _, files, subfolders in folders:
            page = []
            for entry in files:
                path = entry.path[1:]
                try:
                    status = _require_regular(entry.stat(), entry.path)
                except OSError as error:  # deleted since the scan, a link that leads nowhere, a pipe, a device
                    if search is not None:
                        problem = error if isinstance(error, StoreError) else _translate_error(error, entry.path)
                        problems.append(ListingProblem(path, problem, is_directory=False))
                    continue
                if entry.name.startswith(_UNFINISHED_PREFIX) is unfinished:
                    page.append(_make_info(path, status))
            if not recursive:
                page += [ObjectInfo(f"{entry.path[1:]}/") for entry in subfolders]
            yield page

    @override
    async def _write(self, path: str, data: Data) -> None:
        target = f"/{path}"
        file = _CancellableFile(os.path.join(os.path.dirname(target), f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}"))
        try:
            await self._run_in_thread(path, file.create)
            if isinstance(data, (bytes, bytearray, memoryview)):
                await self._run_in_thread(path, file.write, data)
            else:
                async for piece in data:
                    await self._run_in_thread(path, file.write, piece)
            await self._run_in_thread(path, file.finish, target)
        finally:
            file.release()
        await self._run_in_thread(path, _sync_folder, os.path.dirname(target))

    @override
    async def _delete(self, path: str) -> None:
        def unlink() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/{path}")

        await self._run_in_thread(path, unlink)

    @override
    async def _free_bytes(self, path: str) -> int:
        return await self._run_in_thread(path, _query_free_bytes, f"/{path}")

    async def _run_in_thread(self, path: str, function: Callable[..., T], *args: Any) -> T:
        """Call a blocking function in a thread, and translate its errors."""
        try:
            return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
        except StoreError:
            raise
        except OSError as error:
            raise _translate_error(error, self.address(path)) from error


def _translate_error(error: OSError, address: str) -> StoreError:
    reason = error.strerror or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound(f"no such file: {address}", address=address)
    if error.errno == errno.ELOOP:
        return NotFound(f"{address}: {reason}", address=address)
    if isinstance(error, PermissionError):
        return AccessDenied(f"{address}: {reason}", address=address)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{address}: {reason}: free space, or raise the quota", address=address, errno=error.errno)
    return StoreError(f"{address}: {reason}", address=address, errno=error.errno)


def _require_regular(status: os.stat_result, address: str) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise NotFound(f"{address} is a directory, not a file", address=address)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{address} is a pipe, socket or device, not a file", address=address)
    return status


def _make_info(path: str, status: os.stat_result) -> ObjectInfo:
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return ObjectInfo(path, status.st_size, version, status.st_mtime)


def _query_free_bytes(folder: str) -> int:
    while True:
        try:
            status = os.statvfs(folder)
        except FileNotFoundError:
            folder = os.path.dirname(folder)  # a write would create the folder
        else:
            return status.f_frsize * status.f_bavail


class _CancellableFile:
    """A file that threads open and use for a task which may be cancelled at any time.

    A thread cannot be stopped inside a call. The last user, either the thread or :meth:`release`, therefore closes the
    file, and deletes it if it is still unfinished.
    """

    def __init__(self, unfinished: str | None = None) -> None:
        self._lock = threading.Lock()
        self._in_use = self._released = False
        self._fd = -1
        self._unfinished = unfinished

    def open_regular(self, path: str) -> os.stat_result:
        with self._use():
            self._fd = open_regular_file(path)
            return os.fstat(self._fd)

    def read(self, count: int, offset: int) -> tuple[bytes, os.stat_result]:
        with self._use():
            return os.pread(self._fd, count, offset), os.fstat(self._fd)

    def create(self) -> None:
        assert self._unfinished is not None
        with self._use():
            try:
                self._fd = os.open(self._unfinished, _CREATE_FLAGS, 0o666)
            except FileNotFoundError:
                _make_folders(os.path.dirname(self._unfinished))
                self._fd = os.open(self._unfinished, _CREATE_FLAGS, 0o666)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._use():
            remaining = memoryview(data).cast("B")
            while remaining:
                remaining = remaining[os.write(self._fd, remaining[:_PIECE_BYTES]) :]

    def finish(self, target: str) -> None:
        assert self._unfinished is not None
        with self._use():
            os.fsync(self._fd)
            os.replace(self._unfinished, target)
            self._unfinished = None

    def release(self) -> None:
        with self._lock:
            self._released = True
            if not self._in_use:
                self._clean_up()

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._released:
                raise FileNotFoundError("the task was cancelled")
            self._in_use = True
        try:
            yield
        finally:
            with self._lock:
                self._in_use = False
                if self._released:
                    self._clean_up()

    def _clean_up(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            if self._unfinished is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._unfinished)


def _open_and_read(
    file: _CancellableFile, path: str, span: ByteRange | None
) -> tuple[os.stat_result, *tuple[tuple[bytes, os.stat_result], ...]]:
    """Open a file. If a short span is wanted, read it, too: another call of a thread takes longer than the read."""
    opened = file.open_regular(path)
    if span is None or span.end is None or span.end - span.start > _SHORT_READ_BYTES:
        return (opened,)
    return opened, file.read(span.end - span.start, span.start)


def _make_folders(folder: str) -> None:
    """Create a folder and its parents, however many (os.makedirs calls itself for each level)."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another writer may have made it
            os.mkdir(path)


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some file systems do not support it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
