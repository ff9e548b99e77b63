"""What a binding of the store suite says, and what its tests use."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import pytest

from streamloader.config import Retry
from streamloader.errors import NotSupported, StoreError
from streamloader.stores.base import Store
from streamloader.stores.registry import open_store
from streamloader.values import ObjectInfo

__all__ = ["BIG", "DEADLINE", "StoreBinding", "difference", "made_bytes", "run"]

T = TypeVar("T")

DEADLINE: Final = 60.0  # seconds for one part of a test
BIG: Final = 16 << 20  # bytes of a big object
_TOGETHER: Final = 32  # writes under way when a store is populated


class StoreBinding:
    """What is tested: a subclass gives at least :meth:`location`, and :meth:`populate` if the store takes no objects.

    Attributes:
        schemes: the schemes of :func:`streamloader.stores.registry.schemes` that this binding stands for.
        secrets: texts that no repr, error or log may show: the passwords and keys in the options.
        versioned: whether the store tells versions. If not, all of them have to be None.
        root_lists: whether ``list("")`` works; if not, it has to raise NotSupported, NotFound or AccessDenied.
        refused_names: names among :attr:`names` that this kind of store cannot have -> why. Reading and writing them
            has to raise a StoreError or ConfigError.
        keys: entries of the listings that are tested in the fast and in the slow tier. Lower them only with a reason.
        names: of objects that have to work, each below a directory of its own.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    secrets: Sequence[str] = ()
    versioned: bool = True
    root_lists: bool = True
    refused_names: Mapping[str, str] = {}
    keys: tuple[int, int] = (1_200, 10_000)
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
        """Return the address of a directory (or host, or bucket) that is this test's own, and options for it.

        Every call in one test returns the same place.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say where its store is: def location(self)")

    def make_store(self, **options: Any) -> Store:
        """Return a new store of that place; `options` come on top. It is not retried unless the binding says so."""
        address, own = self.location()
        return open_store(address, **{"retry": Retry(attempts=1), **own, **options})

    def path(self, name: str) -> str:
        """Return the path in the store of the object that was populated as `name`: the name, or say how it differs."""
        return name

    def address(self, name: str) -> str:
        """Return the whole address of an object, as users write it."""
        return f"{self.location()[0].rstrip('/')}/{self.path(name)}"

    def populate(self, files: Mapping[str, bytes]) -> None:
        """Put objects there, name -> bytes; existing ones are replaced as a whole, never overwritten in place.

        It is called in any thread, one call after the other, and not in an event loop. By default it writes through
        the store.
        """

        async def write_all() -> None:
            turns = asyncio.Semaphore(_TOGETHER)

            async def write(store: Store, name: str, data: bytes) -> None:
                async with turns:
                    await store.write(self.path(name), data)

            async with self.make_store() as store, asyncio.TaskGroup() as tasks:
                for name, data in files.items():
                    tasks.create_task(write(store, name, data))

        run(write_all)

    # --- help for the tests ------------------------------------------------------------------------------------------

    @functools.cached_property
    def folder(self) -> str:
        """The directory of this test."""
        return f"suite-{secrets.token_hex(4)}"

    def name(self, name: str = "") -> str:
        """Return the name of an object, or directory, of this test."""
        return f"{self.folder}/{name}" if name else self.folder

    def put(self, name: str, data: bytes) -> str:
        """Put one object there and return its path."""
        self.populate({self.name(name): data})
        return self.path(self.name(name))

    def use(self, function: Callable[[Store], Coroutine[Any, Any, T]], **options: Any) -> T:
        """Call a function with an open store, in an event loop of its own."""

        async def with_store() -> T:
            async with self.make_store(**options) as store:
                return await function(store)

        return run(with_store)


def run(function: Callable[[], Coroutine[Any, Any, T]], deadline: float = DEADLINE) -> T:
    """Run a coroutine function in a new event loop, to a deadline."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline):
            return await function()

    return asyncio.run(with_deadline())


@functools.lru_cache(maxsize=16)
def made_bytes(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that are the same for the same arguments and repeat nowhere."""
    return random.Random(seed << 40 | size).randbytes(size)  # noqa: S311 - not for secrets


async def listed(store: Store, prefix: str = "", *, recursive: bool = True) -> list[ObjectInfo]:
    """Return a listing as a list, in the order of its paths."""
    found = [info async for info in store.list(prefix, recursive=recursive)]
    return sorted(found, key=lambda info: info.path)


async def pieces(*parts: bytes, then: BaseException | None = None) -> AsyncIterator[bytes]:
    """Yield parts, and raise `then` after them."""
    for part in parts:
        await asyncio.sleep(0)
        yield part
    if then is not None:
        raise then


async def takes_writes(store: Store, path: str) -> bool:
    """Return whether objects can be written; if not, the store has to say so in so many words."""
    if not store.writes:
        with pytest.raises(NotSupported) as caught:
            await store.write(path, b"x")
        assert_names(caught.value, store, path)
        with pytest.raises(NotSupported):
            await store.delete(path)
    return store.writes


async def has_listings(store: Store, path: str) -> bool:
    """Return whether there are listings; if not, the store has to say so in so many words."""
    if not store.lists:
        with pytest.raises(NotSupported):
            await listed(store, path)
    return store.lists


def assert_names(error: StoreError, store: Store, path: str) -> None:
    """An error tells where it arose, in its attributes and in its text."""
    assert error.address == store.address(path), f"{error!r} names {error.address}, not {store.address(path)}"
    assert store.address(path) in str(error)


def difference(got: Any, wanted: Any) -> str:
    """Return where bytes, or collections of bytes, differ; "" if they do not.

    A plain comparison would have pytest work out the difference of megabytes, which takes it minutes where it does not
    cut its reports short (in CI).
    """
    if got == wanted:
        return ""
    if isinstance(wanted, dict) and isinstance(got, dict) and got.keys() == wanted.keys():
        return next(f"{name!r}: {text}" for name in wanted if (text := difference(got[name], wanted[name])))
    if isinstance(wanted, list) and isinstance(got, list) and len(got) == len(wanted):
        texts = map(difference, got, wanted)
        return next(f"item {number}: {text}" for number, text in enumerate(texts) if text)
    if not isinstance(got, bytes) or not isinstance(wanted, bytes):
        return f"got {got!r:.200}, wanted {wanted!r:.200}"
    unequal = (at for at, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1])
    at = next(unequal, min(len(got), len(wanted)))
    shown = f"{got[at : at + 8]!r}, not {wanted[at : at + 8]!r}"
    return f"got {len(got)} bytes, wanted {len(wanted)}; from byte {at} on {shown}"
