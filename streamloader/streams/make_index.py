"""Make an index file of many videos, once, and bring it up to date later."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import anyio.to_thread
import numpy as np

from streamloader.arguments import expand_path
from streamloader.errors import ConfigError, StreamloaderError, UnreadableStream
from streamloader.media.parser_pool import Parsers
from streamloader.media.video.bulk_indexer import BulkIndexer
from streamloader.media.video.files import file_version
from streamloader.media.video.index import IndexSettings, VerifyLevel
from streamloader.media.video.index_file import FileVersion, IndexFile, IndexFileWriter
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.media.video.summary import SUMMARY
from streamloader.redaction import has_secrets, redact_address
from streamloader.stores.addresses import Address, Addresses, SourceFile, as_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file, scheme_of, spell_address
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.streams.index_source import folder_of
from streamloader.streams.indexing import (
    log_unusual_videos,
    make_index_settings,
    make_videos,
    show_indexing,
    validate_unreadable,
)
from streamloader.streams.unreadable import (
    SkippedVideo,
    combine_errors,
    describe_skipped,
    ends_indexing,
    finish_report,
    join_errors,
)
from streamloader.streams.video_names import find_videos
from streamloader.values import ObjectInfo

__all__ = ["IndexReport", "index_videos"]

_IN_MEMORY: Final = "memory"  # scheme of objects that child processes cannot see
_UPLOAD_BYTES: Final = 1 << 20  # of one piece
_UNFINISHED: Final = ".streamloader-index-"
_ABANDONED_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class IndexReport:
    """Result of :func:`index_videos`.

    Attributes:
        address: Path or address of the index file, without secrets.
        videos: Number of videos in the file.
        added: Number of videos that are new in it.
        changed: Number of videos that were indexed again, because they had changed.
        removed: Number of videos that are gone.
        unchanged: Number of videos that were not looked at, because they had not changed.
        skipped: Videos that were left out because they cannot be used, in their order.
    """

    address: str
    videos: int
    added: int
    changed: int
    removed: int
    unchanged: int
    skipped: tuple[SkippedVideo, ...]


def index_videos(
    paths: Addresses,
    to: Address,
    *,
    update: bool = False,
    unreadable: Unreadable = None,
    damaged: Literal["raise", "keep"] | None = None,
    verify: VerifyLevel | None = None,
    stream: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    storage_options: Mapping[str, Any] | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    progress: bool = True,
) -> IndexReport:
    """Index videos on all cores, and write one file from which :meth:`VideoStreams.from_index` opens them.

    The file can be shipped with the videos: the addresses of videos below its folder are relative to it. It is only
    ever replaced as a whole. An interrupted call loses little: what is indexed is in the user's cache.

    Args:
        paths: Videos, as for :class:`streamloader.VideoStreams`. A video that is listed twice is in the file once.
        to: Path of the file, or its address in a store that can be written.
        update: Whether to bring a file up to date: videos that are new or changed (by size and modification time, or
            by the version in their store) are indexed, those that are gone are removed, and all others are not looked
            at. A file that does not exist is made. Defaults to False, which makes the file from the start.
        unreadable: ``"raise"`` to raise one error that lists all videos that cannot be used, or ``"skip"`` to leave
            them out, see :class:`streamloader.VideoStreams`. By default, directories that may not be read are left out
            with one warning.
        damaged: ``"raise"`` or ``"keep"``, see there. Defaults to that of the file to update, or to ``"raise"``.
        verify: ``"tables"``, ``"ends"`` or ``"frames"``, see there. Defaults to that of the file to update, or to
            ``"tables"``.
        stream: Number of the video stream, see there. Defaults to that of the file to update, or to the one that is
            chosen there.
        max_pixels: Maximum number of pixels of a frame. Defaults to 2^26.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.
        executor: ``"local"`` for child processes, or ``"ray"`` for tasks of a Ray cluster, which must reach the videos
            by the same addresses. This process writes the file, and caches the indexes.
        ray_address: Address of the Ray cluster. Defaults to ``RAY_ADDRESS``, or to the cluster of this machine.
        progress: Whether to show a progress bar on a terminal. Defaults to True.

    Raises:
        ConfigError: If an argument is invalid, an address contains a password or signature, or `update` changes the
            settings of the file.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no video.
        UnreadableStream: If no video can be used; or, with ``unreadable="raise"``, the error of the first video that
            cannot be used, with a list of all.
        StoreError: If a store fails.
    """
    validate_unreadable(unreadable)
    make_parsers = _select_parsers(executor, ray_address)
    target = _Target(os.fspath(to), storage_options)
    found = UnreadableReport(unreadable)
    files = _list_files(paths, target, storage_options, found)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(target.open_current()) if update else None
        settings = _choose_settings(old, damaged, verify, stream, max_pixels)
        work = _IndexWork(files, old, settings, skips=unreadable == "skip")
        writer = stack.enter_context(target.open_writer(settings))
        if old is not None:
            writer.copy_indexes(target.current_path, work.kept_ids)
        work.index_rest(writer, storage_options, make_parsers, shows_progress=progress)
        return work.write(writer, target, found)


def _select_parsers(executor: str, ray_address: str | None) -> Callable[[], Parsers] | None:
    """Return a function that opens the parsers of an executor, or None for child processes of this one."""
    if executor == "local":
        if ray_address is not None:
            raise ConfigError('ray_address= is for executor="ray"')
        return None
    if executor != "ray":
        raise ConfigError(f'executor must be "local" or "ray", got {executor!r}')
    from streamloader.streams.ray_cluster import RayParsers, connect_cluster

    return lambda: RayParsers(connect_cluster(ray_address))


def _list_files(
    paths: Addresses, target: _Target, storage_options: Mapping[str, Any] | None, found: UnreadableReport
) -> dict[str, SourceFile]:
    """Return the files by the address that the index file has of them, in their order."""
    addresses = as_addresses(paths)
    for address in addresses:
        if not is_local_file(address) and has_secrets(address):
            raise ConfigError(
                f"{redact_address(address)} contains a password or a signature, which an index file must not have: "
                "pass credentials by storage_options=",
                address=address,
            )
    files: dict[str, SourceFile] = {}
    videos = find_videos(addresses, storage_options, found)
    found.check(videos)
    for file in videos:
        files.setdefault(target.shorten(file), file)
    return files


def _choose_settings(
    old: IndexFile | None, damaged: str | None, verify: VerifyLevel | None, stream: int | None, max_pixels: int
) -> IndexSettings:
    default = IndexSettings() if old is None else old.settings
    settings = make_index_settings(
        damaged or default.damaged, verify or default.verify, max_pixels, default.stream if stream is None else stream
    )
    if old is not None and replace(settings, max_pixels=default.max_pixels) != default:
        raise ConfigError(
            f"the index file was made with damaged={default.damaged!r} and verify={default.verify!r} (and "
            f"stream={default.stream!r}): update it with the same, or make it from the start (update=False)"
        )
    return settings


class _IndexWork:
    """The videos of a new index file: which are taken from the old one, and the results for all others.

    Args:
        files: Files by address.
        old: Index file to update, or None.
        settings: Settings with which videos are indexed.
        skips: Whether videos that cannot be used are left out.

    Attributes:
        kept_ids: Numbers of the indexes that are taken from the old file.
    """

    def __init__(
        self, files: Mapping[str, SourceFile], old: IndexFile | None, settings: IndexSettings, *, skips: bool
    ) -> None:
        self._files = list(files.values())
        self._addresses = list(files)
        self._settings = settings
        self._skips = skips
        self._records = np.zeros(len(files), SUMMARY)
        self._ids: np.ndarray[Any, np.dtype[np.int64]] = np.full(len(files), -1, np.int64)
        self._skipped: dict[int, tuple[FileVersion, str, str]] = {}
        self._errors: dict[int, StreamloaderError] = {}
        self._old_addresses: set[str] = set()
        self._rest = list(range(len(files)))
        if old is not None:
            self._take_unchanged(old)
        self.kept_ids: list[int] = self._ids[self._ids >= 0].tolist()

    def _take_unchanged(self, old: IndexFile) -> None:
        columns, versions, skipped = old.read_columns(), old.read_versions(), old.read_skipped()
        numbers = {address: number for number, address in enumerate(columns.addresses)}
        self._old_addresses = set(numbers)
        rest = []
        for number, (address, file) in enumerate(zip(self._addresses, self._files, strict=True)):
            row = numbers.get(address)
            id_ = -1 if row is None else int(columns.ids[row])
            known = versions.get(id_) if row is not None else skipped[address][0] if address in skipped else None
            if known is None or _read_version(file) != known or (row is None and not self._skips):
                rest.append(number)
            elif row is None:
                self._skipped[number] = skipped[address]
            else:
                self._ids[number], self._records[number] = id_, columns.records[row]
        self._rest = rest

    def index_rest(
        self,
        writer: IndexFileWriter,
        storage_options: Mapping[str, Any] | None,
        make_parsers: Callable[[], Parsers] | None,
        *,
        shows_progress: bool,
    ) -> None:
        """Index the videos that are not in the old file, and add their indexes to the new one."""
        if not self._rest:
            return
        files = [self._files[number] for number in self._rest]

        def add(position: int, summary: bytes, data: bytes) -> None:
            number = self._rest[position]
            self._records[number] = np.frombuffer(summary, SUMMARY)[0]
            waiting.append((position, data))

        waiting: list[tuple[int, bytes]] = []
        indexer = BulkIndexer(
            self._settings,
            in_processes=any(scheme_of(file.address) != _IN_MEMORY for file in files),
            is_fatal=ends_indexing,
            show_progress=show_indexing if shows_progress else None,
            sink=add,
            make_parsers=make_parsers,
        )
        try:
            result = indexer.run(make_videos(files, storage_options))
        finally:
            indexer.close()
        versions = [
            FileVersion(*local) if file.info is None else _object_version(file.info)
            for file, local in zip(files, result.versions.tolist(), strict=True)
        ]
        for position, data in sorted(waiting):
            self._ids[self._rest[position]] = writer.add_index(versions[position], data)
        for position, error in sorted(result.errors.items()):
            number = self._rest[position]
            self._errors[number] = error
            self._skipped[number] = versions[position], type(error).__name__, error.message

    def write(self, writer: IndexFileWriter, target: _Target, found: UnreadableReport) -> IndexReport:
        """Finish the file, and return the report.

        Args:
            writer: Writer of the file.
            target: Place of the file.
            found: Report of the search for the videos.

        Raises:
            StreamloaderError: If videos cannot be used and are not left out, or if none can be used.
        """
        names = [file.address for file in self._files]
        if self._errors and (not self._skips or len(self._skipped) == len(names)):
            raise join_errors(found, [combine_errors(self._errors, names)])
        left_out = finish_report(found)
        if len(self._skipped) == len(names):
            raise UnreadableStream(describe_skipped(self._list_skipped(), len(names)))
        for number in sorted(self._skipped):
            writer.add_skipped(self._addresses[number], *self._skipped[number])
        kept = np.flatnonzero(self._ids >= 0)
        log_unusual_videos([names[number] for number in kept.tolist()], self._records[kept], self._settings.stream)
        addresses = [self._addresses[number] for number in kept.tolist()]
        target.publish(writer, addresses, self._records[kept], self._ids[kept])
        new = {self._addresses[number] for number in self._rest if self._ids[number] >= 0}
        return IndexReport(
            address=target.name,
            videos=len(addresses),
            added=len(new - self._old_addresses),
            changed=len(new & self._old_addresses),
            removed=len(self._old_addresses.difference(addresses)),
            unchanged=len(self.kept_ids),
            skipped=(*left_out, *self._list_skipped()),
        )

    def _list_skipped(self) -> Sequence[SkippedVideo]:
        return [
            SkippedVideo(self._addresses[number], self._files[number].address, *self._skipped[number][1:])
            for number in sorted(self._skipped)
        ]


def _read_version(file: SourceFile) -> FileVersion | None:
    """Return the current version of a file, or None if it cannot be read."""
    if file.info is not None:
        return _object_version(file.info)
    try:
        return FileVersion(*file_version(file.address))
    except StreamloaderError:
        return None


def _object_version(info: ObjectInfo) -> FileVersion:
    return FileVersion(info.size, None, info.version, info.modified)


class _Target:
    """The place of an index file.

    Args:
        address: Path or address of the file.
        storage_options: Options of its store.

    Attributes:
        name: Address without secrets.
        current_path: Local path of the current file, while it is open.
    """

    def __init__(self, address: str, storage_options: Mapping[str, Any] | None) -> None:
        address = spell_address(address)
        self._is_local = is_local_file(address)
        if self._is_local:
            path = local_path(address)
            address = os.path.abspath(expand_path(path, create=True))
            if os.path.isdir(address):
                raise ConfigError(f"{address} is a folder: name the index file", address=address)
        self._address = address
        self._folder = folder_of(address)
        self._storage_options = storage_options
        self.name = redact_address(address)
        self.current_path = address

    def shorten(self, file: SourceFile) -> str:
        """Return the address of a video for the file: relative if the video is below its folder."""
        address = os.path.abspath(local_path(file.address)) if file.info is None else file.address
        below = address.removeprefix(f"{self._folder}/")
        is_relative = below != address and all(part not in ("", ".", "..") for part in below.split("/"))
        return below if is_relative and "://" not in below else address

    @contextlib.contextmanager
    def open_current(self) -> Iterator[IndexFile | None]:
        """Open the current file, or yield None if there is none."""
        with contextlib.ExitStack() as stack:
            try:
                if not self._is_local:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamloader-"))
                    self.current_path = os.path.join(folder, "current.sqlite")
                    self._download()
                current = stack.enter_context(IndexFile(self.current_path, self.name))
            except FileNotFoundError:  # also NotFound and StreamNotFound
                current = None
            yield current

    def _download(self) -> None:
        store, path = open_shared_store(self._address, self._storage_options)
        with store, open(self.current_path, "xb") as output:

            async def fetch() -> None:
                async with contextlib.aclosing(store.store.stream(path)) as pieces:
                    async for piece in pieces:
                        output.write(piece)

            store.call(fetch())

    @contextlib.contextmanager
    def open_writer(self, settings: IndexSettings) -> Iterator[IndexFileWriter]:
        """Open a writer of a new file, in the folder of the target if that is local."""
        with contextlib.ExitStack() as stack:
            if self._is_local:
                folder = self._folder or "/"
                os.makedirs(folder, exist_ok=True)
                _remove_unfinished(folder)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamloader-"))
            path = os.path.join(folder, f"{_UNFINISHED}{secrets.token_hex(8)}")
            writer = stack.enter_context(IndexFileWriter(path, settings))
            stack.enter_context(_hold_lock(path))
            yield writer

    def publish(self, writer: IndexFileWriter, addresses: Sequence[str], records: Any, ids: Any) -> None:
        """Give the new file its place."""
        if self._is_local:
            writer.finish(addresses, records, ids, self._address)
            return
        with tempfile.TemporaryDirectory(prefix="streamloader-") as folder:
            path = os.path.join(folder, "index.sqlite")
            writer.finish(addresses, records, ids, path)
            store, target = open_shared_store(self._address, self._storage_options)
            with store:
                store.write(target, _read_pieces(path))


async def _read_pieces(path: str) -> AsyncIterator[bytes]:
    file = await anyio.to_thread.run_sync(open, path, "rb")
    with file:
        while piece := await anyio.to_thread.run_sync(file.read, _UPLOAD_BYTES):
            yield piece


@contextlib.contextmanager
def _hold_lock(path: str) -> Iterator[None]:
    """Hold the lock of an unfinished file, by which others see that its writer is alive."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_unfinished(folder: str) -> None:
    """Remove the files of writers that were killed. A new file may not be locked yet."""
    for name in os.listdir(folder):
        if name.startswith(_UNFINISHED):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), _hold_lock(path):
                if time.time() - os.path.getmtime(path) > _ABANDONED_AFTER_S:
                    Path(path).unlink()
