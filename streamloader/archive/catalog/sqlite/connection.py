"""The thread in which a catalog's SQLite works: one connection, one call at a time, each to its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from streamloader.archive.catalog.sqlite.schema import Opened, identity, open_file
from streamloader.errors import CatalogError, CatalogTimeout, ClosedError

__all__ = ["Session"]

T = TypeVar("T")

_STEPS: Final = 20_000  # of SQLite's machine between two looks at the deadline: about a millisecond
_GRACE: Final = 2.0  # seconds that a thread may take to notice
_AGAIN: Final = 0.002  # seconds before a locked catalog is tried again, on top of SQLite's own waits


class Session:
    """A connection that is made when it is first used, for the tasks of one event loop.

    Args:
        path: of the file.
        timeout: seconds for a call, with its wait for the calls before it.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._pid = os.getpid()
        self._worker: _Worker | None = None
        self._closed = False

    async def do(self, work: Callable[[Opened], T], *, limited: bool = True) -> T:
        """Return what `work` returns. It may be called again if the catalog was locked, after all was undone.

        Args:
            work: is called in the thread; must be one transaction at most.
            limited: to the timeout. If not, it takes the time it takes, and can be cancelled.

        Raises:
            CatalogError: it cannot be done, in this module's translation of SQLite's errors.
            CatalogTimeout: in time.
            ClosedError: the catalog was closed, or belongs to the parent of this process.
        """
        call: _Call[T] = _Call(work, self._timeout if limited else None, asyncio.get_running_loop())
        return await self._do(call)

    async def do_without_file(self, work: Callable[[], T]) -> T:
        """Return what `work` returns: for what needs the thread, but no connection."""
        call: _Call[T] = _Call(lambda _: work(), self._timeout, asyncio.get_running_loop(), connects=False)
        return await self._do(call)

    async def _do(self, call: _Call[T]) -> T:
        if self._closed or self._pid != os.getpid():
            why = "was closed" if self._closed else "belongs to the parent of this process"
            raise ClosedError(f"the catalog {self._path} {why}: open it anew", address=self._path)
        if self._worker is None:
            self._worker = _Worker(self._path)
        self._worker.calls.put(call)
        patience = None if call.seconds is None else call.seconds + _GRACE
        try:
            async with asyncio.timeout(patience):
                return await call.future
        except TimeoutError as error:
            if isinstance(error, CatalogTimeout):
                raise
            raise _too_long(self._path, call, "the file system does not answer") from error
        finally:
            call.dropped = True

    async def aclose(self) -> None:
        """End all calls and the thread."""
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is None or self._pid != os.getpid():
            return
        worker.stopping = True
        last: _Call[None] = _Call(lambda _: None, None, asyncio.get_running_loop(), connects=False)
        worker.last = last
        worker.calls.put(None)
        try:
            async with asyncio.timeout(self._timeout + _GRACE):
                await last.future
        except TimeoutError:
            _log.warning("closing %s: its file system does not answer", self._path)
        else:
            worker.thread.join(_GRACE)

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None and self._pid == os.getpid():
            worker.stopping = True
            worker.calls.put(None)


class _Call(Generic[T]):
    """Something to be done, and who waits for it."""

    def __init__(
        self,
        work: Callable[[Any], T],
        seconds: float | None,
        loop: asyncio.AbstractEventLoop,
        *,
        connects: bool = True,
    ) -> None:
        self.work = work
        self.seconds = seconds
        self.begun = time.monotonic()
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()
        self.connects = connects
        self.dropped = False  # nobody waits any more

    def overdue(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.begun > self.seconds

    def settle(self, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and who waited with it
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Worker:
    """The thread. It holds no session, so that one that was forgotten ends it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self.stopping = False
        self.last: _Call[None] | None = None
        self.opened: Opened | None = None
        self.now: _Call[Any] | None = None  # being done
        _workers.add(self)
        self.thread = threading.Thread(target=self._play, name="streamloader-catalog", daemon=True)
        self.thread.start()

    def _play(self) -> None:
        try:
            while (call := self.calls.get()) is not None:
                self._serve(call)
                del call
        finally:
            self._disconnect()
            if self.last is not None:
                self.last.settle(None, None)

    def _serve(self, call: _Call[Any]) -> None:
        self.now = call
        try:
            result, error = self._try(call), None
        except BaseException as caught:  # noqa: BLE001 - it belongs to who waits
            result, error = None, caught
        self.now = None
        call.settle(result, error)

    def _try(self, call: _Call[Any]) -> Any:
        while True:
            self._check(call)
            try:
                return self._once(call) if call.connects else call.work(None)
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code == sqlite3.SQLITE_INTERRUPT:
                    self._check(call)
                if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                        self._disconnect()  # what it has in memory may be wrong, too
                    raise _translated(error, code, self.path) from error
            time.sleep(_AGAIN)

    def _once(self, call: _Call[Any]) -> Any:
        while True:
            opened = self._connected()
            result = call.work(opened)
            if not opened.frozen or identity(self.path, exact=True) == opened.was:
                return result
            self._disconnect()  # it was changed while it was read as if nobody could
            self._check(call)

    def _connected(self) -> Opened:
        opened = self.opened
        if opened is not None and (now := identity(self.path, exact=opened.frozen)) != opened.was:
            if now and not opened.frozen:
                # Its log is still beside it, and SQLite would take that for a part of the new file.
                raise CatalogError(
                    f"another file was put in the place of {self.path} while it was used: close it everywhere first",
                    address=self.path,
                )
            self._disconnect()  # it is gone, or may be newer
            opened = None
        if opened is None:
            opened = open_file(self.path)
            opened.db.set_progress_handler(self._interrupts, _STEPS)
            self.opened = opened
        return opened

    def _disconnect(self) -> None:
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.db.set_progress_handler(None, 0)
            try:
                opened.db.close()
            except sqlite3.Error as error:
                _log.warning("closing %s: %s", self.path, error)

    def _interrupts(self) -> int:
        call = self.now
        return int(call is not None and (self.stopping or call.dropped or call.overdue()))

    def _check(self, call: _Call[Any]) -> None:
        if self.stopping:
            raise ClosedError(f"the catalog {self.path} was closed while it was used", address=self.path)
        if call.dropped:
            raise CatalogTimeout(f"nobody waits for {self.path} any more", address=self.path)
        if call.overdue():
            raise _too_long(self.path, call, "another process holds its lock, or the work is large")


def _too_long(path: str, call: _Call[Any], why: str) -> CatalogTimeout:
    waited = time.monotonic() - call.begun
    return CatalogTimeout(
        f"waited {waited:.1f} s for the catalog {path}: {why}; timeout= is {call.seconds} s",
        address=path,
        waited=waited,
    )


def _translated(error: sqlite3.Error, code: int, path: str) -> CatalogError:
    told = {
        sqlite3.SQLITE_FULL: "there is no space left for it",
        sqlite3.SQLITE_READONLY: "it may not be written",
        sqlite3.SQLITE_CORRUPT: "it is damaged: restore it from a copy",
        sqlite3.SQLITE_NOTADB: "it is damaged: restore it from a copy",
        sqlite3.SQLITE_CANTOPEN: "it, or the files that SQLite keeps beside it, cannot be opened",
        sqlite3.SQLITE_IOERR: "its file system fails",
    }.get(code, "SQLite refuses")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return CatalogError(f"the catalog {path}: {told} ({name}: {error})", address=path)


_log: Final = logging.getLogger("streamloader")
_workers: Final[weakref.WeakSet[_Worker]] = weakref.WeakSet()
_inherited: Final[list[_Worker]] = []  # never freed: to close the parent's connections would disturb its files
os.register_at_fork(after_in_child=lambda: _inherited.extend(_workers))
