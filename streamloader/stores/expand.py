"""From what a user names in a store - an object, a pattern, braces, a directory - to its objects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from streamloader.common.gather import gather_bounded
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolFault,
    StoreError,
    StreamNotFound,
)
from streamloader.redaction import redact
from streamloader.stores.base import Store
from streamloader.stores.io_thread import SharedStore, shared_store
from streamloader.stores.patterns import Pattern, all_match, has_magic, is_hidden, one_matches, predicate, with_braces
from streamloader.stores.registry import split_address
from streamloader.values import ObjectInfo

__all__ = ["Found", "find", "find_all"]

T = TypeVar("T")

_MAX_CONCURRENT_LOOKUPS: Final = 128  # of objects, and of directories, in one store
_NO_SUCH: Final = (NotFound, AccessDenied, ProtocolFault, ConfigError)  # said of names that are patterns


@dataclass(frozen=True, slots=True)
class Found:
    """A file or an object that a data set is made of.

    Attributes:
        address: a path as the user wrote it, for a local file; else a whole address, with all that it takes to read it:
            it may hold a password or a signature, so show it only through :func:`streamloader.redaction.redact`.
        info: what its store said of it; None for local files.
    """

    address: str
    info: ObjectInfo | None = None


def find(address: str, pattern: Pattern = None, options: Mapping[str, Any] | None = None) -> list[Found]:
    """Return the objects that one address stands for; see :func:`find_all`."""
    return find_all([address], pattern, options)


def find_all(
    addresses: Sequence[str], pattern: Pattern = None, options: Mapping[str, Any] | None = None
) -> list[Found]:
    """Return the objects that addresses in stores stand for, each of them in turn.

    Args:
        addresses: of objects; with braces as in bash (``part-{000..127}.tar``); with patterns (``*``, ``?``, ``[...]``,
            and ``**`` for any depth); or of directories. An object that is called literally so wins over what its name
            means as braces or a pattern, and a directory over a pattern that matches nothing. In addresses of HTTP a
            "?" begins a query.
        pattern: which objects of a *directory* count; see :func:`predicate`.
        options: of the stores.

    What a pattern or directory holds is sorted by code point; hidden names are left out. Only the directories that a
    pattern can match are listed, and what is known from a listing is not asked for again.

    Raises:
        StreamNotFound: there is no such object, or a pattern or directory holds none.
        NotSupported: a pattern or a directory where the store has no listings.
        LimitExceeded: braces that stand for more than ten million addresses.
        ConfigError: an address of a scheme that no store serves, or that is none.
        StoreError: the store cannot be reached, lets us not in, ...
    """
    accept = predicate(pattern)
    with contextlib.ExitStack() as stack:
        finders: dict[str, _Finder] = {}

        def finder_of(root: str) -> _Finder:
            if root not in finders:
                finders[root] = _Finder(stack.enter_context(shared_store(root, options)[0]), root)
            return finders[root]

        plain = _without_braces(addresses, finder_of)
        paths: dict[str, list[str]] = {}
        for root, path in plain:
            paths.setdefault(root, []).append(path)
        asked = [(finder_of(root), mine) for root, mine in paths.items()]
        answers = _ask_all({finder: partial(finder.find_all, mine) for finder, mine in asked})
        found = {finder.root: iter(finder.chosen(objects, accept)) for finder, objects in answers.items()}
        return [one for root, _ in plain for one in next(found[root])]


def _without_braces(addresses: Sequence[str], finder_of: Callable[[str], _Finder]) -> list[tuple[str, str]]:
    """Return store and path of all that addresses with braces stand for, or of what is called so."""
    expanded = [with_braces(address) for address in addresses]
    literal: dict[tuple[str, str], None] = {}
    for address, several in zip(addresses, expanded, strict=True):
        if several != [address]:
            root, path = split_address(address)
            if "{" not in root:
                literal[root, path] = None
    asked: dict[_Finder, list[str]] = {}
    for root, path in literal:
        asked.setdefault(finder_of(root), []).append(path)
    answers = _ask_all({finder: partial(finder.called_so, paths) for finder, paths in asked.items()})
    exist = {(finder.root, path) for finder, found in answers.items() for path in found}
    places: list[tuple[str, str]] = []
    for address, several in zip(addresses, expanded, strict=True):
        itself = split_address(address) if several != [address] else None
        places += [itself] if itself in exist else map(split_address, several)
    return places


def _ask_all(work: Mapping[_Finder, Callable[[], Coroutine[Any, Any, T]]]) -> dict[_Finder, T]:
    """Ask several stores at the same time."""
    futures = {finder: finder.shared.submit(ask()) for finder, ask in work.items()}
    try:
        return {finder: future.result() for finder, future in futures.items()}
    finally:
        for future in futures.values():
            future.cancel()


@dataclass(frozen=True, slots=True)
class _Held:
    """What one path stands for.

    Attributes:
        objects: in no particular order.
        listed: whether a listing told of them.
        directory: that they are all of, if the path names one; without secrets.
    """

    objects: list[ObjectInfo]
    listed: bool = False
    directory: str | None = None


class _Finder:
    """Finds objects in one store. Its coroutines run in the I/O thread."""

    def __init__(self, shared: SharedStore, root: str) -> None:
        self.shared = shared
        self.root = root
        self._store: Store = shared.store
        self._listings = asyncio.Semaphore(_MAX_CONCURRENT_LOOKUPS)

    async def find_all(self, paths: Sequence[str]) -> list[_Held]:
        """Return what each of these paths stands for."""
        return await _gather(self._find(path) for path in paths)

    async def called_so(self, paths: Sequence[str]) -> list[str]:
        """Return those paths that objects are called, literally."""
        heads = await _gather(self._literal(path) for path in paths)
        return [path for path, (info, _) in zip(paths, heads, strict=True) if info is not None]

    def chosen(self, found: Sequence[_Held], accept: Callable[[str], bool]) -> list[list[Found]]:
        """Return the objects that count, sorted, and what their addresses are. Called in the thread of the user."""
        kept: list[list[ObjectInfo]] = []
        for held in found:
            objects = held.objects
            if held.directory is not None:
                objects = [info for info in objects if accept(info.path)]
                if not objects:
                    raise StreamNotFound(
                        f"the directory {held.directory} holds no file of this kind ({len(held.objects)} others)",
                        address=held.directory,
                    )
            kept.append(sorted(objects, key=lambda info: info.path))
        unsized = {
            info.path: info
            for held, infos in zip(found, kept, strict=True)
            if held.listed
            for info in infos
            if info.size is None
        }
        if unsized:  # not all listings tell
            heads = self.shared.call(_gather(self._object(path) for path in unsized))
            unsized = dict(zip(unsized, heads, strict=True))
        return [[Found(self._address(info.path), unsized.get(info.path, info)) for info in infos] for infos in kept]

    async def _find(self, path: str) -> _Held:
        address = redact(self._address(path))
        if not self._store.lists:
            return _Held([await self._only_object(path, address)])
        if has_magic(path):
            return await self._pattern(path, address)
        nothing = StreamNotFound(f"the directory {address} does not exist, or holds nothing", address=address)
        if path and not path.endswith("/"):
            try:
                return _Held([await self._object(path)])
            except StreamNotFound as error:
                nothing = error
        return await self._directory(path, nothing)

    async def _pattern(self, path: str, address: str) -> _Held:
        if not path.endswith("/"):
            info, _ = await self._literal(path)
            if info is not None:
                return _Held([info])
        matches, folders = await self._matches([part for part in path.split("/") if part], path.endswith("/"))
        if matches:
            return _Held(matches, listed=True)
        what = f"{folders} directories and no file; add **/ to look inside them" if folders else "nothing"
        return await self._directory(path, StreamNotFound(f"the pattern {address} matches {what}", address=address))

    async def _only_object(self, path: str, address: str) -> ObjectInfo:
        """Return an object of a store that has no listings."""
        advice = "Name its objects one by one, with braces (part-{000..127}.mp4), or as a list"
        before_query, query, _ = path.partition("?")
        if not path or (path.endswith("/") and not query):
            raise NotSupported(
                f"{address} names a directory, but {self._store.url} has no listings. {advice}", address=address
            )
        if not has_magic(before_query):
            return await self._object(path)
        info, error = await self._literal(path)
        if info is None:
            raise NotSupported(
                f"{address}: patterns need listings, which {self._store.url} does not have, and no object is called so "
                f"({'' if error is None else error.message}). {advice}",
                address=address,
            ) from error
        return info

    def _address(self, path: str) -> str:
        if self.root == "file://":
            return f"file:///{quote(path)}"
        return f"{self.root}{path}" if self.root.endswith("://") else f"{self.root}/{path}"

    async def _object(self, path: str) -> ObjectInfo:
        try:
            info = await self._store.head(path)
        except NotFound as error:
            raise StreamNotFound(error.message, address=error.address) from error
        return info if info.path == path else replace(info, path=path)

    async def _literal(self, path: str) -> tuple[ObjectInfo | None, StoreError | ConfigError | None]:
        """Look for an object whose name may be meant as a pattern: that it cannot be had means that it is one."""
        try:
            return await self._store.head(path), None
        except _NO_SUCH as error:
            return None, error

    async def _directory(self, path: str, nothing: StreamNotFound) -> _Held:
        """Return what lies under a directory; raise `nothing` if nothing does."""
        path = path.rstrip("/")
        try:
            objects, _ = await self._listed(path, lambda below: not is_hidden(below), recursive=True)
        except (NotSupported, ConfigError):  # not of this one, not of a name like this one
            raise nothing from None
        if not objects:
            raise nothing
        return _Held(objects, listed=True, directory=redact(self._address(path)))

    async def _matches(self, parts: Sequence[str], only_folders: bool) -> tuple[list[ObjectInfo], int]:
        """Return the objects that match a pattern, level by level, and how many directories do."""
        folders = [""]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if part == "**":
                deep = await _gather(self._deep(folder, parts[number:]) for folder in folders)
                return [] if only_folders else [info for infos in deep for info in infos], 0
            if has_magic(part):
                levels = await _gather(self._level(folder, part) for folder in folders)
                folders = [folder for _, inner in levels for folder in inner]
                if last:
                    return [] if only_folders else [info for infos, _ in levels for info in infos], len(folders)
            else:
                folders = [f"{folder}/{part}" if folder else part for folder in folders]
        heads = [] if only_folders else await _gather(self._perhaps(path) for path in folders)
        return [info for info in heads if info is not None], 0

    async def _perhaps(self, path: str) -> ObjectInfo | None:
        try:
            return await self._store.head(path)
        except NotFound:
            return None

    async def _level(self, folder: str, part: str) -> tuple[list[ObjectInfo], list[str]]:
        return await self._listed(folder, lambda name: one_matches(name, part), recursive=False)

    async def _deep(self, folder: str, parts: Sequence[str]) -> list[ObjectInfo]:
        found, _ = await self._listed(folder, lambda below: all_match(below.split("/"), parts), recursive=True)
        return found

    async def _listed(
        self, folder: str, wanted: Callable[[str], bool], *, recursive: bool
    ) -> tuple[list[ObjectInfo], list[str]]:
        """List a directory: objects and directories whose paths from there are wanted."""
        under = len(folder) + 1 if folder else 0
        found: list[ObjectInfo] = []
        folders: list[str] = []
        async with self._listings, contextlib.aclosing(self._store.list(folder, recursive=recursive)) as listed:
            async for info in listed:
                if wanted(info.path[under:].rstrip("/")):
                    if info.is_directory:
                        folders.append(info.path.rstrip("/"))
                    else:
                        found.append(info)
        return found, folders


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await gather_bounded(coroutines, limit=_MAX_CONCURRENT_LOOKUPS)
