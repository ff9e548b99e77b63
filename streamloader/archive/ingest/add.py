"""Adding videos to an archive."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from streamloader.archive.catalog.base import Catalog, Header, VideoRow
from streamloader.archive.ingest.driver import Driver
from streamloader.archive.ingest.executors.base import Engine, Threads
from streamloader.archive.ingest.naming import content_of, default_name, plain_metadata, without_secrets
from streamloader.archive.ingest.placement import SPREADS, Spread, Target, targets
from streamloader.archive.ingest.progress import Progress, shown
from streamloader.archive.ingest.report import IngestReport
from streamloader.archive.ingest.sources import is_local, local_version
from streamloader.archive.ingest.task import Task
from streamloader.errors import ConfigError, IngestFailed
from streamloader.stores.addresses import Addresses, Found, as_addresses, expand, unique_keys
from streamloader.stores.io_thread import Shared
from streamloader.stores.local import local_path
from streamloader.stores.registry import options_for

if TYPE_CHECKING:
    from streamloader.archive.ingest.unit import Unit
    from streamloader.media.chunks.settings import CutSettings

__all__ = ["Metadata", "add_videos"]

Metadata: TypeAlias = "Mapping[str, Any] | Callable[[str], Mapping[str, Any] | None] | None"

_FRESH: Final = 60.0  # seconds for which it is believed how much is free in the places
_THREADS: Final = 4  # in one worker at most: FFmpeg's encoders have threads of their own


def add_videos(
    catalog: Shared[Catalog],
    videos: Addresses,
    settings: CutSettings | None = None,
    *,
    name: str | None = None,
    metadata: Metadata = None,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    spread: Spread = "weight",
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    ray_address: str | None = None,
    on_error: Literal["raise", "report"] = "raise",
    only: Collection[int] | None = None,
) -> IngestReport:
    """Cut videos into chunks, put these into the places of an archive, and make them part of it, in this order.

    A video appears whole or not at all. Whatever is killed at any moment, the same call goes on where it was: finished
    chunks are kept, videos that are there are recognised by their content (and without being read where the source is
    one that was added before, and has not changed). An error of one video does not keep the others from being added.

    Args:
        catalog: of the archive.
        videos: what :class:`streamloader.VideoStreams` takes: files, patterns, directories, addresses of stores.
            Objects of stores are fetched to a temporary file (in TMPDIR) while they are cut.
        settings: how they are cut; by default packets are copied, and chunks have 1000 frames.
        name: of the video, if it is only one. By default videos are called like their files, without ending; where
            files of one call share a name, ``#2``, ``#3``, ... are added.
        metadata: what is kept with each video, plain JSON values; or a function of its address that returns that.
        engine: ``"local"`` for processes of this machine, ``"ray"`` for tasks on a Ray cluster.
        jobs: how much is done side by side: by default as much as this machine has cores, or the cluster CPUs. 0 does
            everything in this process, one video after the other.
        spread: how chunks are spread over the places: by their ``"weight"``, or by that times what is ``"free"``.
        storage_options: of the stores of videos and places, see :func:`streamloader.stores.registry.options_for`. They
            are never kept.
        progress: True shows on stderr how far it is; or somebody who is told.
        ray_address: of the cluster; by default the one that this process, or this machine, is part of.
        on_error: ``"report"`` returns the report although videos failed.
        only: numbers of the places that take new chunks; None for all.

    Returns:
        What was added, recognised, and what failed.

    Raises:
        ConfigError: arguments that cannot work.
        StreamNotFound: there is no such video; nothing was done.
        IngestFailed: some of several videos failed; the report is in its ``details``. For a single video, its own error
            is raised: UnreadableStream, CorruptStream, NameTaken, WorkerDied, a StoreError, ...
        CatalogError: the catalog cannot be used.
        MissingExtra: ``engine="ray"`` without Ray.
    """
    from streamloader.media.chunks.settings import CutSettings

    settings = settings if settings is not None else CutSettings()
    _check(name, engine, spread, jobs, on_error)
    header = catalog.call(catalog.it.header())
    found = _expanded(videos, storage_options)
    if name is not None and len(found) > 1:
        raise ConfigError(f"name={name!r} is for a single video, and these are {len(found)}")
    names = [name] if name is not None else unique_keys([default_name(file.address) for file in found])
    free = _Targets(header, storage_options, spread, only)
    free()  # so that what cannot work is known at once
    tasks = [_task(file, its_name, metadata) for file, its_name in zip(found, names, strict=True)]
    began = time.monotonic()
    there = _added_before(catalog, found, tasks, settings)
    at_once, threads, running = _engine(engine, jobs, len(found) - len(there), ray_address)
    units = _units(found, storage_options, settings, threads)
    with contextlib.ExitStack() as stack:
        doing = running(at_once)
        stack.callback(doing.close)
        show = stack.enter_context(shown(progress))
        driver = Driver(catalog, doing, list(zip(tasks, units, strict=True)), free, show)
        for order, video in there.items():
            driver.recognise(order, video)
        driver.run()
        report = driver.report(time.monotonic() - began)
    if report.failed and on_error == "raise":
        if len(found) == 1:
            raise report.failed[0].error
        raise _failed(report, len(found))
    return report


def _check(name: str | None, engine: str, spread: str, jobs: int | None, on_error: str) -> None:
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"the name of a video is a text, got {name!r}")
    if engine not in ("local", "ray"):
        raise ConfigError(f"engine must be 'local' or 'ray', got {engine!r}")
    if spread not in SPREADS:
        raise ConfigError(f"spread must be one of {', '.join(map(repr, SPREADS))}, got {spread!r}")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 0):
        raise ConfigError(f"jobs must be a whole number of 0 or more, got {jobs!r}")
    if on_error not in ("raise", "report"):
        raise ConfigError(f"on_error must be 'raise' or 'report', got {on_error!r}")


def _expanded(videos: Addresses, storage_options: Mapping[str, Any] | None) -> list[Found]:
    from streamloader.streams.video import is_video

    found: list[Found] = []
    addresses = ((address, options_for(address, storage_options)) for address in as_addresses(videos))
    for options, group in itertools.groupby(addresses, lambda pair: pair[1]):
        found += expand([address for address, _ in group], is_video, options)
    return found


def _task(file: Found, name: str, metadata: Metadata) -> Task:
    source = without_secrets(file.address)
    kept = plain_metadata(metadata(source) if callable(metadata) else metadata)
    size = file.info.size if file.info is not None else None
    if size is None and is_local(file.address):
        with contextlib.suppress(OSError):  # the error comes when it is read
            size = os.stat(local_path(file.address)).st_size
    return Task(name, source, kept, size)


def _units(
    found: Sequence[Found], storage_options: Mapping[str, Any] | None, settings: CutSettings, threads: int
) -> list[Unit]:
    from streamloader.archive.ingest.unit import Unit

    return [
        Unit(
            number,
            _absolute(file.address),
            file.info,
            options_for(file.address, storage_options),
            settings,
            (),
            threads,
        )
        for number, file in enumerate(found)
    ]


def _absolute(address: str) -> str:
    return os.path.abspath(local_path(address)) if is_local(address) else address


def _added_before(
    catalog: Shared[Catalog], found: Sequence[Found], tasks: Sequence[Task], settings: CutSettings
) -> dict[int, VideoRow]:
    """Return the videos, by place in the list, whose sources were added before and are still the same."""
    versions: dict[str, list[tuple[int, str]]] = {}
    for order, (file, task) in enumerate(zip(found, tasks, strict=True)):
        version = _version(file)
        if version is not None:
            versions.setdefault(task.source, []).append((order, version))
    told = settings.to_json()
    there: dict[int, VideoRow] = {}

    async def look() -> None:
        async with contextlib.aclosing(catalog.it.find()) as rows:
            async for row in rows:
                for order, version in versions.get(row.source, ()):
                    kept = row.origin
                    if kept.get("version") == version and row.content == content_of(kept.get("digest", ""), told):
                        there[order] = row

    if versions:
        catalog.call(look())
    return there


def _version(file: Found) -> str | None:
    if file.info is not None:
        return file.info.version
    try:
        return local_version(os.stat(local_path(file.address)))
    except OSError:
        return None


class _Targets:
    """Where chunks can go, with what is free there not long ago."""

    def __init__(
        self,
        header: Header,
        storage_options: Mapping[str, Any] | None,
        spread: Spread,
        only: Collection[int] | None,
    ) -> None:
        self._ask = partial(targets, header.places, storage_options, spread, only)
        self._fixed = spread == "weight"
        self._known: Sequence[Target] = ()
        self._asked = 0.0

    def __call__(self) -> Sequence[Target]:
        now = time.monotonic()
        if not self._known or (not self._fixed and now > self._asked + _FRESH):
            self._known, self._asked = self._ask(), now
        return self._known


def _engine(
    engine: str, jobs: int | None, videos: int, ray_address: str | None
) -> tuple[int, int, Callable[[int], Engine]]:
    """Return how many units are done at once, the threads of each, and what makes the engine."""
    if engine == "ray":
        from streamloader.archive.ingest.executors.ray_executor import RayTasks, connected

        cluster = connected(ray_address)
        at_once, threads = _shared_out(cluster.cpus if jobs is None else max(1, jobs), videos)
        return at_once, threads, lambda units: RayTasks(cluster, units, threads)
    if jobs == 0:
        return 1, 1, Threads
    from streamloader.archive.ingest.executors.processes import Processes

    return (*_shared_out(_cores() if jobs is None else jobs, videos), Processes)


def _shared_out(jobs: int, videos: int) -> tuple[int, int]:
    at_once = max(1, min(jobs, videos))
    return at_once, max(1, min(_THREADS, jobs // at_once))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _failed(report: IngestReport, videos: int) -> IngestFailed:
    lines = "".join(f"\n  {one.source}: {one.error.message}" for one in report.failed[:10])
    more = f"\n  and {len(report.failed) - 10} more" if len(report.failed) > 10 else ""  # noqa: PLR2004
    done = f"{len(report.added)} were added, {len(report.recognised)} were there already"
    return IngestFailed(
        f"{len(report.failed)} of {videos} videos could not be added ({done}):{lines}{more}\n"
        "The same call again goes on where they failed",
        report=report,
    )
