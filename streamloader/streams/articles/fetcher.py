"""Fetch pages politely: by the rules of robots.txt, a few at a time, with a delay between the requests to one host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from streamloader.config import Retry
from streamloader.errors import (
    AccessDenied,
    LimitExceeded,
    ServerBusy,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
    UnreadableStream,
    UntrustedHost,
)
from streamloader.redaction import redact_address
from streamloader.stores.http.document import DocumentRequest, HttpDocument
from streamloader.stores.http.store import SCOPE_NAMES, HttpStore
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.origins import select_access
from streamloader.stores.registry import scheme_of, select_options
from streamloader.stores.wrappers.retry import call_with_retries
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.streams.articles.kept_pages import KeptFiles, hash_name
from streamloader.streams.articles.locks import hold_lock
from streamloader.streams.articles.parsers import DocumentParsers
from streamloader.streams.articles.robots import MAX_ROBOTS_BYTES, REFUSING_TAGS
from streamloader.streams.articles.turns import HostTurns

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

    from streamloader.stores.http.redirects import RedirectChain

__all__ = ["DEFAULT_RETRY", "FetchSettings", "PageAddress", "PageFetcher", "is_outage"]

# Servers may request longer waits than stores accept, and a page is not worth many attempts.
DEFAULT_RETRY: Final = Retry(attempts=4, deadline=300.0, first_wait=1.0, longest_wait=120.0)
PAGE_TYPES: Final = ("text/html", "application/xhtml+xml", "text/plain")
_MARKS_AND_SPACE: Final = b"\xef\xbb\xbf\xff\xfe \t\r\n\0"
_ACCEPT_PAGES: Final = "text/html, application/xhtml+xml, text/plain;q=0.8"
_ACCEPT_LISTS: Final = "application/xml, text/xml, application/rss+xml, application/atom+xml, */*;q=0.5"
_ROBOTS_LIFETIME_S: Final = 86_400.0  # RFC 9309, section 2.4
_ROBOTS_LOCK_TIMEOUT_S: Final = 3600.0
_ROBOTS_RETRY_S: Final = 600.0  # after a failure of its server
_MAX_CRAWL_DELAY_S: Final = 300.0
_ANSWER_LIFETIME_S: Final = 86_400.0
_ANSWER_NOTE_INTERVAL_S: Final = 600.0
_STORE_OPTIONS: Final = ("cache_dir", "cache_bytes", "digests")  # of objects whose versions are known
_LOCAL_OPTIONS: Final = ("timeouts", "limits")  # sent to no server


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How pages are fetched.

    Attributes:
        user_agent: Value of the header User-Agent.
        delay_s: Minimum seconds between the starts of two requests to one host.
        connections: Maximum number of concurrent requests to one host.
        max_page_bytes: Maximum size of a page in bytes.
        max_page_s: Maximum seconds of the transfer of a page.
        obeys_robots: Whether robots.txt and the tags of pages are obeyed.
        storage_options: Options of :class:`streamloader.stores.http.store.HttpStore`.
    """

    user_agent: str
    delay_s: float
    connections: int
    max_page_bytes: int
    max_page_s: float
    obeys_robots: bool
    storage_options: Mapping[str, Any] = field(repr=False)

    @property
    def token(self) -> str:
        """Product token, by which robots.txt names this program."""
        return self.user_agent.partition("/")[0].split()[0]


@dataclass(frozen=True, slots=True)
class PageAddress:
    """An address, and who named it.

    Attributes:
        url: Address. It may contain secrets.
        source: Address of the feed or sitemap that names it, or None if the user did.
    """

    url: str = field(repr=False)
    source: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Address without secrets."""
        return redact_address(self.url)


def is_outage(error: StoreError) -> bool:
    """Return whether no connection to a server could be made, which may be the fault of this machine's network."""
    return isinstance(error, Unreachable) or (
        isinstance(error, StoreTimeout) and error.details.get("stage") == "connecting"
    )


class PageFetcher:
    """Fetches pages. It lives on the I/O thread.

    Args:
        settings: Settings of the requests.
        turns: Turns at hosts.
        kept: Files in which robots.txt are kept.
        parsers: Process that parses robots.txt.
    """

    def __init__(self, settings: FetchSettings, turns: HostTurns, kept: KeptFiles, parsers: DocumentParsers) -> None:
        self.settings = settings
        self._turns = turns
        self._kept = kept
        self._parsers = parsers
        self._robots: dict[str, _RobotsFile] = {}  # by origin
        self._robots_flights: SingleFlight[_RobotsFile] = SingleFlight()
        self._noted_answers: dict[str, float] = {}

    async def fetch_page(self, address: PageAddress, *, etag: str = "", modified: str = "") -> HttpDocument:
        """Return a page. With `etag` or `modified` of an earlier response, the status may be 304.

        Raises:
            AccessDenied: If robots.txt or a header forbids to fetch or to use the page.
            UnreadableStream: If the response is not a text.
            LimitExceeded: If the page is too large, or takes too long.
            StoreError: If it cannot be fetched.
        """
        headers = self._make_headers(_ACCEPT_PAGES)
        headers |= {"If-None-Match": etag} if etag else {}
        headers |= {"If-Modified-Since": modified} if modified else {}

        def check(response: aiohttp.ClientResponse) -> None:
            self._check_headers(response, address.name)

        settings = self.settings
        statuses = (HTTPStatus.OK, HTTPStatus.NOT_MODIFIED) if etag or modified else (HTTPStatus.OK,)
        request = DocumentRequest(
            headers, settings.max_page_bytes, settings.max_page_s, tuple(map(int, statuses)), check=check
        )
        document = await self._fetch(address, request)
        is_unknown = document.status == HTTPStatus.OK and not _has_type(document.headers)
        if is_unknown and not document.body.lstrip(_MARKS_AND_SPACE).startswith(b"<"):
            raise UnreadableStream(f"{address.name} has no Content-Type, and is not HTML", address=address.name)
        return document

    async def fetch_list(
        self, address: PageAddress, max_bytes: int, *, etag: str = "", modified: str = ""
    ) -> HttpDocument:
        """Return a feed or a sitemap. With `etag` or `modified` of an earlier response, the status may be 304.

        Args:
            address: Address of the list.
            max_bytes: Maximum size in bytes.
            etag: ETag of the response before. Defaults to none.
            modified: Last-Modified of the response before. Defaults to none.

        Raises:
            StoreError: If it cannot be fetched, or must not be.
        """
        headers = self._make_headers(_ACCEPT_LISTS)
        headers |= {"If-None-Match": etag} if etag else {}
        headers |= {"If-Modified-Since": modified} if modified else {}
        statuses = (200, 304) if etag or modified else (200,)
        return await self._fetch(address, DocumentRequest(headers, max_bytes, self.settings.max_page_s, statuses))

    async def find_sitemaps(self, address: PageAddress) -> list[str]:
        """Return the sitemaps that a robots.txt lists.

        Raises:
            AccessDenied: If the file cannot be read because of its server.
            StoreError: If the server cannot be reached.
        """
        from yarl import URL

        options, _ = self._select_options(address)
        origin = str(URL(address.url).origin())
        file = await self._load_robots(origin, options)
        if file.problem:
            raise AccessDenied(f"{address.name} could not be read: {file.problem}", address=address.name)
        verdict = await self._parsers.check_robots(file.rules, self.settings.token, f"{origin}/", file.name)
        return verdict.sitemaps

    async def has_answered(self, url: str) -> tuple[bool, bool]:
        """Return whether the server of an address has answered in the last day, and whether any server has."""
        from yarl import URL

        def is_recent(name: str) -> bool:
            note = self._kept.read_document(hash_name("answered", name))
            return note is not None and 0 <= time.time() - float(note["at"]) < _ANSWER_LIFETIME_S

        host = _get_host(URL(url))
        return await asyncio.to_thread(is_recent, host), await asyncio.to_thread(is_recent, "")

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _fetch(self, address: PageAddress, request: DocumentRequest) -> HttpDocument:
        options, retry = self._select_options(address)
        return await call_with_retries(
            retry, lambda: self._attempt(address.url, options, request, self.settings.obeys_robots)
        )

    async def _attempt(
        self, url: str, options: dict[str, Any], request: DocumentRequest, checks_robots: bool
    ) -> HttpDocument:
        shared, path = open_shared_store(url, options)
        turn = _Turn(self, redact_address(url), options, checks_robots)
        with shared:
            store = shared.resource
            assert isinstance(store, HttpStore), "an address of http without wrappers"
            try:
                document = await store.fetch_document(path, request, gate=turn.start)
            except StoreError as error:
                if isinstance(error, ServerBusy) and turn.host:
                    await self._turns.postpone(turn.host, float(error.details.get("retry_after") or 0.0))
                if turn.host and (error.details.get("status") or isinstance(error, TransferInterrupted)):
                    await self._note_answer(turn.host)
                raise
            finally:
                turn.end()
        await self._note_answer(turn.host)
        return document

    async def take_turn(self, url: URL, address: str, delay_s: float) -> Callable[[], None]:
        """Wait for a turn at the host of an address. Return the function that ends it."""
        return await self._turns.take(_get_host(url), delay_s, address)

    def _select_options(self, address: PageAddress) -> tuple[dict[str, Any], Retry]:
        """Return the options of the store of an address, and the policy for retrying."""
        given = self.settings.storage_options
        if scheme_of(address.url) not in ("http", "https"):  # a hostile list may have taken over its parser
            raise UnreadableStream(f"{address.name} is not the address of a web page", address=address.name)
        if address.source is None:
            options = select_options(address.url, given)
        else:
            options = select_access(address.url, given, named=False, document=address.source)
        retry = options.pop("retry", DEFAULT_RETRY) or Retry(attempts=1)
        for name in _STORE_OPTIONS:
            options.pop(name, None)
        return options | {"retry": None}, retry

    def _make_headers(self, accept: str) -> dict[str, str]:
        return {"User-Agent": self.settings.user_agent, "Accept": accept}

    async def _note_answer(self, host: str) -> None:
        """Note, for all processes, that a server has answered."""
        now = time.monotonic()
        if now - self._noted_answers.get(host, -_ANSWER_NOTE_INTERVAL_S) >= _ANSWER_NOTE_INTERVAL_S:
            self._noted_answers[host] = now
            for name in (host, ""):
                await asyncio.to_thread(self._kept.write_document, hash_name("answered", name), {"at": time.time()})

    def _check_headers(self, response: aiohttp.ClientResponse, name: str) -> None:
        """Check the type of a page, and whether its headers refuse its use.

        Raises:
            UnreadableStream: If the page is not of a text type.
            AccessDenied: If its use is refused.
        """
        if _has_type(response.headers) and response.content_type.lower() not in PAGE_TYPES:
            raise UnreadableStream(f"{name} is not a text: it has the type {response.content_type!r}", address=name)
        if not self.settings.obeys_robots:
            return
        tags = _find_tags(response.headers.getall("X-Robots-Tag", []), self.settings.token)
        refusals = sorted(tags & set(REFUSING_TAGS))
        if refusals:
            raise AccessDenied(f"{name} refuses to be used: X-Robots-Tag: {', '.join(refusals)}", address=name)
        if response.headers.get("tdm-reservation", "").strip() == "1":
            raise AccessDenied(f"{name} refuses to be used: tdm-reservation: 1", address=name)

    # --- robots.txt --------------------------------------------------------------------------------------------------

    async def check_permission(self, url: URL, options: dict[str, Any]) -> float:
        """Return the delay that the host of an address requests, in seconds, if its robots.txt permits to fetch it.

        Raises:
            AccessDenied: If it does not.
            StoreError: If its server cannot be reached.
        """
        origin = str(url.origin())
        file = await self._load_robots(origin, options)
        if file.problem:
            raise AccessDenied(
                f"{origin}/robots.txt could not be read, so all pages of this host are forbidden: {file.problem}",
                address=f"{origin}/robots.txt",
            )
        if not file.rules:
            return 0.0
        verdict = await self._parsers.check_robots(file.rules, self.settings.token, str(url), file.name)
        shown = redact_address(str(url))
        if not verdict.allowed:
            raise AccessDenied(f"{origin}/robots.txt forbids {self.settings.token} to fetch {shown}", address=shown)
        if verdict.delay_s > _MAX_CRAWL_DELAY_S:
            raise AccessDenied(
                f"{origin}/robots.txt requests {verdict.delay_s:.0f} s between requests, more than "
                f"{_MAX_CRAWL_DELAY_S:.0f}: {shown} is not fetched",
                address=shown,
            )
        return verdict.delay_s

    async def _load_robots(self, origin: str, options: dict[str, Any]) -> _RobotsFile:
        file = self._robots.get(origin)
        if file is None or not file.is_fresh():
            file = await self._robots_flights.do(origin, lambda: self._find_robots(origin, options))
            self._robots[origin] = file
        return file

    async def _find_robots(self, origin: str, options: dict[str, Any]) -> _RobotsFile:
        name, url = hash_name("robots", origin), f"{origin}/robots.txt"
        async with hold_lock(self._kept.folder, f"{name}.lock", _ROBOTS_LOCK_TIMEOUT_S):  # one process fetches it
            document = await asyncio.to_thread(self._kept.read_document, name)
            if document is not None:
                file = _RobotsFile(url, str(document["rules"]), str(document["problem"]), float(document["expires"]))
                if file.is_fresh():
                    return file
            file = await self._fetch_robots(url, options)
            kept = {"rules": file.rules, "problem": file.problem, "expires": file.expires_at}
            await asyncio.to_thread(self._kept.write_document, name, kept)
            return file

    async def _fetch_robots(self, url: str, options: dict[str, Any]) -> _RobotsFile:
        settings = self.settings
        retry = select_options(url, settings.storage_options).get("retry", DEFAULT_RETRY) or Retry(attempts=1)
        request = DocumentRequest(
            self._make_headers("text/plain, */*;q=0.5"), MAX_ROBOTS_BYTES, settings.max_page_s, truncates=True
        )
        rules = problem = ""
        try:
            document = await call_with_retries(retry, lambda: self._attempt(url, options, request, False))
            rules = document.body.decode("utf-8-sig", "replace")
        except StoreError as error:
            status = error.details.get("status", 0)
            if is_outage(error) or isinstance(error, UntrustedHost):
                raise
            is_missing = 400 <= status < 500 and not isinstance(error, ServerBusy)  # noqa: PLR2004 - RFC 9309, 2.3.1.3
            if not is_missing and not isinstance(error, LimitExceeded):
                problem = error.message
        lifetime_s = _ROBOTS_RETRY_S if problem else _ROBOTS_LIFETIME_S
        return _RobotsFile(url, rules, problem, time.time() + lifetime_s)


@dataclass(frozen=True, slots=True)
class _RobotsFile:
    """A robots.txt.

    Attributes:
        name: Address of the file.
        rules: Text of the file. Empty if there is none.
        problem: Reason why it could not be read, or "".
        expires_at: Time at which it has to be fetched again, in seconds since 1970.
    """

    name: str
    rules: str
    problem: str
    expires_at: float

    def is_fresh(self) -> bool:
        """Return whether it may be used. A file from the future is not: the clock was set back."""
        return 0 < self.expires_at - time.time() <= _ROBOTS_LIFETIME_S


class _Turn:
    """The turns of one request: at its host, and then at the hosts that it is redirected to.

    Attributes:
        host: Host of the last request, or "".
    """

    def __init__(self, fetcher: PageFetcher, address: str, options: dict[str, Any], checks_robots: bool) -> None:
        self._fetcher = fetcher
        self._address = address
        self._options = options
        self._checks_robots = checks_robots
        self._release: Callable[[], None] | None = None
        self.host = ""

    async def start(self, chain: RedirectChain) -> None:
        """Wait until the next request of a chain may start.

        Raises:
            AccessDenied: If robots.txt of its host forbids it.
            StoreError: If this is not known.
        """
        self.end()  # at the server that redirects here
        options = self._options
        if not chain.trusted:
            options = {name: value for name, value in options.items() if name in _LOCAL_OPTIONS}
            options |= {"anonymous": True, "scope": SCOPE_NAMES[chain.scope], "retry": None}
        fetcher = self._fetcher
        delay_s = await fetcher.check_permission(chain.url, options) if self._checks_robots else 0.0
        self._release = await fetcher.take_turn(chain.url, self._address, max(delay_s, fetcher.settings.delay_s))
        self.host = _get_host(chain.url)

    def end(self) -> None:
        """End the current turn."""
        if self._release is not None:
            self._release()
            self._release = None


def _has_type(headers: Mapping[str, str]) -> bool:
    return bool(headers.get("Content-Type", "").strip())


def _get_host(url: URL) -> str:
    return f"{url.raw_host}:{url.port}"


def _find_tags(values: list[str], token: str) -> set[str]:
    """Return the directives of X-Robots-Tag that apply to this program, in lower case."""
    tags: set[str] = set()
    for value in values:
        lowered = value.lower()
        agent, colon, directives = lowered.partition(":")
        if (
            colon
            and "," not in agent
            and agent.strip() not in ("unavailable_after", "max-snippet", "max-image-preview")
        ):
            if agent.strip() != token.lower():
                continue
            lowered = directives
        tags.update(part.strip() for part in lowered.split(","))
    return tags
