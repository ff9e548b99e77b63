"""The thread that runs the SQLite calls of one catalog, one call at a time, each with a deadline."""

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

from streamloader.archive.catalog.rows import name_catalog
from streamloader.archive.catalog.sqlite.schema import CatalogFile, get_file_identity, open_file
from streamloader.common.printable import make_error_printable
from streamloader.errors import CatalogError, CatalogTimeout, ClosedError

__all__ = ["SqliteSession"]

T = TypeVar("T")

_INTERRUPT_CHECK_INSTRUCTIONS: Final = 20_000  # instructions of SQLite's virtual machine: about a millisecond
_GRACE_S: Final = 2.0  # for the thread to notice an interrupt
_LOCK_RETRY_DELAY_S: Final = 0.002  # added to SQLite's own busy timeout


class SqliteSession:
    """A connection that is opened on first use, for the tasks of one event loop.

    Args:
        path: Path of the catalog's file.
        timeout: Time limit of one call in seconds. It includes the wait for earlier calls.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._pid = os.getpid()
        self._thread: _CatalogThread | None = None
        self._closed = False

    async def run(self, work: Callable[[CatalogFile], T], *, limited: bool = True) -> T:
        """Call a function in the thread, and return its result.

        If the catalog is locked, the transaction is rolled back and `work` is called again.

        Args:
            work: Function that runs at most one transaction.
            limited: Whether the timeout applies. An unlimited call can be cancelled.

        Raises:
            CatalogError: If SQLite fails.
            CatalogTimeout: If the call takes longer than the timeout.
            ClosedError: If the catalog was closed, or belongs to the parent of this process.
        """
        call: _QueuedCall[T] = _QueuedCall(work, self._timeout if limited else None, asyncio.get_running_loop())
        return await self._execute(call)

    async def run_without_connection(self, work: Callable[[], T]) -> T:
        """Call a function in the thread without opening a connection, and return its result."""
        call: _QueuedCall[T] = _QueuedCall(
            lambda _: work(), self._timeout, asyncio.get_running_loop(), needs_connection=False
        )
        return await self._execute(call)

    async def _execute(self, call: _QueuedCall[T]) -> T:
        if self._closed or self._pid != os.getpid():
            reason = "was closed" if self._closed else "belongs to the parent of this process"
            raise ClosedError(f"the catalog {self._path} {reason}: open it again", address=self._path)
        if self._thread is None:
            self._thread = _CatalogThread(self._path)
        self._thread.calls.put(call)
        time_limit = None if call.timeout is None else call.timeout + _GRACE_S
        try:
            async with asyncio.timeout(time_limit):
                return await call.future
        except TimeoutError as error:
            if isinstance(error, CatalogTimeout):
                raise
            raise _build_timeout_error(self._path, call, "the file system does not answer") from error
        finally:
            call.abandoned = True

    async def aclose(self) -> None:
        """Stop all calls and the thread."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        thread.stopping = True
        last: _QueuedCall[None] = _QueuedCall(lambda _: None, None, asyncio.get_running_loop(), needs_connection=False)
        thread.last_call = last
        thread.calls.put(None)
        try:
            async with asyncio.timeout(self._timeout + _GRACE_S):
                await last.future
        except TimeoutError:
            _log.warning("closing %s: its file system does not answer", self._path)
        else:
            thread.thread.join(_GRACE_S)

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is not None and self._pid == os.getpid():
            thread.stopping = True
            thread.calls.put(None)


class _QueuedCall(Generic[T]):
    """One call for the thread, and the future that receives its result."""

    def __init__(
        self,
        work: Callable[[Any], T],
        timeout: float | None,
        loop: asyncio.AbstractEventLoop,
        *,
        needs_connection: bool = True,
    ) -> None:
        self.work = work
        self.timeout = timeout
        self.started = time.monotonic()
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()
        self.needs_connection = needs_connection
        self.abandoned = False  # whether the caller has stopped waiting

    def is_overdue(self) -> bool:
        return self.timeout is not None and time.monotonic() - self.started > self.timeout

    def post_result(self, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so there is no caller any more
            self.loop.call_soon_threadsafe(self._resolve, result, error)

    def _resolve(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _CatalogThread:
    """The thread with the connection. It holds no reference to the session, so a leaked session can stop it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: queue.SimpleQueue[_QueuedCall[Any] | None] = queue.SimpleQueue()
        self.stopping = False
        self.last_call: _QueuedCall[None] | None = None
        self.file: CatalogFile | None = None
        self.current_call: _QueuedCall[Any] | None = None
        _threads.add(self)
        self.thread = threading.Thread(target=self._run, name="streamloader-catalog", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while (call := self.calls.get()) is not None:
                self._handle_call(call)
                del call
        finally:
            self._disconnect()
            if self.last_call is not None:
                self.last_call.post_result(None, None)

    def _handle_call(self, call: _QueuedCall[Any]) -> None:
        self.current_call = call
        try:
            result, error = self._run_until_unlocked(call), None
        except BaseException as caught:  # noqa: BLE001 - it is raised in the caller
            result, error = None, caught
        self.current_call = None
        call.post_result(result, error)

    def _run_until_unlocked(self, call: _QueuedCall[Any]) -> Any:
        while True:
            self._check_deadline(call)
            try:
                return self._run_on_current_file(call) if call.needs_connection else call.work(None)
            except CatalogError as error:
                name_catalog(error, self.path)
                raise
            except sqlite3.Error as error:
                if self._retry_with_any_text(error):
                    continue
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code == sqlite3.SQLITE_INTERRUPT:
                    self._check_deadline(call)
                if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                        self._disconnect()  # its page cache may be wrong, too
                    raise _translate_error(error, code, self.path) from error
            time.sleep(_LOCK_RETRY_DELAY_S)

    def _retry_with_any_text(self, error: sqlite3.Error) -> bool:
        """Return whether to repeat a call whose rows contain text that is not Unicode.

        The call then receives such text in a form that the checks of rows refuse, so the error names the row.
        """
        if self.file is None or self.file.db.text_factory is not str or not str(error).startswith("Could not decode"):
            return False
        self.file.db.text_factory = _decode_any_text
        return True

    def _run_on_current_file(self, call: _QueuedCall[Any]) -> Any:
        while True:
            file = self._connect()
            result = call.work(file)
            if not file.immutable or get_file_identity(self.path, exact=True) == file.identity:
                return result
            self._disconnect()  # the file changed while it was read as immutable
            self._check_deadline(call)

    def _connect(self) -> CatalogFile:
        file = self.file
        if file is not None and (identity := get_file_identity(self.path, exact=file.immutable)) != file.identity:
            if identity and not file.immutable:
                # The log of the old file remains beside it, and SQLite would apply it to the new file.
                raise CatalogError(
                    f"{self.path} was replaced by another file while it was open: close it in all processes first",
                    address=self.path,
                )
            self._disconnect()  # the file is gone, or may be newer
            file = None
        if file is None:
            file = open_file(self.path)
            file.db.set_progress_handler(self._should_interrupt, _INTERRUPT_CHECK_INSTRUCTIONS)
            self.file = file
        return file

    def _disconnect(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            file.db.set_progress_handler(None, 0)
            try:
                file.checkpoint()
            except sqlite3.Error as error:
                _log.warning("the log of %s stays beside it: %s", self.path, str(error))
            try:
                file.db.close()
            except sqlite3.Error as error:
                _log.warning("closing %s: %s", self.path, str(error))

    def _should_interrupt(self) -> int:
        call = self.current_call
        return int(call is not None and (self.stopping or call.abandoned or call.is_overdue()))

    def _check_deadline(self, call: _QueuedCall[Any]) -> None:
        if self.stopping:
            raise ClosedError(f"the catalog {self.path} was closed while it was in use", address=self.path)
        if call.abandoned:
            raise CatalogTimeout(f"the caller no longer waits for {self.path}", address=self.path)
        if call.is_overdue():
            raise _build_timeout_error(self.path, call, "another process holds its lock, or the work is large")


def _decode_any_text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _build_timeout_error(path: str, call: _QueuedCall[Any], reason: str) -> CatalogTimeout:
    waited = time.monotonic() - call.started
    return CatalogTimeout(
        f"waited {waited:.1f} s for the catalog {path}: {reason}; timeout= is {call.timeout} s",
        address=path,
        waited=waited,
    )


def _translate_error(error: sqlite3.Error, code: int, path: str) -> CatalogError:
    description = {
        sqlite3.SQLITE_FULL: "no space is left on its disk",
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_CORRUPT: "it is damaged: restore it from a copy",
        sqlite3.SQLITE_NOTADB: "it is damaged: restore it from a copy",
        sqlite3.SQLITE_CANTOPEN: "the file, or the files that SQLite keeps beside it, cannot be opened",
        sqlite3.SQLITE_IOERR: "its file system fails",
        sqlite3.SQLITE_TOOBIG: "one of its values is too large to be part of a catalog",
    }.get(code, "SQLite fails")
    make_error_printable(error)  # it may quote the file
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return CatalogError(f"the catalog {path}: {description} ({name}: {error})", address=path)


_log: Final = logging.getLogger("streamloader")
_threads: Final[weakref.WeakSet[_CatalogThread]] = weakref.WeakSet()
# A forked child never frees these: closing the parent's connections would release the parent's file locks.
_inherited: Final[list[_CatalogThread]] = []
os.register_at_fork(after_in_child=lambda: _inherited.extend(_threads))
