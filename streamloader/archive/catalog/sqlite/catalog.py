"""The catalog of an archive in one SQLite file."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, TypeVar

from typing_extensions import override

from streamloader.archive.catalog.base import (
    Catalog,
    CatalogHeader,
    ChunkRow,
    IngestJob,
    LocatedChunks,
    Place,
    Snapshot,
    StagedChunk,
    VideoRow,
)
from streamloader.archive.catalog.query import MetadataQuery
from streamloader.archive.catalog.sqlite import integrity, reads, writes
from streamloader.archive.catalog.sqlite.connection import SqliteSession
from streamloader.archive.catalog.sqlite.schema import CatalogFile, create_file
from streamloader.archive.catalog.validation import check_chunk, check_content, check_job, check_places, check_video
from streamloader.arguments import expand_path
from streamloader.errors import CatalogError, ConfigError

__all__ = ["SqliteCatalog"]

T = TypeVar("T")

_SCHEME: Final = re.compile(r"(?i)sqlite://")
_PAGE_VIDEOS: Final = 500  # videos that are scanned in one call of the thread
_PAGE_CHUNKS: Final = 5_000
_MAX_NUMBER: Final = 2**62  # larger than every number of a frame, chunk or video


class SqliteCatalog(Catalog):
    """A catalog in an SQLite file: ``/path`` or ``sqlite:///path``. All processes of one machine can share it.

    The file is in WAL mode: readers see the last commit and never wait, writers take turns. All changes are on disk
    when a call returns, in the file itself or in its log, the file ``-wal`` beside it; :meth:`checkpoint` and
    :meth:`aclose` empty the log. Reads never write, except that an older schema is migrated. A read-only file can be
    read.

    The path is used literally, without percent-decoding. The file must not be on a network file system: machines that
    share a catalog need MongoDB, or copies of the file.

    Args:
        url: Path of the file, or ``sqlite:///path``.
        timeout: Time limit of one call in seconds, including waits for locks. :meth:`find_problems` has no limit.

    Raises:
        ConfigError: If `url` is not the path of a file.
    """

    schemes: ClassVar[tuple[str, ...]] = ("", "sqlite")

    def __init__(self, url: str | os.PathLike[str], *, timeout: float = 30.0) -> None:
        self.url = self.path = _parse_path(os.fspath(url))
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout} s: it must be more than 0")
        self.timeout = float(timeout)
        self._session = SqliteSession(self.path, self.timeout)

    def __repr__(self) -> str:
        return f"SqliteCatalog({self.path!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # --- the whole catalog -------------------------------------------------------------------------------------------

    @override
    async def create(self, places: Sequence[Place]) -> CatalogHeader:
        # Missing folders are created, too.
        checked = check_places(places)
        await self._session.run_without_connection(lambda: create_file(self.path, checked))
        return await self.get_header()

    @override
    async def get_header(self) -> CatalogHeader:
        return await self._session.run(lambda file: reads.get_header(file.db))

    @override
    async def set_places(self, places: Sequence[Place]) -> CatalogHeader:
        return await self._write(lambda file: writes.set_places(file.db, places))

    @override
    async def get_snapshot(self) -> Snapshot:
        return await self._session.run(lambda file: reads.get_snapshot(file.db))

    @override
    async def find_problems(self) -> list[str]:
        # Takes minutes for millions of chunks. Other calls run between the pages.
        problems = await self._session.run(lambda file: integrity.find_file_problems(file.db), limited=False)
        if problems:
            return problems  # the other checks would read damaged pages
        expected, more = integrity.ExpectedOffsets(), True
        while more:
            video_problems, more = await self._session.run(
                lambda file: integrity.find_video_problems(file.db, self.url, expected), limited=False
            )
            problems += video_problems
        return problems + await self._session.run(lambda file: integrity.find_orphan_problems(file.db), limited=False)

    @override
    async def checkpoint(self) -> None:
        await self._session.run(lambda file: file.checkpoint())

    @override
    async def aclose(self) -> None:
        await self._session.aclose()

    # --- reading -----------------------------------------------------------------------------------------------------

    @override
    async def locate_frames(self, start: int, stop: int) -> list[LocatedChunks]:
        if start < 0:
            raise CatalogError(f"the archive {self.url} has no frame {start}", address=self.url, offset=start)
        start, stop = min(start, _MAX_NUMBER), min(stop, _MAX_NUMBER)
        return await self._session.run(lambda file: reads.locate_frames(file.db, start, stop))

    @override
    async def get_chunks(self, content: str, start: int, stop: int) -> list[ChunkRow]:
        key, low, high = check_content(content), _clamp(start), _clamp(stop)
        return await self._session.run(lambda file: reads.get_chunks(file.db, key, low, high))

    @override
    async def get_indexes(self, content: str, numbers: Sequence[int]) -> list[bytes]:
        key = check_content(content)
        return await self._session.run(lambda file: reads.get_indexes(file.db, self.url, key, numbers))

    @override
    async def get_codings(self, keys: Sequence[str]) -> list[Mapping[str, Any]]:
        return await self._session.run(lambda file: reads.get_codings(file.db, self.url, keys))

    @override
    async def get_video(self, number: int) -> VideoRow | None:
        return await self._get_video_by("number", _clamp(number))

    @override
    async def get_video_by_name(self, name: str) -> VideoRow | None:
        return await self._get_video_by("name", name)

    @override
    async def find_names(self, text: str, *, stop: int | None = None) -> list[str]:
        last = _MAX_NUMBER if stop is None else _clamp(stop)
        return await self._session.run(lambda file: reads.find_names(file.db, text, last))

    @override
    async def get_video_at(self, time_ns: int) -> VideoRow | None:
        return await self._get_video_by("time", _clamp(time_ns))

    @override
    async def get_video_by_content(self, content: str) -> VideoRow | None:
        return await self._get_video_by("content", check_content(content))

    @override
    def find_videos(
        self, where: Mapping[str, Any] | None = None, *, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[VideoRow, None]:
        # Scans all videos of the range, a few hundred thousand per second.
        return self._find_videos(MetadataQuery(where), max(start, 0), stop)

    async def _find_videos(self, query: MetadataQuery, number: int, stop: int | None) -> AsyncGenerator[VideoRow, None]:
        end = await self._limit_stop(stop)
        while number < end:
            page, number = await self._session.run(_bind(reads.find_page, query, number, end, _PAGE_VIDEOS))
            for video in page:
                yield video

    @override
    async def count_videos(self, where: Mapping[str, Any] | None = None, *, stop: int | None = None) -> Snapshot:
        query = MetadataQuery(where)
        end = await self._limit_stop(stop)
        if not query:
            return await self._session.run(lambda file: reads.get_snapshot(file.db, end))
        number, total = 0, Snapshot()
        while number < end:
            page, number = await self._session.run(_bind(reads.count_page, query, number, end, _PAGE_VIDEOS))
            total = Snapshot(
                total.videos + page.videos,
                total.frames + page.frames,
                total.chunks + page.chunks,
                total.duration_ns + page.duration_ns,
            )
        return total

    @override
    async def list_chunk_paths(self, place: int) -> AsyncGenerator[tuple[str, str], None]:
        after: tuple[int, int] | None = (0, -1)
        while after is not None:
            page, after = await self._session.run(_bind(reads.list_paths_page, place, after, _PAGE_CHUNKS))
            for content_and_path in page:
                yield content_and_path

    # --- adding ------------------------------------------------------------------------------------------------------

    @override
    async def begin_job(self, job: IngestJob) -> VideoRow | None:
        content = check_job(job)
        return await self._write(lambda file: writes.begin_job(file.db, self.url, content, job))

    @override
    async def record_heartbeat(self, content: str, now: float) -> None:
        key = check_content(content)
        await self._write(lambda file: writes.record_heartbeat(file.db, key, now))

    @override
    async def stage_chunks(self, chunks: Sequence[StagedChunk]) -> None:
        checked = [(check_chunk(chunk), chunk) for chunk in chunks]
        if checked:
            await self._write(lambda file: writes.stage_chunks(file.db, self.url, checked))

    @override
    async def get_staged_chunks(self, content: str) -> list[ChunkRow]:
        key = check_content(content)
        return await self._session.run(lambda file: reads.get_staged_chunks(file.db, key))

    @override
    async def commit_video(self, video: VideoRow) -> VideoRow:
        check_video(video)
        content = check_content(video.content)
        return await self._write(lambda file: writes.commit_video(file.db, self.url, content, video))

    @override
    async def abandon_job(self, content: str) -> None:
        key = check_content(content)
        await self._write(lambda file: writes.abandon_job(file.db, key))

    @override
    async def list_jobs(self) -> list[IngestJob]:
        return await self._session.run(lambda file: reads.list_jobs(file.db))

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[CatalogFile], T]) -> T:
        def work_if_writable(file: CatalogFile) -> T:
            if not file.writable:
                raise CatalogError(f"the catalog {self.url} is read-only", address=self.url)
            file.has_log = True
            return work(file)

        return await self._session.run(work_if_writable)

    async def _get_video_by(self, column: str, value: Any) -> VideoRow | None:
        return await self._session.run(lambda file: reads.get_video_by(file.db, column, value))

    async def _limit_stop(self, stop: int | None) -> int:
        videos = (await self.get_snapshot()).videos
        return videos if stop is None else min(stop, videos)


def _bind(function: Callable[..., T], *args: Any) -> Callable[[CatalogFile], T]:
    return lambda file: function(file.db, *args)


def _clamp(number: int) -> int:
    return max(min(number, _MAX_NUMBER), -_MAX_NUMBER)


def _parse_path(url: str) -> str:
    match = _SCHEME.match(url)
    path = url[match.end() :] if match else url
    if match and path.startswith("//"):  # sqlite:////absolute, as other tools write it
        path = path[1:]
    elif match and not path.startswith("/"):
        raise ConfigError(f"{url} names another machine: write sqlite:///path, or just the path", address=url)
    if not path or "\0" in path or path == "/" or path.lstrip("/") == ":memory:":
        raise ConfigError(f"{url!r} is not the path of a file", address=url)
    return os.path.abspath(expand_path(path, create=True))
