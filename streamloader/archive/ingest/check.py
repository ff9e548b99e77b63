"""Check that the catalog and the stores of an archive agree, and repair what disagrees."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog, ChunkRow, IngestJob, VideoRow
from streamloader.archive.catalog.chunk_paths import extract_content
from streamloader.archive.ingest.inventory import PlaceInventory
from streamloader.archive.ingest.owners import PlaceOwners, find_nested_files
from streamloader.archive.ingest.rebuild import BrokenChunk, rebuild_chunks
from streamloader.archive.ingest.report import CheckReport, Problem
from streamloader.archive.ingest.temp_dir import remove_stale_dirs
from streamloader.archive.location import PlaceAddress, resolve_places
from streamloader.errors import NotSupported, StoreError, StreamloaderError
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import SharedResource

__all__ = ["STALE_AFTER_S", "check_archive"]

STALE_AFTER_S: Final = 600.0  # without a heartbeat, a job counts as abandoned after this time
_MAX_CONCURRENT_CHUNKS: Final = 8
_BATCH_VIDEOS: Final = 200
_BATCH_PATHS: Final = 10_000
_log: Final = logging.getLogger("streamloader")


def check_archive(
    catalog: SharedResource[Catalog],
    *,
    repair: bool = False,
    deep: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    stale_after: float = STALE_AFTER_S,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    places: Mapping[int | str, str] | None = None,
    claim: bool = False,
) -> CheckReport:
    """Check the catalog, the presence and size of each chunk, and that there are no other files.

    Other processes may read from the archive and add to it at the same time. Their unfinished work is left alone.

    Args:
        catalog: Catalog of the archive.
        repair: Whether to delete files that belong to no video, to delete stale jobs with their files, and to rebuild
            broken chunks whose source is available and unchanged. No part of a video is ever deleted, and no file that
            may belong to another archive: see :mod:`streamloader.archive.ingest.owners`. Defaults to False.
        deep: Whether to read all chunks and compare their digests. Defaults to False.
        storage_options: Options of the stores of places and sources, see
            :func:`streamloader.stores.registry.select_options`.
        stale_after: Time in seconds without a sign of life after which a job or a partial file counts as abandoned.
        max_pixels: Maximum number of pixels of a frame of a source from which chunks are rebuilt. Defaults to 2^26.
        places: Addresses by which this machine reaches the places, by number or URL of the place. A place on another
            machine that only the author of the catalog names is not contacted with credentials, and not repaired: see
            :mod:`streamloader.stores.origins`. Defaults to none.
        claim: Whether the user is certain that no other archive uses the places, although they do not record it. A
            place that records another archive is not claimed. Needs `repair`. Defaults to False.

    Raises:
        CatalogError: If the catalog cannot be used.
        ConfigError: If `places` names a place that the archive does not have.
    """
    return _ArchiveCheck(
        catalog, repair, deep, storage_options, stale_after, validate_max_pixels(max_pixels), places or {}, claim=claim
    ).run()


class _ArchiveCheck:
    """One check of an archive, see :func:`check_archive`."""

    def __init__(
        self,
        catalog: SharedResource[Catalog],
        repair: bool,
        deep: bool,
        storage_options: Mapping[str, Any] | None,
        stale_after: float,
        max_pixels: int,
        places: Mapping[int | str, str],
        *,
        claim: bool,
    ) -> None:
        self._catalog = catalog
        self._repair = repair
        self._deep = deep
        self._storage_options = storage_options
        self._stale_after = stale_after
        self._max_pixels = max_pixels
        self._places = places
        self._claim = claim
        self._archive = ""
        self._unreachable: set[int] = set()
        self._problems: list[Problem] = []
        self._inventories: dict[int, PlaceInventory] = {}
        self._videos = self._chunks = self._bytes = 0

    def run(self) -> CheckReport:
        started = time.monotonic()
        remove_stale_dirs()
        catalog = self._catalog.resource
        header = self._catalog.call(catalog.get_header())
        self._archive = header.archive_id
        addresses = resolve_places(header.places, self._places, catalog.url, self._storage_options)
        try:
            for address in addresses.values():
                # The files before the catalog's rows: a file without a row is then an orphan, and not just newer.
                self._open_inventory(address)
            self._problems += [Problem("catalog", line) for line in self._catalog.call(catalog.find_problems())]
            live_contents = self._check_jobs()
            broken = self._check_videos()
            doubts = {number: self._find_doubt(inventory) for number, inventory in self._inventories.items()}
            self._check_orphans(live_contents, doubts)
            self._check_unfinished_files(doubts)
            self._report_broken_chunks(broken)
        finally:
            for inventory in self._inventories.values():
                inventory.close()
        seconds = time.monotonic() - started
        return CheckReport(tuple(self._problems), self._videos, self._chunks, self._bytes, seconds)

    def _open_inventory(self, address: PlaceAddress) -> None:
        try:
            inventory = PlaceInventory(address, address.select_options(self._storage_options))
        except StoreError as error:
            self._unreachable.add(address.number)
            text = f"place {address.number} cannot be scanned: {error.message}"
            self._problems.append(Problem("unreachable", text, address=redact_address(address.url)))
            return
        self._inventories[address.number] = inventory
        try:
            inventory.scan()
        except NotSupported:
            pass  # the store has no listings: chunks are looked up one by one, and orphans cannot be found
        except StreamloaderError as error:
            inventory.reachable = False
            text = f"place {inventory.place.number} ({inventory.url}) cannot be scanned: {error.message}"
            self._problems.append(Problem("unreachable", text, address=inventory.url))

    # --- jobs --------------------------------------------------------------------------------------------------------

    def _check_jobs(self) -> set[str]:
        """Report stale jobs. Return the contents of the jobs whose files must be kept."""
        catalog = self._catalog.resource
        live_contents = set()
        for job in self._catalog.call(catalog.list_jobs()):
            idle_s = time.time() - job.heartbeat
            rows = self._catalog.call(catalog.get_staged_chunks(job.content))
            if idle_s < self._stale_after:
                live_contents.add(job.content)
                continue
            size = sum(row.bytes for row in rows)
            text = (
                f"the job of {job.name} ({job.source}) was started and not finished: it has {len(rows)} chunks with "
                f"{size:,} bytes, and no process has worked on it for {idle_s / 60:.0f} minutes. Add the video again "
                "to resume"
            )
            if self._repair and self._is_still_stale(job):
                self._catalog.call(catalog.abandon_job(job.content))
                self._problems.append(Problem("job", f"{text}: deleted", repaired=True))
            else:
                live_contents.add(job.content)  # its files belong to it
                self._problems.append(Problem("job", text))
        return live_contents

    def _is_still_stale(self, job: IngestJob) -> bool:
        """Return whether no process has resumed a job since it was read."""
        jobs = self._catalog.call(self._catalog.resource.list_jobs())
        return any(current.content == job.content and current.heartbeat == job.heartbeat for current in jobs)

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _check_videos(self) -> list[BrokenChunk]:
        broken: list[BrokenChunk] = []
        catalog = self._catalog.resource
        snapshot = self._catalog.call(catalog.get_snapshot())
        with ThreadPoolExecutor(_MAX_CONCURRENT_CHUNKS, "streamloader-check") as pool:
            for start in range(0, snapshot.videos, _BATCH_VIDEOS):
                stop = min(start + _BATCH_VIDEOS, snapshot.videos)
                for video, rows in self._catalog.call(_read_videos_with_chunks(catalog, start, stop)):
                    self._videos += 1
                    self._chunks += len(rows)
                    self._bytes += sum(row.bytes for row in rows)
                    for row, problem in zip(rows, pool.map(self._check_chunk, rows), strict=True):
                        if problem is not None:
                            broken.append(BrokenChunk(video, row, replace(problem, video=video.name)))
        return broken

    def _check_chunk(self, row: ChunkRow) -> Problem | None:
        inventory = self._inventories.get(row.place)
        if row.place in self._unreachable:
            return None  # reported already
        if inventory is None:
            text = f"chunk {row.number} of {row.content} is in place {row.place}, which the archive does not have"
            return Problem("missing", text)
        if not inventory.reachable:
            return None  # reported already
        address = inventory.address(row.path)
        try:
            difference = self._compare_file(inventory, row)
        except StoreError as error:
            difference = "unreachable", f"cannot be read ({error.message})"
        if difference is None:
            return None
        kind, description = difference
        return Problem(kind, f"chunk {row.number} {description}: {address}", address=address)

    def _compare_file(self, inventory: PlaceInventory, row: ChunkRow) -> tuple[str, str] | None:
        """Compare the file of a chunk with its row. Return kind and description of a difference, or None."""
        size = inventory.get_size(row.path)
        if size is None:
            return "missing", "is missing"
        if size != row.bytes:
            return "size", f"has {size:,} bytes instead of {row.bytes:,}"
        if self._deep and inventory.compute_digest(row.path, row.bytes) != row.digest:
            return "digest", "is damaged"
        return None

    def _report_broken_chunks(self, broken: list[BrokenChunk]) -> None:
        """Rebuild broken chunks if requested, and report them."""
        if self._repair:
            broken = rebuild_chunks(
                broken,
                self._inventories,
                self._storage_options,
                self._catalog.resource.url,
                self._is_writable,
                self._max_pixels,
            )
        for chunk in broken:
            problem = chunk.problem
            text = f"{chunk.video.name}: {problem.text}" + (f". {chunk.outcome}" if chunk.outcome else "")
            self._problems.append(replace(problem, text=text, repaired=chunk.repaired))

    def _is_writable(self, inventory: PlaceInventory) -> bool:
        """Return whether chunks may be written to a place: the user named it, or the archive registered there."""
        if inventory.place.named or not inventory.place.is_local:
            return inventory.place.named
        with self._open_owners(inventory) as owners:
            return owners.is_registered()

    # --- files -------------------------------------------------------------------------------------------------------

    def _find_doubt(self, inventory: PlaceInventory) -> str:
        """Return why nothing may be deleted in a place. Return "" if files without a row can be deleted there."""
        if not inventory.reachable or not self._repair:
            return "it is not repaired"
        try:
            with self._open_owners(inventory) as owners:
                if not inventory.place.named and not (inventory.place.is_local and owners.is_registered()):
                    return "only the catalog names this place: pass places= to name it"
                doubt = owners.find_doubt()
                if doubt and self._claim:
                    owners.claim()
                    doubt = owners.find_doubt()
                return doubt
        except StreamloaderError as error:
            return error.message

    def _open_owners(self, inventory: PlaceInventory) -> PlaceOwners:
        place = inventory.place
        options = place.select_options(self._storage_options)
        return PlaceOwners(place.url, options, place.number, self._archive, self._catalog)

    def _check_orphans(self, live_contents: set[str], doubts: Mapping[int, str]) -> None:
        if any(problem.kind == "catalog" for problem in self._problems) and self._repair:
            return  # a damaged catalog may have lost rows, so files without rows are not deleted
        for number, inventory in self._inventories.items():
            if not inventory.reachable or not inventory.listed:
                continue
            unknown_files = inventory.find_unknown_files(self._read_chunk_paths(inventory))
            orphans = [info for info in unknown_files if extract_content(info.path) not in live_contents]
            nested = find_nested_files([info.path for info in unknown_files])
            candidates = [info.path for info in orphans if info.path not in nested]
            deletable = set() if doubts[number] else self._recheck_orphans(inventory, candidates)
            for info in orphans:
                text = f"a file of {info.size or 0:,} bytes belongs to no video: {inventory.address(info.path)}"
                if info.path in deletable:
                    self._delete_file("orphan", inventory, info.path, text)
                    continue
                if self._repair:
                    reason = doubts[number] or "it belongs to another place, whose folder is inside this one"
                    text += f". It is not deleted: {reason}"
                self._problems.append(Problem("orphan", text, address=inventory.address(info.path)))
            if self._repair and not unknown_files and inventory.place.named:
                self._register_if_all_known(inventory)

    def _register_if_all_known(self, inventory: PlaceInventory) -> None:
        """Record that all files of a place belong to this archive, if no unfinished work makes that uncertain."""
        try:
            if not self._catalog.call(self._catalog.resource.list_jobs()):
                with self._open_owners(inventory) as owners:
                    owners.claim()
        except StreamloaderError as error:  # for example in a read-only place
            _log.info("%s does not record that this archive uses it: %s", inventory.url, error.message)

    def _read_chunk_paths(self, inventory: PlaceInventory) -> Iterable[str]:
        paths = self._catalog.resource.list_chunk_paths(inventory.place.number)
        try:
            while batch := self._catalog.call(_take_paths(paths)):
                yield from batch
        finally:
            self._catalog.call(paths.aclose())

    def _recheck_orphans(self, inventory: PlaceInventory, paths: list[str]) -> set[str]:
        """Return the paths that are still orphans, from the catalog's current state, right before their deletion."""
        catalog = self._catalog.resource
        live_contents = {job.content for job in self._catalog.call(catalog.list_jobs())}
        used: set[str] = set()
        for content in {extract_content(path) for path in paths}:
            video = None if content is None else self._catalog.call(catalog.get_video_by_content(content))
            if video is not None:
                rows = self._catalog.call(catalog.get_chunks(video.content, 0, video.chunks))
                used |= {row.path for row in rows if row.place == inventory.place.number}
        return {path for path in paths if path not in used and extract_content(path) not in live_contents}

    def _check_unfinished_files(self, doubts: Mapping[int, str]) -> None:
        for number, inventory in self._inventories.items():
            if not inventory.reachable:
                continue
            for info in inventory.list_unfinished():
                if info.modified is None or time.time() - info.modified < self._stale_after:
                    continue
                text = (
                    f"a killed writer left a partial file of {info.size or 0:,} bytes: {inventory.address(info.path)}"
                )
                if self._repair and not doubts[number]:
                    self._delete_file("unfinished", inventory, info.path, text)
                else:
                    text += f". It is not deleted: {doubts[number]}" if self._repair else ""
                    self._problems.append(Problem("unfinished", text, address=inventory.address(info.path)))

    def _delete_file(self, kind: str, inventory: PlaceInventory, path: str, text: str) -> None:
        address = inventory.address(path)
        try:
            inventory.delete(path)
        except StoreError as error:
            self._problems.append(Problem(kind, f"{text}. It cannot be deleted: {error.message}", address=address))
        else:
            self._problems.append(Problem(kind, f"{text}: deleted", repaired=True, address=address))


async def _read_videos_with_chunks(catalog: Catalog, start: int, stop: int) -> list[tuple[VideoRow, list[ChunkRow]]]:
    return [
        (video, await catalog.get_chunks(video.content, 0, video.chunks))
        async for video in catalog.find_videos(start=start, stop=stop)
    ]


async def _take_paths(paths: AsyncGenerator[tuple[str, str], None]) -> list[str]:
    batch: list[str] = []
    async for _, path in paths:
        batch.append(path)
        if len(batch) == _BATCH_PATHS:
            break
    return batch
