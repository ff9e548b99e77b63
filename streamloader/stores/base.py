"""Define the store contract, and implement what all stores share.

A store class implements one request in four or five methods that begin with an underscore. The public methods are
implemented here: they check paths, limit concurrent requests, enforce deadlines and count bytes. A caller therefore
receives exactly the requested bytes, or one typed error.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import math
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, ClassVar, Final, Self, TypeAlias

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Retry, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    LimitExceeded,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    RangeNotSatisfiable,
)
from streamloader.redaction import redact_address
from streamloader.stores.access import StoreAccess
from streamloader.stores.deadlines import TransferDeadline, WaitTimer
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.patterns import is_hidden
from streamloader.stores.search import TreeSearch
from streamloader.stores.transfer import Body, Transfer
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["NAMING_ADVICE", "Body", "Data", "ListingGuard", "OnStart", "Store"]

Data: TypeAlias = "bytes | bytearray | memoryview | AsyncIterable[bytes]"
OnStart: TypeAlias = Callable[[ObjectInfo, int], None]
NAMING_ADVICE: Final = "name its objects one by one, with braces (part-{000..127}.mp4), or as a list"

_MAX_OBJECT_BYTES: Final = (1 << 63) - 1
_MAX_VERSION_CHARACTERS: Final = 80  # in messages
_DOT_SEGMENT: Final = re.compile(r"(?:^|/)\.\.?(?:/|\Z)")


class Store(abc.ABC):
    """Named objects in one location. One instance serves many tasks of one event loop concurrently.

    Creating a store is cheap: it connects on first use. It can be pickled, and it can be used after a fork, or in
    another event loop once the first one has ended. It then opens new connections and shares nothing. Close it with
    :meth:`aclose`, or use it as an asynchronous context manager.

    Paths are names within the store: segments joined by "/", without a leading "/", and without "." and ".." segments.

    Args:
        url: Location of the store: scheme, user, host and port, without a path.
        timeouts: Deadlines of requests, see :class:`streamloader.config.Timeouts`.
        limits: Limits of requests, see :class:`streamloader.config.Limits`.

    Attributes:
        url: Location of the store, without secrets.
        identity: Text that distinguishes this store from others with the same `url`, such as the user or, for some
            stores, the address of the server. It is never shown. Caches use it as part of their keys.
        supports_writes: Whether objects can be written and deleted.
        supports_listing: Whether objects can be listed.
        has_directories: Whether directories exist besides their objects, and have permissions of their own.
        has_url_paths: Whether paths are those of URLs: percent-encoded, and "?" begins a query. A path names a
            directory then only if it ends in "/".
        paths_are_keys: Whether paths are any texts, which are taken literally: with empty names, and with "." and "..".
            Otherwise, they consist of names as described above.
        limits_listing_waits: Whether the store itself limits each wait of a listing. Otherwise, each wait for an entry
            has a deadline, although many requests may be needed for it.
        part_retry: Policy by which the store repeats the parts of an upload, which its caller cannot repeat, and the
            pages of a listing. None for no repetitions.
        supports_ranges: Whether a part of an object is transferred without the rest. Some stores learn from the first
            response that their server cannot do that.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    supports_writes: ClassVar[bool] = True
    supports_listing: ClassVar[bool] = True
    has_directories: ClassVar[bool] = False
    has_url_paths: ClassVar[bool] = False
    limits_listing_waits: ClassVar[bool] = False
    paths_are_keys: bool = False
    supports_ranges: bool = True
    part_retry: Retry | None = None

    def __init__(self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None) -> None:
        self.url = redact_address(url)
        self.identity = url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[0]
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self._closed = False
        self._checked_path = ""
        self._loop_id: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._request_slots = asyncio.Semaphore(self.limits.requests)
        self._wait_timer = WaitTimer()

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into the URL of its store and the path within it. The "/" between them is dropped.

        The path is taken literally. Stores whose addresses are percent-encoded or have no host override this method.
        """
        scheme, _, rest = address.partition("://")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path

    def names_version(self, path: str) -> bool:
        """Return whether a path names one version of an object, which never changes, as ``key?versionId=...`` in S3."""
        return False

    def directory_path(self, path: str) -> str:
        """Return the path of a directory without the "/" at its end, unless the name before it is empty.

        A directory with an empty name, as in the key ``a//b``, only exists where paths are keys.
        """
        if not self.paths_are_keys:
            return path.rstrip("/")
        return path[:-1] if path.endswith("/") and path != "/" and not path.endswith("//") else path

    def address(self, path: str) -> str:
        """Return the full address of `path` without secrets, for messages."""
        return _redact_path(self.url, path)

    def normalize_pattern(self, part: str) -> str:
        """Return a segment of a pattern in the spelling that names have in listings."""
        return part

    # --- how it connects ---------------------------------------------------------------------------------------------

    def describe_access(self) -> StoreAccess:
        """Return how this store reaches its data, without connecting. It may read configuration files.

        Raises:
            ConfigError: If the configuration is invalid.
        """
        return StoreAccess()

    async def describe_login(self) -> dict[str, Any] | None:
        """Log in on a connection of its own, and return by name what was agreed on. None if this store has no login.

        Raises:
            StoreError: If that fails.
        """
        return None

    # --- public methods ----------------------------------------------------------------------------------------------

    async def head(self, path: str) -> ObjectInfo:
        """Return size, version and modification time of an object.

        Raises:
            NotFound: If the object does not exist.
            StoreError: If the request fails otherwise; see the errors of :mod:`streamloader.errors`.
        """
        self._prepare_call(path)
        async with self._request_slots:
            with self._make_deadline(path).limit_response("head"):
                return self._check_info(await self._head(path))

    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        """Return exactly the bytes of `span`, or of the whole object.

        Args:
            path: Path of the object.
            span: Bytes to read. Defaults to the whole object.
            version: Version that the object must still have, from :class:`ObjectInfo`. Defaults to any version.
            size: Size in bytes that the object must still have, from the same source. Servers that report no versions,
                or report different sizes for one version, are noticed by it. Defaults to any size.

        Raises:
            NotFound: If the object does not exist.
            RangeNotSatisfiable: If the object does not have all of these bytes.
            ObjectChanged: If the object has another version or size.
            LimitExceeded: If the result is larger than ``limits.object_bytes``. If the size is declared, nothing is
                fetched.
            StoreError: If the request fails otherwise.
        """
        parts: list[bytes] = []
        count = 0

        def check_size(bytes_read: int | None) -> None:
            if bytes_read is not None and bytes_read > self.limits.object_bytes:
                raise LimitExceeded(
                    f"{self.address(path)} has more than {self.limits.object_bytes} bytes, the limit for a single "
                    "read into memory: read it in spans, or raise Limits(object_bytes=...)",
                    address=self.address(path),
                    offset=count,
                )

        def check_announced(info: ObjectInfo, start: int) -> None:
            end = info.size if span is None or span.end is None else span.end
            check_size(None if end is None else end - start)

        def receive(piece: bytes) -> None:
            nonlocal count
            count += len(piece)
            check_size(count)
            parts.append(piece)

        await self.fetch(path, span, receive, version=version, size=size, on_start=check_announced)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def fetch(
        self,
        path: str,
        span: ByteRange | None,
        receive: Callable[[bytes], None],
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> None:
        """Pass exactly the bytes of `span`, or of the whole object, to `receive`, in pieces, as they arrive.

        This is :meth:`stream` for a caller that never has to wait, and takes less time for a short span.

        Args:
            path: Path of the object.
            span: Bytes to read. None for the whole object.
            receive: Function that takes a piece. It must not block.
            version: Version that the object must still have, see :meth:`read`.
            size: Size in bytes that the object must still have, see :meth:`read`.
            on_start: Callback for the start of the transfer, see :meth:`stream`.
        """
        if type(self).stream is not Store.stream:  # the subclass defines what is read
            async with contextlib.aclosing(
                self.stream(path, span, version=version, size=size, on_start=on_start)
            ) as pieces:
                async for piece in pieces:
                    receive(piece)
            return
        self._prepare_call(path)
        if span is not None and span.start == span.end:
            await self._read_nothing(path, span, version, size, on_start)
            return
        async with self._request_slots, self._make_transfer(path, span, version, size, on_start) as transfer:
            while (next_piece := await transfer.fetch_next()) is not None:
                receive(next_piece)

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield exactly the bytes of `span`, or of the whole object, in pieces. Errors are those of :meth:`read`.

        Close the generator (``contextlib.aclosing``) unless you exhaust it: it uses a connection until then.

        Args:
            path: Path of the object.
            span: Bytes to read. Defaults to the whole object.
            version: Version that the object must still have, see :meth:`read`.
            size: Size in bytes that the object must still have, see :meth:`read`.
            on_start: Callback for the start of the transfer. It receives the object's metadata and the offset of the
                first byte before that byte is yielded.

        Raises:
            LimitExceeded: If the transfer is larger than ``limits.stream_bytes``, or if the size of the object is not
                declared and exceeds ``limits.unsized_bytes``.
        """
        self._prepare_call(path)
        if span is not None and span.start == span.end:
            await self._read_nothing(path, span, version, size, on_start)
            return
        async with self._request_slots, self._make_transfer(path, span, version, size, on_start) as transfer:
            while (piece := await transfer.fetch_next()) is not None:
                yield piece

    async def list(
        self, prefix: str = "", *, recursive: bool = True, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        """Yield all objects under the directory `prefix`, in no particular order. Yield nothing if it does not exist.

        Links to directories are followed, but not into a directory that lies above them.

        Args:
            prefix: Directory to list. Defaults to the whole store. "a/b" never matches "a/bc".
            recursive: Whether to list objects at any depth. Otherwise only the direct contents are listed, with
                directories as paths that end in "/".
            search: Rules of a search, see :mod:`streamloader.stores.search`: hidden names are passed over, and what may
                not be read below `prefix` is reported. By default, all names are listed, and a directory that may not
                be read is an error.

        Raises:
            NotSupported: If this store has no listings.
            LimitExceeded: If there are too many entries, their names are too long, directories are nested too deeply,
                or links lead to the same directories again and again; see :class:`streamloader.config.Limits`.
            StoreError: If the request fails otherwise.
        """
        prefix = self.directory_path(prefix)
        self._prepare_call(prefix, allow_empty=True)
        if not self.supports_listing:
            raise NotSupported(f"{self.url} has no listings: {NAMING_ADVICE}", address=self.address(prefix))
        listing = (
            self._list(prefix, recursive=recursive)
            if search is None
            else self._search(prefix, search, recursive=recursive)
        )
        async with contextlib.aclosing(listing) as entries:
            guard = ListingGuard(self, prefix, self._make_deadline(prefix))
            while (info := await guard.fetch_next(entries)) is not None:
                yield info

    async def write(self, path: str, data: Data) -> None:
        """Write an object atomically. An existing object is replaced; its readers are not disturbed.

        Args:
            path: Path of the object. Missing directories are created.
            data: Content of the object. For large objects, an asynchronous iterable of pieces of any size.

        Raises:
            NotSupported: If this store is read-only.
            StoreError: If the request fails otherwise.
        """
        self._prepare_call(path)
        self._require_writes(path)
        async with self._request_slots:
            await self._write(path, data)

    async def delete(self, path: str) -> None:
        """Delete an object. A missing object is not an error, so that deletion can be retried.

        Raises:
            NotSupported: If this store is read-only.
            StoreError: If the request fails otherwise.
        """
        self._prepare_call(path)
        self._require_writes(path)
        async with self._request_slots:
            with self._make_deadline(path).limit_response("delete"):
                await self._delete(path)

    async def free_bytes(self, path: str = "") -> int | None:
        """Return the number of bytes that can still be written under the directory `path`, which need not exist yet.

        Return None if that is unknown, as for object stores and for servers that do not report it.

        Raises:
            StoreError: If the request fails.
        """
        self._prepare_call(path.rstrip("/"), allow_empty=True)
        deadline = self._make_deadline(path)
        async with self._request_slots:
            with deadline.limit_response("querying free space"):
                return await self._free_bytes(path.rstrip("/"))

    async def list_unfinished(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Yield the unfinished files under the directory `prefix`. :meth:`list` never shows them.

        They belong to writers that are running or were killed; old files are from killed writers. Stores that leave no
        unfinished files, or cannot recognize them, yield nothing.

        Raises:
            StoreError: If the request fails.
        """
        prefix = prefix.rstrip("/")
        self._prepare_call(prefix, allow_empty=True)
        async with contextlib.aclosing(self._list_unfinished(prefix)) as entries:
            guard = ListingGuard(self, prefix, self._make_deadline(prefix))
            while (info := await guard.fetch_next(entries)) is not None:
                yield info

    async def aclose(self) -> None:
        """Close all connections. All other methods then raise ClosedError. Closing twice is allowed."""
        if not self._closed:
            self._closed = True
            if self._loop_id == _current_loop_id():
                with contextlib.suppress(TimeoutError):  # then the connections are dropped
                    async with asyncio.timeout(self.timeouts.close):
                        await self._disconnect()
            elif self._loop_id is not None:
                self._drop_connections()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # --- methods to implement ----------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def _head(self, path: str) -> ObjectInfo:
        """Return the metadata of one object."""

    @abc.abstractmethod
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        """Start a read. Leaving the context releases the connection.

        `span` is never empty. The caller compares the Body with the request. If a version is given, the store should
        request exactly this one from the server (If-Match), so that no useless bytes are sent.
        """

    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """Yield the contents of `prefix`, which has no trailing "/". Called only if `supports_listing`."""
        raise NotImplementedError

    async def _search(self, prefix: str, search: TreeSearch, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """Yield the contents of `prefix` by the rules of a search. Stores with real directories override it.

        An override does not enter hidden directories, and reports what may not be read. This default lists everything.
        """
        start = len(prefix) + 1 if prefix and not prefix.endswith("/") else len(prefix)
        async with contextlib.aclosing(self._list(prefix, recursive=recursive)) as entries:
            async for info in entries:
                if search.show_hidden or not is_hidden(info.path[start:]):
                    yield info

    async def _write(self, path: str, data: Data) -> None:
        """Write an object atomically. Called only if `supports_writes`. The store enforces its own deadlines here."""
        raise NotImplementedError

    async def _delete(self, path: str) -> None:
        """Delete an object, or do nothing if it does not exist. Called only if `supports_writes`."""
        raise NotImplementedError

    async def _free_bytes(self, path: str) -> int | None:
        """Return the number of bytes that can still be written under a directory, which has no trailing "/"."""
        return None

    async def _list_unfinished(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        """Yield unfinished files."""
        nothing: tuple[ObjectInfo, ...] = ()
        for info in nothing:
            yield info

    async def _disconnect(self) -> None:  # noqa: B027 - most stores have nothing to close
        """Close all connections. Called once, in the event loop that opened them."""

    def _drop_connections(self) -> None:  # noqa: B027
        """Forget all connections without closing them: they belong to another process or to an ended event loop."""

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _prepare_call(self, path: str, *, allow_empty: bool = False) -> None:
        """Check a path. Drop connections that belong to another process or event loop."""
        if path != self._checked_path or not path:
            self._check_path(path, allow_empty=allow_empty)
            self._checked_path = path
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        current = _current_loop_id()
        if self._loop_id != current:
            if self._loop_id is not None:
                self._drop_connections()
            self._request_slots = asyncio.Semaphore(self.limits.requests)
            self._wait_timer = WaitTimer()
            self._loop_id = current

    def _make_deadline(self, path: str) -> TransferDeadline:
        """Create the deadline of one request. :meth:`_prepare_call` comes before."""
        return TransferDeadline(self.timeouts, self.address(path), self._wait_timer)

    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        if not isinstance(path, str):
            raise ConfigError(f"a path in a store must be a str, got {type(path).__name__}")
        if (not path and not allow_empty) or path.startswith("/") or "\0" in path:
            raise ConfigError(
                f"{Store.address(self, path)!r} is not a path in a store: expected names joined by '/', without a "
                "leading '/'"
            )
        if _DOT_SEGMENT.search(path):
            raise ConfigError(f"{Store.address(self, path)!r} is not a path in a store: it contains '.' or '..'")

    def _make_transfer(
        self, path: str, span: ByteRange | None, version: str | None, size: int | None, on_start: OnStart | None
    ) -> Transfer:
        request = self._get(path, span, version)

        async def open_body() -> Body:
            try:
                return await request.__aenter__()
            except RangeNotSatisfiable as error:
                if version is not None or size is not None:  # another version may have had these bytes
                    info = await self._head(path)
                    self._check_version(info, version, error.offset or 0)
                    self._check_size(info, size, error.offset or 0)
                raise

        def check_body(body: Body) -> int | None:
            body.info = self._check_info(body.info)
            self._check_version(body.info, version, body.start)
            self._check_size(body.info, size, body.start)
            if body.info.size is None and size is not None:
                body.info = replace(body.info, size=size)
                if body.end is None:
                    body.end = (span or ByteRange()).within(size, self.address(path))[1]
            self._check_span(body, span)
            if on_start is not None:
                on_start(body.info, body.start)
            return self._find_end(body, span)

        deadline = self._make_deadline(path)
        deadline.offset = max(0, span.start) if span else 0
        return Transfer(request, open_body, check_body, deadline, self.address(path), self.limits.unsized_bytes)

    async def _read_nothing(
        self, path: str, span: ByteRange, version: str | None, size: int | None, on_start: OnStart | None
    ) -> None:
        """Check that an empty span exists."""
        info = await self.head(path)
        self._check_version(info, version, span.start)
        self._check_size(info, size, span.start)
        if info.size is not None:
            span.within(info.size, self.address(path))
        if on_start is not None:
            on_start(info, span.start)

    def _require_writes(self, path: str) -> None:
        if not self.supports_writes:
            raise NotSupported(f"{self.url} is read-only: write to another kind of store", address=self.address(path))

    def _check_info(self, info: ObjectInfo) -> ObjectInfo:
        """Return the metadata that a server states, without an impossible modification time.

        Raises:
            ProtocolError: If the size is negative, or has more than 63 bits.
        """
        if info.size is not None and not 0 <= info.size <= _MAX_OBJECT_BYTES:
            address = self.address(info.path)
            raise ProtocolError(f"{address}: the server states an impossible size", address=address)
        if info.modified is not None and not math.isfinite(info.modified):
            return replace(info, modified=None)
        return info

    def _check_version(self, info: ObjectInfo, version: str | None, offset: int) -> None:
        if version is not None and info.version != version:
            address = self.address(info.path)
            raise ObjectChanged(
                f"{address} has changed: its version was {make_printable(version, _MAX_VERSION_CHARACTERS)} and is now "
                f"{make_printable(info.version, _MAX_VERSION_CHARACTERS)}. Create the loader again, and do not modify "
                "its data while it runs",
                address=address,
                offset=offset,
            )

    def _check_size(self, info: ObjectInfo, size: int | None, offset: int) -> None:
        """Compare the size that a response states with the one that the caller expects."""
        if None not in (size, info.size) and size != info.size:
            address = self.address(info.path)
            raise ObjectChanged(
                f"{address} has changed, or its server contradicts itself: its size was {size} bytes, and is now "
                f"{info.size}. Create the loader again, and do not modify its data while it runs",
                address=address,
                offset=offset,
            )

    def _find_end(self, body: Body, span: ByteRange | None) -> int | None:
        """Return the offset at which a transfer has to end, or None if neither the server nor the request defines it.

        Raises:
            LimitExceeded: If the transfer is too large.
        """
        end = body.end
        if end is None and body.info.size is not None:
            end = (span or ByteRange()).within(body.info.size, self.address(body.info.path))[1]
        if end is not None and end - body.start + body.skip > self.limits.stream_bytes:
            raise LimitExceeded(
                f"{self.address(body.info.path)}: {end - body.start + body.skip} bytes would be transferred, more than "
                f"{self.limits.stream_bytes}: read less of it, or raise Limits(stream_bytes=...)",
                address=self.address(body.info.path),
                offset=body.start,
            )
        return end

    def _check_span(self, body: Body, span: ByteRange | None) -> None:
        """Compare the response with the request."""
        address = self.address(body.info.path)
        span = span or ByteRange()
        if body.info.size is not None:
            requested: tuple[int, int | None] = span.within(body.info.size, address)
        elif span.start < 0:
            return  # the position is unknown without the size
        else:
            requested = (span.start, span.end)
        if body.start != requested[0] or (None not in (body.end, requested[1]) and body.end != requested[1]):
            raise ProtocolError(
                f"{address}: requested bytes {span}, received [{body.start}:{body.end}]",
                address=address,
                offset=requested[0],
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out connections; see :meth:`_drop_connections`."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._drop_connections()
        twin._loop_id = None
        state = twin.__dict__
        for name in ("_request_slots", "_wait_timer"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._request_slots = asyncio.Semaphore(self.limits.requests)
        self._wait_timer = WaitTimer()


class ListingGuard:
    """Fetches the entries of a listing, with limits for all of them.

    Each of them has a deadline, unless the store limits its waits itself.

    Args:
        store: Store that is listed.
        prefix: Listed directory, without a "/" at its end.
        deadline: Deadline of each entry.
    """

    def __init__(self, store: Store, prefix: str, deadline: TransferDeadline) -> None:
        address = store.address(prefix)
        self._store = store
        self._deadline = deadline
        self._budget = ListingBudget(store.limits, address)
        self._own_depth = prefix.count("/") if prefix else -1
        self._max_slashes = self._own_depth + store.limits.depth

    async def fetch_next(self, entries: AsyncGenerator[ObjectInfo, None]) -> ObjectInfo | None:
        """Return the next entry, or None at the end."""
        limits_waits = self._store.limits_listing_waits
        with contextlib.nullcontext() if limits_waits else self._deadline.limit_response("listing"):
            info = await anext(entries, None)
        if info is not None:
            self.check(info)
        return info

    def check(self, info: ObjectInfo) -> None:
        """Count an entry.

        Raises:
            LimitExceeded: If there are too many entries, or this one is nested too deeply.
        """
        self._budget.count_entry(info.path, info.version)
        if info.path.count("/") > self._max_slashes:
            depth = info.path.rstrip("/").count("/") - self._own_depth
            self._budget.check_depth(depth, self._store.address(info.path))


@functools.lru_cache(maxsize=1024)
def _redact_path(url: str, path: str) -> str:
    return redact_address(f"{url}/{path}")


def _current_loop_id() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()
