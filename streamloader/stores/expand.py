"""Expand addresses in stores (an object, a pattern, braces, a directory) into objects."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from streamloader.common.gather import gather_bounded
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    LimitExceeded,
    NotEnoughMemory,
    NotFound,
    NotSupported,
    ProtocolError,
    StorageFull,
    StoreError,
    StreamloaderError,
    StreamNotFound,
    UntrustedAddress,
    UntrustedHost,
)
from streamloader.redaction import redact_address
from streamloader.stores.base import NAMING_ADVICE, Store
from streamloader.stores.container_addresses import split_container_address
from streamloader.stores.io_thread import SharedStore, open_shared_store
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stores.patterns import (
    Pattern,
    expand_braces,
    has_magic,
    make_path_filter,
    matches_name,
    matches_path,
)
from streamloader.stores.registry import split_address
from streamloader.stores.search import (
    ListingProblem,
    PatternMatches,
    PatternSearch,
    SearchStep,
    TreeSearch,
    Unreadable,
    UnreadableReport,
    match_parts,
    open_report,
)
from streamloader.stores.spelling_advice import explain_missing_object
from streamloader.values import ObjectInfo

__all__ = ["SourceFile", "expand_store_address", "expand_store_addresses"]

T = TypeVar("T")

_MAX_CONCURRENT_LOOKUPS: Final = 128  # of objects, and of directories, in one store
# Errors with which stores refuse a name that contains glob characters.
_NOT_AN_OBJECT: Final = (NotFound, AccessDenied, ProtocolError, ConfigError)
# Errors about one object that no dataset goes on after, because they are about the store or this machine, or a limit.
_NEVER_LEFT_OUT: Final = (LimitExceeded, NotEnoughMemory, NotSupported, StorageFull, UntrustedAddress, UntrustedHost)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file or an object that a dataset reads.

    Attributes:
        address: Path as the user wrote it, for a local file; otherwise the full address with everything needed to read
            it. It may contain a password or a signature: show it only through
            :func:`streamloader.redaction.redact_address`, as the repr does.
        info: Metadata from the store. None for local files.
    """

    address: str
    info: ObjectInfo | None = None

    def __repr__(self) -> str:
        return f"SourceFile({redact_address(self.address)!r}, {self.info!r})"


def expand_store_address(
    address: str,
    pattern: Pattern = None,
    options: Mapping[str, Any] | None = None,
    unreadable: Unreadable | UnreadableReport = None,
) -> list[SourceFile]:
    """Return the objects that one address stands for; see :func:`expand_store_addresses`."""
    return expand_store_addresses([address], pattern, options, unreadable)


def expand_store_addresses(
    addresses: Sequence[str],
    pattern: Pattern = None,
    options: Mapping[str, Any] | None = None,
    unreadable: Unreadable | UnreadableReport = None,
) -> list[SourceFile]:
    """Return the objects that addresses in stores stand for, in the order of the addresses.

    Args:
        addresses: Addresses of objects; with braces as in bash (``part-{000..127}.tar``); with patterns (``*``, ``?``,
            ``[...]``, and ``**`` for any depth); or of directories. An object whose literal name is the address takes
            precedence over braces and patterns, and a directory over a pattern without matches. In HTTP addresses, a
            "?" begins a query.
        pattern: Filter for the objects of a *directory*, see :func:`make_path_filter`.
        options: Options of the stores.
        unreadable: Handling of what is missing or may not be read, see
            :class:`streamloader.stores.search.UnreadableReport`.

    The matches of a pattern and the contents of a directory are sorted by code point, without hidden names. Only
    directories that a pattern can match are listed, and metadata from a listing is not requested again.

    Raises:
        StreamNotFound: If an object does not exist, or if a pattern or directory contains none.
        NotSupported: If an address is a pattern or a directory and the store has no listings.
        LimitExceeded: If braces expand to more than ten million addresses, or if the listings of a store are too large;
            see :class:`streamloader.config.Limits`.
        ConfigError: If an address is malformed or has a scheme that no store serves.
        StoreError: If a store cannot be reached or denies access.
    """
    accept = make_path_filter(pattern)
    files: list[SourceFile] = []
    with open_report(unreadable, files) as report, contextlib.ExitStack() as stack:
        expanders: dict[str, _AddressExpander] = {}

        def get_expander(root: str) -> _AddressExpander:
            if root not in expanders:
                expanders[root] = _AddressExpander(stack.enter_context(open_shared_store(root, options)[0]), root)
            return expanders[root]

        locations = _resolve_braces(addresses, get_expander)
        paths: dict[str, list[str]] = {}
        for root, path in locations:
            paths.setdefault(root, []).append(path)
        requests = [(get_expander(root), root_paths) for root, root_paths in paths.items()]
        matches = _run_in_parallel(
            {expander: partial(expander.match_paths, root_paths) for expander, root_paths in requests}
        )
        selected = {expander.root: iter(expander.select(items, accept, report)) for expander, items in matches.items()}
        files += [file for root, _ in locations for file in next(selected[root])]
    return files


def _resolve_braces(addresses: Sequence[str], get_expander: Callable[[str], _AddressExpander]) -> list[tuple[str, str]]:
    """Return store URL and path of every address that braces stand for.

    An address with braces that is the literal name of an object stays as it is.
    """
    expanded = [expand_braces(address) for address in addresses]
    literal: dict[tuple[str, str], None] = {}
    for address, items in zip(addresses, expanded, strict=True):
        if items != [address]:
            root, path = split_address(address)
            if "{" not in root:
                literal[root, path] = None
    candidates: dict[_AddressExpander, list[str]] = {}
    for root, path in literal:
        candidates.setdefault(get_expander(root), []).append(path)
    objects = _run_in_parallel(
        {expander: partial(expander.filter_objects, paths) for expander, paths in candidates.items()}
    )
    existing = {(expander.root, path) for expander, paths in objects.items() for path in paths}
    locations: list[tuple[str, str]] = []
    for address, items in zip(addresses, expanded, strict=True):
        itself = split_address(address) if items != [address] else None
        locations += [itself] if itself in existing else map(split_address, items)
    return locations


def _run_in_parallel(
    work: Mapping[_AddressExpander, Callable[[], Coroutine[Any, Any, T]]],
) -> dict[_AddressExpander, T]:
    """Run one coroutine for each store at the same time."""
    futures = {expander: expander.shared.submit(start()) for expander, start in work.items()}
    try:
        return {expander: future.result() for expander, future in futures.items()}
    finally:
        for future in futures.values():
            future.cancel()


@dataclass(frozen=True, slots=True)
class _Match:
    """The objects that one path stands for.

    Attributes:
        objects: Matching objects, in no particular order.
        listed: Whether their metadata comes from a listing.
        directory: Address of the directory, without secrets, if the path names one. Otherwise None.
        problems: Entries that may not be read.
        error: Error of the path, if there is no object.
        address: Address of the path, without secrets, if it has an error.
        is_named: Whether the path is the name of an object or a directory, not a pattern, if it has an error.
    """

    objects: list[ObjectInfo]
    listed: bool = False
    directory: str | None = None
    problems: Sequence[ListingProblem] = ()
    error: StreamloaderError | None = None
    address: str = ""
    is_named: bool = False


class _AddressExpander:
    """Expands paths in one store. Its coroutines run in the I/O thread."""

    def __init__(self, shared: SharedStore, root: str) -> None:
        self.shared = shared
        self.root = root
        self._store: Store = shared.store
        self._listing_slots = asyncio.Semaphore(_MAX_CONCURRENT_LOOKUPS)
        # Between a root without host, such as hf://, and a path there is none; but there is in local:///path.
        is_joined = root.endswith("://") and root != "file://" and split_address(f"{root}a/b") == (root, "a/b")
        self._separator = "" if is_joined else "/"
        limits, address = self._store.limits, redact_address(root)
        self._listed = ListingBudget(limits, address)  # all listings together, which a pattern can multiply
        self._held = ListingBudget(limits, address, entry_bytes=HELD_ENTRY_BYTES)

    async def match_paths(self, paths: Sequence[str]) -> list[_Match]:
        """Return the match of each path."""
        return await _gather(self._match_or_error(path) for path in paths)

    async def filter_objects(self, paths: Sequence[str]) -> list[str]:
        """Return those paths that are literal names of objects."""
        heads = await _gather(self._head_literal(path) for path in paths)
        return [path for path, (info, _) in zip(paths, heads, strict=True) if info is not None]

    def select(
        self, matches: Sequence[_Match], accept: Callable[[str], bool], report: UnreadableReport
    ) -> list[list[SourceFile]]:
        """Filter and sort the objects of each match. Called in the user's thread, because `accept` is the user's."""
        selected: list[list[ObjectInfo]] = []
        for match in matches:
            mark = report.mark
            for problem in match.problems:
                address = redact_address(self._address(problem.path))
                if problem.is_directory:
                    report.add_directory(address, problem.error)
                elif match.directory is None or accept(problem.path):
                    report.add_file(address, problem.error)
            objects = match.objects
            if match.directory is not None:
                objects = [info for info in objects if accept(info.path)]
                if not objects:
                    missing = StreamNotFound(
                        f"the directory {match.directory} contains no file of this kind "
                        f"({len(match.objects)} other files)",
                        address=match.directory,
                    )
                    report.add_unmatched(match.directory, missing, mark)
            elif match.error is not None and match.is_named:
                report.add_named(match.address, match.error)
            elif isinstance(match.error, StreamNotFound):
                report.add_unmatched(match.address, match.error, mark)
            selected.append(sorted(objects, key=lambda info: info.path))
        unsized = {
            info.path: info
            for match, infos in zip(matches, selected, strict=True)
            if match.listed
            for info in infos
            if info.size is None
        }
        if unsized:  # some listings omit sizes
            results = self.shared.call(_gather(self._head_listed(path) for path in unsized))
            unreadable: set[str] = set()
            for path, result in zip(tuple(unsized), results, strict=True):
                if isinstance(result, ObjectInfo):
                    unsized[path] = result
                else:
                    unreadable.add(path)
                    report.add_file(redact_address(self._address(path)), result)
            selected = [[info for info in infos if info.path not in unreadable] for infos in selected]
        return [
            [SourceFile(self._address(info.path), unsized.get(info.path, info)) for info in infos] for infos in selected
        ]

    async def _match_or_error(self, path: str) -> _Match:
        """Return the match of a path, or the error if it comes from this path and not from the store."""
        try:
            return await self._match_path(path)
        except (StreamNotFound, StoreError) as error:
            is_named = not self._is_pattern(path)
            address = redact_address(self._address(path))
            container = split_container_address(address)
            if container is not None and error.address == container[0]:
                is_named, address = True, container[0]
            elif not (isinstance(error, StreamNotFound) or (is_named and _names_path(error, address, path))):
                raise
            if isinstance(error, StoreError) and (error.transient or isinstance(error, _NEVER_LEFT_OUT)):
                raise
            return _Match([], error=error, address=address, is_named=is_named)

    def _is_pattern(self, path: str) -> bool:
        """Return whether a path that is no object's name is a pattern."""
        if self._store.names_version(path) or not self._store.supports_listing:
            return False
        return has_magic(path) and not (self._store.has_url_paths and "?" in path)

    async def _match_path(self, path: str) -> _Match:
        address = redact_address(self._address(path))
        if self._store.names_version(path):
            return _Match([await self._head_version(path, address)])
        has_url_paths = self._store.has_url_paths
        if not self._store.supports_listing or (has_url_paths and "?" in path):
            return _Match([await self._head_without_listing(path, address)])
        if has_magic(path):
            return await self._match_pattern(path, address)
        doubt = ", or its server does not list it" if has_url_paths else ""
        missing = StreamNotFound(f"the directory {address} does not exist, or is empty{doubt}", address=address)
        if path and not path.endswith("/"):
            try:
                return _Match([await self._head(path)])
            except StreamNotFound as error:
                if has_url_paths and not error.details.get("is_folder"):
                    raise
                missing = error
        elif path and self._store.paths_are_keys:  # a key may end in "/", but an empty object of it marks a directory
            info, _ = await self._head_literal(path)
            if info is not None and info.size:
                return _Match([info])
        return await self._match_directory(path, missing)

    async def _match_pattern(self, path: str, address: str) -> _Match:
        if not path.endswith("/"):
            info, _ = await self._head_literal(path)
            if info is not None:
                return _Match([info])
        problems: dict[str, ListingProblem] = {}
        parts = self._store.directory_path(path).split("/")
        try:
            if "" in parts and self._store.paths_are_keys:
                found = await self._match_keys(parts, problems)
            else:
                names = [self._store.normalize_pattern(part) for part in parts if part]
                found = await self._match_parts(names, problems)
        except NotSupported as error:
            if not self._store.has_url_paths:
                raise
            raise NotSupported(f"{address}: patterns need listings, but {error.message}", address=address) from error
        if found.objects and not path.endswith("/"):
            return _Match(found.objects, listed=True, problems=list(problems.values()))
        count = found.folder_count
        result = f"{count} directories and no file; append **/ to search inside them" if count else "nothing"
        message = f"the pattern {address} matches {result}{explain_missing_object(path)}"
        missing = StreamNotFound(message, address=address)
        if problems or self._store.has_url_paths:
            return _Match([], problems=list(problems.values()), error=missing, address=address)
        return await self._match_directory(path, missing)

    async def _match_keys(
        self, parts: Sequence[str], problems: dict[str, ListingProblem]
    ) -> PatternMatches[ObjectInfo]:
        """Match a pattern with empty segments, such as ``a//*.mp4``, with all keys below the directory before it."""
        first = next(number for number, part in enumerate(parts) if has_magic(part))
        folder = self._store.directory_path("".join(f"{part}/" for part in parts[:first]))
        show_hidden = any(part.startswith(".") for part in parts[first:])
        objects, _ = await self._list(
            folder,
            lambda below: matches_path(below.split("/"), parts[first:]),
            problems,
            recursive=True,
            show_hidden=show_hidden,
        )
        return PatternMatches(objects, 0)

    async def _head_version(self, path: str, address: str) -> ObjectInfo:
        """Return one version of an object.

        Raises:
            ConfigError: If the path names a directory or a pattern.
        """
        key = path[: path.rindex("?")]
        problem = "a directory" if not key or key.endswith("/") else "a pattern" if has_magic(key) else None
        if problem is None:
            return await self._head(path)
        info, error = await self._head_literal(path)
        if info is None:
            raise ConfigError(
                f"{address} is {problem} with the id of a version: such an id names one version of one object, so "
                "list the objects with their ids"
            ) from error
        return info

    async def _head_without_listing(self, path: str, address: str) -> ObjectInfo:
        """Return an object of a store that has no listings."""
        advice = NAMING_ADVICE.capitalize()
        before_query, query, _ = path.partition("?")
        reason = f"{self._store.url} has no listings"
        if self._store.supports_listing:
            reason = "an address with a query cannot be listed"
        if not path or (path.endswith("/") and not query):
            raise NotSupported(f"{address} names a directory, but {reason}. {advice}", address=address)
        if not has_magic(before_query):
            return await self._head(path)
        info, error = await self._head_literal(path)
        if info is None:
            raise NotSupported(
                f"{address}: patterns need listings, but {reason}, and no object has this literal name "
                f"({'' if error is None else error.message}). {advice}",
                address=address,
            ) from error
        return info

    def _address(self, path: str) -> str:
        if self.root == "file://":
            return f"file:///{quote(path)}"
        return f"{self.root}{self._separator}{path}"

    async def _head(self, path: str) -> ObjectInfo:
        try:
            info = await self._store.head(path)
        except NotFound as error:
            # Over HTTP, paths are percent-encoded.
            message = error.message + ("" if self._store.has_url_paths else explain_missing_object(path))
            missing = StreamNotFound(message, address=error.address)
            missing.details |= error.details
            raise missing from error
        self._held.count_entry(path, info.version)
        return info if info.path == path else replace(info, path=path)

    async def _head_listed(self, path: str) -> ObjectInfo | StreamloaderError:
        """Return the metadata of an object that a listing names, or the error if it may not be read."""
        try:
            return await self._head(path)
        except (StreamNotFound, AccessDenied) as error:
            return error

    async def _head_literal(self, path: str) -> tuple[ObjectInfo | None, StoreError | ConfigError | None]:
        """Return the object with this literal name, or None and the error if there is no such object."""
        try:
            info = await self._store.head(path)
            if self._store.has_url_paths:
                await self._require_specific(path)
        except _NOT_AN_OBJECT as error:
            return None, error
        return info, None

    async def _require_specific(self, path: str) -> None:
        """Check that a server does not have an object of just any name, such as the page of an application.

        Raises:
            ProtocolError: If it has.
        """
        name, query, text = path.partition("?")
        folder, slash, _ = name.rpartition("/")
        other = f"{folder}{slash}{secrets.token_hex(16)}{query}{text}"
        try:
            await self._store.head(other)
        except StoreError:
            return
        address = self._store.address(path)
        raise ProtocolError(f"{address}: the server has an object of any name that is requested", address=address)

    async def _match_directory(self, path: str, missing: StreamNotFound) -> _Match:
        """Return the contents of a directory. Raise `missing` if it has none."""
        path = self._store.directory_path(path)
        problems: dict[str, ListingProblem] = {}
        try:
            objects, _ = await self._list(path, lambda _: True, problems, recursive=True)
        except (NotSupported, ConfigError) as error:  # this directory cannot be listed, or its name is not allowed
            if isinstance(error, NotSupported) and self._store.has_url_paths:
                address = redact_address(self._address(path))
                raise NotSupported(f"{address} names a directory, but {error.message}", address=address) from error
            raise missing from None
        if not objects and not problems:
            raise missing
        directory = redact_address(self._address(path))
        return _Match(objects, listed=True, directory=directory, problems=list(problems.values()))

    async def _match_parts(
        self, parts: Sequence[str], problems: dict[str, ListingProblem]
    ) -> PatternMatches[ObjectInfo]:
        """Match a pattern level by level."""
        search: PatternSearch[ObjectInfo] = match_parts(
            parts, "", lambda folder, name: f"{folder}/{name}" if folder else name
        )
        step = next(search)
        named = "/".join(itertools.takewhile(lambda part: not has_magic(part), parts))
        while True:
            answers = await _gather(
                self._answer_step(step, folder, problems, is_named=folder == named) for folder in step.folders
            )
            try:
                step = search.send(answers)
            except StopIteration as end:
                matches: PatternMatches[ObjectInfo] = end.value
                return matches

    async def _answer_step(
        self, step: SearchStep, path: str, problems: dict[str, ListingProblem], *, is_named: bool
    ) -> tuple[list[ObjectInfo], list[str]]:
        """Return the objects and subdirectories that match one step of a pattern in one directory.

        Args:
            step: Step.
            path: Path of the directory.
            problems: Mapping that receives what may not be read.
            is_named: Whether the pattern names the directory literally, so that a failure is not to be passed over.
        """
        try:
            if step.kind == "name":
                return [await self._store.head(path)], []
            if step.kind == "level":
                part = step.parts[0]
                return await self._list(
                    path,
                    lambda name: matches_name(name, part),
                    problems,
                    recursive=False,
                    show_hidden=part.startswith("."),
                    report_files=step.is_last,
                )
            show_hidden = any(part.startswith(".") for part in step.parts)
            return await self._list(
                path,
                lambda below: matches_path(below.split("/"), step.parts),
                problems,
                recursive=True,
                show_hidden=show_hidden,
            )
        except NotFound:
            if step.kind == "name":
                return [], []
            raise
        except (AccessDenied, NotSupported) as error:
            if is_named and isinstance(error, NotSupported):
                raise
            if not (self._store.has_directories and path):
                raise
            denied = path.rpartition("/")[0] if step.kind == "name" else path
            problems.setdefault(denied, ListingProblem(denied, error, is_directory=True))
            return [], []

    async def _list(
        self,
        folder: str,
        accept: Callable[[str], bool],
        problems: dict[str, ListingProblem],
        *,
        recursive: bool,
        show_hidden: bool = False,
        report_files: bool = True,
    ) -> tuple[list[ObjectInfo], list[str]]:
        """List a directory. Return its objects and subdirectories whose relative paths are accepted."""
        prefix_length = len(folder) + 1 if folder and not folder.endswith("/") else len(folder)
        objects: list[ObjectInfo] = []
        folders: list[str] = []

        def report(problem: ListingProblem) -> None:
            if problem.is_directory or (report_files and accept(problem.path[prefix_length:])):
                self._held.count_entry(problem.path)
                problems.setdefault(problem.path, problem)

        search = TreeSearch(report, show_hidden)
        entries = self._store.list(folder, recursive=recursive, search=search)
        async with self._listing_slots, contextlib.aclosing(entries):
            async for info in entries:
                self._listed.count_entry(info.path, info.version)
                path = info.path
                if info.is_directory:
                    path = self._store.directory_path(path)
                if accept(path[prefix_length:]):
                    self._held.count_entry(info.path, info.version)
                    if info.is_directory:
                        folders.append(path)
                    else:
                        objects.append(info)
        return objects, folders


def _names_path(error: StreamloaderError, address: str, path: str) -> bool:
    """Return whether an error is about one path, and not about its server, which an error of a login names."""
    named = (error.address or "").rstrip("/")
    return named == address.rstrip("/") or (path.strip("/") != "" and named.endswith("/" + path.strip("/")))


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await gather_bounded(coroutines, limit=_MAX_CONCURRENT_LOOKUPS)
