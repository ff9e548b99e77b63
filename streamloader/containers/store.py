"""Provide the members of a container as a read-only store, so that everything that reads objects reads members."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, ContainerSource, Member
from streamloader.containers.index import MemberIndex
from streamloader.containers.pack.container import PackContainer
from streamloader.containers.tar.container import TarContainer
from streamloader.containers.zip.container import ZipContainer
from streamloader.errors import ConfigError, NotFound, NotSupported, ObjectChanged, StreamloaderError
from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, ListingGuard, OnStart, Store
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stores.patterns import is_hidden
from streamloader.stores.registry import open_store, spell_address
from streamloader.stores.search import TreeSearch
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["ContainerStore", "open_container"]

_FORMATS: Final[tuple[type[Container], ...]] = (TarContainer, ZipContainer, PackContainer)
_REVALIDATION_INTERVAL_S: Final = 1.0
_YIELD_AFTER_ENTRIES: Final = 1000
_log: Final = logging.getLogger("streamloader")


@dataclass(slots=True)
class _OpenContainer:
    container: Container
    index: MemberIndex
    info: ObjectInfo
    checked_s: float  # time at which the store last reported this version


class ContainerStore(Store):
    """``ADDRESS!``: the members of a tar file, zip file or pack in any store, by name. Read-only.

    Files that end in ``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.zst``, ``.tzst``, ``.zip`` or ``.pack`` are containers.
    Members are read by span where they lie, and nothing is extracted. The list of members is read once, and kept in
    memory.

    A member has the version of its container: when that is replaced, reading a member of the old version is an
    ObjectChanged. Members that are not ordinary files (links, devices, encrypted members, unsafe names) are not listed,
    which one warning reports; reading one is a NotSupported. Every wait has the deadlines of the store that holds the
    container.

    Args:
        inner: Store that holds the container. It is closed with this store.
        path: Path of the container in `inner`.

    Raises:
        ConfigError: If the name of the container has none of these endings.
    """

    supports_writes: ClassVar[bool] = False

    def __init__(self, inner: Store, path: str) -> None:
        super().__init__(f"{inner.address(path)}!", timeouts=inner.timeouts, limits=inner.limits)
        self.inner = inner
        self.identity = inner.identity
        self._container_path = path
        self._format = _find_format(path, inner.address(path))
        self._open: _OpenContainer | None = None
        self._failure: tuple[float, StreamloaderError] | None = None  # of the last attempt to open it, with its time
        self._opening = asyncio.Lock()
        self._warned = False

    @property
    def supports_ranges(self) -> bool:  # type: ignore[override]
        """Whether a part of an object is transferred without the rest."""
        return self.inner.supports_ranges

    @override
    def describe_access(self) -> StoreAccess:
        return self.inner.describe_access()

    @override
    async def describe_login(self) -> dict[str, Any] | None:
        return await self.inner.describe_login()

    # --- the store interface -----------------------------------------------------------------------------------------

    @override
    async def head(self, path: str) -> ObjectInfo:
        self._prepare_call(path)
        opened = await self._get_open(max_age_s=_REVALIDATION_INTERVAL_S)
        return _describe(opened.info, self._find(opened, path))

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
        self._prepare_call(path)
        opened = await self._get_open()
        if version is not None and version != opened.info.version:
            opened = await self._get_open(max_age_s=0)  # another process may have replaced the container
        member = self._find(opened, path)
        info = _describe(opened.info, member)
        span = span or ByteRange()
        self._check_version(info, version, max(0, span.start))
        self._check_size(info, size, max(0, span.start))
        opened.container.check_readable(member)
        start, end = span.within(member.size, self.address(path))
        if on_start is not None:
            on_start(info, start)
        try:
            async with contextlib.aclosing(opened.container.stream(member, start, end)) as pieces:
                async for piece in pieces:
                    yield piece
        except ObjectChanged:
            if self._open is opened:
                self._open = None  # the next call reads the new list of members
            raise

    @override
    async def list(
        self, prefix: str = "", *, recursive: bool = True, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        prefix = prefix.rstrip("/")
        self._prepare_call(prefix, allow_empty=True)
        opened = await self._get_open(max_age_s=0)
        guard = ListingGuard(self, prefix, self._make_deadline(prefix))
        start = len(prefix) + 1 if prefix else 0
        for number, entry in enumerate(opened.index.list(prefix, recursive=recursive)):
            name = entry if isinstance(entry, str) else entry.name
            if search is not None and not search.show_hidden and is_hidden(name[start:]):
                pass
            elif isinstance(entry, str) or entry.problem is None:
                info = ObjectInfo(entry) if isinstance(entry, str) else _describe(opened.info, entry)
                guard.check(info)
                yield info
            if number % _YIELD_AFTER_ENTRIES == 0:
                await asyncio.sleep(0)

    async def iterate(self) -> AsyncGenerator[tuple[ObjectInfo, AsyncGenerator[bytes, None]], None]:
        """Yield every member with its bytes, in the container's order, in one pass, while the rest still arrives.

        The bytes of a member can be read until the next member is requested; what was not read is skipped. Close the
        generator (``contextlib.aclosing``) unless you exhaust it. A name may occur more than once.

        Raises:
            NotSupported: If a member is requested that is no ordinary file: when its bytes are read.
            CorruptContainer: If the container is cut, damaged or malformed.
            StoreError: If the store fails otherwise.
        """
        self._prepare_call("", allow_empty=True)
        container, info = await self._make_container()
        budget = ListingBudget(self.limits, self.url)
        async with contextlib.aclosing(container.iterate()) as members:
            async for member, pieces in members:
                budget.count_entry(member.name)
                yield _describe(info, member), pieces

    @override
    async def aclose(self) -> None:
        self._closed = True
        self._open = None
        await self.inner.aclose()

    @override
    async def _head(self, path: str) -> ObjectInfo:
        raise NotImplementedError  # the public methods do not call it

    @override
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        raise NotImplementedError

    @override
    def _drop_connections(self) -> None:
        self._open = None  # a container belongs to one event loop
        self._failure = None
        self._opening = asyncio.Lock()

    # --- the container -----------------------------------------------------------------------------------------------

    async def _get_open(self, max_age_s: float | None = None) -> _OpenContainer:
        """Return the container with its members.

        Args:
            max_age_s: Time in seconds after which the version is requested from the store again. None for never.
        """
        now_s = time.monotonic()
        oldest_s = -math.inf if max_age_s is None else now_s - max_age_s
        if self._open is not None and self._open.checked_s >= oldest_s:
            return self._open
        async with self._opening:  # tasks that waited take what the first one of them got
            if self._failure is not None and self._failure[0] >= now_s:
                raise copy.copy(self._failure[1])
            if self._open is None or self._open.checked_s < oldest_s:
                started_s = time.monotonic()
                try:
                    self._open = await self._reopen()
                except StreamloaderError as error:
                    self._failure = started_s, copy.copy(error)  # without its traceback, which holds connections
                    raise
            return self._open

    async def _reopen(self) -> _OpenContainer:
        """Read the list of members, unless the container is the one whose members are known."""
        checked_s = time.monotonic()
        container, info = await self._make_container()
        opened = self._open
        if opened is not None and info.version is not None and info == opened.info:
            opened.checked_s = checked_s
            return opened
        index = await self._read_index(container)
        return _OpenContainer(container, index, info, checked_s)

    async def _make_container(self) -> tuple[Container, ObjectInfo]:
        info = await self.inner.head(self._container_path)
        if info.size is None:
            raise NotSupported(
                f"{self.inner.address(self._container_path)}: its server does not report its size, which a container "
                "needs",
                address=self.inner.address(self._container_path),
            )
        return self._format(ContainerSource(self.inner, info)), info

    async def _read_index(self, container: Container) -> MemberIndex:
        index = MemberIndex()
        budget = ListingBudget(self.limits, self.url, entry_bytes=HELD_ENTRY_BYTES)
        async with contextlib.aclosing(container.scan()) as members:
            async for member in members:
                budget.count_entry(member.name)
                index.add(member)
        await asyncio.to_thread(index.sort)
        problems = index.problems
        if problems and not self._warned:
            self._warned = True
            _log.warning(
                "%s: %d of %d members are not ordinary files and are left out, such as %s (%s)",
                self.url,
                len(problems),
                len(index),
                make_printable(problems[0].name),
                problems[0].problem,
            )
        return index

    def _find(self, opened: _OpenContainer, path: str) -> Member:
        member = opened.index.find(path)
        if member is None:
            detail = "is a directory" if opened.index.has_directory(path) else "is not in the container"
            raise NotFound(f"{self.address(path)} {detail}", address=self.address(path))
        return member

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the list of members, and running calls."""
        state = super().__getstate__()
        del state["_opening"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the store, which is not open."""
        super().__setstate__(state)
        self._opening = asyncio.Lock()


def open_container(address: str, **options: Any) -> ContainerStore:
    """Open a container. It connects on first use; close it with ``aclose()``, or use it as a context manager.

    Args:
        address: Address of the container, with or without "!" at its end: ``s3://bucket/set.tar``.
        **options: Options of the store, see :func:`streamloader.stores.open_store`.

    Raises:
        ConfigError: If the name has not one of the endings of containers, or if an option is invalid.
    """
    address = spell_address(address).removesuffix("!/")
    store = open_store(address if address.endswith("!") else f"{address}!", **options)
    if not isinstance(store, ContainerStore):
        raise ConfigError(f"{store.url} is not a container: {_ENDINGS}")
    return store


def _find_format(path: str, address: str) -> type[Container]:
    name = path.partition("?")[0].lower()
    for container_class in _FORMATS:
        if name.endswith(container_class.suffixes):
            return container_class
    raise ConfigError(f"{address} is not a container: {_ENDINGS}")


def _describe(info: ObjectInfo, member: Member) -> ObjectInfo:
    modified = info.modified if member.modified is None else member.modified
    return ObjectInfo(member.name, member.size, info.version, modified)


_ENDINGS: Final = "its name has to end in " + ", ".join(
    suffix for container_class in _FORMATS for suffix in container_class.suffixes
)
