"""Retry requests that failed with transient errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from typing_extensions import override

from streamloader.config import Retry
from streamloader.errors import ObjectChanged, StoreError
from streamloader.stores.base import Data, OnStart, Store
from streamloader.stores.search import TreeSearch
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["RetryStore", "call_with_retries"]

T = TypeVar("T")

_MAX_REMEMBERED_ENTRIES: Final = 1_000_000  # a longer listing cannot be restarted without repeating entries
_log: Final = logging.getLogger("streamloader")


class RetryStore(StoreWrapper):
    """Retries requests that failed with a transient error (``StoreError.transient``), and no others.

    - ``head``, ``delete``, and ``write`` of bytes are repeated. So is ``write`` of an asynchronous iterable that can
      be iterated again; ``write`` of an iterator is not, because the pieces that it has yielded are lost. A store that
      uploads in parts repeats each part by the same policy (``Store.part_retry``).
    - ``read`` and ``stream`` continue at the byte where the transfer broke off, with the same version of the object.
      If the object has another version by then, ObjectChanged is raised. A store without versions must report the
      modification time; otherwise a transfer is repeated only if no byte had been received.
    - ``list`` is repeated without the entries that were yielded already, unless the store repeats its pages.

    A transfer that has received as many bytes as ``Timeouts`` require in one window counts as new afterwards:
    `attempts` and `deadline` start again from there.

    The last error is raised, with the number of attempts and the elapsed seconds in its message and ``details``. Each
    retry is logged to the logger "streamloader".

    Args:
        inner: Store to wrap.
        retry: Number of attempts and waiting times.
    """

    def __init__(self, inner: Store, retry: Retry) -> None:
        super().__init__(inner)
        self.retry = retry
        inner.part_retry = retry

    @override
    async def head(self, path: str) -> ObjectInfo:
        return await self._call_with_retries(lambda: self.inner.head(path))

    read = Store.read  # which uses the fetch method of this class

    @override
    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        state = _TransferState(self, path, span, version, size, on_start)
        while True:
            try:
                inner = self.inner.stream(
                    path,
                    state.start_attempt(),
                    version=state.version,
                    size=state.size,
                    on_start=state.handle_start,
                )
                async with contextlib.aclosing(inner) as pieces:
                    async for piece in pieces:
                        state.count_received(len(piece))
                        yield piece
                return
            except StoreError as error:
                if state.is_complete(error):
                    return
                if not await state.wait_for_retry(error):
                    raise

    @override
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
        state = _TransferState(self, path, span, version, size, on_start)

        def count_and_receive(piece: bytes) -> None:
            state.count_received(len(piece))
            receive(piece)

        while True:
            try:
                return await self.inner.fetch(
                    path,
                    state.start_attempt(),
                    count_and_receive,
                    version=state.version,
                    size=state.size,
                    on_start=state.handle_start,
                )
            except StoreError as error:
                if state.is_complete(error):
                    return None
                if not await state.wait_for_retry(error):
                    raise

    @override
    async def list(
        self, prefix: str = "", *, recursive: bool = True, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        yielded: set[str] = set()
        attempts = _AttemptCounter(self.retry)
        while True:
            try:
                async with contextlib.aclosing(self.inner.list(prefix, recursive=recursive, search=search)) as entries:
                    async for info in entries:
                        if info.path not in yielded:
                            if len(yielded) < _MAX_REMEMBERED_ENTRIES:
                                yielded.add(info.path)
                            yield info
                return
            except StoreError as error:
                if len(yielded) >= _MAX_REMEMBERED_ENTRIES or not await attempts.wait_for_retry(error):
                    raise

    @override
    async def write(self, path: str, data: Data) -> None:
        if isinstance(data, AsyncIterator):
            await self.inner.write(path, data)
        else:
            await self._call_with_retries(lambda: self.inner.write(path, data))

    @override
    async def delete(self, path: str) -> None:
        await self._call_with_retries(lambda: self.inner.delete(path))

    async def _call_with_retries(self, request: Callable[[], Awaitable[T]]) -> T:
        return await call_with_retries(self.retry, request)


async def call_with_retries(retry: Retry, request: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a request, which is repeated after transient errors.

    Args:
        retry: Number of attempts and waiting times.
        request: Coroutine function that makes one attempt.

    Raises:
        StoreError: If the last attempt fails, or an attempt fails with an error that is not transient.
    """
    attempts = _AttemptCounter(retry)
    while True:
        try:
            return await request()
        except StoreError as error:
            if not await attempts.wait_for_retry(error):
                raise


class _AttemptCounter:
    """Counts the attempts of one request, and waits between them."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._attempts = 1
        self._started = time.monotonic()

    async def wait_for_retry(self, error: StoreError) -> bool:
        """Wait until the request may be repeated. Return whether it may; if not, add the attempts to the error."""
        if "attempts" in error.details:  # a part of the request has been repeated as often as it may be
            return False
        retry = self._retry
        elapsed = time.monotonic() - self._started
        remaining_s = retry.deadline - elapsed
        delay = self._compute_delay(error, remaining_s)
        is_last = retry.attempts is not None and self._attempts >= retry.attempts
        if not error.transient or is_last or delay is None:
            if error.transient:
                _add_attempts(error, self._attempts, elapsed)
                if delay is None and _requested_delay(error) > max(0.0, remaining_s) and not is_last:
                    reason = (
                        f"the server requests a longer wait than the {max(0.0, remaining_s):.0f} s that are left of "
                        f"{retry.deadline:g} s. Try later, or raise Retry(deadline=...)"
                    )
                    error.args = (f"{error.message}: {reason}",)
            return False
        self._attempts += 1
        # As text: a handler may keep the record, and with the error its traceback, whose frames hold the connection.
        _log.warning(
            "attempt %d in %.1f s (%.1f s of %.1f s have passed), after %s",
            self._attempts,
            delay,
            elapsed,
            retry.deadline,
            str(error),
        )
        await asyncio.sleep(delay)
        return True

    def _compute_delay(self, error: StoreError, remaining_s: float) -> float | None:
        """Return the seconds until the next attempt, or None if there is none before the deadline."""
        if remaining_s <= 0:
            return None
        retry = self._retry
        doubled = retry.first_wait * 2.0 ** min(self._attempts - 1, 64)
        delay = min(retry.longest_wait, doubled + random.uniform(0.0, retry.jitter))  # noqa: S311 - not for secrets
        requested = _requested_delay(error)
        if requested > remaining_s:
            return None
        return min(max(delay, requested), remaining_s)


def _requested_delay(error: StoreError) -> float:
    """Return the seconds that the server wants to be left alone. 0 if it states none."""
    requested = error.details.get("retry_after")
    return requested if isinstance(requested, (int, float)) and not math.isnan(requested) else 0.0


def _add_attempts(error: StoreError, attempts: int, seconds: float) -> None:
    """Add the number of attempts and the elapsed time to the final error."""
    count = "once" if attempts == 1 else f"{attempts} times"
    error.args = (f"{error.message} (tried {count} in {seconds:.1f} s)",)
    error.details.update(attempts=attempts, seconds=round(seconds, 3))


def _is_same_object(first: ObjectInfo, current: ObjectInfo) -> bool:
    """Return whether two versions of an object are certainly equal."""
    if first.version is not None:
        return current.version == first.version
    same_size = current.size == first.size or None in (current.size, first.size)
    return same_size and current.modified is not None and current.modified == first.modified


class _TransferState:
    """Position of a transfer, and the version of its object."""

    def __init__(
        self,
        store: RetryStore,
        path: str,
        span: ByteRange | None,
        version: str | None,
        size: int | None,
        on_start: OnStart | None,
    ) -> None:
        self.version = version
        self.size = size
        self._store = store
        self._path = path
        self._span = span
        self._on_start = on_start
        self._attempts = _AttemptCounter(store.retry)
        self._first: ObjectInfo | None = None  # metadata at the first byte
        self._offset = 0
        self._attempt_bytes = 0  # received in this attempt
        self._has_bytes = False

    def start_attempt(self) -> ByteRange | None:
        """Start an attempt. Return the span that has not been received yet."""
        self._attempt_bytes = 0
        if not self._has_bytes:
            return self._span
        return ByteRange(self._offset, self._span.end if self._span is not None else None)

    def handle_start(self, info: ObjectInfo, start: int) -> None:
        """Record the start of a transfer. After a retry, check that it sends the same object."""
        first = self._first
        if self._has_bytes and first is not None:
            if not _is_same_object(first, info):
                address = self._store.address(self._path)
                raise ObjectChanged(
                    f"{address} was replaced while it was read: its transfer broke off and cannot be continued",
                    address=address,
                    offset=self._offset,
                )
            return
        self._first, self._offset = info, start
        if self._on_start is not None:
            on_start, self._on_start = self._on_start, None
            on_start(info, start)

    def count_received(self, count: int) -> None:
        """Count received bytes."""
        self._offset += count
        self._attempt_bytes += count
        self._has_bytes = True
        if self._first is not None:
            self.version = self._first.version or self.version
            self.size = self._first.size if self.size is None else self.size

    async def wait_for_retry(self, error: StoreError) -> bool:
        """Wait until another attempt may start. Return False if none may."""
        timeouts = self._store.timeouts
        if self._attempt_bytes >= max(1.0, timeouts.min_rate * timeouts.window):
            self._attempts = _AttemptCounter(self._store.retry)
        return self._can_continue() and await self._attempts.wait_for_retry(error)

    def is_complete(self, error: StoreError) -> bool:
        """Return whether the transfer broke off after its last byte."""
        end = None if self._span is None else self._span.end
        if end is None and self._first is not None:
            end = self._first.size
        return error.transient and self._has_bytes and end is not None and self._offset >= end

    def _can_continue(self) -> bool:
        """Return whether a later transfer of the remaining span can be checked to send the same object."""
        first = self._first
        return not self._has_bytes or (first is not None and (first.version or first.modified) is not None)
