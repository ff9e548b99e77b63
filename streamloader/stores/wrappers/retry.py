"""Requests that failed in passing are made again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from streamloader.config import Retry
from streamloader.errors import ObjectChanged, StoreError
from streamloader.stores.base import Data, OnBegin, Store
from streamloader.stores.wrappers.base import Wrapper
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Retrying"]

T = TypeVar("T")

_REMEMBERED: Final = 1_000_000  # entries of a listing that can be told from new ones when it is begun again
_log: Final = logging.getLogger("streamloader")


class Retrying(Wrapper):
    """Tries again what failed with a transient error (``StoreError.transient``), and nothing else.

    - ``head``, ``delete``, and ``write`` of bytes are made again. So is ``write`` of an asynchronous iterable that
      can be iterated anew; one that is an iterator itself is not, because the pieces it has given are gone.
    - ``read`` and ``stream`` go on at the byte at which they broke off, with the version of the object that they
      began with. If it has another version by then, that is ObjectChanged. A store that tells no versions has to tell
      when the object was modified; if it does not, a transfer begins anew only if nothing had come of it.
    - ``list`` begins anew and leaves out what was yielded already.

    A transfer that got on well, by as many bytes as ``Timeouts`` want of it in one window, may be interrupted as often
    as one that just began: `attempts` and `deadline` count from there.

    The last error is raised as it was; its message and ``details`` (attempts, seconds) tell what was tried. Each retry
    is a line of the logger "streamloader".

    Args:
        inner: the store.
        retry: how often, and how long to wait.
    """

    def __init__(self, inner: Store, retry: Retry) -> None:
        super().__init__(inner)
        self.retry = retry

    async def head(self, path: str) -> ObjectInfo:
        """See :meth:`Store.head`."""
        return await self._repeat(lambda: self.inner.head(path))

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`."""
        return await Store.read(self, path, span, version=version)  # by the stream of this class

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`Store.stream`."""
        place = _Place(self.address(path), span, version, on_begin)
        tries = _Tries(self.retry)
        enough = max(1.0, self.timeouts.min_rate * self.timeouts.window)
        while True:
            came = 0
            try:
                inner = self.inner.stream(path, place.rest(), version=place.version, on_begin=place.begin)
                async with contextlib.aclosing(inner) as chunks:
                    async for chunk in chunks:
                        came += len(chunk)
                        place.got(len(chunk))
                        yield chunk
                return
            except StoreError as error:
                if error.transient and place.is_complete():
                    return  # it broke off behind the last byte
                if came >= enough:
                    tries = _Tries(self.retry)
                if not place.can_go_on() or not await tries.again(error):
                    raise

    async def list(self, prefix: str = "", *, recursive: bool = True) -> AsyncGenerator[ObjectInfo, None]:
        """See :meth:`Store.list`."""
        seen: set[str] = set()
        tries = _Tries(self.retry)
        while True:
            try:
                async with contextlib.aclosing(self.inner.list(prefix, recursive=recursive)) as found:
                    async for info in found:
                        if info.path not in seen:
                            if len(seen) < _REMEMBERED:
                                seen.add(info.path)
                            yield info
                return
            except StoreError as error:
                if len(seen) >= _REMEMBERED or not await tries.again(error):
                    raise

    async def write(self, path: str, data: Data) -> None:
        """See :meth:`Store.write`."""
        if isinstance(data, AsyncIterator):
            await self.inner.write(path, data)
        else:
            await self._repeat(lambda: self.inner.write(path, data))

    async def delete(self, path: str) -> None:
        """See :meth:`Store.delete`."""
        await self._repeat(lambda: self.inner.delete(path))

    async def _repeat(self, attempt: Callable[[], Awaitable[T]]) -> T:
        tries = _Tries(self.retry)
        while True:
            try:
                return await attempt()
            except StoreError as error:
                if not await tries.again(error):
                    raise


class _Tries:
    """Counts the attempts of one request, and waits between them."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._made = 1
        self._began = time.monotonic()

    async def again(self, error: StoreError) -> bool:
        """Wait until the request may be made again; return whether it may, and tell the error what was tried."""
        retry = self._retry
        passed = time.monotonic() - self._began
        pause = self._pause(error)
        hopeless = not error.transient or self._made >= retry.attempts
        if hopeless or pause is None or passed + pause >= retry.deadline:
            if error.transient:
                _conclude(error, self._made, passed)
            return False
        self._made += 1
        _log.warning("attempt %d of %d in %.1f s, after %s", self._made, retry.attempts, pause, error)
        await asyncio.sleep(pause)
        return True

    def _pause(self, error: StoreError) -> float | None:
        """Return the seconds until the next attempt; None where the server wants more than we wait."""
        retry = self._retry
        doubled = retry.first_wait * 2.0 ** min(self._made - 1, 64)
        pause = min(retry.longest_wait, doubled + random.uniform(0.0, retry.jitter))  # noqa: S311 - not for secrets
        asked = error.details.get("retry_after")
        if isinstance(asked, (int, float)) and not math.isnan(asked):
            return None if asked > retry.longest_wait else max(pause, asked)
        return pause


def _conclude(error: StoreError, attempts: int, seconds: float) -> None:
    """Write into an error that is raised in the end what was tried."""
    many = "once" if attempts == 1 else f"{attempts} times"
    error.args = (f"{error.message} (tried {many} in {seconds:.1f} s)",)
    error.details.update(attempts=attempts, seconds=round(seconds, 3))


def _surely_the_same(first: ObjectInfo, now: ObjectInfo) -> bool:
    if first.version is not None:
        return now.version == first.version
    same_size = now.size == first.size or None in (now.size, first.size)
    return same_size and now.modified is not None and now.modified == first.modified


class _Place:
    """How far a transfer has come, and of which object."""

    def __init__(self, address: str, span: ByteRange | None, version: str | None, on_begin: OnBegin | None) -> None:
        self.version = version
        self._address = address
        self._span = span
        self._on_begin = on_begin
        self._first: ObjectInfo | None = None  # as it was when the first bytes were sent
        self._at = 0
        self._yielded = False

    def rest(self) -> ByteRange | None:
        """Return what is still to come."""
        if not self._yielded:
            return self._span
        return ByteRange(self._at, self._span.end if self._span is not None else None)

    def begin(self, info: ObjectInfo, start: int) -> None:
        """Take note of what is sent; it has to be what was sent before."""
        first = self._first
        if self._yielded and first is not None:
            if not _surely_the_same(first, info):
                raise ObjectChanged(
                    f"{self._address} was replaced while it was read: its transfer broke off, and cannot go on",
                    address=self._address,
                    offset=self._at,
                )
            return
        self._first, self._at = info, start
        if self._on_begin is not None:
            told, self._on_begin = self._on_begin, None
            told(info, start)

    def got(self, count: int) -> None:
        """Count bytes that were handed on."""
        self._at += count
        self._yielded = True
        if self._first is not None:
            self.version = self._first.version or self.version

    def can_go_on(self) -> bool:
        """Whether the rest, fetched later, is surely of the same object."""
        first = self._first
        return not self._yielded or (first is not None and (first.version or first.modified) is not None)

    def is_complete(self) -> bool:
        """Whether nothing is missing, although the transfer did not end well."""
        end = None if self._span is None else self._span.end
        if end is None and self._first is not None:
            end = self._first.size
        return self._yielded and end is not None and self._at >= end
