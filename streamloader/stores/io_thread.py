"""Share stores, and other asynchronous resources, on the I/O thread of this process, and use them from blocking code.

Network connections belong to an event loop. Decoders, datasets and random access have none, or a busy one. All stores
that they use, and the catalogs of archives, therefore live on one I/O thread: one instance for each address and set of
options. A forked child inherits neither the thread nor its stores.
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

__all__ = [
    "Shareable",
    "SharedResource",
    "SharedStore",
    "close_shared_stores",
    "get_shared_resource",
    "is_io_thread",
    "open_shared_store",
    "options_key",
]


IDLE_TIMEOUT_S: Final = 20.0  # how long a resource stays connected after its last user has released it
_SHUTDOWN_TIMEOUT_S: Final = 10.0
_THREAD_NAME: Final = "streamloader-io"
_PAGE_ENTRIES: Final = 1000


class Shareable(Protocol):
    """A resource that can live on the I/O thread. It connects there on first use.

    Attributes:
        url: Location of the resource without secrets, for messages.
    """

    @property
    def url(self) -> str:
        """Return the location of the resource without secrets."""

    async def aclose(self) -> None:
        """Close all connections."""


S = TypeVar("S", bound=Shareable)
T = TypeVar("T")


class SharedResource(Generic[S]):
    """Handle to a resource on the I/O thread of this process, which other users may share.

    The deadlines of the resource limit every wait. Release the handle with :meth:`close`; the connections stay open
    for some seconds for the next user.

    Attributes:
        resource: The shared resource. It belongs to the I/O thread: use it only through :meth:`call`, :meth:`run` or
            :meth:`submit`.
    """

    def __init__(self, entry: _Entry, resource: S) -> None:
        self._entry: _Entry | None = entry
        self.resource = resource

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the I/O thread. Cancelling the future cancels the coroutine.

        Raises:
            ClosedError: If this handle was closed, or was inherited from the parent process.
        """
        if self._entry is None or self._entry.pid != os.getpid():
            work.close()
            reason = "was closed" if self._entry is None else "belongs to the parent process"
            raise ClosedError(f"the shared {self.resource!r} {reason}: open it again", address=self.resource.url)
        return self._entry.thread.submit(work)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the I/O thread and wait for its result. An interrupted wait cancels the coroutine.

        Raises:
            ClosedError: If the shared stores were closed during the call.
        """
        future = self.submit(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise self._make_closed_error() from error
        except BaseException:
            future.cancel()
            raise

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the I/O thread and await its result, from any event loop. Cancelling the wait cancels it.

        Raises:
            ClosedError: If the shared stores were closed during the call.
        """
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise self._make_closed_error() from error
            raise

    def _make_closed_error(self) -> ClosedError:
        return ClosedError(f"the shared {self.resource!r} was closed while it was used", address=self.resource.url)

    def close(self) -> None:
        """Release the resource. Safe to call twice."""
        entry, self._entry = self._entry, None
        if entry is not None and entry.pid == os.getpid():
            entry.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class SharedStore(SharedResource[Store]):
    """Handle to a shared store, with methods that block the calling thread."""

    @property
    def store(self) -> Store:
        """The asynchronous store, for :meth:`run` and :meth:`submit`."""
        return self.resource

    def head(self, path: str) -> ObjectInfo:
        """Return size, version and modification time of an object, as :meth:`Store.head` does."""
        return self.call(self.store.head(path))

    def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        """Return exactly the bytes of `span`, or of the whole object, as :meth:`Store.read` does."""
        return self.call(self.store.read(path, span, version=version, size=size))

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Yield all objects under the directory `prefix`, as :meth:`Store.list` does."""
        entries = self.store.list(prefix, recursive=recursive)
        try:
            while page := self.call(_read_page(entries)):
                yield from page
        finally:
            with contextlib.suppress(ClosedError):  # then the end of its event loop has closed it
                self.call(entries.aclose())

    def write(self, path: str, data: Data) -> None:
        """Write an object atomically, as :meth:`Store.write` does."""
        self.call(self.store.write(path, data))

    def delete(self, path: str) -> None:
        """Delete an object, as :meth:`Store.delete` does."""
        self.call(self.store.delete(path))


def open_shared_store(address: str, options: Mapping[str, Any] | None = None) -> tuple[SharedStore, str]:
    """Return this process's store for an address and options, and the path of the address within the store.

    Raises:
        ConfigError: If the address or an option is invalid, see :func:`open_store`; or if an option cannot be pickled.
        MissingDependency: If the store needs a package that is not installed.
    """
    root, path = split_address(address)
    options = dict(options or {})
    key = root, options_key(options)
    entry = _acquire_entry(key, lambda: open_store(root, **options))
    return SharedStore(entry, entry.resource), path


def options_key(options: Mapping[str, Any]) -> bytes:
    """Return a key that is equal for equal options and different for different ones.

    Raises:
        ConfigError: If an option cannot be pickled.
    """
    try:
        return pickle.dumps(sorted(options.items()))
    except Exception as error:
        raise ConfigError(f"options must be plain values that worker processes can receive: {error}") from error


def get_shared_resource(key: Hashable, make: Callable[[], S]) -> SharedResource[S]:
    """Return the resource that this process shares under `key`. The first caller creates it with `make`.

    Args:
        key: Key of the resource among all shared resources. Begin it with the name of the resource's kind.
        make: Function that creates the resource. It must not block: the resource connects on first use.
    """
    entry = _acquire_entry(key, make)
    return SharedResource(entry, entry.resource)


def is_io_thread() -> bool:
    """Return whether the calling code, such as a finalizer, runs in the I/O thread, which cannot wait for stores."""
    return threading.current_thread().name == _THREAD_NAME


def close_shared_stores() -> None:
    """Close all shared stores of this process now, even those in use, and end the I/O thread.

    A later use starts a new thread.
    """
    with _process.lock:
        thread, _process.thread = _process.thread, None
        resources = [entry.resource for entry in _process.entries.values()]
        _process.entries.clear()
    if thread is not None:
        thread.stop(resources)


def _acquire_entry(key: Hashable, make: Callable[[], Shareable]) -> _Entry:
    with _process.lock:
        entry = _process.entries.get(key)
        if entry is None:
            resource = make()
            if _process.thread is None:
                _process.thread = _IoThread()
            entry = _process.entries[key] = _Entry(resource, _process.thread)
        entry.users += 1
    return entry


class _Entry:
    """A shared resource with the number of its users."""

    def __init__(self, resource: Any, thread: _IoThread) -> None:
        self.resource = resource
        self.thread = thread
        self.pid = os.getpid()
        self.users = 0
        self.released_at = 0.0  # time.monotonic() of the last release

    def release(self) -> None:
        # This may run in a finaliser, at any point of any thread, so it must not take the lock. The I/O thread counts.
        self.thread.post(self._count_release)

    def _count_release(self) -> None:
        with _process.lock:
            self.users -= 1
            self.released_at = time.monotonic()


class _IoThread:
    """A daemon thread with an event loop. It ends when no resource is shared any more."""

    def __init__(self) -> None:
        self._loop = _make_loop()
        self._stop_requested = asyncio.Event()
        self._resources_to_close: list[Shareable] = []
        self._futures: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()
        self._ended = False
        self._thread = threading.Thread(target=self._run_loop, name=_THREAD_NAME, daemon=True)
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
        self._futures.add(future)
        if self._ended:  # the loop ended after the submission, so the coroutine will never run
            future.cancel()
        return future

    def post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its stores with it
            self._loop.call_soon_threadsafe(call, *args)

    def stop(self, resources: list[Shareable]) -> None:
        """Cancel all work, close these resources, and wait for the thread."""
        self._resources_to_close = resources
        self.post(self._stop_requested.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_SHUTDOWN_TIMEOUT_S)

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())
        self._ended = True
        for future in list(self._futures):
            future.cancel()

    async def _serve(self) -> None:
        while not self._stop_requested.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), IDLE_TIMEOUT_S / 4)
            idle, done = _remove_idle_resources(self)
            await _close_resources(idle)
            if done:
                return
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # so that no caller waits for a closed store
        await _close_resources(self._resources_to_close)


def _remove_idle_resources(thread: _IoThread) -> tuple[list[Shareable], bool]:
    """Remove the resources whose idle timeout has passed. Return them, and whether the thread can end."""
    latest = time.monotonic() - IDLE_TIMEOUT_S
    with _process.lock:
        if _process.thread is not thread:
            return [], False  # the thread was stopped, or is about to be
        idle = {
            key: entry.resource
            for key, entry in _process.entries.items()
            if not entry.users and entry.released_at < latest
        }
        for key in idle:
            del _process.entries[key]
        done = not _process.entries
        if done:
            _process.thread = None
    return list(idle.values()), done


async def _close_resources(resources: list[Shareable]) -> None:
    for resource, error in zip(
        resources,
        await asyncio.gather(*(resource.aclose() for resource in resources), return_exceptions=True),
        strict=True,
    ):
        if error is not None:
            _log.info("closing %r failed: %s", resource, str(error))


async def _read_page(entries: AsyncGenerator[ObjectInfo, None]) -> list[ObjectInfo]:
    page: list[ObjectInfo] = []
    async for info in entries:
        page.append(info)
        if len(page) == _PAGE_ENTRIES:
            break
    return page


def _make_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # uvloop does not support this interpreter
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _SharedState:
    """The shared resources of this process, and its I/O thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Hashable, _Entry] = {}
        self.thread: _IoThread | None = None
        self.inherited: list[object] = []  # from parent processes; never freed, because closing it would disturb them

    def reset_after_fork(self) -> None:
        inherited = [*self.inherited, self.entries, self.thread]
        self.__init__()  # type: ignore[misc]
        self.inherited = inherited


_log: Final = logging.getLogger("streamloader")
_process: Final = _SharedState()
os.register_at_fork(after_in_child=_process.reset_after_fork)
atexit.register(close_shared_stores)
