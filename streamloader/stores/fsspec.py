"""Provide every other scheme that fsspec supports as a store, through fsspec's file systems."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import importlib
import os
import re
import secrets
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, NoReturn

import anyio.to_thread
from typing_extensions import override

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    LimitExceeded,
    MissingDependency,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    StreamloaderError,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import redact_address
from streamloader.stores.access import StoreAccess
from streamloader.stores.addresses import check_authority, check_host_name, check_user_name
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.connection_guard import ConnectionGuard
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.stores.spelling_advice import explain_unknown_scheme
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["FsspecStore"]

_PIECE_BYTES: Final = 4 << 20  # fetched in one request
_UNFINISHED_PREFIX: Final = ".streamloader-new-"  # of files that a killed writer may leave; never listed
_MAX_THREADS: Final = 8  # each with a file system of its own
_FOREIGN_CONNECT_ERRORS: Final = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError")
_BUSY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_VERSION_KEYS: Final = (  # of the metadata that change with the content
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
_TIME_KEYS: Final = ("mtime", "LastModified", "last_modified", "last_commit", "modified", "updated", "date_time")
_FALLBACK_VERSION_KEYS: Final = ("ino", "modify", "unique", "date_time", "CRC")  # used together with size and time
_LOCAL_SCHEMES: Final = frozenset({"local", "file", "memory"})
_HOST_OPTIONS: Final = ("host", "hostname", "server", "namenode")
_ADDRESS_OPTIONS: Final = ("base_url", "endpoint", "endpoint_url", "instance", "url")
_USER_OPTIONS: Final = ("user", "username")
_CONTAINER_SCHEMES: Final = frozenset({"libarchive", "tar", "zip"})
_SCHEMES_WITHOUT_HOST: Final = frozenset({"hf", "zip", "tar", "dir", "libarchive", "git", "reference", "data"})


# Python's message for a call without required arguments.
_MISSING_ARGUMENTS: Final = re.compile(r"missing \d+ required .*?arguments?: (.+)")


class FsspecStore(Store):
    """``scheme://host/path`` of any scheme that fsspec supports: ``hf``, ``webdav``, ``ftp``, ``smb``, ``github``, ...

    Paths are those of the file system, without the host, taken literally. Asynchronous file systems are awaited; others
    are called in threads. Each span is a request of its own, whose length is checked.

    A version is metadata that changes with the content: an ETag, a checksum, or size and time. If the file system
    reports none of these, replacing a file during a read may go unnoticed. A read queries the metadata first. A read
    that names a version, that reads up to the end, or that takes several requests queries it again after each request.

    The first address that a store connects to limits the later ones, as in HTTP: a public server cannot redirect to
    addresses in the user's network (:mod:`streamloader.stores.connection_guard`).

    If the file system can rename files, a write creates a hidden file next to the target and then renames it.
    Otherwise it writes under the final name; whether that is atomic depends on the file system (for object stores it
    is). A written object is held in memory. A cancelled call in a thread runs to its end in the background.

    Args:
        url: Scheme and host.
        timeouts: Deadlines of requests, see :class:`streamloader.config.Timeouts`.
        limits: Limits of requests, see :class:`streamloader.config.Limits`.
        **options: Options of ``fsspec.filesystem(scheme, ...)``, see the documentation of the file system.

    Raises:
        ConfigError: If fsspec does not support the scheme, or if the file system does not take one of the options.
        MissingDependency: If fsspec, or the package that the file system needs, is not installed.
    """

    schemes: ClassVar[tuple[str, ...]] = ()  # serves every scheme without a store of its own
    has_directories: ClassVar[bool] = True

    def __init__(
        self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None, **options: Any
    ) -> None:
        super().__init__(url, timeouts=timeouts, limits=limits)
        self._url = url
        self._scheme = url.partition("://")[0].lower()
        self._load_filesystem_class()
        if self._scheme in _CONTAINER_SCHEMES and not options.get("fo"):
            raise ConfigError(
                f"{self._scheme}:// names no file that contains the members: write its address, !/ and the path of the "
                "member, as in sets/a.zip!/b.mp4, or pass the file as fo= in storage_options"
            )
        _check_names(self._scheme, url, options)
        self._options = options
        self._guard = ConnectionGuard()
        # Any option may name a server, an account or a folder, so all of them are part of the identity.
        text = repr(sorted((name, repr(value)) for name, value in options.items()))
        self.identity += hashlib.sha256(text.encode()).hexdigest() if options else ""
        self._async_filesystem: Any = None
        self._session: Any = None
        self._idle_filesystems: list[Any] = []  # synchronous ones; many serve only one thread at a time
        self._open_lock: asyncio.Lock | None = None
        self._make_folder_lock: asyncio.Lock | None = None
        self._thread_slots: asyncio.Semaphore | None = None

    @override
    def describe_access(self) -> StoreAccess:
        options = ", ".join(sorted(self._options))  # any of them may be a secret, so that no value is shown
        has_login = "@" in self._url.partition("://")[2].partition("/")[0]
        sources = [*(["login from the address"] if has_login else []), *([f"options {options}"] if options else [])]
        facts = {
            "credentials": " and ".join(sources) or "those that the file system finds by itself",
            "file system": f"{self._scheme} of fsspec",
        }
        return StoreAccess(facts=facts)

    @classmethod
    @override
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address after its host, or after the scheme if it has no host (``hf://user/repo/...``)."""
        scheme, _, rest = address.partition("://")
        if scheme.lower() in _SCHEMES_WITHOUT_HOST:
            return f"{scheme}://", rest.lstrip("/")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path

    @override
    def address(self, path: str) -> str:
        if self.url.endswith("://") and self._scheme in _SCHEMES_WITHOUT_HOST:
            return redact_address(f"{self.url}{path}")
        return super().address(path)

    @override
    async def _head(self, path: str) -> ObjectInfo:
        metadata = await self._call(path, None, "info", self._to_filesystem_path(path))
        if metadata.get("type") == "directory":
            raise NotFound(f"{self.address(path)} is a directory, not a file", address=self.address(path))
        if metadata.get("type") == "other":
            raise self._make_kind_error(path)
        return _make_info(path, metadata)

    @override
    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        info = await self._head(path)
        span = span or ByteRange()
        if info.size is None:
            if span != ByteRange():
                raise NotSupported(
                    f"{self.address(path)}: its size is unknown, so no part of it can be read: read it as a whole",
                    address=self.address(path),
                )
            limit = min(self.limits.unsized_bytes, self.limits.object_bytes)
            name = self._to_filesystem_path(path)
            whole = await self._call(path, 0, "cat_file", name, start=0, end=limit + 1)
            if len(whole) > limit:
                raise LimitExceeded(
                    f"{self.address(path)}: its file system does not declare its size, and has sent more than {limit} "
                    "bytes: raise Limits(unsized_bytes=...)",
                    address=self.address(path),
                    offset=limit,
                )
            yield Body(info, 0, len(whole), _split_into_pieces(whole))
            return
        self._check_version(info, version, max(0, span.start))
        start, end = span.within(info.size, self.address(path))
        pinned = version is not None or span.end is None
        yield Body(info, start, end, self._read_pieces(info, start, end, pinned=pinned))

    async def _read_pieces(
        self, info: ObjectInfo, start: int, end: int, *, pinned: bool
    ) -> AsyncGenerator[bytes, None]:
        offset = start
        while offset < end:
            piece_end = min(end, offset + _PIECE_BYTES)
            name = self._to_filesystem_path(info.path)
            piece = bytes(await self._call(info.path, offset, "cat_file", name, start=offset, end=piece_end))
            if len(piece) > piece_end - offset:
                raise ProtocolError(
                    f"{self.address(info.path)}: requested {piece_end - offset} bytes, received {len(piece)}",
                    address=self.address(info.path),
                    offset=offset,
                )
            if pinned or end - start > _PIECE_BYTES:  # a single request cannot mix two versions
                await self._check_unchanged(info, offset)
            if not piece:
                return
            yield piece
            offset += len(piece)

    async def _check_unchanged(self, info: ObjectInfo, offset: int) -> None:
        """Raise an error if the file was replaced during the read, before bytes of the new file are yielded."""
        current = await self._head(info.path)
        if (current.version, current.size) != (info.version, info.size):
            raise ObjectChanged(
                f"{self.address(info.path)} was changed while it was read, detected at byte {offset}",
                address=self.address(info.path),
                offset=offset,
            )

    @override
    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, None, recursive=recursive)

    @override
    def _search(self, prefix: str, search: TreeSearch, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        return self._walk(prefix, search, recursive=recursive)

    async def _walk(
        self, prefix: str, search: TreeSearch | None, *, recursive: bool
    ) -> AsyncGenerator[ObjectInfo, None]:
        pending: list[tuple[str, tuple[Hashable, ...]]] = [(prefix, ())]
        budget = ListingBudget(self.limits, self.address(prefix))
        while pending:
            folder, ancestors = pending.pop()
            budget.check_depth(max(1, len(ancestors)), self.address(folder))
            entries = await self._list_folder(folder, None if folder == prefix else search)
            if recursive and not ancestors:
                ancestors = (await self._identify_root(prefix, entries),)
            for name, metadata in entries:
                budget.count_entry(name)
                path = self._select_entry(folder, name, metadata, search)
                entry = None if path is None else await self._resolve_entry(path, metadata, search)
                if path is None or entry is None:
                    continue
                if entry.get("type") != "directory":
                    yield _make_info(path, entry)
                elif not recursive:
                    yield ObjectInfo(f"{path}/")
                elif (identity := _identify_directory(path, entry)) not in ancestors:
                    budget.enter_directory(identity)
                    budget.hold_directory(path, len(ancestors))
                    pending.append((path, (*ancestors, identity)))

    async def _list_folder(self, folder: str, search: TreeSearch | None) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the file system's name and metadata of each entry of a folder, or none if it does not exist."""
        try:
            entries = await self._call(folder, None, "ls", self._to_filesystem_path(folder), detail=True)
        except NotFound:
            return []
        except AccessDenied as error:
            if search is None:
                raise
            search.report(ListingProblem(folder, error, is_directory=True))
            return []
        return [(entry["name"], entry) for entry in entries]

    def _select_entry(
        self, folder: str, name: str, metadata: Mapping[str, Any], search: TreeSearch | None
    ) -> str | None:
        """Return the path of an entry of a folder, or None if it is not listed."""
        path = self._to_store_path(name)
        if path is None or path == folder or (folder and not path.startswith(f"{folder}/")):
            return None  # the folder itself, or a file if the folder is one
        last = path.rpartition("/")[2]
        if search is not None and last.startswith(".") and not search.show_hidden:
            return None
        return None if last.startswith(_UNFINISHED_PREFIX) and metadata.get("type") != "directory" else path

    async def _resolve_entry(
        self, path: str, metadata: Mapping[str, Any], search: TreeSearch | None
    ) -> Mapping[str, Any] | None:
        """Return the metadata of a file or directory, of its target if it is a link. None if it is neither."""
        problem: StoreError
        try:
            if _is_link(metadata):
                metadata = await self._call(path, None, "info", self._to_filesystem_path(path))
            if metadata.get("type") != "other":
                return metadata
            problem = self._make_kind_error(path)
        except StoreError as error:  # of a link that leads nowhere, to itself, or to a place without access
            if error.transient:
                raise
            problem = error
        if search is not None:
            search.report(ListingProblem(path, problem, is_directory=isinstance(problem, AccessDenied)))
        return None

    def _make_kind_error(self, path: str) -> StoreError:
        address = self.address(path)
        return StoreError(f"{address} is a pipe, socket or device, not a file", address=address)

    async def _identify_root(self, prefix: str, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Hashable:
        """Return the identity of the listed directory, to which links below it may lead."""
        if not any("ino" in metadata for _, metadata in entries):
            return prefix
        return _identify_directory(prefix, await self._call(prefix, None, "info", self._to_filesystem_path(prefix)))

    @override
    async def _write(self, path: str, data: Data) -> None:
        if isinstance(data, (bytes, bytearray, memoryview)):
            whole = bytes(data)
        else:
            joined = bytearray()
            async for piece in data:
                joined += piece
            whole = bytes(joined)
        target = self._to_filesystem_path(path)
        folder = target.rpartition("/")[0]
        seconds = self.timeouts.connect + self.timeouts.response
        seconds += self.timeouts.window * (1 + len(whole) // _PIECE_BYTES)
        try:
            async with asyncio.timeout(seconds):
                if folder.strip("/"):
                    await self._make_folder(path, folder)
                if not self._can_rename():
                    await self._call(path, None, "pipe_file", target, whole)
                    return
                unfinished = f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}"
                if folder:
                    unfinished = f"{folder}/{unfinished}"
                try:
                    await self._call(path, None, "pipe_file", unfinished, whole)
                    await self._call(path, None, "mv", unfinished, target)
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
        """Create a folder and its parents. That takes several steps, so only one task does it at a time."""
        self._make_folder_lock = self._make_folder_lock or asyncio.Lock()
        async with self._make_folder_lock:
            # Another process may have created it just now. If it is missing after all, the write fails.
            with contextlib.suppress(StoreError):
                await self._call(path, None, "makedirs", folder, exist_ok=True)

    def _can_rename(self) -> bool:
        """Return whether moving a file renames it. Without that, a file is visible before it is complete."""
        abstract = importlib.import_module("fsspec").AbstractFileSystem
        filesystem_class = self._load_filesystem_class()
        return not filesystem_class.async_impl and filesystem_class.mv is not abstract.mv

    @override
    async def _delete(self, path: str) -> None:
        with contextlib.suppress(NotFound):
            await self._call(path, None, "rm_file", self._to_filesystem_path(path))

    @override
    async def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            self._async_filesystem._session = None  # noqa: SLF001 - its finalizer would close it again
        self._async_filesystem = None
        idle, self._idle_filesystems = self._idle_filesystems, []
        for filesystem in idle:
            await anyio.to_thread.run_sync(_close_filesystem, filesystem, abandon_on_cancel=True)

    @override
    def _drop_connections(self) -> None:
        self._async_filesystem = None
        self._session = None
        self._idle_filesystems = []
        self._open_lock = None
        self._make_folder_lock = None
        self._thread_slots = None

    # --- the file system ---------------------------------------------------------------------------------------------

    def _load_filesystem_class(self) -> Any:
        """Return fsspec's class for the scheme."""
        try:
            fsspec = importlib.import_module("fsspec")
        except ImportError as error:
            raise MissingDependency(
                f"{self._scheme}:// needs the package fsspec: pip install streamloader[fsspec]"
            ) from error
        try:
            return fsspec.get_filesystem_class(self._scheme)
        except ImportError as error:
            raise MissingDependency(f"{self._scheme}:// needs another package: {error}") from error
        except ValueError as error:
            supported = sorted(fsspec.available_protocols())
            advice = explain_unknown_scheme(self._scheme, supported) or (
                f"fsspec does not support it either. It supports {', '.join(supported)}; packages with file systems "
                "(pip install ...) add more"
            )
            raise ConfigError(f"no store serves {self._scheme}://: {advice}") from error

    async def _open_async_filesystem(self) -> Any:
        """Return the asynchronous file system, created for this event loop."""
        self._open_lock = self._open_lock or asyncio.Lock()
        async with self._open_lock:
            if self._async_filesystem is None:
                filesystem = self._make_filesystem(asynchronous=True)
                if hasattr(filesystem, "set_session"):
                    self._session = await filesystem.set_session()
                self._async_filesystem = filesystem
        return self._async_filesystem

    def _make_filesystem(self, **extra: Any) -> Any:
        """Create a file system. It is not shared with other users of the same options, so that it can be closed."""
        filesystem_class = self._load_filesystem_class()
        options = {**filesystem_class._get_kwargs_from_urls(self._url), **self._options}  # noqa: SLF001
        try:
            return filesystem_class(**{"skip_instance_cache": True, "use_listings_cache": False, **options, **extra})
        except TypeError as error:
            missing = _MISSING_ARGUMENTS.search(str(error))
            needed = f" (it needs {missing[1]} in storage_options)" if missing else ""
            raise ConfigError(
                f"the file system of {self._scheme}:// does not take these options{needed}: {error}"
            ) from error
        except ImportError as error:
            raise MissingDependency(f"{self._scheme}:// needs another package: {error}") from error

    async def _call(self, path: str, offset: int | None, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the file system, and translate its errors."""
        address = self.address(path)
        with self._guard.watch() as call:
            try:
                if self._load_filesystem_class().async_impl:
                    function = getattr(await self._open_async_filesystem(), f"_{method}")
                    return await function(*args, **kwargs)
                return await self._call_in_thread(method, *args, **kwargs)
            except StreamloaderError:
                raise
            except Exception as error:  # noqa: BLE001 - file systems of many packages raise errors of many types
                if call.refusal is not None:
                    raise UntrustedHost(
                        f"{address}: {call.refusal}, which a redirect or a changed name must not reach; if it is "
                        "intended, name that address itself",
                        address=address,
                        offset=offset,
                    ) from None
                _raise_translated(error, address, offset)

    async def _call_in_thread(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self._thread_slots = self._thread_slots or asyncio.Semaphore(min(_MAX_THREADS, self.limits.connections))
        async with self._thread_slots:
            idle = self._idle_filesystems.pop() if self._idle_filesystems else None
            abandoned = threading.Event()

            def call() -> tuple[Any, Any, FileNotFoundError | None]:
                filesystem, usable = idle or self._make_filesystem(), False
                result: tuple[Any, FileNotFoundError | None]
                try:
                    try:
                        result = getattr(filesystem, method)(*args, **kwargs), None
                    except FileNotFoundError as error:
                        result = None, error
                    usable = not abandoned.is_set()
                    return filesystem, *result
                finally:
                    if not usable:  # after a failure its state is unknown; after a cancellation no task takes it
                        _close_filesystem(filesystem)

            try:
                filesystem, result, missing = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
            except asyncio.CancelledError:
                abandoned.set()
                raise
            self._idle_filesystems.append(filesystem)
            if missing is not None:
                raise missing
            return result

    def _to_filesystem_path(self, path: str) -> str:
        """Return the file system's name for a path.

        Raises:
            ConfigError: If the file system would read it as another name: some cut names at "#" or "?".
        """
        if self._scheme in _SCHEMES_WITHOUT_HOST:
            return path
        strip = self._load_filesystem_class()._strip_protocol  # noqa: SLF001 - fsspec's own interface
        name = f"{str(strip(f'{self._url}/')).rstrip('/')}/{path}"
        if path and str(strip(name)).strip("/") != name.strip("/"):
            raise ConfigError(f"{self.address(path)}: the file system of {self._scheme}:// cannot represent this path")
        return name

    def _to_store_path(self, name: str) -> str | None:
        """Return the store's path for a file system's name, or None if the name is outside the store."""
        root = self._to_filesystem_path("").rstrip("/")
        name = name.rstrip("/")
        if root and name != root and not name.startswith(f"{root}/"):
            return None
        return name[len(root) :].lstrip("/")


def _check_names(scheme: str, url: str, options: Mapping[str, Any]) -> None:
    """Check the host and user names in the address and in the options of a file system.

    Raises:
        ConfigError: If one of them has characters that such names must not have.
    """
    authority = url.partition("://")[2].partition("/")[0]
    if authority and scheme not in _SCHEMES_WITHOUT_HOST | _LOCAL_SCHEMES:
        check_authority(authority)
    for name, value in options.items():
        if not isinstance(value, str) or not value:
            continue
        if name in _USER_OPTIONS:
            check_user_name(value)
        elif name in _ADDRESS_OPTIONS and "://" in value:
            check_authority(value.partition("://")[2].partition("/")[0])
        elif name in _HOST_OPTIONS:
            check_host_name(value.strip("[]")) if ":" not in value or value.count(":") > 1 else check_authority(value)


def _close_filesystem(filesystem: Any) -> None:
    """Close a file system's connection, if it has one. fsspec defines no common method for that."""
    close = getattr(getattr(filesystem, "ftp", filesystem), "close", None)
    if close is not None:
        close()


def _raise_translated(error: Exception, address: str, offset: int | None) -> NoReturn:
    """Raise the translation of a file system's error. It is not chained: its text may contain the password."""
    details: dict[str, Any] = {"address": address, "offset": offset}
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    is_missing = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
    if is_missing or getattr(error, "errno", None) == errno.ELOOP or status in (404, 410):
        raise NotFound(f"no such object: {address}", **details) from None
    if name == "error_perm" and str(error).startswith("550") and "denied" not in str(error).lower():  # from ftplib
        raise NotFound(f"no such object: {address}", **details) from None
    if isinstance(error, PermissionError) or status in (401, 403) or name == "error_perm":
        raise AccessDenied(f"{address}: access denied; check the credentials among the options", **details) from None
    if status in _BUSY_STATUSES:
        raise ServerBusy(f"{address}: the server is overloaded or failing", status=status, **details) from None
    if isinstance(error, TimeoutError):
        raise StoreTimeout(f"waited too long for {address}", stage="fetching", **details) from None
    if isinstance(error, socket.gaierror):
        raise Unreachable(f"{address}: the name of its server does not resolve", **details) from None
    # The classes of requests, aiohttp and httpx are not those of Python.
    is_unconnected = isinstance(error, (ConnectionRefusedError, BrokenPipeError)) or "ConnectorError" in name
    if is_unconnected or (name in _FOREIGN_CONNECT_ERRORS and not isinstance(error, ConnectionError)):
        raise Unreachable(f"{address}: no connection to the server ({name})", **details) from None
    if (
        isinstance(error, (ConnectionError, EOFError))
        or name == "error_temp"
        or "Disconnected" in name
        or "PayloadError" in name
    ):
        raise TransferInterrupted(f"{address}: the connection broke ({name})", **details) from None
    if isinstance(error, NotImplementedError):
        raise NotSupported(f"{address}: its file system does not support this operation", **details) from None
    number = getattr(error, "errno", None)
    reason = f": {os.strerror(number)}" if isinstance(error, OSError) and isinstance(number, int) else ""
    raise StoreError(f"{address}: its file system raised {name}{reason}", cause=name, errno=number, **details) from None


def _is_link(metadata: Mapping[str, Any]) -> bool:
    return bool(metadata.get("islink")) or metadata.get("type") in ("link", "symlink")


def _identify_directory(path: str, metadata: Mapping[str, Any]) -> Hashable:
    """Return what tells a directory from others: the number of its inode. Without one, it is its path."""
    return metadata.get("ino") or path


def _make_info(path: str, metadata: Mapping[str, Any]) -> ObjectInfo:
    size = metadata.get("size")
    modified = next((time for key in _TIME_KEYS if (time := _to_timestamp(metadata.get(key))) is not None), None)
    version = next((str(metadata[key]) for key in _VERSION_KEYS if metadata.get(key)), None)
    parts = [] if modified is None else [f"{modified!r}"]
    parts += [str(metadata[key]) for key in _FALLBACK_VERSION_KEYS if metadata.get(key)]
    if version is None and parts:
        version = "-".join([str(size), *parts])
    return ObjectInfo(path, _to_size(size), version, modified)


def _to_size(value: Any) -> int | None:
    """Return a size in bytes, -1 if it is no number: the caller refuses it."""
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return -1


def _to_timestamp(value: Any) -> float | None:
    date = value if isinstance(value, datetime) else getattr(value, "date", None)  # hf's last_commit
    try:
        if isinstance(date, datetime):
            return date.timestamp()
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError, OSError):  # outside the years that this machine can represent
        return None


async def _split_into_pieces(whole: bytes) -> AsyncGenerator[bytes, None]:
    for offset in range(0, len(whole), _PIECE_BYTES):
        yield whole[offset : offset + _PIECE_BYTES]
