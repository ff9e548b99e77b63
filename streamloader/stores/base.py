"""Define the store contract, and implement what all stores share.

A store class implements one request in four or five methods that begin with an underscore. The public methods are
implemented here: they check paths, limit concurrent requests, enforce deadlines and count bytes. A caller therefore
receives exactly the requested bytes, or one typed error.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import math
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self, TypeAlias

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    LimitExceeded,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    RangeNotSatisfiable,
    TransferInterrupted,
)
from streamloader.redaction import redact_address
from streamloader.stores.deadlines import TransferDeadline
from streamloader.stores.listing_budget import ListingBudget
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Body", "Data", "OnStart", "Store"]

Data: TypeAlias = "bytes | bytearray | memoryview | AsyncIterable[bytes]"
OnStart: TypeAlias = Callable[[ObjectInfo, int], None]


_MAX_OBJECT_BYTES: Final = (1 << 63) - 1
_MAX_VERSION_CHARACTERS: Final = 80  # in messages


@dataclass(slots=True)
class Body:
    """A response whose transfer has started: which bytes of which object will follow.

    Attributes:
        info: Metadata of the object, for the version being sent.
        start: Offset of the first byte of the response.
        end: Offset after the last byte. None if the server does not announce it. A store whose transfers can break off
            unnoticed in that case must raise TransferInterrupted itself.
        pieces: Bytes of the response, in pieces of any size.
        skip: Number of bytes sent before `start` by a server that cannot start there. They are discarded.
    """

    info: ObjectInfo
    start: int
    end: int | None
    pieces: AsyncIterator[bytes]
    skip: int = 0


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
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    supports_writes: ClassVar[bool] = True
    supports_listing: ClassVar[bool] = True

    def __init__(self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None) -> None:
        self.url = redact_address(url)
        self.identity = url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[0]
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self._closed = False
        self._loop_id: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._request_slots = asyncio.Semaphore(self.limits.requests)

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into the URL of its store and the path within it. The "/" between them is dropped.

        The path is taken literally. Stores whose addresses are percent-encoded or have no host override this method.
        """
        scheme, _, rest = address.partition("://")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path

    def address(self, path: str) -> str:
        """Return the full address of `path` without secrets, for messages."""
        return redact_address(f"{self.url}/{path}")

    # --- public methods ----------------------------------------------------------------------------------------------

    async def head(self, path: str) -> ObjectInfo:
        """Return size, version and modification time of an object.

        Raises:
            NotFound: If the object does not exist.
            StoreError: If the request fails otherwise; see the errors of :mod:`streamloader.errors`.
        """
        self._prepare_call(path)
        async with self._request_slots, TransferDeadline(self.timeouts, self.address(path)).limit_response("head"):
            return self._check_info(await self._head(path))

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """Return exactly the bytes of `span`, or of the whole object.

        Args:
            path: Path of the object.
            span: Bytes to read. Defaults to the whole object.
            version: Version that the object must still have, from :class:`ObjectInfo`. Defaults to any version.

        Raises:
            NotFound: If the object does not exist.
            RangeNotSatisfiable: If the object does not have all of these bytes.
            ObjectChanged: If the object has another version.
            LimitExceeded: If the result is larger than ``limits.object_bytes``. If the size is declared, nothing is
                fetched.
            StoreError: If the request fails otherwise.
        """
        parts: list[bytes] = []
        size = 0

        def check_size(bytes_read: int | None) -> None:
            if bytes_read is not None and bytes_read > self.limits.object_bytes:
                raise LimitExceeded(
                    f"{self.address(path)} has more than {self.limits.object_bytes} bytes, the limit for a single "
                    "read into memory: read it in spans, or raise Limits(object_bytes=...)",
                    address=self.address(path),
                    offset=size,
                )

        def check_announced(info: ObjectInfo, start: int) -> None:
            end = info.size if span is None or span.end is None else span.end
            check_size(None if end is None else end - start)

        pieces = self.stream(path, span, version=version, on_start=check_announced)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                size += len(piece)
                check_size(size)
                parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield exactly the bytes of `span`, or of the whole object, in pieces. Errors are those of :meth:`read`.

        Close the generator (``contextlib.aclosing``) unless you exhaust it: it uses a connection until then.

        Args:
            path: Path of the object.
            span: Bytes to read. Defaults to the whole object.
            version: Version that the object must still have, see :meth:`read`.
            on_start: Callback for the start of the transfer. It receives the object's metadata and the offset of the
                first byte before that byte is yielded.

        Raises:
            LimitExceeded: If the transfer is larger than ``limits.stream_bytes``, or if the size of the object is not
                declared and exceeds ``limits.unsized_bytes``.
        """
        self._prepare_call(path)
        if span is not None and span.start == span.end:
            info = await self.head(path)
            self._check_version(info, version, span.start)
            if info.size is not None:
                span.within(info.size, self.address(path))
            if on_start is not None:
                on_start(info, span.start)
            return
        deadline = TransferDeadline(self.timeouts, self.address(path))
        deadline.offset = max(0, span.start) if span else 0
        async with self._request_slots, contextlib.AsyncExitStack() as stack:
            async with deadline.limit_response("waiting for the first bytes"):
                body = await self._open_body(stack, path, span, version)
            body.info = self._check_info(body.info)
            self._check_version(body.info, version, body.start)
            self._check_span(body, span)
            if on_start is not None:
                on_start(body.info, body.start)
            end = self._find_end(body, span)
            deadline.offset = offset = body.start - body.skip
            pieces = aiter(body.pieces)
            if isinstance(pieces, AsyncGenerator):
                await stack.enter_async_context(contextlib.aclosing(pieces))
            while True:
                async with deadline.limit_next_bytes("fetching"):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                offset += len(piece)
                if offset > (self.limits.unsized_bytes if end is None else end):
                    raise self._make_endless_error(path, body.start, end)
                deadline.count_received(len(piece))
                if offset - len(piece) < body.start:
                    piece = piece[max(0, len(piece) - offset + body.start) :]
                if piece:
                    yield piece
            if body.end is not None and offset < body.end:
                raise TransferInterrupted(
                    f"{self.address(path)}: the transfer broke off at byte {offset}, before the end of the request at "
                    f"byte {body.end}",
                    address=self.address(path),
                    offset=offset,
                )

    async def list(self, prefix: str = "", *, recursive: bool = True) -> AsyncGenerator[ObjectInfo, None]:
        """Yield all objects under the directory `prefix`, in no particular order. Yield nothing if it does not exist.

        Args:
            prefix: Directory to list. Defaults to the whole store. "a/b" never matches "a/bc".
            recursive: Whether to list objects at any depth. Otherwise only the direct contents are listed, with
                directories as paths that end in "/".

        Raises:
            NotSupported: If this store has no listings.
            LimitExceeded: If there are too many entries, their names are too long, directories are nested too deeply,
                or links lead to the same directories again and again; see :class:`streamloader.config.Limits`.
            StoreError: If the request fails otherwise.
        """
        self._prepare_call(prefix.rstrip("/"), allow_empty=True)
        if not self.supports_listing:
            raise NotSupported(
                f"{self.url} has no listings: name its objects one by one, with braces (part-{{000..127}}.mp4), or as "
                "a list",
                address=self.address(prefix),
            )
        prefix = prefix.rstrip("/")
        async with contextlib.aclosing(self._list(prefix, recursive=recursive)) as entries:
            guard = _ListingGuard(self, prefix)
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
        async with self._request_slots, TransferDeadline(self.timeouts, self.address(path)).limit_response("delete"):
            await self._delete(path)

    async def free_bytes(self, path: str = "") -> int | None:
        """Return the number of bytes that can still be written under the directory `path`, which need not exist yet.

        Return None if that is unknown, as for object stores and for servers that do not report it.

        Raises:
            StoreError: If the request fails.
        """
        self._prepare_call(path.rstrip("/"), allow_empty=True)
        deadline = TransferDeadline(self.timeouts, self.address(path))
        async with self._request_slots, deadline.limit_response("querying free space"):
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
            guard = _ListingGuard(self, prefix)
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
        self._check_path(path, allow_empty=allow_empty)
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        current = _current_loop_id()
        if self._loop_id != current:
            if self._loop_id is not None:
                self._drop_connections()
            self._request_slots = asyncio.Semaphore(self.limits.requests)
            self._loop_id = current

    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        if not isinstance(path, str):
            raise ConfigError(f"a path in a store must be a str, got {type(path).__name__}")
        if (not path and not allow_empty) or path.startswith("/") or "\0" in path:
            raise ConfigError(
                f"{Store.address(self, path)!r} is not a path in a store: expected names joined by '/', without a "
                "leading '/'"
            )
        if any(part in (".", "..") for part in path.split("/")):
            raise ConfigError(f"{Store.address(self, path)!r} is not a path in a store: it contains '.' or '..'")

    async def _open_body(
        self, stack: contextlib.AsyncExitStack, path: str, span: ByteRange | None, version: str | None
    ) -> Body:
        try:
            return await stack.enter_async_context(self._get(path, span, version))
        except RangeNotSatisfiable as error:
            if version is not None:  # another version may have had these bytes
                self._check_version(await self._head(path), version, error.offset or 0)
            raise

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

    def _make_endless_error(self, path: str, start: int, end: int | None) -> ProtocolError | LimitExceeded:
        """Build the error for a server that sends more bytes than it announced, or than a limit allows."""
        address = self.address(path)
        if end is not None:
            message = f"{address}: received more than the announced {end - start} bytes"
            return ProtocolError(message, address=address, offset=end)
        limit = self.limits.unsized_bytes
        return LimitExceeded(
            f"{address}: its server does not declare its size, and has sent {limit} bytes without an end: raise "
            "Limits(unsized_bytes=...)",
            address=address,
            offset=limit,
        )

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
        state.pop("_request_slots", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._request_slots = asyncio.Semaphore(self.limits.requests)


class _ListingGuard:
    """Fetches the entries of a listing, with a deadline for each of them and limits for all of them."""

    def __init__(self, store: Store, prefix: str) -> None:
        address = store.address(prefix)
        self._store = store
        self._deadline = TransferDeadline(store.timeouts, address)
        self._budget = ListingBudget(store.limits, address)
        self._own_depth = prefix.count("/") if prefix else -1
        self._max_slashes = self._own_depth + store.limits.depth

    async def fetch_next(self, entries: AsyncGenerator[ObjectInfo, None]) -> ObjectInfo | None:
        """Return the next entry, or None at the end."""
        async with self._deadline.limit_response("listing"):
            info = await anext(entries, None)
        if info is not None:
            self._budget.count_entry(info.path, info.version)
            if info.path.count("/") > self._max_slashes:
                depth = info.path.rstrip("/").count("/") - self._own_depth
                self._budget.check_depth(depth, self._store.address(info.path))
        return info


def _current_loop_id() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()
