"""The list of pages of a dataset: kept under the name of a snapshot, so that a resumed run has the same one.

A list is a sequence of documents on disk. The first one is made when the dataset is indexed for the first time. A
dataset that follows feeds appends another one whenever a feed has new pages; those that exist never change.
"""

from __future__ import annotations

import json
import secrets
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from streamloader.streams.articles.fetcher import PageAddress
from streamloader.streams.articles.kept_pages import KeptFiles, hash_name
from streamloader.streams.articles.locks import hold_lock, try_lock

__all__ = ["ArticleSnapshot", "ListDefinition", "PageList"]

_LOCK_TIMEOUT_S: Final = 86_400.0  # another rank may be fetching all pages


@dataclass(frozen=True, slots=True)
class ListDefinition:
    """What determines the pages of a dataset, and their texts.

    Attributes:
        pages: Addresses of pages.
        feeds: Addresses of feeds.
        sitemaps: Addresses of sitemaps.
        pattern: Glob pattern for the addresses in feeds and sitemaps, or None.
        max_articles: Maximum number of pages, or None.
        extraction: Values of :class:`streamloader.streams.articles.extraction.ExtractionSettings`.
        snapshot: Name of the snapshot.
        follows: Whether feeds are followed.
    """

    pages: tuple[str, ...] = field(repr=False)
    feeds: tuple[str, ...] = field(repr=False)
    sitemaps: tuple[str, ...] = field(repr=False)
    pattern: str | None
    max_articles: int | None
    extraction: tuple[Any, ...]
    snapshot: str
    follows: bool

    @property
    def name(self) -> str:
        """Name of the list on disk: equal for equal definitions."""
        return hash_name("list", json.dumps(asdict(self)))


@dataclass(slots=True)
class PageList:
    """Pages in their order.

    Attributes:
        identity: Random text that distinguishes this list from one that is made later under the same name.
        pages: Addresses of the pages.
        parts: Number of documents on disk.
    """

    identity: str
    pages: list[PageAddress] = field(repr=False)
    parts: int


class ArticleSnapshot:
    """The list of pages of one dataset on disk.

    Args:
        kept: Files of the folder.
        definition: Definition of the list.
    """

    def __init__(self, kept: KeptFiles, definition: ListDefinition) -> None:
        self._kept = kept
        self.definition = definition
        self._name = definition.name

    def read(self, known: PageList | None = None) -> PageList | None:
        """Return the list, or None if none was made yet. Blocks.

        Args:
            known: List as it was read before. Only what was appended later is read then. Defaults to None.
        """
        result = PageList(known.identity, list(known.pages), known.parts) if known else PageList("", [], 0)
        while True:
            document = self._kept.read_document(hash_name(self._name, str(result.parts)))
            if document is None:
                return result if result.parts else None
            result.identity = str(document["identity"])
            result.pages += [PageAddress(str(url), source) for url, source in document["pages"]]
            result.parts += 1

    def append(self, known: PageList | None, pages: list[PageAddress]) -> PageList:
        """Append pages, and return the list. Hold :meth:`lock`. Blocks."""
        identity = known.identity if known else secrets.token_hex(8)
        parts = known.parts if known else 0
        document = {"identity": identity, "pages": [[page.url, page.source] for page in pages]}
        self._kept.write_document(hash_name(self._name, str(parts)), document)
        return PageList(identity, [*(known.pages if known else ()), *pages], parts + 1)

    def read_note(self, name: str) -> dict[str, Any]:
        """Return a note about the list, such as when a feed was requested last. Blocks."""
        return self._kept.read_document(hash_name(self._name, "note", name)) or {}

    def write_note(self, name: str, note: dict[str, Any]) -> None:
        """Write a note about the list. Hold :meth:`lock`. Blocks."""
        self._kept.write_document(hash_name(self._name, "note", name), note)

    def page_name(self, page: PageAddress) -> str:
        """Return the name under which a page of this snapshot is kept."""
        definition = self.definition
        return hash_name("page", definition.snapshot, json.dumps(definition.extraction), page.url)

    def latest_name(self, page: PageAddress) -> str:
        """Return the name under which the latest version of a page is noted, for all snapshots."""
        return hash_name("latest", json.dumps(self.definition.extraction), page.url)

    def is_locked_elsewhere(self) -> bool:
        """Return whether another task or process holds the lock at this moment."""
        lock = try_lock(self._kept.folder, self._lock_name)
        if lock is not None:
            lock.release()
        return lock is None

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Return a context that holds the lock of the list, among all processes of this machine."""
        return hold_lock(self._kept.folder, self._lock_name, _LOCK_TIMEOUT_S)

    @property
    def _lock_name(self) -> str:
        return f"{self._name}.lock"
