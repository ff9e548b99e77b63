"""The settings of a binding of the store suite, and helpers for its tests."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

import pytest

from streamloader.config import Retry
from streamloader.errors import NotSupported, StoreError
from streamloader.stores.base import Store
from streamloader.stores.registry import open_store
from streamloader.values import ObjectInfo

__all__ = ["BIG_OBJECT_BYTES", "DEADLINE_S", "HttpLocation", "StoreBinding", "describe_difference", "make_bytes", "run"]

T = TypeVar("T")

DEADLINE_S: Final = 120.0
"""Time limit of one part of a test."""
BIG_OBJECT_BYTES: Final = 16 << 20
"""Size of a big object in bytes."""
MAX_CONCURRENT_WRITES: Final = 32


@dataclass(frozen=True, slots=True)
class HttpLocation:
    """A store at a given web server, and an object in it.

    Attributes:
        url: Address of the store.
        path: Path of an object.
        options: Options of the store, with credentials of every kind that it takes.
        secrets: Passwords and keys in the options.
    """

    url: str
    path: str
    options: Mapping[str, Any] = field(repr=False)
    secrets: Sequence[str] = field(default=(), repr=False)


class StoreBinding:
    """Settings of a tested store.

    A subclass defines at least :meth:`location`, and :meth:`populate` if the store is read-only.

    Attributes:
        schemes: Schemes of :func:`streamloader.stores.registry.schemes` that this binding tests.
        secrets: Passwords and keys in the options. No repr, error or log may show them.
        versioned: Whether the store reports versions. If not, all versions have to be None.
        root_lists: Whether ``list("")`` works. If not, it has to raise NotSupported, NotFound or AccessDenied.
        refused_names: Names among :attr:`names` that this kind of store cannot have, each with the reason. Reading and
            writing them has to raise a StoreError or ConfigError.
        served: Whether a server sends the objects, so that it can also send without end. A container is a file.
        listing_sizes: Numbers of entries in the large listings of the fast and of the slow tier. Lower them only with
            a reason.
        names: Object names that have to work, each below a directory of its own.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    secrets: Sequence[str] = ()
    versioned: bool = True
    root_lists: bool = True
    served: bool = True
    refused_names: Mapping[str, str] = {}
    listing_sizes: tuple[int, int] = (1_200, 10_000)
    names: Sequence[str] = (
        "Größe und Länge.bin",
        "日本語/動画 001.mp4",
        "emoji 🎬/🐛.bin",
        "with  two spaces",
        "100%.bin",
        "100%25.bin",
        "%2e%2e",
        "%2Fslash",
        "a#b",
        "a?b=c&d=e",
        "a+b",
        "a;b,c=d",
        'it\'s "quoted"',
        "[x]{y,z}*.bin",
        "back\\slash",
        "user@host:22",
        "tilde~dollar$bang!(1)",
        ".hidden",
        "...",
        "-dash",
        f"{'long-' * 40}.bin",
        "/".join(["deep"] * 12 + ["er" * 100, "a.bin"]),
    )

    def location(self) -> tuple[str, Mapping[str, Any]]:
        """Return the address of a directory (or host, or bucket) that only this test uses, and options for it.

        Every call in one test returns the same location.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define location(self), which returns its address")

    def make_store(self, **options: Any) -> Store:
        """Return a new store of that location, with `options` on top of its own. By default, nothing is retried."""
        address, own = self.location()
        return open_store(address, **{"retry": Retry(attempts=1), **own, **options})

    def path(self, name: str) -> str:
        """Return the store's path of the object that was populated as `name`. By default, the name itself."""
        return name

    def address(self, name: str) -> str:
        """Return the full address of an object, as users write it."""
        return f"{self.location()[0].rstrip('/')}/{self.path(name)}"

    def http_location(self, server_url: str) -> HttpLocation | None:
        """Return a store of this kind whose objects are on a web server, for the tests of redirects.

        The default, None, is for stores that do not speak HTTP.

        Args:
            server_url: Scheme, host and port of the server, which answers every request with a redirect.
        """
        return None

    def populate(self, files: Mapping[str, bytes]) -> None:
        """Create objects, given as name -> bytes. Existing objects are replaced atomically, never overwritten in place.

        Calls may come from any thread, one after the other, outside of an event loop. The default implementation
        writes through the store.
        """

        async def write_all() -> None:
            slots = asyncio.Semaphore(MAX_CONCURRENT_WRITES)

            async def write(store: Store, name: str, data: bytes) -> None:
                async with slots:
                    await store.write(self.path(name), data)

            async with self.make_store() as store, asyncio.TaskGroup() as tasks:
                for name, data in files.items():
                    tasks.create_task(write(store, name, data))

        run(write_all)

    # --- helpers for the tests ---------------------------------------------------------------------------------------

    @functools.cached_property
    def folder(self) -> str:
        """The name of this test's directory."""
        return f"suite-{secrets.token_hex(4)}"

    def name(self, name: str = "") -> str:
        """Return the full name of an object of this test, or of its directory."""
        return f"{self.folder}/{name}" if name else self.folder

    def put(self, name: str, data: bytes) -> str:
        """Create one object and return its path."""
        self.populate({self.name(name): data})
        return self.path(self.name(name))

    def use(self, function: Callable[[Store], Coroutine[Any, Any, T]], **options: Any) -> T:
        """Call a coroutine function with an open store, in a new event loop."""

        async def with_store() -> T:
            async with self.make_store(**options) as store:
                return await function(store)

        return run(with_store)


def run(function: Callable[[], Coroutine[Any, Any, T]], deadline: float = DEADLINE_S) -> T:
    """Run a coroutine function in a new event loop, with a deadline in seconds."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline):
            return await function()

    return asyncio.run(with_deadline())


@functools.lru_cache(maxsize=16)
def make_bytes(size: int, seed: int = 0) -> bytes:
    """Return `size` pseudo-random bytes that depend only on the arguments."""
    return random.Random(seed << 40 | size).randbytes(size)  # noqa: S311 - not for secrets


async def list_objects(store: Store, prefix: str = "", *, recursive: bool = True) -> list[ObjectInfo]:
    """Return a listing as a list, sorted by path."""
    found = [info async for info in store.list(prefix, recursive=recursive)]
    return sorted(found, key=lambda info: info.path)


async def iterate_pieces(*parts: bytes, then: BaseException | None = None) -> AsyncIterator[bytes]:
    """Yield the parts, then raise `then`."""
    for part in parts:
        await asyncio.sleep(0)
        yield part
    if then is not None:
        raise then


async def require_writes(store: Store, path: str) -> bool:
    """Return whether the store supports writes. If it does not, check that it raises NotSupported."""
    if not store.supports_writes:
        with pytest.raises(NotSupported) as caught:
            await store.write(path, b"x")
        assert_names(caught.value, store, path)
        with pytest.raises(NotSupported):
            await store.delete(path)
    return store.supports_writes


async def require_listing(store: Store, path: str) -> bool:
    """Return whether the store supports listings. If it does not, check that it raises NotSupported.

    A store of web servers supports them if the server does.
    """
    if store.supports_listing and store.has_url_paths:
        try:
            await list_objects(store, path)
        except NotSupported:
            return False
        except StoreError:
            return True
    if not store.supports_listing:
        with pytest.raises(NotSupported):
            await list_objects(store, path)
    return store.supports_listing


def assert_names(error: StoreError, store: Store, path: str) -> None:
    """Check that an error names the object, in its attributes and in its text."""
    assert error.address == store.address(path), f"{error!r} names {error.address}, not {store.address(path)}"
    assert store.address(path) in str(error)


def describe_difference(got: Any, wanted: Any) -> str:
    """Describe where bytes, or collections of bytes, differ. Return "" if they are equal.

    With a plain comparison, pytest would compute the difference of megabytes, which takes minutes in CI, where it does
    not truncate its reports.
    """
    if got == wanted:
        return ""
    if isinstance(wanted, dict) and isinstance(got, dict) and got.keys() == wanted.keys():
        return next(f"{name!r}: {text}" for name in wanted if (text := describe_difference(got[name], wanted[name])))
    if isinstance(wanted, list) and isinstance(got, list) and len(got) == len(wanted):
        texts = map(describe_difference, got, wanted)
        return next(f"item {number}: {text}" for number, text in enumerate(texts) if text)
    if not isinstance(got, bytes) or not isinstance(wanted, bytes):
        return f"got {got!r:.200}, wanted {wanted!r:.200}"
    unequal = (index for index, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1])
    index = next(unequal, min(len(got), len(wanted)))
    shown = f"{got[index : index + 8]!r}, not {wanted[index : index + 8]!r}"
    return f"got {len(got)} bytes, wanted {len(wanted)}; from byte {index} on {shown}"
