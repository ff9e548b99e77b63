"""The catalog of an archive in one SQLite file."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, TypeVar

from streamloader.archive.catalog.base import (
    Catalog,
    ChunkRow,
    Header,
    Job,
    Located,
    Place,
    Snapshot,
    StagedChunk,
    VideoRow,
)
from streamloader.archive.catalog.query import Where
from streamloader.archive.catalog.sqlite import integrity, reads, writes
from streamloader.archive.catalog.sqlite.connection import Session
from streamloader.archive.catalog.sqlite.schema import Opened, make_file
from streamloader.archive.catalog.validation import check_chunk, check_content, check_job, check_places, check_video
from streamloader.errors import CatalogError, ConfigError

__all__ = ["SqliteCatalog"]

T = TypeVar("T")

_SCHEME: Final = re.compile(r"(?i)sqlite://")
_VIDEOS: Final = 500  # that are looked at in one visit to the thread
_CHUNKS: Final = 5_000
_LARGEST: Final = 2**62  # beyond every number


class SqliteCatalog(Catalog):
    """An SQLite file: ``/path`` or ``sqlite:///path``. All processes of one machine can use it at once.

    It is in WAL mode: readers see the last commit, wait for nobody and hold up nobody; writers take turns. Everything
    that changes the catalog is on disk when the call returns. Nothing is ever written by a call that reads, except that
    an older form of catalog is brought to this one's; a catalog that may not be written can be read all the same.

    The path is taken as it is written, without percent-encoding. A network file system is no place for it: machines
    that share a catalog need MongoDB, or copies of the file.

    Args:
        url: where the file is, or shall be.
        timeout: seconds that one call may take, with its wait for others' locks; :meth:`problems` is not limited.

    Raises:
        ConfigError: that is no path.
    """

    schemes: ClassVar[tuple[str, ...]] = ("", "sqlite")

    def __init__(self, url: str | os.PathLike[str], *, timeout: float = 30.0) -> None:
        self.url = self.path = _path(os.fspath(url))
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout} s: it has to be more than 0")
        self.timeout = float(timeout)
        self._session = Session(self.path, self.timeout)

    def __repr__(self) -> str:
        return f"SqliteCatalog({self.path!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # --- as a whole --------------------------------------------------------------------------------------------------

    async def create(self, places: Sequence[Place]) -> Header:
        """See :meth:`Catalog.create`. Missing folders are made, too."""
        found = check_places(places)
        await self._session.do_without_file(lambda: make_file(self.path, found))
        return await self.header()

    async def header(self) -> Header:
        """See :meth:`Catalog.header`."""
        return await self._session.do(lambda opened: reads.header(opened.db))

    async def set_places(self, places: Sequence[Place]) -> Header:
        """See :meth:`Catalog.set_places`."""
        return await self._change(lambda opened: writes.set_places(opened.db, places))

    async def snapshot(self) -> Snapshot:
        """See :meth:`Catalog.snapshot`."""
        return await self._session.do(lambda opened: reads.snapshot(opened.db))

    async def problems(self) -> list[str]:
        """See :meth:`Catalog.problems`. Takes minutes for millions of chunks; others can go on meanwhile."""
        problems = await self._session.do(lambda opened: integrity.file_problems(opened.db), limited=False)
        if problems:
            return problems  # what follows would read damaged pages
        expected, more = integrity.Expected(), True
        while more:
            told, more = await self._session.do(
                lambda opened: integrity.video_problems(opened.db, self.url, expected), limited=False
            )
            problems += told
        return problems + await self._session.do(lambda opened: integrity.loose_problems(opened.db), limited=False)

    async def aclose(self) -> None:
        """See :meth:`Catalog.aclose`."""
        await self._session.aclose()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def locate(self, start: int, stop: int) -> list[Located]:
        """See :meth:`Catalog.locate`."""
        if start < 0:
            raise CatalogError(f"the archive {self.url} has no frame {start}", address=self.url, offset=start)
        start, stop = min(start, _LARGEST), min(stop, _LARGEST)
        return await self._session.do(lambda opened: reads.locate(opened.db, self.url, start, stop))

    async def chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        """See :meth:`Catalog.chunks`."""
        key, low, high = check_content(content), _bounded(start), _bounded(stop)
        return await self._session.do(lambda opened: reads.chunks(opened.db, key, low, high))

    async def indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        """See :meth:`Catalog.indexes`."""
        key = check_content(content)
        return await self._session.do(lambda opened: reads.indexes(opened.db, self.url, key, numbers))

    async def codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        """See :meth:`Catalog.codings`."""
        return await self._session.do(lambda opened: reads.codings(opened.db, self.url, keys))

    async def video(self, number: int) -> VideoRow | None:
        """See :meth:`Catalog.video`."""
        return await self._video("number", _bounded(number))

    async def named(self, name: str) -> VideoRow | None:
        """See :meth:`Catalog.named`."""
        return await self._video("name", name)

    async def video_at(self, nanoseconds: int) -> VideoRow | None:
        """See :meth:`Catalog.video_at`."""
        return await self._video("time", _bounded(nanoseconds))

    async def containing(self, content: str) -> VideoRow | None:
        """See :meth:`Catalog.containing`."""
        return await self._video("content", check_content(content))

    def find(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        """See :meth:`Catalog.find`. All videos of the range are looked at, some hundreds of thousands a second."""
        return self._find(Where(where), max(start, 0), stop)

    async def _find(self, where: Where, at: int, stop: int | None) -> AsyncGenerator[VideoRow, None]:
        end = await self._end(stop)
        while at < end:
            page, at = await self._session.do(_with(reads.find, where, at, end, _VIDEOS))
            for video in page:
                yield video

    async def count(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        """See :meth:`Catalog.count`."""
        asked = Where(where)
        end = await self._end(stop)
        if not asked:
            return await self._session.do(lambda opened: reads.snapshot(opened.db, end))
        at, total = 0, Snapshot()
        while at < end:
            page, at = await self._session.do(_with(reads.count, asked, at, end, _VIDEOS))
            total = Snapshot(
                total.videos + page.videos,
                total.frames + page.frames,
                total.chunks + page.chunks,
                total.nanoseconds + page.nanoseconds,
            )
        return total

    async def paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        """See :meth:`Catalog.paths`."""
        after: tuple[int, int] | None = (0, -1)
        while after is not None:
            page, after = await self._session.do(_with(reads.paths, place, after, _CHUNKS))
            for found in page:
                yield found

    # --- adding ------------------------------------------------------------------------------------------------------

    async def begin(self, job: Job) -> VideoRow | None:
        """See :meth:`Catalog.begin`."""
        content = check_job(job)
        return await self._change(lambda opened: writes.begin(opened.db, self.url, content, job))

    async def beat(self, content: str, now: float) -> None:
        """See :meth:`Catalog.beat`."""
        key = check_content(content)
        await self._change(lambda opened: writes.beat(opened.db, key, now))

    async def stage(self, chunks: Sequence[StagedChunk]) -> None:
        """See :meth:`Catalog.stage`."""
        checked = [(check_chunk(chunk), chunk) for chunk in chunks]
        if checked:
            await self._change(lambda opened: writes.stage(opened.db, self.url, checked))

    async def staged(self, content: str) -> list[ChunkRow]:
        """See :meth:`Catalog.staged`."""
        key = check_content(content)
        return await self._session.do(lambda opened: reads.staged(opened.db, key))

    async def commit(self, video: VideoRow) -> VideoRow:
        """See :meth:`Catalog.commit`."""
        check_video(video)
        content = check_content(video.content)
        return await self._change(lambda opened: writes.commit(opened.db, self.url, content, video))

    async def abandon(self, content: str) -> None:
        """See :meth:`Catalog.abandon`."""
        key = check_content(content)
        await self._change(lambda opened: writes.abandon(opened.db, key))

    async def jobs(self) -> list[Job]:
        """See :meth:`Catalog.jobs`."""
        return await self._session.do(lambda opened: reads.jobs(opened.db))

    # --- help --------------------------------------------------------------------------------------------------------

    async def _change(self, work: Callable[[Opened], T]) -> T:
        def checked(opened: Opened) -> T:
            if not opened.writable:
                raise CatalogError(f"the catalog {self.url} may not be written", address=self.url)
            return work(opened)

        return await self._session.do(checked)

    async def _video(self, what: str, value: Any) -> VideoRow | None:
        return await self._session.do(lambda opened: reads.video_by(opened.db, what, value))

    async def _end(self, stop: int | None) -> int:
        there = (await self.snapshot()).videos
        return there if stop is None else min(stop, there)


def _with(function: Callable[..., T], *args: Any) -> Callable[[Opened], T]:
    return lambda opened: function(opened.db, *args)


def _bounded(number: int) -> int:
    return max(min(number, _LARGEST), -_LARGEST)


def _path(url: str) -> str:
    found = _SCHEME.match(url)
    path = url[found.end() :] if found else url
    if found and path.startswith("//"):  # sqlite:////absolute, as others write it
        path = path[1:]
    elif found and not path.startswith("/"):
        raise ConfigError(f"{url} names another machine; write sqlite:///path, or just the path", address=url)
    if not path or "\0" in path or path == "/" or path.lstrip("/") == ":memory:":
        raise ConfigError(f"{url!r} is no path of a file", address=url)
    return os.path.abspath(os.path.expanduser(path))
