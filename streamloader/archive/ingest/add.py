"""Add videos to an archive."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from streamloader.archive.catalog.base import Catalog, VideoRow
from streamloader.archive.ingest.driver import IngestDriver
from streamloader.archive.ingest.executors.base import Executor, ThreadExecutor
from streamloader.archive.ingest.naming import (
    compute_address_tag,
    compute_content,
    fill_name_template,
    identify_source,
    is_name_template,
    list_default_names,
    normalize_metadata,
    remove_secrets,
)
from streamloader.archive.ingest.placement import SPREADS, Spread
from streamloader.archive.ingest.places import IngestPlaces
from streamloader.archive.ingest.progress import ProgressCallback, open_progress_display
from streamloader.archive.ingest.report import IngestReport
from streamloader.archive.ingest.sources import get_local_version
from streamloader.archive.ingest.task import IngestTask
from streamloader.archive.location import resolve_places
from streamloader.common.printable import make_printable, make_storable
from streamloader.errors import CatalogError, ConfigError, IngestFailed
from streamloader.stores.addresses import Addresses, SourceFile, as_addresses
from streamloader.stores.io_thread import SharedResource
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file, select_options

if TYPE_CHECKING:
    from streamloader.archive.ingest.unit import WorkUnit
    from streamloader.media.chunks.settings import CutSettings

__all__ = ["Metadata", "VideoName", "add_videos"]

VideoName: TypeAlias = "str | Callable[[str], str] | None"
Metadata: TypeAlias = "Mapping[str, Any] | Callable[[str], Mapping[str, Any] | None] | None"

_log: Final = logging.getLogger("streamloader")
_MAX_THREADS_PER_UNIT: Final = 4  # FFmpeg's encoders have threads of their own
_MAX_LISTED_FAILURES: Final = 10
_MAX_SOURCE_CHARACTERS: Final = 1000  # in a message


def add_videos(
    catalog: SharedResource[Catalog],
    videos: Addresses,
    settings: CutSettings | None = None,
    *,
    name: VideoName = None,
    metadata: Metadata = None,
    executor: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    spread: Spread = "weight",
    storage_options: Mapping[str, Any] | None = None,
    progress: ProgressCallback | bool | None = None,
    ray_address: str | None = None,
    on_error: Literal["raise", "report"] = "raise",
    places: Collection[int] | None = None,
    addresses: Mapping[int | str, str] | None = None,
) -> IngestReport:
    """Cut videos into chunks, write the chunks to the places of an archive, and append the videos to the archive.

    Videos are added in the given order, each of them atomically. If the process is killed, the same call resumes the
    work: finished chunks are kept, and videos that were added already are recognized by their content. Their sources
    are not even read if the address and version are unchanged. An error of one video does not affect the others.

    Args:
        catalog: Catalog of the archive.
        videos: Files, patterns, directories or addresses of stores, as :class:`streamloader.VideoStreams` accepts them.
            Objects of stores are copied to a temporary file (in TMPDIR) while they are cut.
        settings: Settings of the cut. By default packets are copied, and chunks have about 1000 frames.
        name: Name of a single video; or a template of the names of all, such as ``"{parent}/{stem}"``, with the fields
            ``stem``, ``suffix``, ``name`` (of the file, with its suffix), ``parent`` and ``grandparent`` (names of
            folders); or a function that returns the name for an address without login and signature. By default, a
            video has the name of its file without the suffix. If another source has that name already, in the archive
            or in this call, the names of its folders are put before it, as many as it takes: ``camB/0001``. A video
            keeps its name for ever. Templates give names that do not depend on what was added before.
        metadata: Metadata to store with each video, plain JSON values; or a function that returns them for an address
            without login and signature.
        executor: ``"local"`` for processes of this machine, ``"ray"`` for tasks on a Ray cluster.
        jobs: Number of concurrent jobs. Defaults to the number of cores of this machine, or of CPUs of the cluster. 0
            processes one video after the other in this process.
        spread: Distribution of the chunks over the places: by ``"weight"``, or by weight times ``"free"`` space.
        storage_options: Options of the stores of videos and places, see
            :func:`streamloader.stores.registry.select_options`. They are never stored.
        progress: True to show the progress on stderr, or a function that receives it. Defaults to neither.
        ray_address: Address of the cluster. Defaults to the cluster of this process or machine.
        on_error: ``"raise"`` to raise an error if a video failed, ``"report"`` to return the report anyway.
        places: Numbers of the places that get new chunks. Defaults to all places.
        addresses: Addresses by which this machine reaches the places, by number or URL of the place. A place on another
            machine gets new chunks only if it is named here, or if options are bound to it: see
            :mod:`streamloader.stores.origins`. Defaults to none.

    Returns:
        The report with the added, existing and failed videos.

    Raises:
        ConfigError: If the arguments are invalid.
        StreamNotFound: If a video does not exist. Nothing is added then.
        UntrustedAddress: If a place gets new chunks that only the author of the catalog names.
        IngestFailed: If one of several videos failed. Its ``details`` contain the report. For a single video, its own
            error is raised: UnreadableStream, CorruptStream, NameConflict, WorkerDied, a StoreError, ...
        CatalogError: If the catalog cannot be used.
        MissingDependency: If `executor` is ``"ray"`` and Ray is not installed.
    """
    from streamloader.media.chunks.settings import CutSettings

    settings = settings if settings is not None else CutSettings()
    _check_arguments(name, executor, spread, jobs, on_error)
    header = catalog.call(catalog.resource.get_header())
    files = _expand_videos(videos, storage_options)
    names = _choose_names(catalog, files, name)
    resolved = resolve_places(header.places, addresses or {}, catalog.resource.url, storage_options)
    ingest_places = IngestPlaces(catalog, header, resolved, storage_options, spread, places)
    tasks = [_create_task(file, task_name, metadata) for file, task_name in zip(files, names, strict=True)]
    started = time.monotonic()
    unchanged = _find_unchanged(catalog, files, tasks, settings)
    workers, threads, create_executor = _select_executor(executor, jobs, len(files) - len(unchanged), ray_address)
    units = _create_units(files, storage_options, settings, threads)
    with contextlib.ExitStack() as stack:
        stack.callback(_complete_catalog, catalog)
        unit_executor = create_executor(workers)
        stack.callback(unit_executor.close)
        show = stack.enter_context(open_progress_display(progress))
        driver = IngestDriver(catalog, unit_executor, list(zip(tasks, units, strict=True)), ingest_places, show)
        for order, video in unchanged.items():
            driver.mark_existing(order, video)
        stack.callback(ingest_places.finish)
        driver.run()
        report = driver.build_report(time.monotonic() - started)
    if report.failed and on_error == "raise":
        if len(files) == 1:
            raise report.failed[0].error
        raise _build_error(report, len(files))
    return report


def _complete_catalog(catalog: SharedResource[Catalog]) -> None:
    """Complete the catalog's file, which a user may copy now."""
    try:
        catalog.call(catalog.resource.checkpoint())
    except CatalogError as error:  # the videos are in the catalog all the same
        _log.warning("%s", f"the catalog's log stays beside it: {error.message}")


def _check_arguments(name: VideoName, executor: str, spread: str, jobs: int | None, on_error: str) -> None:
    if name is not None and not callable(name):
        _check_name(name)
    if executor not in ("local", "ray"):
        raise ConfigError(f"executor must be 'local' or 'ray', got {executor!r}")
    if spread not in SPREADS:
        raise ConfigError(f"spread must be one of {', '.join(map(repr, SPREADS))}, got {spread!r}")
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 0):
        raise ConfigError(f"jobs must be a whole number of 0 or more, got {jobs!r}")
    if on_error not in ("raise", "report"):
        raise ConfigError(f"on_error must be 'raise' or 'report', got {on_error!r}")


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the name of a video must be a non-empty text, got {name!r}")
    return str(make_storable(name))


def _choose_names(catalog: SharedResource[Catalog], files: Sequence[SourceFile], name: VideoName) -> list[str]:
    """Return the name of each new video.

    Raises:
        ConfigError: If `name` gives several videos the same name.
    """
    if name is None:
        return _choose_default_names(files, _find_sources_by_name(catalog))
    if callable(name):
        names = [_check_name(name(identify_source(file.address))) for file in files]
    elif is_name_template(name):
        names = [_check_name(fill_name_template(name, file.address)) for file in files]
    elif len(files) > 1:
        raise ConfigError(
            f"name={name!r} is for a single video, but the addresses stand for {len(files)}: use a template such as "
            "'{parent}/{stem}'"
        )
    else:
        names = [_check_name(name)]
    sources: dict[str, str] = {}
    for each, file in zip(names, files, strict=True):
        other = sources.setdefault(each, file.address)
        if other != file.address:
            shown, other_shown = (make_printable(remove_secrets(address)) for address in (file.address, other))
            raise ConfigError(
                f"name= gives {other_shown} and {shown} the same name {each!r}: use more fields, such as "
                "'{grandparent}/{parent}/{name}'"
            )
    return names


def _find_sources_by_name(catalog: SharedResource[Catalog]) -> dict[str, tuple[str, str]]:
    """Return the stored address, and its tag, of the video of each name in the archive."""
    sources: dict[str, tuple[str, str]] = {}

    async def read_rows() -> None:
        async with contextlib.aclosing(catalog.resource.find_videos()) as rows:
            async for row in rows:
                sources[row.name] = row.source, str(row.origin.get("address", ""))

    catalog.call(read_rows())
    return sources


def _choose_default_names(files: Sequence[SourceFile], taken: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return the first possible name of each video that no other source has, in the archive or in this call."""
    names: list[str] = []
    used: set[str] = set()
    for file in files:
        candidates = list(list_default_names(file.address))
        source: tuple[str, str] | None = None
        name = None
        for each in candidates:
            if each in taken and source is None:
                source = remove_secrets(file.address), compute_address_tag(file.address)
            if each not in used and taken.get(each, source) == source:
                name = each
                break
        if name is None:  # listed twice, or addresses that differ in what names do not show
            name = next(
                each for n in itertools.count(2) if (each := f"{candidates[0]}#{n}") not in used and each not in taken
            )
        used.add(name)
        names.append(name)
    return names


def _expand_videos(videos: Addresses, storage_options: Mapping[str, Any] | None) -> list[SourceFile]:
    from streamloader.streams.video_names import find_videos

    files: list[SourceFile] = []
    addresses = ((address, select_options(address, storage_options)) for address in as_addresses(videos))
    for options, group in itertools.groupby(addresses, lambda pair: pair[1]):
        files += find_videos([address for address, _ in group], options)
    return files


def _create_task(file: SourceFile, name: str, metadata: Metadata) -> IngestTask:
    source = remove_secrets(file.address)
    video_metadata = normalize_metadata(metadata(identify_source(file.address)) if callable(metadata) else metadata)
    size = file.info.size if file.info is not None else None
    if size is None and is_local_file(file.address):
        with contextlib.suppress(OSError):  # the error is reported when the file is read
            size = os.stat(local_path(file.address)).st_size
    return IngestTask(name, source, video_metadata, size, compute_address_tag(file.address))


def _create_units(
    files: Sequence[SourceFile], storage_options: Mapping[str, Any] | None, settings: CutSettings, threads: int
) -> list[WorkUnit]:
    from streamloader.archive.ingest.unit import WorkUnit

    return [
        WorkUnit(
            number,
            _make_absolute(file.address),
            file.info,
            select_options(file.address, storage_options),
            settings,
            (),
            threads,
        )
        for number, file in enumerate(files)
    ]


def _make_absolute(address: str) -> str:
    return os.path.abspath(local_path(address)) if is_local_file(address) else address


def _find_unchanged(
    catalog: SharedResource[Catalog], files: Sequence[SourceFile], tasks: Sequence[IngestTask], settings: CutSettings
) -> dict[int, VideoRow]:
    """Return the existing videos whose sources have the same address and version, by position in the request."""
    versions: dict[tuple[str, str], list[tuple[int, str]]] = {}  # by stored address and its tag
    for order, (file, task) in enumerate(zip(files, tasks, strict=True)):
        version = _get_version(file)
        if version is not None:
            # Rows of older versions of this package show the values that the tag stands for, and have no tag.
            for key in {(task.source, task.address_tag), (identify_source(file.address), "")}:
                versions.setdefault(key, []).append((order, version))
    settings_json = settings.to_json()
    unchanged: dict[int, VideoRow] = {}

    async def compare_rows() -> None:
        async with contextlib.aclosing(catalog.resource.find_videos()) as rows:
            async for row in rows:
                origin = row.origin
                for order, version in versions.get((row.source, str(origin.get("address", ""))), ()):
                    content = compute_content(origin.get("digest", ""), settings_json)
                    if origin.get("version") == version and row.content == content:
                        unchanged[order] = row

    if versions:
        catalog.call(compare_rows())
    return unchanged


def _get_version(file: SourceFile) -> str | None:
    if file.info is not None:
        return file.info.version
    try:
        return get_local_version(os.stat(local_path(file.address)))
    except OSError:
        return None


def _select_executor(
    executor: str, jobs: int | None, videos: int, ray_address: str | None
) -> tuple[int, int, Callable[[int], Executor]]:
    """Return the number of concurrent units, the threads of each unit, and a function that creates the executor."""
    if executor == "ray":
        from streamloader.archive.ingest.executors.ray_executor import RayExecutor
        from streamloader.streams.ray_cluster import connect_cluster

        cluster = connect_cluster(ray_address)
        workers, threads = _divide_jobs(cluster.cpus if jobs is None else max(1, jobs), videos)
        return workers, threads, lambda max_units: RayExecutor(cluster, max_units, threads)
    if jobs == 0:
        return 1, 1, ThreadExecutor
    from streamloader.archive.ingest.executors.processes import ProcessExecutor

    return (*_divide_jobs(_count_cores() if jobs is None else jobs, videos), ProcessExecutor)


def _divide_jobs(jobs: int, videos: int) -> tuple[int, int]:
    """Return the number of concurrent units and the threads of each unit."""
    units = max(1, min(jobs, videos))
    return units, max(1, min(_MAX_THREADS_PER_UNIT, jobs // units))


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build_error(report: IngestReport, videos: int) -> IngestFailed:
    lines = "".join(
        f"\n  {make_printable(video.source, _MAX_SOURCE_CHARACTERS)}: {video.error.message}"
        for video in report.failed[:_MAX_LISTED_FAILURES]
    )
    unlisted = len(report.failed) - _MAX_LISTED_FAILURES
    more = f"\n  and {unlisted} more" if unlisted > 0 else ""
    done = f"{len(report.added)} were added, {len(report.existing)} existed already"
    return IngestFailed(
        f"{len(report.failed)} of {videos} videos could not be added ({done}):{lines}{more}\n"
        "The same call again resumes the work",
        report=report,
    )
