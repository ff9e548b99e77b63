"""List folders of web servers from the pages that the servers make of them, several folders at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

import aiohttp

from streamloader.config import Limits
from streamloader.errors import AccessDenied, NotFound, NotSupported, StoreError, TransferInterrupted
from streamloader.stores.base import NAMING_ADVICE
from streamloader.stores.http.client import RequestGate
from streamloader.stores.http.listing_pages import ACCEPTED_TYPES, ListedEntry, ListingPage, NotAListing
from streamloader.stores.http.redirects import RedirectChain
from streamloader.stores.http.responses import ErrorContext, make_status_error, require_unencoded
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.search import ListingProblem, TreeSearch
from streamloader.values import ObjectInfo

__all__ = ["LISTING_HEADERS", "HttpListing", "OpenPage"]

OpenPage = Callable[
    [str, ErrorContext, RequestGate],
    AbstractAsyncContextManager[tuple[aiohttp.ClientResponse, AsyncIterator[bytes]]],
]
"""Function that requests a page. It takes its path, the address for messages, and the gate of its redirects."""

# Caddy makes JSON for clients that name it, and HTML without a recognizable title for others.
LISTING_HEADERS: Final = {
    "Accept": "text/html, application/xhtml+xml, application/json;q=0.9, application/xml;q=0.8, text/xml;q=0.8"
}
_MAX_QUEUED_ENTRIES: Final = 100_000  # no further folder is opened before the caller has taken them
_MAX_REPETITIONS: Final = 8
_PARSED_BYTES: Final = 64 << 10  # in one call, so that a page without end cannot occupy a thread
# Of a server without listings, or of one that cannot list a folder whose name it does not understand.
_REFUSALS: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_ACCEPTABLE,
)
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class _PendingFolder:
    """A folder to be listed.

    Attributes:
        path: Path in the store.
        ancestors: Digests of the listings of the folders above it.
    """

    path: str
    ancestors: tuple[bytes, ...] = ()


class HttpListing:
    """Listing of a folder, and of those below it.

    Symbolic links of the server cannot be seen. A loop of them shows as folders in folders that all have the same
    entries (several of them, with the same dates and sizes), which is an error.

    Args:
        open_page: Function that requests a page.
        address: Function that returns the address of a path in the store, for messages.
        limits: Limits of the store.
        search: Rules of a search. None to list all names, where a folder that cannot be listed is an error.
        slots: Limit of the pages that are requested at the same time.
    """

    def __init__(
        self,
        open_page: OpenPage,
        address: Callable[[str], str],
        limits: Limits,
        search: TreeSearch | None,
        slots: asyncio.Semaphore,
    ) -> None:
        self._open_page = open_page
        self._address = address
        self._limits = limits
        self._search = search
        self._slots = slots
        self._budget = ListingBudget(limits, "")
        self._waiting: deque[_PendingFolder] = deque()
        self._queue: asyncio.Queue[list[ObjectInfo]] = asyncio.Queue()
        self._queued_entries = 0

    async def list_entries(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """Yield files without sizes, and folders as paths that end in "/" unless `recursive`.

        Args:
            prefix: Path of the folder. It need not exist.
            recursive: Whether to list files at any depth.

        Raises:
            NotSupported: If the server answers with something else than a listing.
            StoreError: If a folder cannot be read.
            LimitExceeded: If there are too many entries, or folders are nested too deeply.
        """
        self._budget = ListingBudget(self._limits, self._address(prefix))
        self._waiting.append(_PendingFolder(prefix))
        tasks: set[asyncio.Task[None]] = set()
        next_page: asyncio.Task[list[ObjectInfo]] | None = None
        try:
            while self._waiting or tasks or not self._queue.empty():
                while (
                    self._waiting
                    and len(tasks) < self._limits.requests
                    and (not tasks or self._queued_entries < _MAX_QUEUED_ENTRIES)
                ):
                    folder = self._waiting.popleft()
                    tasks.add(asyncio.create_task(self._scan(folder, recursive=recursive)))
                next_page = next_page or asyncio.create_task(self._queue.get())
                done, _ = await asyncio.wait({*tasks, next_page}, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks & done:
                    tasks.discard(task)
                    task.result()
                if next_page in done:
                    page, next_page = next_page.result(), None
                    self._queued_entries -= len(page)
                    for info in page:
                        yield info
        finally:
            unfinished: list[asyncio.Task[None] | asyncio.Task[list[ObjectInfo]]] = [*tasks]
            if next_page is not None:
                unfinished.append(next_page)
            for each in unfinished:
                each.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _scan(self, folder: _PendingFolder, *, recursive: bool) -> None:
        """List one folder. What cannot be read below the first one is the search's to decide."""
        is_first = not folder.ancestors
        self._budget.check_depth(len(folder.ancestors) + 1, self._address(folder.path))
        try:
            await self._read_page(folder, recursive=recursive)
        except NotFound:  # deleted since; or, as `prefix`, it never existed
            return
        except (AccessDenied, NotSupported) as error:
            if is_first or self._search is None:
                raise
            self._search.report(ListingProblem(folder.path, error, is_directory=True))

    async def _read_page(self, folder: _PendingFolder, *, recursive: bool) -> None:
        path = f"{folder.path}/" if folder.path else ""
        context = ErrorContext(self._address(path))
        subfolders: list[str] = []
        async with self._slots, self._open_page(path, context, self._make_gate(context)) as (response, pieces):
            self._check_response(response, context)
            page = ListingPage(str(response.url))
            try:
                async for piece in pieces:
                    for start in range(0, len(piece), _PARSED_BYTES):
                        entries = await asyncio.to_thread(page.feed, piece[start : start + _PARSED_BYTES])
                        subfolders += self._take(folder.path, entries, recursive=recursive)
                subfolders += self._take(folder.path, page.finish(), recursive=recursive)
            except NotAListing as error:
                raise _make_refusal(context, str(error)) from None
            except EOFError:
                raise TransferInterrupted(
                    f"{context.address}: the listing breaks off before its end", address=context.address
                ) from None
        if page.refused:
            _log.warning(
                "%s: left out %d names that are no names of files, such as '..' with other characters",
                context.address,
                page.refused,
            )
        repetitions = folder.ancestors.count(page.digest) if subfolders and page.count > 1 else 0
        if repetitions >= _MAX_REPETITIONS:
            raise StoreError(
                f"{context.address} has the same entries as {_MAX_REPETITIONS} of the folders that contain it: a link "
                "on the server seems to lead back to a folder above it. Remove the link, or name the folders one by "
                "one, without **",
                address=context.address,
            )
        ancestors = (*folder.ancestors, page.digest)
        for path in subfolders:
            self._budget.hold_directory(path, len(ancestors))
            self._waiting.append(_PendingFolder(path, ancestors))

    def _take(self, folder: str, entries: list[ListedEntry], *, recursive: bool) -> list[str]:
        """Queue the files among new entries. Return the paths of the folders that will be listed."""
        subfolders, found = [], []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            self._budget.count_entry(path)
            if self._search is not None and not self._search.show_hidden and entry.name.startswith("."):
                continue
            if entry.kind == "file":
                found.append(ObjectInfo(path))
            elif entry.kind == "folder" and recursive:
                subfolders.append(path)
            elif entry.kind == "folder":
                found.append(ObjectInfo(f"{path}/"))
            elif self._search is not None:
                address = self._address(path)
                problem = StoreError(
                    f"{address} is a pipe, socket or device, or a link that leads nowhere", address=address
                )
                self._search.report(ListingProblem(path, problem, is_directory=False))
        if found:
            self._queued_entries += len(found)
            self._queue.put_nowait(found)
        return subfolders

    def _make_gate(self, context: ErrorContext) -> RequestGate:
        """Return the gate of the request for a folder: redirects must not leave it."""
        expected: list[bytes] = []

        async def check(chain: RedirectChain) -> None:
            target = unquote_to_bytes(chain.url.raw_path.rstrip("/"))
            if not expected:
                expected.append(target)
            elif not chain.trusted or target != expected[0]:
                where = chain.url.origin() if not chain.trusted else chain.url.raw_path
                raise _make_refusal(
                    context, f"its server redirects to {where}. If the folder is there, use that address"
                )

        return check

    def _check_response(self, response: aiohttp.ClientResponse, context: ErrorContext) -> None:
        if response.status in _REFUSALS:
            raise NotSupported(
                f"{context.address} may not be listed: the server responded with status {response.status}. Either it "
                f"has no listings: then {NAMING_ADVICE}. Or this folder takes other credentials",
                address=context.address,
                status=response.status,
            )
        if response.status != HTTPStatus.OK:
            raise make_status_error(response, context)
        require_unencoded(response, context)
        kind = response.content_type.lower() if "Content-Type" in response.headers else ""
        if kind not in ACCEPTED_TYPES:
            raise _make_refusal(context, f"it is an object of the type {kind:.100}")


def _make_refusal(context: ErrorContext, reason: str) -> NotSupported:
    return NotSupported(
        f"{context.address} is no directory listing: {reason}. Where the server has no listings, {NAMING_ADVICE}",
        address=context.address,
    )
