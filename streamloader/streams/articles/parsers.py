"""Call the functions that parse untrusted documents in a process of their own, and check what they return.

A document may have taken over the process that parses it, so its results are checked as its author's own words.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from streamloader.errors import CorruptStream, MediaLimitExceeded, UnreadableStream
from streamloader.media.parser_pool import ParserPool
from streamloader.redaction import redact_address
from streamloader.stores.http.document import HttpDocument
from streamloader.streams.articles.extraction import ExtractionSettings, extract_article
from streamloader.streams.articles.feeds import read_feed, read_sitemap
from streamloader.streams.articles.robots import check_robots

__all__ = ["DocumentParsers", "ExtractedText", "FeedContent", "RobotsVerdict", "SitemapContent"]

_MEMORY_BYTES: Final = 2 << 30
_TIMEOUT_S: Final = 60.0
_MAX_ENCODING_CHARACTERS: Final = 40

T = TypeVar("T")


class ExtractedText(NamedTuple):
    """The main text of a page, and the encoding of the page."""

    text: str
    encoding: str


class FeedContent(NamedTuple):
    """The pages of a feed, and the seconds for which it need not be requested again."""

    pages: list[str]
    ttl_s: float


class SitemapContent(NamedTuple):
    """The pages and the further sitemaps that a sitemap lists."""

    pages: list[str]
    sitemaps: list[str]


class RobotsVerdict(NamedTuple):
    """Whether an address may be fetched, the seconds between two requests, and the listed sitemaps."""

    allowed: bool
    delay_s: float
    sitemaps: list[str]


class DocumentParsers:
    """A process that parses documents. It is started on demand.

    All methods raise a StreamloaderError if the document is not valid, ends the process twice, or needs more than 2 GiB
    of memory or 60 s.
    """

    def __init__(self) -> None:
        self._pool = ParserPool(_MEMORY_BYTES, max_processes=1, stall_timeout_s=_TIMEOUT_S)

    def close(self) -> None:
        """End the process."""
        self._pool.close()

    async def extract(self, document: HttpDocument, name: str, settings: tuple[Any, ...]) -> ExtractedText:
        """Return the main text of a page.

        Args:
            document: Page.
            name: Address without secrets.
            settings: Values of :class:`streamloader.streams.articles.extraction.ExtractionSettings`.
        """
        content_type = document.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        arguments = document.body, content_type, document.charset, redact_address(document.url), name
        return await self._call(
            name,
            extract_article,
            *arguments,
            tuple(ExtractionSettings(*settings)),
            check=lambda found: ExtractedText(
                _as_text(found["text"]), _as_text(found["encoding"])[:_MAX_ENCODING_CHARACTERS]
            ),
        )

    async def read_feed(self, document: HttpDocument, name: str) -> FeedContent:
        """Return the content of a feed."""
        return await self._call(
            name,
            read_feed,
            document.body,
            document.charset,
            document.url,
            name,
            check=lambda found: FeedContent(_as_texts(found["pages"]), _as_number(found["ttl"])),
        )

    async def read_sitemap(self, document: HttpDocument, name: str) -> SitemapContent:
        """Return the content of a sitemap."""
        return await self._call(
            name,
            read_sitemap,
            document.body,
            document.charset,
            document.url,
            name,
            check=lambda found: SitemapContent(_as_texts(found["pages"]), _as_texts(found["sitemaps"])),
        )

    async def check_robots(self, rules: str, token: str, url: str, name: str) -> RobotsVerdict:
        """Return what a robots.txt says about an address.

        Args:
            rules: Text of the file.
            token: Product token of this program.
            url: Address of the page.
            name: Address of the file.
        """
        return await self._call(
            name,
            check_robots,
            rules,
            token,
            url,
            check=lambda found: RobotsVerdict(
                found["allowed"] is True, _as_number(found["delay"]), _as_texts(found["sitemaps"])
            ),
        )

    async def _call(
        self, name: str, function: Callable[..., dict[str, Any]], *args: Any, check: Callable[[Any], T]
    ) -> T:
        try:
            found = await asyncio.to_thread(self._pool.call, name, function, *args)
        except MediaLimitExceeded:
            raise UnreadableStream(
                f"{name} needs more than {_MEMORY_BYTES >> 20} MiB of memory to be parsed", address=name
            ) from None
        try:
            return check(found)
        except (LookupError, TypeError, ValueError):
            raise CorruptStream(
                f"{name}: the process that parsed it returned an impossible result. The document may be malicious",
                stream=name,
                address=name,
            ) from None


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    return [_as_text(item) for item in value]


def _as_number(value: Any) -> float:
    number = float(value)
    if not isinstance(value, (int, float)) or math.isnan(number):
        raise ValueError
    return max(0.0, number)
