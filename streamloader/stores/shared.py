"""One store for each address in a process, on one thread of its own, for everybody: the blocking face of stores.

Network connections belong to an event loop. Decoders, data sets and random access do not have one, or have a busy one,
so all stores that they share live on the I/O thread of the process. After a fork the child has neither thread nor
stores, and begins with none.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import pickle
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from typing import Any, Final, Self, TypeVar

from streamloader.errors import ClosedError, ConfigError
from streamloader.stores.base import Data, Store
from streamloader.stores.registry import open_store, split_address
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["SharedStore", "close_shared_stores", "shared_store"]

T = TypeVar("T")

LINGER: Final = 20.0  # seconds that a store stays connected after its last user has left
_GOODBYE: Final = 10.0  # seconds for closing all stores when the process ends
_PAGE: Final = 1000  # entries of a listing that are fetched in one go


class SharedStore:
    """A store of this process that others use as well, with methods that block the calling thread.

    Every wait ends by the deadlines of the store itself. From coroutines use :meth:`run`, with the methods of
    :attr:`store`. Give it back with :meth:`close`; the connections stay for some seconds for the next user.

    Attributes:
        store: the asynchronous store. It lives in the I/O thread: use it only through :meth:`run` or :meth:`submit`.
    """

    def __init__(self, entry: _Entry) -> None:
        self._entry: _Entry | None = entry
        self.store = entry.store

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the I/O thread. Cancelling the future cancels it.

        Raises:
            ClosedError: this was closed, or belongs to the parent of this process.
        """
        if self._entry is None or self._entry.pid != os.getpid():
            work.close()
            why = "was closed" if self._entry is None else "belongs to the parent of this process"
            raise ClosedError(f"the shared {self.store!r} {why}: get one with shared_store()", address=self.store.url)
        return self._entry.thread.submit(work)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the I/O thread and wait for it; an interrupted wait cancels it.

        Raises:
            ClosedError: the shared stores were closed meanwhile.
        """
        future = self.submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise self._gone() from error
        except BaseException:
            future.cancel()
            raise

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the I/O thread and await it, from any event loop; a cancelled wait cancels it.

        Raises:
            ClosedError: the shared stores were closed meanwhile.
        """
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise self._gone() from error
            raise

    def head(self, path: str) -> ObjectInfo:
        """See :meth:`Store.head`."""
        return self.call(self.store.head(path))

    def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`."""
        return self.call(self.store.read(path, span, version=version))

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """See :meth:`Store.list`."""
        found = self.store.list(prefix, recursive=recursive)
        try:
            while page := self.call(_page(found)):
                yield from page
        finally:
            with contextlib.suppress(ClosedError):  # then its loop has ended it
                self.call(found.aclose())

    def write(self, path: str, data: Data) -> None:
        """See :meth:`Store.write`."""
        self.call(self.store.write(path, data))

    def delete(self, path: str) -> None:
        """See :meth:`Store.delete`."""
        self.call(self.store.delete(path))

    def _gone(self) -> ClosedError:
        return ClosedError(f"the shared {self.store!r} was closed while it was used", address=self.store.url)

    def close(self) -> None:
        """Give the store back. Safe to call twice."""
        entry, self._entry = self._entry, None
        if entry is not None and entry.pid == os.getpid():
            entry.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def shared_store(address: str, options: Mapping[str, Any] | None = None) -> tuple[SharedStore, str]:
    """Return this process's store for an address with these options, and the path of the address in it.

    Raises:
        ConfigError: see :func:`open_store`; or options that cannot be pickled.
        MissingExtra: the store needs a package that is not installed.
    """
    root, path = split_address(address)
    options = dict(options or {})
    try:
        key = root, pickle.dumps(sorted(options.items()))
    except Exception as error:
        raise ConfigError(
            f"options of a store have to be plain values, such as worker processes can get: {error}"
        ) from error
    with _process.lock:
        entry = _process.entries.get(key)
        if entry is None:
            store = open_store(root, **options)
            if _process.thread is None:
                _process.thread = _IoThread()
            entry = _process.entries[key] = _Entry(store, _process.thread)
        entry.users += 1
    return SharedStore(entry), path


def close_shared_stores() -> None:
    """Close all shared stores of this process now, in use or not, and end their thread. A later use begins anew."""
    with _process.lock:
        thread, _process.thread = _process.thread, None
        stores = [entry.store for entry in _process.entries.values()]
        _process.entries.clear()
    if thread is not None:
        thread.stop(stores)


class _Entry:
    """One shared store and who uses it."""

    def __init__(self, store: Store, thread: _IoThread) -> None:
        self.store = store
        self.thread = thread
        self.pid = os.getpid()
        self.users = 0
        self.left = 0.0  # when the last user left

    def leave(self) -> None:
        # Without the lock: this may run in a finaliser, at any point of any thread. The I/O thread counts.
        self.thread.post(self._leave)

    def _leave(self) -> None:
        with _process.lock:
            self.users -= 1
            self.left = time.monotonic()


class _IoThread:
    """A daemon thread with an event loop, which ends when nothing is shared any more."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._told = asyncio.Event()  # to end
        self._last: list[Store] = []
        self._asked: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()
        self._ended = False
        self._thread = threading.Thread(target=self._play, name="streamloader-io", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if threading.current_thread() is self._thread:
            work.close()
            raise ConfigError("the I/O thread cannot wait for itself: await the store's methods there")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise ClosedError("the shared stores of this process were closed") from error
        self._asked.add(future)
        if self._ended:  # it was asked in the moment in which the loop ended: nobody will answer
            future.cancel()
        return future

    def post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its stores with it
            self._loop.call_soon_threadsafe(call, *args)

    def stop(self, stores: list[Store]) -> None:
        """End all work, close these stores, and wait for the thread."""
        self._last = stores
        self.post(self._told.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_GOODBYE)

    def _play(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())
        self._ended = True
        for future in list(self._asked):
            future.cancel()

    async def _serve(self) -> None:
        while not self._told.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), LINGER / 4)
            idle, done = _take_idle(self)
            await _close(idle)
            if done:
                return
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # so that nobody waits for a store that is gone
        await _close(self._last)


def _take_idle(thread: _IoThread) -> tuple[list[Store], bool]:
    """Take out the stores that nobody has used for a while; say whether the thread is not needed any more."""
    long_ago = time.monotonic() - LINGER
    with _process.lock:
        if _process.thread is not thread:
            return [], False  # it was told to stop, or is about to be
        idle = {
            key: entry.store for key, entry in _process.entries.items() if not entry.users and entry.left < long_ago
        }
        for key in idle:
            del _process.entries[key]
        done = not _process.entries
        if done:
            _process.thread = None
    return list(idle.values()), done


async def _close(stores: list[Store]) -> None:
    for store, error in zip(
        stores, await asyncio.gather(*(store.aclose() for store in stores), return_exceptions=True), strict=True
    ):
        if error is not None:
            _log.info("closing %r: %s", store, error)


async def _page(found: AsyncGenerator[ObjectInfo, None]) -> list[ObjectInfo]:
    page: list[ObjectInfo] = []
    async for info in found:
        page.append(info)
        if len(page) == _PAGE:
            break
    return page


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # there is none for this interpreter
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Process:
    """What this process shares."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[tuple[str, bytes], _Entry] = {}
        self.thread: _IoThread | None = None
        self.inherited: list[object] = []  # never freed: to close what belongs to the parent would disturb it

    def begin_anew(self) -> None:
        inherited = [*self.inherited, self.entries, self.thread]
        self.__init__()  # type: ignore[misc]
        self.inherited = inherited


_log: Final = logging.getLogger("streamloader")
_process: Final = _Process()
os.register_at_fork(after_in_child=_process.begin_anew)
atexit.register(close_shared_stores)
