"""Add videos to an archive."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from streamloader.archive.catalog.base import Catalog, VideoRow
from streamloader.archive.ingest.driver import IngestDriver
from streamloader.archive.ingest.executors.base import Executor, ThreadExecutor
from streamloader.archive.ingest.naming import (
    compute_address_tag,
    compute_content,
    fill_name_template,
    find_distinct_template,
    get_default_name,
    identify_source,
    is_former_default_name,
    is_name_template,
    normalize_metadata,
    remove_secrets,
)
from streamloader.archive.ingest.placement import SPREADS, Spread
from streamloader.archive.ingest.places import IngestPlaces
from streamloader.archive.ingest.progress import ProgressCallback, open_progress_display
from streamloader.archive.ingest.report import FailedVideo, IngestReport
from streamloader.archive.ingest.sources import get_local_version
from streamloader.archive.ingest.task import IngestTask
from streamloader.archive.location import resolve_places
from streamloader.common.printable import make_printable, make_storable
from streamloader.errors import (
    CatalogError,
    ConfigError,
    CorruptStream,
    IngestFailed,
    MediaLimitExceeded,
    StoreError,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.stores.addresses import Addresses, SourceFile, as_addresses
from streamloader.stores.io_thread import SharedResource
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file, select_options
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.unreadable import SkippedVideo, describe_skipped, ends_indexing

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
_MAX_LISTED_NAMES: Final = 20
_MAX_LISTED_SOURCES: Final = 5  # of a name
_MAX_DETAILS: Final = 1000  # names in the details of an error


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
    unreadable: Unreadable = None,
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
        name: Name of a single video; or a template of the names of all, such as ``"{grandparent}/{parent}/{name}"``,
            with the fields ``stem``, ``suffix``, ``name`` (of the file, with its suffix), ``parent`` and
            ``grandparent`` (names of folders) and ``path`` (all folders and the file); or a function that returns the
            name for an address without login and signature. By default, a video has the name of its folder and its
            file, ``camB/0001.mp4``, whatever is added before or with it. A video keeps its name for ever.
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
        unreadable: Handling of videos that cannot be used, and of files and directories that may not be read. In any
            case, all others are added first. ``"raise"`` makes each of them a failed video; ``"skip"`` leaves them out
            with one warning, and the report lists them. By default, directories that may not be read are left out with
            a warning, and all others have failed. Files and directories that are named literally, and are missing or
            cannot be accessed, are one error before anything is added, unless they are skipped.
        places: Numbers of the places that get new chunks. Defaults to all places.
        addresses: Addresses by which this machine reaches the places, by number or URL of the place. A place on another
            machine gets new chunks only if it is named here, or if options are bound to it: see
            :mod:`streamloader.stores.origins`. Defaults to none.

    Returns:
        The report with the added, existing, failed and skipped videos.

    Raises:
        ConfigError: If the arguments are invalid, or if several videos would get the same name. Nothing is added then.
        StreamNotFound: If a video does not exist. It lists all such videos, and nothing is added then.
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
    found = UnreadableReport(validate_unreadable(unreadable))
    files = _expand_videos(videos, storage_options, found)
    found.check(files)
    found.raise_named()
    names = _choose_names(files, name)
    tasks = [_create_task(file, task_name, metadata) for file, task_name in zip(files, names, strict=True)]
    unchanged = _compare_with_catalog(catalog, files, tasks, settings, has_default_names=name is None)
    _check_names_differ([pair for n, pair in enumerate(zip(tasks, files, strict=True)) if n not in unchanged])
    found.warn()
    resolved = resolve_places(header.places, addresses or {}, catalog.resource.url, storage_options)
    ingest_places = IngestPlaces(catalog, header, resolved, storage_options, spread, places)
    started = time.monotonic()
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
    report = _add_unreadable(report, found)
    count = sum(map(len, (report.added, report.existing, report.failed, report.skipped)))
    if report.failed and on_error == "raise":
        raise report.failed[0].error if count == 1 else _build_error(report, count)
    return report


def _add_unreadable(report: IngestReport, found: UnreadableReport) -> IngestReport:
    """Return a report with what the search could not read, and with the videos that are left out as such."""
    failed = [FailedVideo(str(make_storable(name)), error) for name, error in sorted(found.errors.items())]
    failed += report.failed
    if found.handling != "skip":
        return replace(report, failed=tuple(failed))
    skipped = [(name, error) for name, error in sorted(found.entries.items())]
    bad = [video for video in failed if _is_fault_of_source(video)]
    skipped += [(video.source, video.error) for video in bad]
    if bad:
        videos = [SkippedVideo.from_error(video.source, video.source, video.error) for video in bad]
        _log.warning("%s", describe_skipped(videos, len(report.added) + len(report.existing) + len(report.failed)))
    return replace(
        report,
        failed=tuple(video for video in failed if video not in bad),
        skipped=tuple(
            SkippedVideo.from_error(source, source, error)
            for source, error in ((str(make_storable(name)), error) for name, error in skipped)
        ),
    )


def _is_fault_of_source(video: FailedVideo) -> bool:
    """Return whether a video cannot be used in later runs either, and not because of the archive or a store."""
    error = video.error
    if isinstance(error, (UnreadableStream, CorruptStream, MediaLimitExceeded, StreamNotFound)):
        return True
    return isinstance(error, StoreError) and not ends_indexing(error) and error.address == video.source


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


def _choose_names(files: Sequence[SourceFile], name: VideoName) -> list[str]:
    """Return the name of each new video.

    Raises:
        ConfigError: If `name` gives no names.
    """
    if name is None:
        return [get_default_name(file.address) for file in files]
    if callable(name):
        return [_check_name(name(identify_source(file.address))) for file in files]
    if is_name_template(name):
        return [_check_name(fill_name_template(name, file.address)) for file in files]
    if len(files) > 1:
        raise ConfigError(
            f"name={name!r} is for a single video, but the addresses stand for {len(files)}: use a template such as "
            "'{parent}/{stem}'"
        )
    return [_check_name(name)]


def _check_names_differ(videos: Sequence[tuple[IngestTask, SourceFile]]) -> None:
    """Check that different sources get different names.

    Raises:
        ConfigError: If they do not. It lists all of them, and says which template gives each its own name.
    """
    sources: dict[str, dict[object, SourceFile]] = {}
    for task, file in videos:
        sources.setdefault(task.name, {}).setdefault(_identify_file(file), file)
    shared = {name: list(files.values()) for name, files in sources.items() if len(files) > 1}
    if not shared:
        return
    listed = {name: [_describe_source(file) for file in files] for name, files in shared.items()}
    lines = [_describe_shared_name(name, listed[name]) for name in list(listed)[:_MAX_LISTED_NAMES]]
    if len(listed) > _MAX_LISTED_NAMES:
        lines.append(f"- and {len(listed) - _MAX_LISTED_NAMES:,} more")
    template = find_distinct_template([file.address for files in sources.values() for file in files.values()])
    advice = (
        "no template tells them apart: pass a function of the address as name=, or add them one by one"
        if template is None
        else f'pass name="{template}" (--name of the command), which gives each its own'
    )
    count = sum(map(len, listed.values()))
    raise ConfigError(
        f"{count:,} videos would get the same name as others, so nothing was added; {advice}:\n" + "\n".join(lines),
        names=dict(itertools.islice(listed.items(), _MAX_DETAILS)),
    )


def _describe_shared_name(name: str, sources: Sequence[str]) -> str:
    more = f" and {len(sources) - _MAX_LISTED_SOURCES:,} more" if len(sources) > _MAX_LISTED_SOURCES else ""
    return f"- {make_printable(name)!r}: {', '.join(sources[:_MAX_LISTED_SOURCES])}{more}"


def _describe_source(file: SourceFile) -> str:
    return make_printable(remove_secrets(file.address), _MAX_SOURCE_CHARACTERS)


def _identify_file(file: SourceFile) -> object:
    """Return a value that is equal for addresses of one file: by links, and by other spellings of its path."""
    if is_local_file(file.address):
        with contextlib.suppress(OSError):  # the error is reported when the file is read
            status = os.stat(local_path(file.address))
            return status.st_dev, status.st_ino
    return file.address


def _expand_videos(
    videos: Addresses, storage_options: Mapping[str, Any] | None, found: UnreadableReport | None = None
) -> list[SourceFile]:
    from streamloader.streams.video_names import find_videos

    files: list[SourceFile] = []
    addresses = ((address, select_options(address, storage_options)) for address in as_addresses(videos))
    for options, group in itertools.groupby(addresses, lambda pair: pair[1]):
        files += find_videos([address for address, _ in group], options, found)
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


def _compare_with_catalog(
    catalog: SharedResource[Catalog],
    files: Sequence[SourceFile],
    tasks: list[IngestTask],
    settings: CutSettings,
    *,
    has_default_names: bool,
) -> dict[int, VideoRow]:
    """Return the existing videos whose sources have the same address and version, by position in the request.

    A source that has changed since it was added under a default name of a former version of this package is requested
    under that name again, in `tasks`: it conflicts with the old video, as that of any other changed source does.
    """
    requests: dict[tuple[str, str], list[int]] = {}  # by stored address and its tag
    for order, (file, task) in enumerate(zip(files, tasks, strict=True)):
        # Rows of older versions of this package show the values that the tag stands for, and have no tag.
        for key in {(task.source, task.address_tag), (identify_source(file.address), "")}:
            requests.setdefault(key, []).append(order)
    settings_json = settings.to_json()
    unchanged: dict[int, VideoRow] = {}

    async def compare_rows() -> None:
        async with contextlib.aclosing(catalog.resource.find_videos()) as rows:
            async for row in rows:
                origin = row.origin
                orders = requests.get((row.source, str(origin.get("address", ""))), ())
                content = compute_content(origin.get("digest", ""), settings_json) if orders else ""
                for order in orders:
                    version = _get_version(files[order])
                    if version is not None and origin.get("version") == version and row.content == content:
                        unchanged[order] = row
                    elif has_default_names and is_former_default_name(row.name, files[order].address):
                        tasks[order] = replace(tasks[order], name=row.name)

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
