"""One store for each address in a process, on one thread of its own, for everybody: the blocking face of stores.

Network connections belong to an event loop. Decoders, data sets and random access do not have one, or have a busy one,
so all stores that they share, and the catalogs of archives, live on the I/O thread of the process. After a fork the
child has neither thread nor stores, and begins with none.
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
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from streamloader.errors import ClosedError, ConfigError
from streamloader.stores.base import Data, Store
from streamloader.stores.registry import open_store, split_address
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Shareable", "Shared", "SharedStore", "close_shared_stores", "options_key", "shared", "shared_store"]


LINGER: Final = 20.0  # seconds that a store stays connected after its last user has left
_GOODBYE: Final = 10.0  # seconds for closing all stores when the process ends
_PAGE: Final = 1000  # entries of a listing that are fetched in one go


class Shareable(Protocol):
    """What can live on the I/O thread: it connects there when it is first used.

    Attributes:
        url: where it is, for messages: without secrets.
    """

    @property
    def url(self) -> str:
        """See above."""

    async def aclose(self) -> None:
        """Disconnect."""


S = TypeVar("S", bound=Shareable)
T = TypeVar("T")


class Shared(Generic[S]):
    """Something of this process's I/O thread that others may use as well.

    Every wait ends by the deadlines of what is shared. Give it back with :meth:`close`; the connections stay for some
    seconds for the next user.

    Attributes:
        it: what is shared. It lives in the I/O thread: use it only through :meth:`call`, :meth:`run` or :meth:`submit`.
    """

    def __init__(self, entry: _Entry, it: S) -> None:
        self._entry: _Entry | None = entry
        self.it = it

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the I/O thread. Cancelling the future cancels it.

        Raises:
            ClosedError: this was closed, or belongs to the parent of this process.
        """
        if self._entry is None or self._entry.pid != os.getpid():
            work.close()
            why = "was closed" if self._entry is None else "belongs to the parent of this process"
            raise ClosedError(f"the shared {self.it!r} {why}: get one anew", address=self.it.url)
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

    def _gone(self) -> ClosedError:
        return ClosedError(f"the shared {self.it!r} was closed while it was used", address=self.it.url)

    def close(self) -> None:
        """Give it back. Safe to call twice."""
        entry, self._entry = self._entry, None
        if entry is not None and entry.pid == os.getpid():
            entry.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class SharedStore(Shared[Store]):
    """A store of this process that others use as well, with methods that block the calling thread."""

    @property
    def store(self) -> Store:
        """The asynchronous store, for :meth:`run` and :meth:`submit`."""
        return self.it

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


def shared_store(address: str, options: Mapping[str, Any] | None = None) -> tuple[SharedStore, str]:
    """Return this process's store for an address with these options, and the path of the address in it.

    Raises:
        ConfigError: see :func:`open_store`; or options that cannot be pickled.
        MissingExtra: the store needs a package that is not installed.
    """
    root, path = split_address(address)
    options = dict(options or {})
    key = root, options_key(options)
    entry = _entry(key, lambda: open_store(root, **options))
    return SharedStore(entry, entry.it), path


def options_key(options: Mapping[str, Any]) -> bytes:
    """Return what tells these options from others.

    Raises:
        ConfigError: they cannot be pickled.
    """
    try:
        return pickle.dumps(sorted(options.items()))
    except Exception as error:
        raise ConfigError(f"options have to be plain values, such as worker processes can get: {error}") from error


def shared(key: Hashable, make: Callable[[], S]) -> Shared[S]:
    """Return what this process shares under `key`, which `make` makes for the first one who asks.

    Args:
        key: names it among all that is shared: begin it with the name of its kind.
        make: must not block: what it returns connects when it is first used.
    """
    entry = _entry(key, make)
    return Shared(entry, entry.it)


def close_shared_stores() -> None:
    """Close all shared stores of this process now, in use or not, and end their thread. A later use begins anew."""
    with _process.lock:
        thread, _process.thread = _process.thread, None
        stores = [entry.it for entry in _process.entries.values()]
        _process.entries.clear()
    if thread is not None:
        thread.stop(stores)


def _entry(key: Hashable, make: Callable[[], Shareable]) -> _Entry:
    with _process.lock:
        entry = _process.entries.get(key)
        if entry is None:
            it = make()
            if _process.thread is None:
                _process.thread = _IoThread()
            entry = _process.entries[key] = _Entry(it, _process.thread)
        entry.users += 1
    return entry


class _Entry:
    """What is shared, and how many use it."""

    def __init__(self, it: Any, thread: _IoThread) -> None:
        self.it = it
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
        self._last: list[Shareable] = []
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

    def stop(self, stores: list[Shareable]) -> None:
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


def _take_idle(thread: _IoThread) -> tuple[list[Shareable], bool]:
    """Take out the stores that nobody has used for a while; say whether the thread is not needed any more."""
    long_ago = time.monotonic() - LINGER
    with _process.lock:
        if _process.thread is not thread:
            return [], False  # it was told to stop, or is about to be
        idle = {key: entry.it for key, entry in _process.entries.items() if not entry.users and entry.left < long_ago}
        for key in idle:
            del _process.entries[key]
        done = not _process.entries
        if done:
            _process.thread = None
    return list(idle.values()), done


async def _close(stores: list[Shareable]) -> None:
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
        self.entries: dict[Hashable, _Entry] = {}
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
