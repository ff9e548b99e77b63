"""Index many videos: look them up in the cache, and parse the others on all cores.

Only this process writes to the cache. Child processes, which a hostile file may take over, return indexes, which are
checked here. Results are stored as they come, several at a time, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from streamloader.errors import ClosedError, CorruptStream, StreamloaderError
from streamloader.media.parser_pool import ParserPool, Parsers
from streamloader.media.video import index_cache
from streamloader.media.video.files import file_version
from streamloader.media.video.index import IndexSettings, VideoIndex
from streamloader.media.video.index_blob import InvalidBlob, decode_index, encode_index
from streamloader.media.video.index_cache import IndexedVideo, VideoVersion
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.remote import Video
from streamloader.media.video.summary import SUMMARY, summarize_index
from streamloader.stores.registry import scheme_of
from streamloader.values import Array

__all__ = ["BulkIndexer", "IndexSink", "IndexedVideos", "ProgressDisplay"]

_MAX_REMOTE_CALLS: Final = 32  # concurrent, for videos in stores, which mostly wait
_REMOTE_VIDEOS_PER_PROCESS: Final = 8  # indexed concurrently; each process has its own connections
_MIN_VIDEOS_FOR_PROCESSES: Final = 48  # fewer are parsed in this process, if that is allowed at all
# Private memory of a process that indexes videos. A decoder holds up to 17 frames of 1.5 to 8 bytes per pixel.
_BASE_MEMORY_BYTES: Final = 1 << 30
_MEMORY_BYTES_PER_PIXEL: Final = 48
_LOOKUP_BLOCK: Final = 10_000  # videos that are looked up in the cache at a time
_BATCH_S: Final = 0.1  # time for which one process gets work with one message
_MAX_BATCH: Final = 64  # videos
_STORE_INTERVAL_S: Final = 0.25
_STORE_VIDEOS: Final = 512  # in one transaction, at most
_STAT_PROBES: Final = 64  # files, by which a slow file system is recognized
_SLOW_STAT_S: Final = 2e-4
_STAT_THREADS: Final = 32

IndexSink = Callable[[int, bytes, bytes], None]  # called with the number of a video, its summary and its index


class ProgressDisplay(Protocol):
    """Shows how many videos are done."""

    def __call__(self, done: int, total: int, /) -> None:
        """Called a few times a second."""


class IndexedVideos(NamedTuple):
    """Summaries of many videos.

    Attributes:
        records: Record of each video, in the layout of :data:`streamloader.media.video.summary.SUMMARY`.
        versions: (size in bytes, modification time in ns) of each local file, int64 (n, 2). 0 for videos in stores.
        errors: Errors by number of the video. Its record is 0.
    """

    records: Array
    versions: Array
    errors: dict[int, StreamloaderError]


class _ParseResult(NamedTuple):
    """Result of indexing one video.

    Attributes:
        number: Number of the video.
        indexed: Index of the video, or None after an error.
        error: Error, or None.
    """

    number: int
    indexed: IndexedVideo | None
    error: BaseException | None


class BulkIndexer:
    """Indexes many videos once. Subclasses override the last methods to index something else of files.

    Args:
        settings: Settings with which videos are indexed, :class:`IndexSettings`.
        in_processes: Whether this process must not parse them.
        is_fatal: Function that returns whether an error ends the work, because it does not come from a video.
        show_progress: Function that opens a display of the progress of a number of videos that have to be parsed.
            Defaults to none.
        sink: Function that receives each index, in any order. Defaults to none.
        make_parsers: Function that opens parsers outside of this process. Defaults to a pool of child processes.

    Attributes:
        summary: Layout of the record of each video.
    """

    summary: np.dtype[Any] = SUMMARY

    def __init__(
        self,
        settings: Any,
        *,
        in_processes: bool,
        is_fatal: Callable[[BaseException], bool],
        show_progress: Callable[[int], AbstractContextManager[ProgressDisplay]] | None = None,
        sink: IndexSink | None = None,
        make_parsers: Callable[[], Parsers] | None = None,
    ) -> None:
        self._make_parsers = make_parsers or self._make_pool
        self._settings = settings
        self._in_processes = in_processes
        self._is_fatal = is_fatal
        self._show_progress = show_progress
        self._sink = sink
        self._stop = threading.Event()
        self._parsers: Parsers | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Stop the work, from any thread. What is done is kept. Safe to call twice."""
        self._stop.set()
        with self._lock:
            parsers, self._parsers = self._parsers, None
        if parsers is not None:
            parsers.close()

    def run(self, videos: Sequence[Video]) -> IndexedVideos:
        """Index videos, and return their summaries. A video that is listed several times is indexed once.

        Raises:
            StreamloaderError: If an error ends the work.
            ClosedError: If the work was stopped.
        """
        versions, errors = _read_versions(videos)
        entries = [
            VideoVersion(video, version if isinstance(video, str) else None)
            for video, version in zip(videos, map(tuple, versions.tolist()), strict=True)
        ]
        records = np.zeros(len(entries), self.summary)
        missing: dict[VideoVersion, list[int]] = {}
        for start in range(0, len(entries), _LOOKUP_BLOCK):
            self._look_up(entries, range(start, min(start + _LOOKUP_BLOCK, len(entries))), records, errors, missing)
        try:
            if missing:
                self._parse_missing(missing, records, errors)
        finally:
            self.close()
            index_cache.close_cache()
        return IndexedVideos(records, versions, errors)

    def _look_up(
        self,
        entries: Sequence[VideoVersion],
        numbers: range,
        records: Array,
        errors: dict[int, StreamloaderError],
        missing: dict[VideoVersion, list[int]],
    ) -> None:
        """Look up some videos in the cache, and add those that are not there to `missing`."""
        if self._stop.is_set():
            raise _cancelled()
        block = [entries[number] for number in numbers]
        found, is_found = self._find_summaries(block)
        if self._sink is not None:
            indexes = self._find_indexes(block)
            for row in np.flatnonzero(is_found).tolist():
                data = indexes[row]
                if data is None:
                    is_found[row] = False
                elif numbers[row] not in errors:
                    self._sink(numbers[row], found[row].tobytes(), data)
        for row, error in self._check_limits(block, found, is_found):
            errors[numbers[row]] = error
        found = np.where(is_found, found, np.zeros(1, self.summary))
        records[numbers.start : numbers.stop] = found
        for row in np.flatnonzero(~is_found).tolist():
            if numbers[row] not in errors:
                missing.setdefault(block[row], []).append(numbers[row])

    def _parse_missing(
        self, missing: dict[VideoVersion, list[int]], records: Array, errors: dict[int, StreamloaderError]
    ) -> None:
        show = self._show_progress or _show_nothing
        total = sum(map(len, missing.values()))
        with show(total) as progress:
            done = 0
            groups = (
                [e for e in missing if isinstance(e.video, str)],
                [e for e in missing if not isinstance(e.video, str)],
            )
            for group in filter(None, groups):
                with contextlib.closing(self._parse(group)) as batches:
                    for result in itertools.chain.from_iterable(batches):
                        for number in missing[group[result.number]]:
                            done += 1
                            self._take(number, result, records, errors)
                        progress(done, total)

    def _take(self, number: int, result: _ParseResult, records: Array, errors: dict[int, StreamloaderError]) -> None:
        if result.error is not None:
            if not isinstance(result.error, StreamloaderError) or self._is_fatal(result.error):
                raise result.error
            errors[number] = result.error
            return
        assert result.indexed is not None
        records[number] = np.frombuffer(result.indexed.summary, self.summary)[0]
        if self._sink is not None:
            self._sink(number, result.indexed.summary, result.indexed.data)

    def _parse(self, group: list[VideoVersion]) -> Generator[list[_ParseResult], None, None]:
        """Parse videos that are all local, or all in stores. Yield results that are stored in the cache already."""
        is_local = isinstance(group[0].video, str)
        use_processes = self._in_processes or (len(group) >= _MIN_VIDEOS_FOR_PROCESSES and not _is_in_memory(group[0]))
        parsers = self._open_parsers() if use_processes else None
        cores = (os.cpu_count() or 1) if parsers is None else parsers.parallel
        threads = min(len(group), cores if is_local else max(cores, _MAX_REMOTE_CALLS))
        batches = _Batches(len(group), threads, _MAX_BATCH if is_local and use_processes else 1)
        results: queue.SimpleQueue[list[_ParseResult]] = queue.SimpleQueue()

        def work() -> None:
            while not self._stop.is_set() and (numbers := batches.take()):
                start = time.monotonic()
                results.put(self._parse_batch(parsers, group, numbers, is_local=is_local))
                batches.note(len(numbers), time.monotonic() - start)

        workers = [threading.Thread(target=work, name=f"index-{number}", daemon=True) for number in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield from self._collect(results, len(group), workers)
        finally:
            batches.stop()
            if any(worker.is_alive() for worker in workers):
                self.close()  # after an error or an interrupt: ends the calls of child processes
            for worker in workers:
                worker.join()
            self._store(_drain(results))

    def _collect(
        self, results: queue.SimpleQueue[list[_ParseResult]], total: int, workers: Sequence[threading.Thread]
    ) -> Iterator[list[_ParseResult]]:
        """Yield results in the order in which they arrive, after storing them several at a time."""
        count, pending, stored_at = 0, list[_ParseResult](), time.monotonic()
        try:
            while count + len(pending) < total:
                with contextlib.suppress(queue.Empty):
                    pending += results.get(timeout=_STORE_INTERVAL_S)
                if self._stop.is_set() and not any(worker.is_alive() for worker in workers) and results.empty():
                    raise _cancelled()
                if len(pending) >= _STORE_VIDEOS or time.monotonic() - stored_at >= _STORE_INTERVAL_S:
                    self._store(pending)
                    count, stored, pending, stored_at = count + len(pending), pending, [], time.monotonic()
                    yield stored
        finally:
            self._store(pending)
        yield pending

    def _store(self, results: Sequence[_ParseResult]) -> None:
        self._store_indexes(
            [result.indexed for result in results if result.indexed is not None and result.indexed.data]
        )

    def _make_pool(self) -> Parsers:
        return ParserPool(self._memory_bytes())

    def _open_parsers(self) -> Parsers:
        with self._lock:
            if self._stop.is_set():
                raise _cancelled()
            if self._parsers is None:
                self._parsers = self._make_parsers()
            return self._parsers

    def _parse_batch(
        self, parsers: Parsers | None, group: Sequence[VideoVersion], numbers: range, *, is_local: bool
    ) -> list[_ParseResult]:
        entries = [group[number] for number in numbers]
        try:
            if parsers is None:
                answers: list[Any] = [self._index_here(entry) for entry in entries]
            else:
                arguments = [(entry, self._settings) for entry in entries]
                if is_local:
                    names = [str(entry.video) for entry in entries]
                    answers = parsers.call_many(names, self._parser(), arguments)
                else:
                    answers = [_call_shared(parsers, self._parser(), *each) for each in arguments]
        except BaseException as error:  # noqa: BLE001 - raised in the thread that collects results
            return [_ParseResult(number, None, error) for number in numbers]
        return [self._check(*each) for each in zip(numbers, entries, answers, strict=True)]

    def _check(self, number: int, entry: VideoVersion, answer: Any) -> _ParseResult:
        """Check the answer of a child process, which is untrusted."""
        if isinstance(answer, BaseException):
            return _ParseResult(number, None, answer)
        if isinstance(answer, IndexedVideo):
            return _ParseResult(number, answer, None)
        name = str(entry.video)
        try:
            if type(answer) is not str:
                raise InvalidBlob("it is no text")
            data = base64.b64decode(answer, validate=True)
            summary = self._check_index(entry, data)
        except ValueError as problem:  # also of base64
            error = CorruptStream(
                f"the process that indexed {name} gave an impossible answer ({problem}): the file may have taken it "
                "over, or its timestamps are impossible. Remove the file",
                stream=name,
                address=name,
            )
            return _ParseResult(number, None, error)
        except StreamloaderError as limit_error:
            return _ParseResult(number, None, limit_error)
        return _ParseResult(number, IndexedVideo(entry, summary, data), None)

    # --- what is indexed ---------------------------------------------------------------------------------------------

    def _find_summaries(self, entries: Sequence[VideoVersion]) -> tuple[Array, Array]:
        """Return the record of each video, and whether it is in the cache."""
        return index_cache.find_summaries(entries, self._settings)

    def _find_indexes(self, entries: Sequence[VideoVersion]) -> list[bytes | None]:
        """Return the encoded index of each video that is in the cache, and None for the others."""
        return index_cache.find_indexes(entries, self._settings)

    def _check_limits(
        self, entries: Sequence[VideoVersion], found: Array, is_found: Array
    ) -> Iterator[tuple[int, StreamloaderError]]:
        """Yield number and error of each video whose cached record exceeds a limit."""
        max_pixels = self._settings.max_pixels
        is_large = is_found & (found["height"].astype(np.int64) * found["width"] > max_pixels)
        for row in np.flatnonzero(is_large).tolist():
            limit = PixelLimit(max_pixels, str(entries[row].video))
            try:
                limit.check(int(found["width"][row]), int(found["height"][row]))
            except StreamloaderError as error:
                yield row, error

    def _store_indexes(self, indexed: Sequence[IndexedVideo]) -> None:
        """Store indexes in the cache."""
        index_cache.store_indexes(indexed, self._settings)

    def _memory_bytes(self) -> int:
        """Return the maximum size of the private memory of a process that indexes, in bytes."""
        return int(_BASE_MEMORY_BYTES + _MEMORY_BYTES_PER_PIXEL * self._settings.max_pixels)

    def _parser(self) -> Callable[[VideoVersion, Any], str]:
        """Return the function of a module that indexes one video in a child process: base64 of the encoded index."""
        return _index_for_parent

    def _index_here(self, entry: VideoVersion) -> IndexedVideo | BaseException:
        """Index a video in this process, and return its index or error."""
        return _index_here(entry, self._settings)

    def _check_index(self, entry: VideoVersion, data: bytes) -> bytes:
        """Return the record of an encoded index from a child process, if it is possible for the video.

        Raises:
            ValueError: If it is not possible.
            StreamloaderError: If it exceeds a limit.
        """
        index = decode_index(data, entry.size)
        PixelLimit(self._settings.max_pixels, str(entry.video)).check(index.width, index.height)
        return summarize_index(index)


class _Batches:
    """Hands out numbers of videos in batches that take about as long as one message is worth.

    Args:
        total: Number of videos.
        takers: Number of threads that take batches.
        max_batch: Maximum number of videos in a batch.
    """

    def __init__(self, total: int, takers: int, max_batch: int) -> None:
        self._total = total
        self._takers = takers
        self._max_batch = max_batch
        self._size = 1
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> range:
        """Return the next numbers; none at the end."""
        with self._lock:
            fair_share = -(-(self._total - self._next) // (2 * self._takers))  # so that no thread ends late
            start, self._next = self._next, self._next + min(self._size, fair_share)
            return range(start, self._next)

    def note(self, count: int, seconds: float) -> None:
        """Adapt the size of batches to the time that one took."""
        with self._lock:
            size = int(_BATCH_S * count / max(seconds, 1e-6))
            self._size = min(max(1, size, 0), self._max_batch, 2 * self._size)

    def stop(self) -> None:
        """Hand out no more."""
        with self._lock:
            self._next = self._total


def _index(entry: VideoVersion, settings: IndexSettings) -> VideoIndex:
    return index_cache.index_video(
        entry.video,
        damaged=settings.damaged,
        max_pixels=settings.max_pixels,
        verify=settings.verify,
        stream=settings.stream,
    )


def _index_for_parent(entry: VideoVersion, settings: IndexSettings) -> str:
    """Index a video in a child process, and return the index as text."""
    return base64.b64encode(encode_index(_index(entry, settings))).decode()


def _call_shared(parsers: Parsers, parser: Callable[..., str], entry: VideoVersion, settings: Any) -> Any:
    try:
        return parsers.call(str(entry.video), parser, entry, settings, shared_by=_REMOTE_VIDEOS_PER_PROCESS)
    except ClosedError:
        raise
    except StreamloaderError as error:
        return error


def _index_here(entry: VideoVersion, settings: IndexSettings) -> IndexedVideo | BaseException:
    """Index a video in this process."""
    try:
        index = _index(entry, settings)
        return IndexedVideo(entry, summarize_index(index), encode_index(index))
    except InvalidBlob as error:
        name = str(entry.video)
        return CorruptStream(f"{name} is damaged: its timestamps are impossible ({error})", stream=name, address=name)
    except StreamloaderError as error:
        return error


def _read_versions(videos: Sequence[Video]) -> tuple[Array, dict[int, StreamloaderError]]:
    """Return the versions of all local files, and the errors of those that cannot be read.

    Where the file system is slow, several files are looked at at the same time.
    """
    versions: Array = np.zeros((len(videos), 2), np.int64)
    errors: dict[int, StreamloaderError] = {}
    local = [number for number, video in enumerate(videos) if isinstance(video, str)]

    def read(numbers: Sequence[int]) -> None:
        for number in numbers:
            try:
                versions[number] = file_version(str(videos[number]))
            except StreamloaderError as error:
                errors[number] = error

    start = time.monotonic()
    read(local[:_STAT_PROBES])
    rest = local[_STAT_PROBES:]
    if time.monotonic() - start < _SLOW_STAT_S * _STAT_PROBES:
        read(rest)
    elif rest:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="index-stat") as pool:
            list(pool.map(read, [rest[first : first + _STAT_PROBES] for first in range(0, len(rest), _STAT_PROBES)]))
    return versions, dict(sorted(errors.items()))


@contextlib.contextmanager
def _show_nothing(total: int) -> Iterator[ProgressDisplay]:
    del total
    yield lambda done, total: None


def _is_in_memory(entry: VideoVersion) -> bool:
    """Return whether only this process can read a video."""
    return not isinstance(entry.video, str) and scheme_of(entry.video.address) == "memory"


def _drain(results: queue.SimpleQueue[list[_ParseResult]]) -> list[_ParseResult]:
    drained: list[_ParseResult] = []
    with contextlib.suppress(queue.Empty):
        while True:
            drained += results.get_nowait()
    return drained


def _cancelled() -> ClosedError:
    return ClosedError("indexing the videos was cancelled")
