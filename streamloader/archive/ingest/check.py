"""Checking an archive: whether its catalog and its stores hold what they should, and nothing else; and mending it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog, ChunkRow, Job, VideoRow
from streamloader.archive.ingest.inventory import Shelf
from streamloader.archive.ingest.naming import content_of_path
from streamloader.archive.ingest.rebuild import Broken, remake
from streamloader.archive.ingest.report import CheckReport, Problem
from streamloader.archive.ingest.temp_dir import sweep
from streamloader.errors import NotSupported, StoreError, StreamloaderError
from streamloader.stores.io_thread import Shared
from streamloader.stores.registry import options_for

__all__ = ["STALE", "check_archive"]

STALE: Final = 600.0  # seconds without a sign of life after which nobody works on a job any more
_AT_ONCE: Final = 8  # chunks that are read side by side
_VIDEOS: Final = 200  # whose chunks are looked at in one go


def check_archive(
    catalog: Shared[Catalog],
    *,
    repair: bool = False,
    deep: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    stale: float = STALE,
) -> CheckReport:
    """Check the catalog, that each chunk is in its place with the right size, and that there is nothing else.

    Others may read from the archive and add to it meanwhile: what they are working on is left alone.

    Args:
        catalog: of the archive.
        repair: delete files that no video has, forget jobs that nobody goes on with (and delete their files), and make
            broken chunks again where their source can still be had and is the same. Nothing that is part of a video is
            ever deleted.
        deep: read all chunks, and compare their digests.
        storage_options: of places and sources, see :func:`streamloader.stores.registry.options_for`.
        stale: seconds without a sign of life after which a job, or an unfinished file, counts as left.

    Raises:
        CatalogError: the catalog cannot be used.
    """
    return _Check(catalog, repair, deep, storage_options, stale).run()


class _Check:
    """One check."""

    def __init__(
        self,
        catalog: Shared[Catalog],
        repair: bool,
        deep: bool,
        storage_options: Mapping[str, Any] | None,
        stale: float,
    ) -> None:
        self._catalog = catalog
        self._repair = repair
        self._deep = deep
        self._options = storage_options
        self._stale = stale
        self._problems: list[Problem] = []
        self._shelves: dict[int, Shelf] = {}
        self._videos = self._chunks = self._bytes = 0

    def run(self) -> CheckReport:
        began = time.monotonic()
        sweep()
        header = self._catalog.call(self._catalog.it.header())
        try:
            for place in header.places:
                # Files first, and then what the catalog says: so a file without a row has none, and is not just new.
                self._shelves[place.number] = self._look_at(Shelf(place, options_for(place.url, self._options)))
            self._problems += [Problem("catalog", line) for line in self._catalog.call(self._catalog.it.problems())]
            live = self._look_at_jobs()
            broken = self._look_at_videos()
            self._look_for_orphans(live)
            self._look_for_leftovers()
            self._mend(broken)
        finally:
            for shelf in self._shelves.values():
                shelf.close()
        seconds = time.monotonic() - began
        return CheckReport(tuple(self._problems), self._videos, self._chunks, self._bytes, seconds)

    def _look_at(self, shelf: Shelf) -> Shelf:
        try:
            shelf.look()
        except NotSupported:
            pass  # no listings: its chunks are asked for one by one, and what else is there nobody can tell
        except StreamloaderError as error:
            shelf.reachable = False
            text = f"place {shelf.place.number} ({shelf.url}) cannot be looked at: {error.message}"
            self._problems.append(Problem("unreachable", text, address=shelf.url))
        return shelf

    # --- jobs --------------------------------------------------------------------------------------------------------

    def _look_at_jobs(self) -> set[str]:
        """Return the contents that somebody works on."""
        live = set()
        for job in self._catalog.call(self._catalog.it.jobs()):
            idle = time.time() - job.beat
            rows = self._catalog.call(self._catalog.it.staged(job.content))
            if idle < self._stale:
                live.add(job.content)
                continue
            size = sum(row.bytes for row in rows)
            text = (
                f"{job.name} ({job.source}) was begun and not finished: {len(rows)} chunks with {size:,} bytes, nobody "
                f"has worked on it for {idle / 60:.0f} minutes. Add it again to go on"
            )
            if self._repair and self._is_left(job):
                self._catalog.call(self._catalog.it.abandon(job.content))
                self._problems.append(Problem("job", f"{text}: forgotten", mended=True))
            else:
                live.add(job.content)  # its files have an owner
                self._problems.append(Problem("job", text))
        return live

    def _is_left(self, job: Job) -> bool:
        """Whether nobody has taken up a job since it was looked at."""
        jobs = self._catalog.call(self._catalog.it.jobs())
        return any(now.content == job.content and now.beat == job.beat for now in jobs)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _look_at_videos(self) -> list[Broken]:
        broken: list[Broken] = []
        snapshot = self._catalog.call(self._catalog.it.snapshot())
        with ThreadPoolExecutor(_AT_ONCE, "streamloader-check") as pool:
            for start in range(0, snapshot.videos, _VIDEOS):
                stop = min(start + _VIDEOS, snapshot.videos)
                for video, rows in self._catalog.call(_with_chunks(self._catalog.it, start, stop)):
                    self._videos += 1
                    self._chunks += len(rows)
                    self._bytes += sum(row.bytes for row in rows)
                    for row, problem in zip(rows, pool.map(self._state_of, rows), strict=True):
                        if problem is not None:
                            broken.append(Broken(video, row, replace(problem, video=video.name)))
        return broken

    def _state_of(self, row: ChunkRow) -> Problem | None:
        shelf = self._shelves.get(row.place)
        if shelf is None:
            text = f"chunk {row.number} of {row.content} is in place {row.place}, which the archive does not have"
            return Problem("missing", text)
        if not shelf.reachable:
            return None  # was told already
        address = shelf.address(row.path)
        try:
            found = self._compare(shelf, row)
        except StoreError as error:
            found = "unreachable", f"cannot be read ({error.message})"
        if found is None:
            return None
        kind, what = found
        return Problem(kind, f"chunk {row.number} {what}: {address}", address=address)

    def _compare(self, shelf: Shelf, row: ChunkRow) -> tuple[str, str] | None:
        """Say what is wrong with the file of a chunk."""
        size = shelf.size_of(row.path)
        if size is None:
            return "missing", "is missing"
        if size != row.bytes:
            return "size", f"has {size:,} bytes instead of {row.bytes:,}"
        if self._deep and shelf.digest_of(row.path) != row.digest:
            return "digest", "is damaged"
        return None

    def _mend(self, broken: list[Broken]) -> None:
        """Make broken chunks again, or say that they are broken."""
        if self._repair:
            broken = remake(broken, self._shelves, self._options)
        for one in broken:
            problem = one.problem
            text = f"{one.video.name}: {problem.text}" + (f". {one.outcome}" if one.outcome else "")
            self._problems.append(replace(problem, text=text, mended=one.mended))

    # --- files -------------------------------------------------------------------------------------------------------

    def _look_for_orphans(self, live: set[str]) -> None:
        if any(problem.kind == "catalog" for problem in self._problems) and self._repair:
            return  # what such a catalog does not know may be what it lost: nothing is deleted by its word
        for shelf in self._shelves.values():
            if not shelf.reachable or not shelf.listed:
                continue
            known = self._known_paths(shelf)
            orphans = [info for info in shelf.others(known) if content_of_path(info.path) not in live]
            mended = self._still_orphans(shelf, [info.path for info in orphans]) if self._repair else set()
            for info in orphans:
                text = f"no video has this file of {info.size or 0:,} bytes: {shelf.address(info.path)}"
                if info.path in mended:
                    self._delete("orphan", shelf, info.path, text)
                else:
                    self._problems.append(Problem("orphan", text, address=shelf.address(info.path)))

    def _known_paths(self, shelf: Shelf) -> Iterable[str]:
        paths = self._catalog.it.paths(shelf.place.number)
        try:
            while page := self._catalog.call(_page(paths)):
                yield from page
        finally:
            self._catalog.call(paths.aclose())

    def _still_orphans(self, shelf: Shelf, paths: list[str]) -> set[str]:
        """Ask the catalog once more, right before files are deleted."""
        live = {job.content for job in self._catalog.call(self._catalog.it.jobs())}
        kept: set[str] = set()
        for content in {content_of_path(path) for path in paths}:
            video = None if content is None else self._catalog.call(self._catalog.it.containing(content))
            if video is not None:
                rows = self._catalog.call(self._catalog.it.chunks(video.content, 0, video.chunks))
                kept |= {row.path for row in rows if row.place == shelf.place.number}
        return {path for path in paths if path not in kept and content_of_path(path) not in live}

    def _look_for_leftovers(self) -> None:
        for shelf in self._shelves.values():
            if not shelf.reachable:
                continue
            for info in shelf.leftovers():
                if info.modified is None or time.time() - info.modified < self._stale:
                    continue
                text = f"a writer that was killed left {info.size or 0:,} bytes: {shelf.address(info.path)}"
                if self._repair:
                    self._delete("unfinished", shelf, info.path, text)
                else:
                    self._problems.append(Problem("unfinished", text, address=shelf.address(info.path)))

    def _delete(self, kind: str, shelf: Shelf, path: str, text: str) -> None:
        address = shelf.address(path)
        try:
            shelf.delete(path)
        except StoreError as error:
            self._problems.append(Problem(kind, f"{text}. It cannot be deleted: {error.message}", address=address))
        else:
            self._problems.append(Problem(kind, f"{text}: deleted", mended=True, address=address))


async def _with_chunks(catalog: Catalog, start: int, stop: int) -> list[tuple[VideoRow, list[ChunkRow]]]:
    return [
        (video, await catalog.chunks(video.content, 0, video.chunks))
        async for video in catalog.find(start=start, stop=stop)
    ]


async def _page(paths: Any) -> list[str]:
    page: list[str] = []
    async for _, path in paths:
        page.append(path)
        if len(page) == 10_000:  # noqa: PLR2004
            break
    return page
