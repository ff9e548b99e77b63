"""Articles of web pages as streams of bytes or tokens."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import numpy as np
from typing_extensions import override

from streamloader.arguments import check_options, expand_path
from streamloader.errors import ConfigError, MissingDependency, StreamloaderError
from streamloader.redaction import redact_address
from streamloader.stores.addresses import FileKeys, SourceFile, as_addresses
from streamloader.stores.http.auth import parse_server_url
from streamloader.stores.io_thread import SharedResource, get_shared_resource, options_key
from streamloader.stores.registry import split_address
from streamloader.stream_table import StreamTable
from streamloader.streams.articles.extraction import ExtractionSettings
from streamloader.streams.articles.fetcher import FetchSettings, PageAddress
from streamloader.streams.articles.follow import FollowingStream
from streamloader.streams.articles.kept_pages import KeptFiles, KeptPage, default_folder
from streamloader.streams.articles.snapshot import ArticleSnapshot, ListDefinition, PageList
from streamloader.streams.articles.source import ArticleSource, SourceSettings, make_page_error
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skips_unreadable
from streamloader.streams.corpus import MemoryStream
from streamloader.streams.indexing import show_indexing, validate_unreadable
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.text_steps import TextSteps, Tokenizer
from streamloader.streams.unreadable import SkippedVideo, combine_errors
from streamloader.values import Field, ObjectInfo, StreamInfo

__all__ = ["ArticleStreams"]

_FAVORS: Final = ("balance", "precision", "recall")
_FETCHES: Final = ("lazy", "ahead")


class ArticleStreams(StreamDataset):
    """One stream for each web page: the bytes (uint8) or tokens (int64) of its main text, in the field ``"data"``.

    Pages are fetched politely: robots.txt is obeyed (RFC 9309, with Crawl-delay), one host receives at most one request
    every `delay_s` seconds and `connections` at a time, from all lanes, workers and ranks of this machine together, and
    Retry-After is respected. Their main text, without menus, advertisements and footers, is extracted by trafilatura in
    child processes with limits of memory and time.

    A page without a text (missing, forbidden, not a text, too large or too slow, without a main text) is left out: its
    stream has no steps. It is logged, and :attr:`skipped` names it. If no connection can be made to servers that
    answered before, an error is raised instead, because the network of this machine may be the cause.

    **What was read once does not change.** Lists and texts are kept in `cache_dir` under the name of the snapshot. They
    are played from there in later epochs and after a resume, also if the pages have changed or are gone. A state is
    valid only with the same folder, or a copy of it.

    Args:
        pages: Address of a page, or a list of these.
        tokenizer: Function from str to a sequence of ints, as for :class:`~streamloader.TextStreams`. Defaults to None,
            which streams the text in UTF-8.
        feeds: Addresses of feeds (RSS, Atom, JSON Feed), whose pages are added in their order.
        sitemaps: Addresses of sitemaps, of their indexes, or of a ``/robots.txt`` that lists them.
        follow: Number of endless streams that follow the feeds. New articles are dealt to them in turn. Each step then
            has the fields ``"start"`` (bool), which is True on the first step of an article, and ``"article"`` (int64),
            its number in :attr:`articles`. Use as many as lanes, and ``timeout=None`` for the loader: a quiet feed
            sends nothing for days. Defaults to None: the feeds are read once.
        pattern: Glob pattern for the addresses in feeds and sitemaps, such as ``"*/2026/*"``. Defaults to all.
        max_articles: Maximum number of pages. Defaults to no limit.
        fill: Value of padding. Defaults to 0.
        favor: Rule for text that may or may not belong to the article: ``"balance"``, ``"precision"`` or ``"recall"``.
        comments: Whether readers' comments are kept. Defaults to False.
        tables: Whether tables are kept. Defaults to True.
        fetch: ``"lazy"``: pages are fetched shortly before they are played, so lengths are unknown. ``"ahead"``: all
            pages are fetched when the loader is built, so ``len(loader)`` is exact. Defaults to ``"lazy"``.
        unreadable: ``"skip"`` leaves out pages without a text; ``"raise"`` raises their errors. Defaults to ``"skip"``.
        snapshot: Name of the snapshot. Another name fetches all lists and pages again; pages that have not changed
            since the latest snapshot are not transferred.
        cache_dir: Folder of the snapshots. Defaults to one in ``$STREAMLOADER_CACHE``, or in the user's cache folder.
        user_agent: Name of this program for servers and robots.txt. Defaults to ``streamloader/VERSION``.
        contact: Address of a page or mailbox, which is appended to `user_agent`: server operators can then complain.
        obey_robots: Whether to obey robots.txt, and ``noindex``, ``none`` and ``noai`` in X-Robots-Tag and in the meta
            element, and ``tdm-reservation``. False is for sites of your own. Defaults to True.
        delay_s: Minimum seconds between the starts of two requests to one host. A longer Crawl-delay is respected.
        connections: Maximum number of concurrent requests to one host. Defaults to 2.
        max_page_bytes: Maximum size of a page in bytes. Defaults to 4 MiB.
        max_page_s: Maximum seconds of the transfer of a page. Defaults to 120.
        poll_interval_s: Minimum seconds between two requests of a feed that is followed. A longer ``ttl`` and
            Retry-After are respected. Defaults to 900.
        storage_options: Options of the servers, as of :func:`streamloader.stores.open_store`: ``headers``, ``auth``,
            ``timeouts``, ``retry``. Addresses in feeds and sitemaps receive them only at the server of their list, or
            if they are bound to the server; all others must be public.

    The key of a stream is the address of its page. Step k is at k seconds.

    Raises:
        ConfigError: If the arguments contradict each other, or other users can change what is in `cache_dir`.
        MissingDependency: If the extra ``articles`` is not installed.
        StreamNotFound: If feeds and sitemaps list no page (from :meth:`index`).
        UnreadableStream: If a feed or sitemap is malformed; with ``unreadable="raise"``, if a page has no text.
        CorruptStream: If the cache has lost the text of a page, and the page is another one now.
        StoreError: If a server cannot be reached.
        StorageFull: If the disk of the cache is full.
        StreamFailed: If the tokenizer raises an error, or does not return ints.
    """

    def __init__(
        self,
        pages: str | Iterable[str] | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        feeds: str | Iterable[str] | None = None,
        sitemaps: str | Iterable[str] | None = None,
        follow: int | None = None,
        pattern: str | None = None,
        max_articles: int | None = None,
        fill: int = 0,
        favor: Literal["balance", "precision", "recall"] = "balance",
        comments: bool = False,
        tables: bool = True,
        fetch: Literal["lazy", "ahead"] = "lazy",
        unreadable: Literal["raise", "skip"] = "skip",
        snapshot: str = "default",
        cache_dir: str | None = None,
        user_agent: str | None = None,
        contact: str | None = None,
        obey_robots: bool = True,
        delay_s: float = 1.0,
        connections: int = 2,
        max_page_bytes: int = 4 << 20,
        max_page_s: float = 120.0,
        poll_interval_s: float = 900.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._steps = TextSteps(tokenizer, fill)
        _check_choice("favor", favor, _FAVORS)
        self._fetches_ahead = _check_choice("fetch", fetch, _FETCHES) == "ahead"
        self._skips = validate_unreadable(unreadable) == "skip"
        self._follow = None if follow is None else int(_check_number("follow", follow, 1))
        if follow is not None and (not feeds or pages or sitemaps or self._fetches_ahead):
            raise ConfigError('follow= takes feeds=, and neither pages, sitemaps= nor fetch="ahead"')
        for name, value, minimum in (
            ("delay_s", delay_s, 0), ("connections", connections, 1), ("max_page_bytes", max_page_bytes, 1),
            ("max_page_s", max_page_s, 0), ("poll_interval_s", poll_interval_s, 0),
            ("max_articles", 1 if max_articles is None else max_articles, 1),
        ):  # fmt: skip
            _check_number(name, value, minimum)
        definition = ListDefinition(
            pages=_check_urls(pages),
            feeds=_check_urls(feeds),
            sitemaps=_check_urls(sitemaps),
            pattern=pattern,
            max_articles=max_articles,
            extraction=tuple(ExtractionSettings(favor, bool(comments), bool(tables), bool(obey_robots))),
            snapshot=str(snapshot),
            follows=follow is not None,
        )
        if not (definition.pages or definition.feeds or definition.sitemaps):
            raise ConfigError("there are no addresses: pass pages, feeds= or sitemaps=")
        fetch_settings = FetchSettings(
            user_agent=_make_user_agent(user_agent, contact),
            delay_s=float(delay_s),
            connections=int(connections),
            max_page_bytes=int(max_page_bytes),
            max_page_s=float(max_page_s),
            obeys_robots=bool(obey_robots),
            storage_options=check_options("storage_options", storage_options) or {},
        )
        folder = default_folder() if cache_dir is None else _absolute(cache_dir)
        self._settings = SourceSettings(folder, fetch_settings, definition, float(poll_interval_s))
        self._list: PageList | None = None
        self._skips_now = self._skips

    @property
    def fields(self) -> Mapping[str, Field]:
        """The field ``"data"``: a scalar, uint8 for bytes or int64 for tokens. With `follow`, two fields more."""
        if self._follow is None:
            return {"data": self._steps.field}
        return {"data": self._steps.field, "start": Field((), "bool", fill=False), "article": Field((), "int64", -1)}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The qualified name of the tokenizer, what belongs to a text, and the number of endless streams."""
        favor, comments, tables, _ = self._settings.definition.extraction
        return {
            "tokenizer": self._steps.tokenizer_name,
            "favor": favor,
            "comments": comments,
            "tables": tables,
            "follow": self._follow,
        }

    @property
    def articles(self) -> Sequence[str]:
        """Addresses of all pages without secrets, in the order of their numbers. With `follow`, those known by now."""
        return [page.name for page in self._read_pages()]

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The pages that were left out by now, in their order, with the reason of each.

        They are read from the cache, so they include those that workers and other ranks of this machine have met.
        """
        kept, snapshot = self._open_files()
        records = []
        for page in self._read_pages():
            summary = kept.summarize_page(snapshot.page_name(page))
            if summary is not None and summary.error:
                records.append(SkippedVideo(page.name, page.name, summary.error, summary.message))
        return records

    async def index(self) -> Sequence[StreamInfo]:
        """List the pages, and describe one stream for each, in their order. Only feeds and sitemaps are fetched.

        With ``fetch="ahead"``, all pages are fetched, and those without a text are left out.
        """
        _check_packages()
        self._skips_now = self._skips or skips_unreadable()
        with self._share() as shared:
            source = shared.resource
            self._list = await shared.run(source.load_list())
            if self._follow is not None:
                return self._describe_following(self._list)
            table = self._describe_pages(self._list)
            if not self._fetches_ahead:
                return table
            with show_indexing(len(table), "pages") as report:
                kept = await shared.run(source.load_pages(self._list.pages, report))
        return await in_lane_thread(self._with_lengths, table, kept)

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return that all texts come from servers, and that their sizes are unknown."""
        return SourceSizes(np.full(len(streams), -1, np.int64), np.ones(len(streams), bool))

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one text at its first byte or token. `rng` is not used."""
        if self._follow is not None:
            return FollowingStream(
                self._share(), self._steps, info.key, number=info.extra["item"], count=self._follow,
                skips=self._skips_now,
            )  # fmt: skip
        with self._share() as shared:
            kept = await shared.run(shared.resource.load_page(self._find_page(info)))
        return await self.open_kept(kept, info)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch a page."""
        if self._follow is not None:
            return None
        shared = self._share()
        return _PreparedArticle(self, info, shared, shared.submit(shared.resource.load_page(self._find_page(info))))

    async def open_kept(self, kept: KeptPage, info: StreamInfo) -> Stream:
        """Open a page that was fetched.

        Raises:
            StreamloaderError: If it has no text, and such pages are not left out.
            StreamFailed: If the tokenizer fails, or returns another number of tokens than before.
        """
        if kept.error and not self._skips_now:
            raise make_page_error(kept, info.key, info.key)
        if not self._steps.is_tokenized:
            return MemoryStream(self._steps.encode(kept.text, info.key), info.key)
        tokens = await in_lane_thread(self._steps.encode, kept.text, info.key)
        self._steps.check_count(tokens, info)
        return MemoryStream(tokens, info.key)

    def _share(self) -> SharedResource[ArticleSource]:
        settings = self._settings
        key = "articles", options_key({"settings": settings})
        return get_shared_resource(key, lambda: ArticleSource(settings))

    def _open_files(self) -> tuple[KeptFiles, ArticleSnapshot]:
        kept = KeptFiles(self._settings.folder)
        return kept, ArticleSnapshot(kept, self._settings.definition)

    def _read_pages(self) -> Sequence[PageAddress]:
        if self._list is None:
            return ()
        if self._follow is not None:
            self._list = self._open_files()[1].read(self._list) or self._list
        return self._list.pages

    def _find_page(self, info: StreamInfo) -> PageAddress:
        if self._list is None:
            raise ConfigError("the pages are unknown before index() was called")
        page: PageAddress = self._list.pages[info.extra["item"]]
        return page

    def _describe_pages(self, found: PageList) -> StreamTable:
        keys = FileKeys.of_files([SourceFile(page.url, ObjectInfo(page.url, None)) for page in found.pages])
        identities = [f"{found.identity} {text}" for text in keys.identities or keys.keys]
        return StreamTable(keys.keys, None, {"item": range(len(found.pages))}, identities)

    def _describe_following(self, found: PageList) -> StreamTable:
        feeds, count = self._settings.definition.feeds, self._follow or 1
        name = redact_address(feeds[0]) if len(feeds) == 1 else "feeds"
        keys = [f"{name}#{number}" for number in range(count)]
        return StreamTable(keys, None, {"item": range(count)}, [f"{found.identity} {key}" for key in keys])

    def _with_lengths(self, table: StreamTable, kept: Sequence[KeptPage]) -> StreamTable:
        """Return the streams of the pages that have a text, with their lengths.

        Raises:
            UnreadableStream: If a page has none, and such pages are not left out, or if all have none.
        """
        infos = list(table)
        errors = {
            number: make_page_error(page, infos[number].key, infos[number].key)
            for number, page in enumerate(kept)
            if page.error
        }
        if errors and (not self._skips_now or len(errors) == len(infos)):
            raise combine_errors(errors, [info.key for info in infos], "pages")
        numbers = [number for number in range(len(infos)) if number not in errors]
        lengths = [len(self._steps.encode(kept[number].text, infos[number].key)) for number in numbers]
        identity = self._list.identity if self._list else ""
        keys = [infos[number].key for number in numbers]
        return StreamTable(
            keys, np.array(lengths, np.int64), {"item": numbers}, [f"{identity} {number}" for number in numbers]
        )


class _PreparedArticle(PreparedStream):
    """A page that is being fetched."""

    def __init__(
        self, dataset: ArticleStreams, info: StreamInfo, shared: SharedResource[ArticleSource], future: Future[KeptPage]
    ) -> None:
        self._dataset = dataset
        self._info = info
        self._shared = shared
        self._future = future

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._future.done()

    @property
    @override
    def max_bytes(self) -> int | None:  # type: ignore[override]
        if not self._future.done() or self._future.cancelled() or self._future.exception() is not None:
            return None
        return self._future.result().length

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        """Open the stream. If the page could not be fetched, it is fetched again: the cause may be gone."""
        try:
            with self._shared:
                kept = await asyncio.wrap_future(self._future)
        except StreamloaderError:
            return await self._dataset.open(self._info, rng)
        return await self._dataset.open_kept(kept, self._info)

    @override
    def release(self) -> None:
        self._future.cancel()
        self._shared.close()


def _check_packages() -> None:
    """Check that the packages of the extra are installed, which only child processes import.

    Raises:
        MissingDependency: If one is not.
    """
    for name in ("lxml", "protego", "trafilatura"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(f"articles need {name}: pip install streamloader[articles]")


def _check_urls(addresses: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return addresses of web pages, each once, without fragments.

    Raises:
        ConfigError: If one is not an address of http or https.
    """
    if addresses is None:
        return ()
    checked: dict[str, None] = {}
    for address in as_addresses(addresses):
        url = address.partition("#")[0]
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"{redact_address(address)} is not the address of a web page: it must be http(s)://")
        parse_server_url(split_address(url)[0])
        checked[url] = None
    return tuple(checked)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def _check_number(name: str, value: Any, minimum: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < minimum:
        raise ConfigError(f"{name} must be a number of {minimum:g} or more, got {value!r}")
    return float(value)


def _make_user_agent(user_agent: str | None, contact: str | None) -> str:
    """Return the value of the header User-Agent.

    Raises:
        ConfigError: If it is not one.
    """
    version = sys.modules["streamloader"].__version__  # not imported: the package's root names all of its parts
    name = f"streamloader/{version}" if user_agent is None else user_agent
    result = name if contact is None else f"{name} (+{contact})"
    if not name.strip() or not name[0].isalnum() or not result.isascii() or not result.isprintable():
        raise ConfigError(
            f"user_agent={user_agent!r}, contact={contact!r}: expected printable ASCII, such as "
            "'my-crawler/1.0' and 'https://example.org/crawler'"
        )
    return result


def _absolute(folder: str) -> str:
    return os.path.abspath(expand_path(folder, create=True))
