"""Files of this machine."""

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

from streamloader.errors import AccessDenied, ConfigError, LimitExceeded, NotFound, ObjectChanged, StoreError
from streamloader.stores.base import Body, Data, Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["LocalStore", "local_path"]

T = TypeVar("T")

_CHUNK: Final = 4 << 20  # bytes that are read in one visit to a thread
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # without waiting for the other end of a pipe
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_UNFINISHED: Final = ".streamloader-new-"  # what a killed writer may leave; never listed


def local_path(address: str) -> str:
    """Return the path that a ``file://`` address, or a path, names.

    Raises:
        ConfigError: it names another machine.
    """
    if address[:7].lower() != "file://":
        return address
    # A "?" or "#" of a file's name may stand there unquoted: it is part of the path, never a query.
    rest, host = address[7:], urlsplit(address).netloc
    if host.lower() not in ("", "localhost"):
        raise ConfigError(f"file://{host}/... names another machine; write file:///path for a local file")
    return unquote(rest[len(host) :]) or "/"


class LocalStore(Store):
    """Files: ``/path`` or ``file:///path``. Links are followed. Versions are size, time and inode.

    Writing goes to a hidden file beside the target, which then takes its place: also after a power cut an object is
    either the old or the new one. Reading looks before and after, so that a file that is overwritten in place while it
    is read is an error.
    """

    schemes: ClassVar[tuple[str, ...]] = ("", "file")

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split a path or a ``file://`` address, whose path is percent-encoded, into ``file://`` and the path."""
        return "file://", os.path.abspath(os.path.expanduser(local_path(address))).lstrip("/")

    def address(self, path: str) -> str:
        """Return the path itself."""
        return f"/{path}"

    async def _head(self, path: str) -> ObjectInfo:
        return await self._in_thread(path, lambda: _info(path, _regular(os.stat(f"/{path}"), self.address(path))))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        file = _File()
        try:
            status = await self._in_thread(path, file.open, f"/{path}", _READ)
            info = _info(path, _regular(status, self.address(path)))
            start, end = (span or ByteRange()).within(info.size or 0, self.address(path))
            yield Body(info, start, end, self._chunks(file, info, start, end))
        finally:
            file.leave()

    async def _chunks(self, file: _File, info: ObjectInfo, start: int, end: int) -> AsyncGenerator[bytes, None]:
        at = start
        while at < end:
            chunk, status = await self._in_thread(info.path, file.read, min(_CHUNK, end - at), at)
            if _info(info.path, status).version != info.version:
                raise ObjectChanged(
                    f"{self.address(info.path)} was changed while it was read, noticed at byte {at}",
                    address=self.address(info.path),
                    offset=at,
                )
            if not chunk:
                return
            yield chunk
            at += len(chunk)

    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, recursive=recursive)

    def _leftovers(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, unfinished=True)

    async def _walk(
        self, prefix: str, *, recursive: bool = True, unfinished: bool = False
    ) -> AsyncGenerator[ObjectInfo, None]:
        waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(prefix, ())]
        while waiting:
            folder, above = waiting.pop()
            identity, found, folders = await self._in_thread(folder, _look_into, folder, unfinished)
            if identity in above:  # a link back to a directory that this one is in
                continue
            if len(above) >= self.limits.depth:
                raise LimitExceeded(
                    f"{self.address(folder)} lies deeper than {self.limits.depth} directories: raise Limits(depth=...)",
                    address=self.address(folder),
                )
            for info in found:
                yield info
            for name in folders:
                if recursive:
                    waiting.append((name, (*above, identity)))
                else:
                    yield ObjectInfo(f"{name}/")

    async def _write(self, path: str, data: Data) -> None:
        target = f"/{path}"
        file = _File(os.path.join(os.path.dirname(target), f"{_UNFINISHED}{secrets.token_hex(8)}"))
        try:
            await self._in_thread(path, file.create)
            if isinstance(data, (bytes, bytearray, memoryview)):
                await self._in_thread(path, file.write, data)
            else:
                async for piece in data:
                    await self._in_thread(path, file.write, piece)
            await self._in_thread(path, file.finish, target)
        finally:
            file.leave()
        await self._in_thread(path, _sync_folder, os.path.dirname(target))

    async def _delete(self, path: str) -> None:
        def unlink() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/{path}")

        await self._in_thread(path, unlink)

    async def _free(self, path: str) -> int:
        return await self._in_thread(path, _free_bytes, f"/{path}")

    async def _in_thread(self, path: str, function: Callable[..., T], *args: Any) -> T:
        """Call what may block, and turn its errors into ours."""
        try:
            return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
        except StoreError:
            raise
        except OSError as error:
            raise _translated(error, self.address(path)) from error


def _translated(error: OSError, address: str) -> StoreError:
    reason = error.strerror or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound(f"no such file: {address}", address=address)
    if isinstance(error, PermissionError):
        return AccessDenied(f"{address}: {reason}", address=address)
    return StoreError(f"{address}: {reason}", address=address, errno=error.errno)


def _regular(status: os.stat_result, address: str) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise NotFound(f"{address} is a directory, not a file", address=address)
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{address} is a pipe, socket or device, not a file", address=address)
    return status


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return ObjectInfo(path, status.st_size, version, status.st_mtime)


def _free_bytes(folder: str) -> int:
    while True:
        try:
            found = os.statvfs(folder)
        except FileNotFoundError:
            folder = os.path.dirname(folder)  # it is going to be made
        else:
            return found.f_frsize * found.f_bavail


def _look_into(folder: str, unfinished: bool) -> tuple[tuple[int, int], list[ObjectInfo], list[str]]:
    found, folders = [], []
    try:
        status = os.stat(f"/{folder}")
        for entry in _entries(f"/{folder}"):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _leads_to_itself(entry):
                continue
            if entry.is_dir():
                folders.append(path)
            elif entry.is_file() and entry.name.startswith(_UNFINISHED) is unfinished:
                with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
                    found.append(_info(path, entry.stat()))
    except (FileNotFoundError, NotADirectoryError):
        return (0, 0), [], []
    return (status.st_dev, status.st_ino), found, folders


def _leads_to_itself(entry: os.DirEntry[str]) -> bool:
    """Whether this is a link that cannot be followed to an end. It holds nothing, as one whose target is missing."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


class _File:
    """A file that threads open and use for a task, which may be cancelled at any time.

    A thread cannot be stopped in the middle of a call. So whoever comes last, it or :meth:`leave`, closes the file,
    and deletes it if it is still unfinished.
    """

    def __init__(self, unfinished: str | None = None) -> None:
        self._lock = threading.Lock()
        self._in_use = self._left = False
        self._fd = -1
        self._unfinished = unfinished

    def open(self, path: str, flags: int, mode: int = 0o666) -> os.stat_result:
        with self._use():
            self._fd = os.open(path, flags, mode)
            return os.fstat(self._fd)

    def read(self, count: int, at: int) -> tuple[bytes, os.stat_result]:
        with self._use():
            return os.pread(self._fd, count, at), os.fstat(self._fd)

    def create(self) -> None:
        assert self._unfinished is not None
        try:
            self.open(self._unfinished, _CREATE)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._unfinished), exist_ok=True)
            self.open(self._unfinished, _CREATE)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        with self._use():
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(self._fd, rest[:_CHUNK]) :]

    def finish(self, target: str) -> None:
        assert self._unfinished is not None
        with self._use():
            os.fsync(self._fd)
            os.replace(self._unfinished, target)
            self._unfinished = None

    def leave(self) -> None:
        with self._lock:
            self._left = True
            if not self._in_use:
                self._clean_up()

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        with self._lock:
            if self._left:
                raise FileNotFoundError("nobody waits for this any more")
            self._in_use = True
        try:
            yield
        finally:
            with self._lock:
                self._in_use = False
                if self._left:
                    self._clean_up()

    def _clean_up(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            if self._unfinished is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self._unfinished)


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
