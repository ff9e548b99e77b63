"""The contract of all stores, and what is the same in all of them.

A kind of store says in four or five methods (those with an underscore) how one request is made. What users call is
here: it checks paths, limits what is under way, holds every wait to its deadline, and counts the bytes, so that a
caller gets exactly those it asked for or one typed error.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    Interrupted,
    LimitExceeded,
    NotSupported,
    ObjectChanged,
    ProtocolFault,
    RangeOutside,
)
from streamloader.redaction import redact
from streamloader.stores.deadlines import Pace
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Body", "Data", "OnBegin", "Store"]

Data: TypeAlias = "bytes | bytearray | memoryview | AsyncIterable[bytes]"
OnBegin: TypeAlias = Callable[[ObjectInfo, int], None]


@dataclass(slots=True)
class Body:
    """An answer that has begun: what it is a part of, and the bytes to come.

    Attributes:
        info: the object, in the version that is sent.
        start: offset of the first byte that comes.
        end: offset behind the last one; None where the server does not tell. A kind of store whose transfers can break
            off unnoticed without it must raise Interrupted itself.
        chunks: the bytes, in pieces of any size.
        skip: how many bytes come before `start`, from servers that cannot begin there. They are dropped.
    """

    info: ObjectInfo
    start: int
    end: int | None
    chunks: AsyncIterator[bytes]
    skip: int = 0


class Store(abc.ABC):
    """Objects with names, somewhere. One instance serves many tasks of one event loop at the same time.

    A store is cheap to make and connects when it is first used. It can be pickled, and used after a fork or in another
    event loop once the first has ended: it then connects anew and shares nothing. Close it with :meth:`aclose`, or use
    it as an asynchronous context manager.

    Paths are names within the store: segments joined by "/", without one at the beginning, "." or "..".

    Args:
        url: where it is: scheme, user, host and port; never a path.
        timeouts: see :class:`streamloader.config.Timeouts`.
        limits: see :class:`streamloader.config.Limits`.

    Attributes:
        url: the same, without any secret.
        realm: what tells it from other stores with the same `url`: the user, or for some kinds the server's address. It
            is never shown; what is kept of the store's objects is kept by it.
        writes: whether objects can be written and deleted.
        lists: whether there are listings.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[bool] = True
    lists: ClassVar[bool] = True

    def __init__(self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None) -> None:
        self.url = redact(url)
        self.realm = url.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[0]
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self._closed = False
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._turns = asyncio.Semaphore(self.limits.requests)

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into the url of its store and the path in there; what is between is one "/".

        The path is taken literally. Kinds of store whose addresses are percent-encoded, or have no host, differ.
        """
        scheme, _, rest = address.partition("://")
        host, _, path = rest.partition("/")
        return f"{scheme}://{host}", path

    def address(self, path: str) -> str:
        """Return the whole address of `path`, for messages: without secrets."""
        return redact(f"{self.url}/{path}")

    # --- what users call ---------------------------------------------------------------------------------------------

    async def head(self, path: str) -> ObjectInfo:
        """Return size, version and time of an object.

        Raises:
            NotFound: there is none.
            StoreError: anything else; see the errors of :mod:`streamloader.errors`.
        """
        self._enter(path)
        async with self._turns, Pace(self.timeouts, self.address(path)).first("head"):
            return await self._head(path)

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """Return exactly the bytes of `span`, or the whole object.

        Args:
            path: of the object.
            span: which of its bytes; None for all.
            version: of :class:`ObjectInfo`; the object must still be this one.

        Raises:
            NotFound: there is no such object.
            RangeOutside: it does not have all these bytes.
            ObjectChanged: it is another version.
            LimitExceeded: it is larger than ``limits.object_bytes``.
            StoreError: anything else.
        """
        parts: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.stream(path, span, version=version)) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > self.limits.object_bytes:
                    raise LimitExceeded(
                        f"{self.address(path)} has more than the {self.limits.object_bytes} bytes that are read into "
                        "memory in one go: read spans of it, or raise Limits(object_bytes=...)",
                        address=self.address(path),
                        offset=size,
                    )
                parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield exactly the bytes of `span`, or of the whole object, in pieces. Errors are those of :meth:`read`.

        Close it (``contextlib.aclosing``) where it is not played to its end: its connection is in use until then.

        Args:
            path: of the object.
            span: which of its bytes; None for all.
            version: see :meth:`read`.
            on_begin: is told, before the first bytes, which version of the object they are of, and their offset.
        """
        self._enter(path)
        if span is not None and span.start == span.end:
            info = await self.head(path)
            self._check_version(info, version, span.start)
            if info.size is not None:
                span.within(info.size, self.address(path))
            if on_begin is not None:
                on_begin(info, span.start)
            return
        pace = Pace(self.timeouts, self.address(path))
        pace.at = max(0, span.start) if span else 0
        async with self._turns, contextlib.AsyncExitStack() as stack:
            async with pace.first("waiting for its first bytes"):
                body = await self._begun(stack, path, span, version)
            self._check_version(body.info, version, body.start)
            self._check_span(body, span)
            if on_begin is not None:
                on_begin(body.info, body.start)
            pace.at = at = body.start - body.skip
            chunks = aiter(body.chunks)
            if isinstance(chunks, AsyncGenerator):
                await stack.enter_async_context(contextlib.aclosing(chunks))
            while True:
                async with pace.next("fetching"):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                at += len(chunk)
                if body.end is not None and at > body.end:
                    raise ProtocolFault(
                        f"{self.address(path)}: more bytes came than the {body.end - body.start} announced",
                        address=self.address(path),
                        offset=body.end,
                    )
                pace.got(len(chunk))
                if at - len(chunk) < body.start:
                    chunk = chunk[max(0, len(chunk) - at + body.start) :]
                if chunk:
                    yield chunk
            if body.end is not None and at < body.end:
                raise Interrupted(
                    f"{self.address(path)} broke off at byte {at}, {body.end - at} before the end of what was asked",
                    address=self.address(path),
                    offset=at,
                )

    async def list(self, prefix: str = "", *, recursive: bool = True) -> AsyncGenerator[ObjectInfo, None]:
        """Yield all objects under the directory `prefix`, in no particular order; nothing if there is none.

        Args:
            prefix: a directory; "" for all. "a/b" never means "a/bc".
            recursive: at any depth; otherwise only those directly in it, and directories as paths that end in "/".

        Raises:
            NotSupported: this kind of store has no listings.
            StoreError: anything else.
        """
        self._enter(prefix.rstrip("/"), empty=True)
        if not self.lists:
            raise NotSupported(
                f"{self.url} has no listings: name its objects one by one, with braces (part-{{000..127}}.mp4), or as "
                "a list",
                address=self.address(prefix),
            )
        count = 0
        pace = Pace(self.timeouts, self.address(prefix))
        async with contextlib.aclosing(self._list(prefix.rstrip("/"), recursive=recursive)) as found:
            while True:
                async with pace.first("listing"):
                    info = await anext(found, None)
                if info is None:
                    return
                count += 1
                if count > self.limits.listed:
                    raise LimitExceeded(
                        f"{self.address(prefix)} has more than {self.limits.listed} entries: raise Limits(listed=...)",
                        address=self.address(prefix),
                    )
                yield info

    async def write(self, path: str, data: Data) -> None:
        """Write an object: whole, or not at all. An older one is replaced, its readers are not disturbed.

        Args:
            path: of the object; directories are made as needed.
            data: its bytes, or an asynchronous iterator of pieces of any size for large ones.

        Raises:
            NotSupported: this kind of store takes no objects.
            StoreError: anything else.
        """
        self._enter(path)
        self._require_writes(path)
        async with self._turns:
            await self._write(path, data)

    async def delete(self, path: str) -> None:
        """Delete an object. One that is not there is no error, so that this can be tried again.

        Raises:
            NotSupported: this kind of store deletes nothing.
            StoreError: anything else.
        """
        self._enter(path)
        self._require_writes(path)
        async with self._turns, Pace(self.timeouts, self.address(path)).first("delete"):
            await self._delete(path)

    async def free(self, path: str = "") -> int | None:
        """Return how many bytes can still be written under the directory `path`, which need not be there yet.

        None where that is not known: from object stores, and servers that do not tell.

        Raises:
            StoreError: the store cannot be reached, ...
        """
        self._enter(path.rstrip("/"), empty=True)
        async with self._turns, Pace(self.timeouts, self.address(path)).first("asking for its free space"):
            return await self._free(path.rstrip("/"))

    async def leftovers(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """Yield the unfinished files under the directory `prefix`, which :meth:`list` never shows.

        They belong to writers that are at work, or that were killed: by their age one can tell. Nothing comes from
        stores that leave none, or cannot tell them from others.

        Raises:
            StoreError: the store cannot be reached, ...
        """
        self._enter(prefix.rstrip("/"), empty=True)
        pace = Pace(self.timeouts, self.address(prefix))
        async with contextlib.aclosing(self._leftovers(prefix.rstrip("/"))) as found:
            while True:
                async with pace.first("listing"):
                    info = await anext(found, None)
                if info is None:
                    return
                yield info

    async def aclose(self) -> None:
        """Close all connections. Further calls of anything else raise ClosedError; closing twice is fine."""
        if not self._closed:
            self._closed = True
            if self._home == _here():
                with contextlib.suppress(TimeoutError):  # it said goodbye long enough
                    async with asyncio.timeout(self.timeouts.close):
                        await self._disconnect()
            elif self._home is not None:
                self._forget()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # --- what a kind of store says -----------------------------------------------------------------------------------

    @abc.abstractmethod
    async def _head(self, path: str) -> ObjectInfo:
        """Look at one object."""

    @abc.abstractmethod
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        """Begin to read; leaving the context frees the connection.

        `span` is never empty. The caller compares what the Body says with what was asked; with a version given, the
        store should ask the server for just this one (If-Match), so that nothing is sent in vain.
        """

    def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """Yield what is under `prefix` (no "/" at its end). Only called where `lists`."""
        raise NotImplementedError

    async def _write(self, path: str, data: Data) -> None:
        """Write an object whole or not at all. Only called where `writes`; its waits are its own to limit."""
        raise NotImplementedError

    async def _delete(self, path: str) -> None:
        """Delete an object, or do nothing if there is none. Only called where `writes`."""
        raise NotImplementedError

    async def _free(self, path: str) -> int | None:
        """Say how many bytes can still be written under a directory (no "/" at its end)."""
        return None

    async def _leftovers(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        """Yield unfinished files."""
        nothing: tuple[ObjectInfo, ...] = ()
        for info in nothing:
            yield info

    async def _disconnect(self) -> None:  # noqa: B027 - most have nothing to do here
        """Close what is open. Called once, in the loop in which it was opened."""

    def _forget(self) -> None:  # noqa: B027
        """Drop all connections without closing them: they belong to another process, or to a loop that has ended."""

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _enter(self, path: str, *, empty: bool = False) -> None:
        """Check a path, and that this is the process and the loop in which the connections are."""
        self._check_path(path, empty=empty)
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        here = _here()
        if self._home != here:
            if self._home is not None:
                self._forget()
            self._turns = asyncio.Semaphore(self.limits.requests)
            self._home = here

    def _check_path(self, path: str, *, empty: bool) -> None:
        if not isinstance(path, str):
            raise ConfigError(f"a path in a store is a str, got {type(path).__name__}")
        if (not path and not empty) or path.startswith("/") or "\0" in path:
            raise ConfigError(f"{path!r} is no path in a store: it takes names joined by '/', without one in front")
        if any(part in (".", "..") for part in path.split("/")):
            raise ConfigError(f"{path!r} is no path in a store: it has '.' or '..' in it")

    async def _begun(
        self, stack: contextlib.AsyncExitStack, path: str, span: ByteRange | None, version: str | None
    ) -> Body:
        try:
            return await stack.enter_async_context(self._get(path, span, version))
        except RangeOutside as error:
            if version is not None:  # what it had, it may have had in another version
                self._check_version(await self._head(path), version, error.offset or 0)
            raise

    def _require_writes(self, path: str) -> None:
        if not self.writes:
            raise NotSupported(f"{self.url} is read-only: write to another kind of store", address=self.address(path))

    def _check_version(self, info: ObjectInfo, version: str | None, offset: int) -> None:
        if version is not None and info.version != version:
            address = self.address(info.path)
            raise ObjectChanged(
                f"{address} is not what it was: version {info.version} now, {version} before. Build the loader anew, "
                "and leave its data alone while it runs",
                address=address,
                offset=offset,
            )

    def _check_span(self, body: Body, span: ByteRange | None) -> None:
        """Compare what is sent with what was asked."""
        address = self.address(body.info.path)
        span = span or ByteRange()
        if body.info.size is not None:
            asked: tuple[int, int | None] = span.within(body.info.size, address)
        elif span.start < 0:
            return  # nothing to compare with
        else:
            asked = (span.start, span.end)
        if body.start != asked[0] or (None not in (body.end, asked[1]) and body.end != asked[1]):
            raise ProtocolFault(
                f"{address}: asked for bytes {span}, got [{body.start}:{body.end}]", address=address, offset=asked[0]
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave connections behind; see :meth:`_forget`."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._forget()
        twin._home = None
        state = twin.__dict__
        state.pop("_turns", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._turns = asyncio.Semaphore(self.limits.requests)


def _here() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()
