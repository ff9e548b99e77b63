"""Pages of one dataset on the I/O thread: make their list, fetch them, extract their texts, and keep both."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from streamloader.common.gather import gather_bounded
from streamloader.common.printable import make_printable
from streamloader.errors import (
    LimitExceeded,
    NotFound,
    StorageFull,
    StoreError,
    StreamloaderError,
    StreamNotFound,
    UntrustedAddress,
    from_wire,
)
from streamloader.redaction import redact_address
from streamloader.stores.http.document import HttpDocument
from streamloader.stores.http.responses import parse_retry_after
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.streams.articles.feeds import MAX_LIST_BYTES
from streamloader.streams.articles.fetcher import FetchSettings, PageAddress, PageFetcher, is_outage
from streamloader.streams.articles.kept_pages import KeptFiles, KeptPage
from streamloader.streams.articles.locks import TURN_STAGE
from streamloader.streams.articles.parsers import DocumentParsers, FeedContent
from streamloader.streams.articles.snapshot import ArticleSnapshot, ListDefinition, PageList
from streamloader.streams.articles.turns import HostTurns
from streamloader.streams.unreadable import ends_indexing

__all__ = ["ArticleSource", "SourceSettings", "make_page_error"]

_MAX_ETAG_CHARACTERS: Final = 1000
_MAX_DATE_CHARACTERS: Final = 100
_MAX_LISTS: Final = 1000  # sitemaps of one index
_MAX_CONCURRENT_FETCHES: Final = 64  # of all hosts; each host has its own limit
_LOOK_INTERVAL_S: Final = 1.0  # for pages that another process has appended
_MIN_LOOK_INTERVAL_S: Final = 0.02
_MAX_POLL_INTERVAL_S: Final = 86_400.0
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What a source needs to know. It can be sent to workers.

    Attributes:
        folder: Folder of the cache.
        fetch: Settings of the requests.
        definition: Definition of the list of pages.
        poll_interval_s: Minimum seconds between two requests of a feed that is followed.
    """

    folder: str
    fetch: FetchSettings
    definition: ListDefinition
    poll_interval_s: float


class ArticleSource:
    """Pages of one dataset. All coroutines run on the I/O thread.

    Args:
        settings: Settings of the dataset.

    Attributes:
        url: Folder of the cache, for messages about this resource.
        snapshot: List of the pages on disk.
        kept: Texts of the pages on disk.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self.url = settings.folder
        self.settings = settings
        self.kept = KeptFiles(settings.folder)
        self.snapshot = ArticleSnapshot(self.kept, settings.definition)
        self._parsers = DocumentParsers()
        turns = HostTurns(f"{settings.folder}/hosts", settings.fetch.connections)
        self._fetcher = PageFetcher(settings.fetch, turns, self.kept, self._parsers)
        self._flights: SingleFlight[KeptPage] = SingleFlight()
        self._list: PageList | None = None
        self._polls: SingleFlight[float] = SingleFlight()

    async def aclose(self) -> None:
        """End the processes that parse pages."""
        self._parsers.close()  # it blocks briefly; when the interpreter exits, there are no other threads

    # --- pages -------------------------------------------------------------------------------------------------------

    async def load_page(self, page: PageAddress) -> KeptPage:
        """Return the text of a page, or the reason why it has none: as it is kept, or as it is fetched now.

        Raises:
            StreamloaderError: If the page cannot be fetched for a reason that is not its own.
        """
        name = self.snapshot.page_name(page)
        kept = await asyncio.to_thread(self.kept.read_page, name)
        return kept or await self._flights.do(name, lambda: self._fetch_page(page, name))

    async def load_pages(self, pages: Sequence[PageAddress], report: Callable[[int, int], None]) -> list[KeptPage]:
        """Return all pages, in their order.

        Args:
            pages: Addresses of the pages.
            report: Function that is called with the number of pages that are done, and of all.
        """
        done = 0

        async def load(page: PageAddress) -> KeptPage:
            nonlocal done
            kept = await self.load_page(page)
            done += 1
            report(done, len(pages))
            return kept

        async with self.snapshot.lock():  # other ranks wait, instead of fetching the same pages
            return await gather_bounded((load(page) for page in pages), limit=_MAX_CONCURRENT_FETCHES)

    async def _fetch_page(self, page: PageAddress, name: str) -> KeptPage:
        latest_name = self.snapshot.latest_name(page)
        latest = await asyncio.to_thread(self.kept.find_latest, latest_name)
        try:
            fetched = await self._fetch_text(page, latest)
        except StreamloaderError as error:
            if not await self._is_own_fault(page, error):
                error.stream = error.stream or page.name
                raise
            message = error.message if page.name in error.message else f"{page.name}: {error.message}"
            fetched = KeptPage(b"", error=type(error).__name__, message=make_printable(message, None))
            _log.warning("left out a page: %s", message)
        kept = await asyncio.to_thread(self.kept.keep_page, name, fetched, page.name)
        if not kept.error:
            await asyncio.to_thread(self.kept.note_latest, latest_name, name)
        return kept

    async def _fetch_text(self, page: PageAddress, latest: KeptPage | None) -> KeptPage:
        etag, modified = (latest.etag, latest.modified) if latest else ("", "")
        document = await self._fetcher.fetch_page(page, etag=etag, modified=modified)
        if document.status == HTTPStatus.NOT_MODIFIED and latest is not None:
            return latest
        found = await self._parsers.extract(document, page.name, self.settings.definition.extraction)
        return KeptPage(
            found.text.encode("utf-8", "replace"),
            document.headers.get("ETag", "")[:_MAX_ETAG_CHARACTERS],
            document.headers.get("Last-Modified", "")[:_MAX_DATE_CHARACTERS],
            encoding=found.encoding,
        )

    async def _is_own_fault(self, page: PageAddress, error: StreamloaderError) -> bool:
        """Return whether an error is that of the page, so that the page is left out.

        If no connection can be made, the network of this machine may be the cause. The page is left out only if its
        server has not answered in the last day, but another one has.
        """
        if isinstance(error, StoreError):
            if is_outage(error):
                this_host, any_host = await self._fetcher.has_answered(page.url)
                return any_host and not this_host
            is_local = isinstance(error, StorageFull) or error.details.get("stage") == TURN_STAGE
            return not is_local and not isinstance(error, UntrustedAddress)
        return not ends_indexing(error)

    # --- the list of pages -------------------------------------------------------------------------------------------

    async def load_list(self) -> PageList:
        """Return the list of pages. It is made if there is none on disk.

        Raises:
            StreamNotFound: If there is no page.
            UnreadableStream: If a feed or sitemap cannot be read.
            StoreError: If one cannot be fetched.
        """
        known = await asyncio.to_thread(self.snapshot.read)
        if known is None:
            async with self.snapshot.lock():
                known = await asyncio.to_thread(self.snapshot.read) or await self._make_list()
        self._list = known
        return known

    async def _make_list(self) -> PageList:
        definition = self.settings.definition
        pages = [PageAddress(url) for url in definition.pages]
        for url in definition.feeds:
            pages += await self._poll_feed(url)
        for url in definition.sitemaps:
            pages += await self._read_sitemaps(url)
        pages = self._select(pages, ())
        if not pages and not definition.follows:
            raise StreamNotFound(
                "there are no pages: the feeds and sitemaps are empty, or pattern= matches none of their addresses",
                address=redact_address(next(iter([*definition.feeds, *definition.sitemaps]), "")) or None,
            )
        return await asyncio.to_thread(self.snapshot.append, None, pages)

    def _select(self, pages: Sequence[PageAddress], known: Sequence[PageAddress]) -> list[PageAddress]:
        """Return the pages that match the pattern, each once, without those that are known."""
        definition, seen = self.settings.definition, {page.url for page in known}
        selected: list[PageAddress] = []
        for page in pages:
            matches = page.source is None or not definition.pattern or fnmatch.fnmatchcase(page.url, definition.pattern)
            is_full = definition.max_articles is not None and len(known) + len(selected) >= definition.max_articles
            if matches and not is_full and page.url not in seen:
                seen.add(page.url)
                selected.append(page)
        return selected

    async def _read_sitemaps(self, url: str) -> list[PageAddress]:
        """Return the pages of a sitemap, and of those that it lists, in their order."""
        root = PageAddress(url)
        if url.endswith("/robots.txt"):
            waiting = [PageAddress(found, url) for found in await self._fetcher.find_sitemaps(root)]
            if not waiting:
                raise StreamNotFound(f"{root.name} lists no sitemap", address=root.name)
        else:
            waiting = [root]
        pages: list[PageAddress] = []
        done: set[str] = set()
        while waiting:
            current = waiting.pop(0)
            if current.url in done:
                continue
            done.add(current.url)
            if len(done) > _MAX_LISTS:
                raise LimitExceeded(f"{root.name} leads to more than {_MAX_LISTS} sitemaps", address=root.name)
            document = await self._fetcher.fetch_list(current, MAX_LIST_BYTES)
            found = await self._parsers.read_sitemap(document, current.name)
            pages += [PageAddress(page, url) for page in found.pages]
            waiting = [PageAddress(listed, url) for listed in found.sitemaps] + waiting
        return pages

    # --- feeds -------------------------------------------------------------------------------------------------------

    async def _poll_feed(self, url: str) -> list[PageAddress]:
        """Return the pages of a feed: none if it has not changed, and the newest last if feeds are followed."""
        feed = PageAddress(url)
        follows = self.settings.definition.follows
        note = await asyncio.to_thread(self.snapshot.read_note, url) if follows else {}
        etag, modified = str(note.get("etag", "")), str(note.get("modified", ""))
        document = await self._fetcher.fetch_list(feed, MAX_LIST_BYTES, etag=etag, modified=modified)
        found = FeedContent([], float(note.get("ttl", 0.0)))
        if document.status != HTTPStatus.NOT_MODIFIED:
            found = await self._parsers.read_feed(document, feed.name)
        pages = [PageAddress(page, url) for page in found.pages]
        if follows:
            pages.reverse()
            await asyncio.to_thread(self.snapshot.write_note, url, self._describe_poll(document, found.ttl_s, note))
        return pages

    def _describe_poll(self, document: HttpDocument, ttl_s: float, before: dict[str, Any]) -> dict[str, Any]:
        ttl_s = min(ttl_s, _MAX_POLL_INTERVAL_S)
        wait_s = max(self.settings.poll_interval_s, ttl_s, parse_retry_after(document.headers) or 0.0)
        etag, modified = document.headers.get("ETag", ""), document.headers.get("Last-Modified", "")
        if document.status == HTTPStatus.NOT_MODIFIED:
            etag, modified = etag or before.get("etag", ""), modified or before.get("modified", "")
        return {
            "etag": etag[:_MAX_ETAG_CHARACTERS],
            "modified": modified[:_MAX_DATE_CHARACTERS],
            "ttl": ttl_s,
            "due": time.time() + min(wait_s, _MAX_POLL_INTERVAL_S),
        }

    async def find_length(self, number: int) -> int | None:
        """Return the kept size of the text of a page in bytes, or None if it is not kept."""
        page = await self.wait_for_page(number)
        summary = await asyncio.to_thread(self.kept.summarize_page, self.snapshot.page_name(page))
        return None if summary is None else summary.length

    async def wait_for_page(self, number: int) -> PageAddress:
        """Return a page of feeds that are followed. Wait until there is one.

        Args:
            number: Number of the page in the list.

        Raises:
            NotFound: If a feed is gone for good (status 410).
        """
        while True:
            if self._list is None:
                self._list = await self.load_list()
            if number < len(self._list.pages):
                return self._list.pages[number]
            known = self._list
            self._list = await asyncio.to_thread(self.snapshot.read, known) or known
            if number < len(self._list.pages):
                continue
            wait_s = await self._polls.do("poll", self._poll_due_feeds)  # in one task at a time
            if number >= len(self._list.pages):
                await asyncio.sleep(max(_MIN_LOOK_INTERVAL_S, min(_LOOK_INTERVAL_S, wait_s)))

    async def _poll_due_feeds(self) -> float:
        """Request the feeds that are due. Return the seconds until the next one is due."""
        feeds = self.settings.definition.feeds
        wait_s = await self._find_wait(feeds)
        if wait_s > 0 or self.snapshot.is_locked_elsewhere():
            return wait_s
        async with self.snapshot.lock():
            known = await asyncio.to_thread(self.snapshot.read, self._list)
            assert known is not None, "the list was made before"
            for url in feeds:
                if await self._find_wait([url]) > 0:
                    continue
                pages = self._select(await self._try_feed(url), known.pages)
                if pages:
                    known = await asyncio.to_thread(self.snapshot.append, known, pages)
            self._list = known
        return await self._find_wait(feeds)

    async def _find_wait(self, feeds: Sequence[str]) -> float:
        """Return the seconds until the first of some feeds may be requested."""

        def find() -> float:
            due = min(float(self.snapshot.read_note(url).get("due", 0.0)) for url in feeds)
            return max(0.0, min(due - time.time(), _MAX_POLL_INTERVAL_S))

        return await asyncio.to_thread(find)

    async def _try_feed(self, url: str) -> list[PageAddress]:
        """Return the pages of a feed. If it fails, it is requested again later."""
        try:
            return await self._poll_feed(url)
        except StreamloaderError as error:
            name = redact_address(url)
            if isinstance(error, NotFound) and error.details.get("status") == HTTPStatus.GONE:
                raise
            if ends_indexing(error) and not isinstance(error, StoreError):
                raise
            wait_s = max(self.settings.poll_interval_s, float(error.details.get("retry_after") or 0.0))
            note = await asyncio.to_thread(self.snapshot.read_note, url)
            note["due"] = time.time() + min(wait_s, _MAX_POLL_INTERVAL_S)
            await asyncio.to_thread(self.snapshot.write_note, url, note)
            _log.warning("%s is requested again in %.0f s: %s", name, wait_s, error.message)
            return []


def make_page_error(page: KeptPage, key: str, address: str) -> StreamloaderError:
    """Build the error for a page that has no text."""
    error = from_wire({"type": page.error, "message": page.message, "ours": True})
    error.stream, error.address = key, address
    return error
