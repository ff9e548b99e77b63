"""The settings of a binding of the container suite, and helpers for its tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import ClassVar, Final, Literal, TypeAlias, TypeVar

from streamloader.config import Limits
from streamloader.containers.base import Container, ContainerSource, Member
from streamloader.stores.base import Store
from streamloader.stores.memory import MemoryStore
from streamloader.testing.containers.counting import CountingStore

__all__ = ["ContainerBinding", "Files", "make_data", "make_rng", "read_member", "run_with_deadline", "scan_members"]

T = TypeVar("T")
Files: TypeAlias = Sequence[tuple[str, bytes]]

DEADLINE_S: Final = 120.0


class ContainerBinding:
    """Settings of a tested container format. A subclass defines at least `container`, `build` and `read_reference`.

    Attributes:
        container: Class to test.
        suffix: Ending of the names of the files. Defaults to the first of the class.
        checksum: Kind of content that a checksum of the format covers: each "member", the whole "file", or "nothing".
        is_compressed: Whether the file is compressed as a whole, so that nothing in it can be skipped or read directly.
        is_sorted: Whether the format has its members in ascending order of the bytes of their names, each name once.
        names: Member names that have to work.
        long_names: Further such names, of more than 100 bytes.
        deadline_s: Time limit of one part of a test in seconds.
    """

    container: ClassVar[type[Container]]
    suffix: str = ""
    checksum: Literal["member", "file", "nothing"] = "member"
    is_compressed: bool = False
    is_sorted: bool = False
    names: Sequence[str] = (
        "a",
        "a.txt",
        "deep/deeper/deepest/a.bin",
        "Größe und Länge.bin",
        "日本語/動画 001.mp4",
        "emoji 🎬/🐛.bin",
        "with  two spaces",
        " leading and trailing ",
        "100%.bin",
        "%2e%2e",
        "%2Fslash",
        "a#b?c=d&e",
        "bang!",
        "inner.zip!",
        "set.zip!/a.png",
        'it\'s "quoted"',
        "[x]{y,z}*.bin",
        "back\\slash",
        "user@host:22",
        ".hidden",
        ".hidden/.too",
        "...",
        "..a/b..",
        "-dash",
        "~tilde",
        "line\nfeed",
        "C",
        "caf\u00e9",  # two forms of one letter: names are not normalized
        "cafe\u0301",
        "x" * 99,
        "x" * 100,
    )
    long_names: Sequence[str] = (
        "y" * 101,
        "long-" * 40 + ".bin",
        "/".join(["deep"] * 30 + ["er" * 100, "a.bin"]),
        "é" * 120,
        "d/" * 600 + "a",
    )
    deadline_s: float = DEADLINE_S

    def build(self, files: Files) -> bytes:
        """Return a container with these members, in this order, written by another program."""
        raise NotImplementedError(f"{type(self).__name__} has to define build(self, files)")

    def read_reference(self, data: bytes) -> Iterator[tuple[str, bytes | None]]:
        """Yield name and content of the members of a container, read by another program.

        The content is None if the program does not return it. Directories are left out. If the container is damaged,
        the program may raise any exception.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define read_reference(self, data)")

    def forge_number(self, data: bytes, rng: random.Random) -> bytes:
        """Return the container with another number in one of its headers, and correct checksums of the headers."""
        raise NotImplementedError(f"{type(self).__name__} has to define forge_number(self, data, rng)")

    def compress(self, data: bytes) -> bytes:
        """Compress a container as :meth:`build` does. Called only if `is_compressed`."""
        raise NotImplementedError

    def decompress(self, data: bytes) -> bytes:
        """Return the container without its compression. Called only if `is_compressed`.

        If the data are damaged, this may raise any exception.
        """
        raise NotImplementedError

    def make_store(self, limits: Limits) -> Store:
        """Return a new store that supports writes. All stores of one test have the same objects. Defaults to memory."""
        return MemoryStore(f"memory://suite-{self._space}", limits=limits)

    def make_path(self) -> str:
        """Return the path of a container in this store."""
        return f"set{self.suffix or self.container.suffixes[0]}"

    async def put(self, store: Store, data: bytes) -> None:
        """Create the container in a store, atomically. By default, it is written through the store."""
        await store.write(self.make_path(), data)

    def make_container(self, source: ContainerSource) -> Container:
        """Return the container to test."""
        return self.container(source)

    def arrange(self, files: Files) -> list[tuple[str, bytes]]:
        """Return the members that a container of these files has: all of them, or as `is_sorted` says."""
        if not self.is_sorted:
            return list(files)
        return sorted(dict(files).items(), key=lambda file: file[0].encode("utf-8", "surrogateescape"))

    # --- helpers for the tests ---------------------------------------------------------------------------------------

    def use(self, data: bytes, function: Callable[[Container], Awaitable[T]], *, limits: Limits | None = None) -> T:
        """Call a coroutine function with a container of these bytes, in a new event loop."""
        return self.use_counted(data, lambda container, store: function(container), limits=limits)

    def use_counted(
        self,
        data: bytes,
        function: Callable[[Container, CountingStore], Awaitable[T]],
        *,
        limits: Limits | None = None,
        wrap: Callable[[Store], CountingStore] = CountingStore,
    ) -> T:
        """Call a coroutine function with a container of these bytes, and with the store that holds it.

        Check afterwards that no transfer is left open.

        Args:
            data: Bytes of the container.
            function: Function to call.
            limits: Limits of the store.
            wrap: Wrapper of the store that counts its requests.
        """

        async def with_container() -> T:
            async with (
                wrap(self.make_store(limits or Limits())) as store,
                self.open_container(store, data) as container,
            ):
                result = await function(container, store)
                assert store.open_transfers == 0, "a transfer was left open"
                return result

        return run_with_deadline(with_container, self.deadline_s)

    @contextlib.asynccontextmanager
    async def open_container(self, store: Store, data: bytes) -> AsyncIterator[Container]:
        """Create a container that is read from a store, and delete it after use."""
        path = self.make_path()
        async with self.make_store(Limits()) as owner:  # the other one may be out of connections at the end
            await self.put(owner, data)
            try:
                yield self.make_container(ContainerSource(store, await owner.head(path)))
            finally:
                await owner.delete(path)

    @functools.cached_property
    def _space(self) -> str:
        return secrets.token_hex(4)


def run_with_deadline(function: Callable[[], Awaitable[T]], deadline: float = DEADLINE_S) -> T:
    """Run a coroutine function in a new event loop, with a deadline in seconds."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline):
            return await function()

    return asyncio.run(with_deadline())


def make_rng(seed: int) -> random.Random:
    """Return a generator of pseudo-random numbers that depend only on the seed."""
    return random.Random(seed)  # noqa: S311 - not for secrets


def make_data(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that depend only on the arguments: half of them random, half of them compressible."""
    rng = make_rng(seed << 40 | size)
    parts = []
    while size > 0:
        part = rng.randbytes(1_500) + bytes([rng.randrange(256)]) * 1_500
        parts.append(part[:size])
        size -= len(part)
    return b"".join(parts)


async def scan_members(container: Container) -> list[Member]:
    """Return all members of a container."""
    return [member async for member in container.scan()]


async def read_member(container: Container, member: Member, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes [start, end) of a member."""
    async with contextlib.aclosing(container.stream(member, start, end)) as pieces:
        return b"".join([piece async for piece in pieces])
