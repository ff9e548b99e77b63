"""Every other scheme that fsspec knows, through its file systems."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from typing import Any, ClassVar, Final, NoReturn

import anyio.to_thread

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    Interrupted,
    MissingExtra,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolFault,
    ServerBusy,
    StoreError,
    StoreTimeout,
    StreamloaderError,
    Unreachable,
)
from streamloader.stores.base import Body, Data, Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["FsspecStore"]

_PIECE: Final = 4 << 20  # bytes that are fetched in one request
_UNFINISHED: Final = ".streamloader-new-"  # what a killed writer may leave; never listed
_THREADS: Final = 8  # file systems, each with a thread, at the same time
_STATUS_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_VERSIONS: Final = (
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "md5",
    "checksum",
    "sha256",
    "oid",
    "blob_id",
    "xet_hash",
    "uid",
)
_TIMES: Final = ("mtime", "LastModified", "last_modified", "last_commit", "modified", "updated", "date_time")
_STAMPS: Final = ("ino", "modify", "unique", "date_time", "CRC")  # which file it is, times as texts, what is as good
_WITHOUT_HOST: Final = frozenset({"hf", "zip", "tar", "dir", "libarchive", "git", "reference", "data"})


class FsspecStore(Store):
    """``scheme://host/path`` of any scheme that fsspec knows: ``hf``, ``webdav``, ``ftp``, ``smb``, ``github``, ...

    Paths are those of the file system behind it, without the host, taken literally. File systems that are asynchronous
    are awaited, others are called in threads; each span is a request of its own, and is counted.

    Versions are what the file system tells that changes with the content: an ETag, a checksum, or size and time.
    Where it tells none of them, a file that is replaced while it is read may go unnoticed. A read looks at the file
    before; one that names a version, or up to the end,
    or takes several requests, looks again after each.

    Where files can be renamed, writing goes to a hidden one beside the target, which then takes its place. Elsewhere
    it goes the file system's own way, under the final name: whole or not at all if that is so (object stores are).
    An object that is written is held in memory. What runs in a thread ends by itself when it is cancelled.

    Args:
        url: scheme and host.
        timeouts: see :class:`streamloader.config.Timeouts`.
        limits: see :class:`streamloader.config.Limits`.
        **options: for ``fsspec.filesystem(scheme, ...)``: see the documentation of that file system.

    Raises:
        ConfigError: fsspec knows no such scheme, or the file system takes no such option.
        MissingExtra: fsspec, or the package that the file system needs, is not installed.
    """

    schemes: ClassVar[tuple[str, ...]] = ()  # all that have no store of their own

    def __init__(
        self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None, **options: Any
    ) -> None:
        super().__init__(url, timeouts=timeouts, limits=limits)
        self._url = url
        self._scheme = url.partition("://")[0].lower()
        self._kind_of_filesystem()
        self._options = options
        # Servers, accounts and folders are among the options; which ones says nothing of what they are.
        told = repr(sorted((name, repr(value)) for name, value in options.items()))
        self.realm += hashlib.sha256(told.encode()).hexdigest() if options else ""
        self._shared: Any = None  # the file system, if it is asynchronous
        self._session: Any = None
        self._idle: list[Any] = []  # file systems that are not: many of them serve one thread at a time
        self._opening: asyncio.Lock | None = None
        self._making: asyncio.Lock | None = None
        self._threads: asyncio.Semaphore | None = None

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split behind the host; schemes whose addresses have none (``hf://user/repo/...``) begin with the path."""
        scheme, _, rest = address.partition("://")
        if scheme.lower() in _WITHOUT_HOST:
            return f"{scheme}://", rest.lstrip("/")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path

    def address(self, path: str) -> str:
        """Return the whole address of `path`, for messages: without secrets."""
        return f"{self.url}{path}" if self.url.endswith("://") else super().address(path)

    async def _head(self, path: str) -> ObjectInfo:
        found = await self._call(path, None, "info", self._inner(path))
        if found.get("type") == "directory":
            raise NotFound(f"{self.address(path)} is a directory, not a file", address=self.address(path))
        return _info(path, found)

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        info = await self._head(path)
        span = span or ByteRange()
        if info.size is None:
            if span != ByteRange():
                raise NotSupported(
                    f"{self.address(path)} does not tell its size, so that no part of it can be read: read it whole",
                    address=self.address(path),
                )
            whole = await self._call(path, 0, "cat_file", self._inner(path))
            yield Body(info, 0, len(whole), _pieces(whole))
            return
        self._check_version(info, version, max(0, span.start))
        start, end = span.within(info.size, self.address(path))
        yield Body(info, start, end, self._chunks(info, start, end, pinned=version is not None or span.end is None))

    async def _chunks(self, info: ObjectInfo, start: int, end: int, *, pinned: bool) -> AsyncGenerator[bytes, None]:
        at = start
        while at < end:
            stop = min(end, at + _PIECE)
            chunk = bytes(await self._call(info.path, at, "cat_file", self._inner(info.path), start=at, end=stop))
            if len(chunk) > stop - at:
                raise ProtocolFault(
                    f"{self.address(info.path)}: asked for {stop - at} bytes, got {len(chunk)}",
                    address=self.address(info.path),
                    offset=at,
                )
            if pinned or end - start > _PIECE:  # one request alone cannot be of two versions
                await self._look_again(info, at)
            if not chunk:
                return
            yield chunk
            at += len(chunk)

    async def _look_again(self, info: ObjectInfo, at: int) -> None:
        """Notice a file that was replaced while it was read, before bytes of the new one are given away."""
        now = await self._head(info.path)
        if (now.version, now.size) != (info.version, info.size):
            raise ObjectChanged(
                f"{self.address(info.path)} was changed while it was read, noticed at byte {at}",
                address=self.address(info.path),
                offset=at,
            )

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        waiting = [(prefix, 0)]
        while waiting:
            folder, depth = waiting.pop()
            if depth > self.limits.depth:
                raise StoreError(
                    f"{self.address(folder)} lies deeper than {self.limits.depth} directories: raise Limits(depth=...)",
                    address=self.address(folder),
                )
            try:
                found = await self._call(folder, None, "ls", self._inner(folder), detail=True)
            except NotFound:
                continue
            for entry in found:
                path = self._outer(entry["name"])
                if path == folder and entry.get("type") != "directory":
                    continue  # it was asked to list a file
                if path is None or path == folder or (folder and not path.startswith(f"{folder}/")):
                    continue
                if entry.get("type") != "directory":
                    if not path.rpartition("/")[2].startswith(_UNFINISHED):
                        yield _info(path, entry)
                elif recursive:
                    waiting.append((path, depth + 1))
                else:
                    yield ObjectInfo(f"{path}/")

    async def _write(self, path: str, data: Data) -> None:
        if isinstance(data, (bytes, bytearray, memoryview)):
            whole = bytes(data)
        else:
            joined = bytearray()
            async for piece in data:
                joined += piece
            whole = bytes(joined)
        inner = self._inner(path)
        folder = inner.rpartition("/")[0]
        seconds = self.timeouts.connect + self.timeouts.response
        seconds += self.timeouts.window * (1 + len(whole) // _PIECE)
        try:
            async with asyncio.timeout(seconds):
                if folder.strip("/"):
                    await self._make_folder(path, folder)
                if not self._renames():
                    await self._call(path, None, "pipe_file", inner, whole)
                    return
                unfinished = (
                    f"{folder}/{_UNFINISHED}{secrets.token_hex(8)}"
                    if folder
                    else f"{_UNFINISHED}{secrets.token_hex(8)}"
                )
                try:
                    await self._call(path, None, "pipe_file", unfinished, whole)
                    await self._call(path, None, "mv", unfinished, inner)
                except BaseException:
                    with contextlib.suppress(StoreError):
                        await self._call(path, None, "rm_file", unfinished)
                    raise
        except TimeoutError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreTimeout(
                f"waited {seconds:.1f} s for {self.address(path)} (writing)",
                address=self.address(path),
                waited=seconds,
                stage="writing",
            ) from None

    async def _make_folder(self, path: str, folder: str) -> None:
        """Make a folder and those above it. File systems do that in steps, which are not for two at the same time."""
        self._making = self._making or asyncio.Lock()
        async with self._making:
            # Another process may have made it a moment ago; if it is really not there, writing says so.
            with contextlib.suppress(StoreError):
                await self._call(path, None, "makedirs", folder, exist_ok=True)

    def _renames(self) -> bool:
        """Whether moving is more than to copy and delete. Such file systems show what is written before it is whole."""
        abstract = importlib.import_module("fsspec").AbstractFileSystem
        kind = self._kind_of_filesystem()
        return not kind.async_impl and kind.mv is not abstract.mv

    async def _delete(self, path: str) -> None:
        with contextlib.suppress(NotFound):
            await self._call(path, None, "rm_file", self._inner(path))

    async def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            self._shared._session = None  # noqa: SLF001 - its finalizer would close it once more
        self._shared = None
        idle, self._idle = self._idle, []
        for filesystem in idle:
            await anyio.to_thread.run_sync(_close, filesystem, abandon_on_cancel=True)

    def _forget(self) -> None:
        self._shared = None
        self._session = None
        self._idle = []
        self._opening = None
        self._making = None
        self._threads = None

    # --- the file system ---------------------------------------------------------------------------------------------

    def _kind_of_filesystem(self) -> Any:
        """Return the class that serves the scheme."""
        try:
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise MissingExtra(
                f"{self._scheme}:// needs the package fsspec: pip install streamloader[fsspec]"
            ) from error
        try:
            return fsspec.get_filesystem_class(self._scheme)
        except ImportError as error:
            raise MissingExtra(f"{self._scheme}:// needs one more package: {error}") from error
        except ValueError as error:
            known = ", ".join(sorted(fsspec.available_protocols()))
            raise ConfigError(
                f"no store serves {self._scheme}://, and fsspec knows no such scheme. It knows {known}; packages of "
                "file systems (pip install ...) bring more"
            ) from error

    async def _asynchronous(self) -> Any:
        """Return the file system, made for this event loop."""
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._shared is None:
                shared = self._make(asynchronous=True)
                if hasattr(shared, "set_session"):
                    self._session = await shared.set_session()
                self._shared = shared
        return self._shared

    def _make(self, **more: Any) -> Any:
        """Make a file system. It is not shared with others that give the same options, so that it can be closed."""
        kind = self._kind_of_filesystem()
        options = {**kind._get_kwargs_from_urls(self._url), **self._options}  # noqa: SLF001 - fsspec's own way
        try:
            return kind(**{"skip_instance_cache": True, "use_listings_cache": False, **options, **more})
        except TypeError as error:
            raise ConfigError(f"the file system of {self._scheme}:// takes other options: {error}") from error
        except ImportError as error:
            raise MissingExtra(f"{self._scheme}:// needs one more package: {error}") from error

    async def _call(self, path: str, offset: int | None, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system and turn its errors into ours."""
        address = self.address(path)
        try:
            if self._kind_of_filesystem().async_impl:
                function = getattr(await self._asynchronous(), f"_{method}")
                return await function(*args, **kwargs)
            return await self._call_in_thread(method, *args, **kwargs)
        except StreamloaderError:
            raise
        except Exception as error:  # noqa: BLE001 - the packages of dozens of file systems raise what they like
            _raise(error, address, offset)

    async def _call_in_thread(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._threads = self._threads or asyncio.Semaphore(min(_THREADS, self.limits.connections))
        async with self._threads:
            known = self._idle.pop() if self._idle else None
            abandoned = threading.Event()

            def call() -> tuple[Any, Any, FileNotFoundError | None]:
                filesystem, sound = known or self._make(), False
                result: tuple[Any, FileNotFoundError | None]
                try:
                    try:
                        result = getattr(filesystem, method)(*args, **kwargs), None
                    except FileNotFoundError as error:
                        result = None, error
                    sound = not abandoned.is_set()
                    return filesystem, *result
                finally:
                    if not sound:  # after a failure it is in a state that nobody knows, and nobody waits for it
                        _close(filesystem)

            try:
                filesystem, result, missing = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
            except asyncio.CancelledError:
                abandoned.set()
                raise
            self._idle.append(filesystem)
            if missing is not None:
                raise missing
            return result

    def _inner(self, path: str) -> str:
        """Return the file system's name of a path.

        Raises:
            ConfigError: the file system would take it for another one: some cut names at "#" or "?".
        """
        if self._scheme in _WITHOUT_HOST:
            return path
        strip = self._kind_of_filesystem()._strip_protocol  # noqa: SLF001 - fsspec's own way
        name = f"{str(strip(f'{self._url}/')).rstrip('/')}/{path}"
        if path and str(strip(name)).strip("/") != name.strip("/"):
            raise ConfigError(f"{self.address(path)}: the file system of {self._scheme}:// cannot name that")
        return name

    def _outer(self, name: str) -> str | None:
        """Return the path of a file system's name, None if it lies elsewhere."""
        root = self._inner("").rstrip("/")
        name = name.rstrip("/")
        if root and name != root and not name.startswith(f"{root}/"):
            return None
        return name[len(root) :].lstrip("/")


def _close(filesystem: Any) -> None:
    """Close a file system's connection, if it has one: there is no common way to do that."""
    close = getattr(getattr(filesystem, "ftp", filesystem), "close", None)
    if close is not None:
        close()


def _raise(error: Exception, address: str, offset: int | None) -> NoReturn:
    """Raise what an error of a file system means. Not from it: its text may hold the address with its password."""
    places: dict[str, Any] = {"address": address, "offset": offset}
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) or status in (404, 410):
        raise NotFound(f"no such object: {address}", **places) from None
    if name == "error_perm" and str(error).startswith("550") and "denied" not in str(error).lower():  # of ftplib
        raise NotFound(f"no such object: {address}", **places) from None
    if isinstance(error, PermissionError) or status in (401, 403) or name == "error_perm":
        raise AccessDenied(f"{address}: access denied; look at the credentials among the options", **places) from None
    if status in _STATUS_BUSY:
        raise ServerBusy(f"{address}: the server is overloaded or failing", status=status, **places) from None
    if isinstance(error, TimeoutError):
        raise StoreTimeout(f"waited too long for {address}", stage="fetching", **places) from None
    if isinstance(error, (ConnectionRefusedError, BrokenPipeError)) or "ConnectorError" in name:
        raise Unreachable(f"{address}: no connection to the server ({name})", **places) from None
    if (
        isinstance(error, (ConnectionError, EOFError))
        or name == "error_temp"
        or "Disconnected" in name
        or "PayloadError" in name
    ):
        raise Interrupted(f"{address}: the connection broke ({name})", **places) from None
    if isinstance(error, NotImplementedError):
        raise NotSupported(f"{address}: its file system cannot do that", **places) from None
    raise StoreError(
        f"{address}: its file system raised {name}", cause=name, errno=getattr(error, "errno", None), **places
    ) from None


def _info(path: str, found: dict[str, Any]) -> ObjectInfo:
    size = found.get("size")
    modified = next((moment for name in _TIMES if (moment := _seconds(found.get(name))) is not None), None)
    tag = next((str(found[name]) for name in _VERSIONS if found.get(name)), None)
    changed = [] if modified is None else [f"{modified!r}"]
    changed += [str(found[name]) for name in _STAMPS if found.get(name)]
    version = tag if tag is not None or not changed else "-".join([str(size), *changed])
    return ObjectInfo(path, None if size is None else int(size), version, modified)


def _seconds(value: Any) -> float | None:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    date = getattr(value, "date", None)  # of hf's last_commit
    return date.timestamp() if isinstance(date, datetime) else None


async def _pieces(whole: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(whole), _PIECE):
        yield whole[at : at + _PIECE]
