"""Texts in local files and in stores, and reading them as byte streams."""

from __future__ import annotations

import abc
import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import numpy as np
from typing_extensions import override

from streamloader.arguments import check_options
from streamloader.errors import (
    ClosedError,
    CorruptStream,
    StreamloaderError,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.stores.addresses import Pattern, expand_addresses
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.readahead import UNIT_BYTES, RemoteFile
from streamloader.stores.registry import is_local_file, split_address
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.base import PreparedStream, Stream
from streamloader.streams.corpus import Corpus, MeasureTexts, clamp_step
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_sources import CLOSE_TIMEOUT_S
from streamloader.streams.text_table import TextTableBuilder, modified_ns
from streamloader.streams.unreadable import ends_indexing, settle_errors
from streamloader.values import Array, ObjectInfo, StreamInfo

__all__ = ["FileCorpus"]

_READ_AHEAD_BYTES: Final = 1 << 16  # the lane's thread is called once per this many bytes, not once per small window
_MAX_PARALLEL_READS: Final = 16  # of texts in stores, for a tokenizer
_NOUN: Final = "texts"


class FileCorpus(Corpus):
    """Texts in local files and in objects of stores.

    Args:
        addresses: Paths, addresses, glob patterns, or directories.
        pattern: Filter for the files of a directory.
        encoding: Encoding of the texts.
        options: Keyword arguments for opening the stores, or None.
        unreadable: Handling of files that cannot be used, and of directories that may not be read. Defaults to None.
    """

    def __init__(
        self,
        addresses: list[str],
        pattern: Pattern,
        encoding: str,
        options: Mapping[str, Any] | None,
        unreadable: Unreadable = None,
    ) -> None:
        self._addresses = addresses
        self._pattern = pattern
        self._options = check_options("storage_options", options)
        self._unreadable = unreadable
        self._secret_addresses: dict[str, str] = {}  # by key, where the address contains secrets
        self.encoding = encoding

    @override
    def index(self, measure: MeasureTexts | None, *, skips: bool) -> StreamTable:
        found = UnreadableReport("skip" if skips else self._unreadable)
        try:
            files = expand_addresses(self._addresses, self._pattern, self._options, unreadable=found)
            found.check(files)
        except StreamNotFound as error:
            missing = StreamNotFound(
                f"{error.message}; for texts in memory, use TextStreams.from_texts", address=error.address
            )
            missing.details |= error.details
            raise missing from error
        texts = TextTableBuilder(files)
        keys = texts.keys
        self._secret_addresses = keys.secret_addresses
        table = texts.build_table()
        if measure is not None and len(table):
            table = texts.add_lengths(measure(table))
        self.skipped = settle_errors(found, texts.errors, keys.names, keys.keys, _NOUN)
        return table

    @override
    def source_sizes(self, table: StreamTable) -> tuple[Array, Array]:
        local = set(map(is_local_file, self._addresses))
        if len(local) == 1:
            remote = np.full(len(table), not local.pop())
        else:
            remote = np.fromiter((not is_local_file(info.extra["path"]) for info in table), bool, len(table))
        return table.extra_integers("size"), remote

    @override
    def read_text(self, info: StreamInfo) -> str:
        file = self._text_file(info)
        data = file.read_all()
        try:
            return data.decode(self.encoding)
        except UnicodeError as error:
            start = getattr(error, "start", 0)
            raise UnreadableStream(
                f"{info.key} is not {self.encoding}: {getattr(error, 'reason', error)} at byte {start}; "
                f"pass its encoding=",
                stream=info.key,
                address=file.path,
                offset=start,
            ) from error

    @override
    def read_texts(self, infos: Iterable[StreamInfo]) -> Generator[str | StreamloaderError, None, None]:
        return _read_in_parallel(self._read_text_or_error, infos)

    def _read_text_or_error(self, info: StreamInfo) -> str | StreamloaderError:
        try:
            return self.read_text(info)
        except StreamloaderError as error:
            if ends_indexing(error):
                raise
            return error

    @override
    async def open(self, info: StreamInfo) -> Stream:
        file = self._text_file(info)
        if isinstance(file, _RemoteTextFile) and file.version:  # opening it does not block
            return _open_remote(file)
        return await _open_in_thread(_TextByteStream(file))

    @override
    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        file = self._text_file(info)
        if not isinstance(file, _RemoteTextFile) or not file.version:
            return None
        try:
            return _PreparedText(file, file.open(_READ_AHEAD_BYTES))
        except StreamloaderError:  # open() raises it again
            return None

    def _text_file(self, info: StreamInfo) -> _TextFile:
        extra = info.extra
        if not is_local_file(extra["path"]):
            address = self._secret_addresses.get(info.key, extra["path"])
            indexed = extra["size"], extra["mtime_ns"], extra["version"]
            return _RemoteTextFile(info.key, extra["path"], *indexed, address, self._options)
        return _LocalTextFile(info.key, extra["path"], extra["size"], extra["mtime_ns"])


def _read_in_parallel(
    read_text: Callable[[StreamInfo], str | StreamloaderError], infos: Iterable[StreamInfo]
) -> Generator[str | StreamloaderError, None, None]:
    """Yield texts in order, reading those in stores in parallel because that is mostly waiting."""
    with ThreadPoolExecutor(_MAX_PARALLEL_READS, "texts") as pool:
        pending: deque[Future[str | StreamloaderError]] = deque()
        try:
            for info in infos:
                if not is_local_file(info.extra["path"]):
                    pending.append(pool.submit(read_text, info))
                    if len(pending) > _MAX_PARALLEL_READS:
                        yield pending.popleft().result()
                else:
                    while pending:
                        yield pending.popleft().result()
                    yield read_text(info)
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _TextFile(abc.ABC):
    """A file or object in the version that was indexed.

    Attributes:
        key: Key of its stream.
        path: Path of the file, or its address without secrets.
        size: Size in bytes.
    """

    key: str
    path: str
    size: int

    @abc.abstractmethod
    def open(self) -> Any:
        """Open the file as a raw file object."""

    @abc.abstractmethod
    def check(self, handle: Any, offset: int) -> None:
        """Check that the open file is still the one that was indexed.

        Raises:
            CorruptStream: If the file changed. `offset` is the position to report.
        """

    @abc.abstractmethod
    def read_all(self) -> bytes:
        """Return all bytes of the file."""

    def changed_error(self, offset: int, size: int | None = None) -> CorruptStream:
        """Build the error for a file that changed. `size` is its current size in bytes, if known."""
        current = "" if size is None else f" and has {size} now"
        return CorruptStream(
            f"{self.key} changed since it was indexed, detected at byte {offset}: it had {self.size} bytes{current}. "
            f"Build the loader again, and do not change its files while it runs",
            stream=self.key,
            address=self.path,
            offset=offset,
        )


@dataclass(frozen=True, slots=True)
class _LocalTextFile(_TextFile):
    key: str
    path: str
    size: int
    mtime_ns: int

    @override
    def open(self) -> Any:
        try:
            return open(self.path, "rb", buffering=0, opener=_open_without_waiting)
        except FileNotFoundError as error:
            raise StreamNotFound(
                f"{self.key} was deleted since it was indexed", stream=self.key, address=self.path
            ) from error
        except OSError as error:
            raise UnreadableStream(
                f"cannot open {self.key}: {error.strerror}", stream=self.key, address=self.path
            ) from error

    @override
    def check(self, handle: Any, offset: int) -> None:
        status = os.fstat(handle.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self.changed_error(min(offset, status.st_size), status.st_size)

    @override
    def read_all(self) -> bytes:
        with self.open() as handle:
            self.check(handle, 0)
            data = _read_up_to(handle, self.size + 1)  # the file may grow as fast as it is read
            self.check(handle, len(data))
        if len(data) != self.size:
            raise self.changed_error(min(len(data), self.size))
        return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe waits for its writer otherwise


def _read_up_to(handle: Any, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    while max_bytes and (part := handle.read(max_bytes)):
        parts.append(part)
        max_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True)
class _RemoteTextFile(_TextFile):
    key: str
    path: str
    size: int
    mtime_ns: int
    version: str
    address: str = field(repr=False)
    options: Mapping[str, Any] | None = field(repr=False)

    @override
    def open(self, read_ahead: int = 0) -> RemoteFile:
        # Requests the first `read_ahead` bytes at once. Blocks only if the object has no version.
        self._check_unversioned()
        info = ObjectInfo(split_address(self.address)[1], self.size, self.version or None)
        return RemoteFile(self.address, info, self.options, initial_spans=[(0, read_ahead)] if read_ahead else ())

    @override
    def check(self, handle: Any, offset: int) -> None:
        pass  # every request is for the indexed version

    @override
    def read_all(self) -> bytes:
        with _add_stream_to_errors(self.key):
            self._check_unversioned()
            shared, path = open_shared_store(self.address, self.options)
            with shared:
                data = shared.read(path, version=self.version or None, size=self.size)
        if len(data) != self.size:
            raise self.changed_error(min(len(data), self.size), len(data))
        return data

    def _check_unversioned(self) -> None:
        """Compare size and modification time with the indexed ones, if the object has no version to request."""
        if not self.version:
            shared, path = open_shared_store(self.address, self.options)
            with shared:
                current = shared.head(path)
            if (current.size, modified_ns(current)) != (self.size, self.mtime_ns):
                raise self.changed_error(0, current.size)


@contextlib.contextmanager
def _add_stream_to_errors(key: str) -> Iterator[None]:
    """Add the key of the stream to errors of stores."""
    try:
        yield
    except StreamloaderError as error:
        if error.stream is None:
            error.stream = key
        raise


async def _open_in_thread(stream: _TextByteStream) -> Stream:
    try:
        await in_lane_thread(stream.open_file)
    except BaseException:  # after a cancellation, the thread continues and opens the file
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await stream.aclose()
        raise
    return stream


def _open_remote(file: _RemoteTextFile) -> Stream:
    with _add_stream_to_errors(file.key):
        return _TextByteStream(file, file.open())


class _PreparedText(PreparedStream):
    """A text in a store whose first bytes are being fetched."""

    def __init__(self, file: _RemoteTextFile, handle: RemoteFile) -> None:
        self._file = file
        self._handle = handle

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._handle.is_idle

    @property
    @override
    def max_bytes(self) -> int:  # type: ignore[override]
        return min(self._file.size, UNIT_BYTES)

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        if self._handle.is_healthy:
            return _TextByteStream(self._file, self._handle)
        self._handle.close()  # a request failed: try again, the cause may be gone
        return _open_remote(self._file)

    @override
    def release(self) -> None:
        self._handle.close()


class _TextByteStream(Stream):
    """The bytes of a file. Bytes that are in memory already are read without the lane's thread.

    Args:
        file: File to read.
        remote: Open file in a store, which the stream closes. By default, :meth:`open_file` opens the file.
    """

    def __init__(self, file: _TextFile, remote: RemoteFile | None = None) -> None:
        self._file = file
        self._handle: Any = remote
        self._remote = remote
        self._in_thread = False  # a call in the lane's thread may still run
        self._closed = False
        self._position = 0
        self._buffer: Array = np.zeros(0, np.uint8)
        self._buffer_start = 0

    def open_file(self) -> None:
        """Open the file, and check that it is the one that was indexed."""
        with _add_stream_to_errors(self._file.key):
            handle = self._file.open()
        try:
            self._file.check(handle, 0)
        except BaseException:
            handle.close()
            raise
        self._handle = handle

    @override
    async def read_into(self, out: Mapping[str, Array]) -> int:
        data = out["data"]
        if self._closed:
            raise ClosedError(f"stream {self._file.key!r} was closed", stream=self._file.key)
        wanted = min(len(data), self._file.size - self._position)
        if wanted <= 0:
            return 0
        count = self._copy_buffered(data, wanted)
        if count == 0:
            if self._remote is not None and self._remote.has_arrived(self._position, self._buffer_bytes(wanted)):
                self._fill_buffer(wanted)
            else:
                self._in_thread = True
                await in_lane_thread(self._fill_buffer, wanted)
                self._in_thread = False
            count = self._copy_buffered(data, wanted)
        self._position += count
        return count

    def _copy_buffered(self, data: Array, wanted: int) -> int:
        start = self._position - self._buffer_start
        if not 0 <= start < len(self._buffer):
            return 0
        block = self._buffer[start : start + wanted]
        data[: len(block)] = block
        return len(block)

    def _fill_buffer(self, wanted: int) -> None:
        file, handle, start = self._file, self._handle, self._position
        size = self._buffer_bytes(wanted)
        buffer = self._buffer if len(self._buffer) == size else np.empty(size, np.uint8)
        self._buffer = np.zeros(0, np.uint8)  # invalid while it is written
        view, done = buffer.data, 0
        try:
            with _add_stream_to_errors(file.key):
                handle.seek(start)
                while done < size and (count := handle.readinto(view[done:])):
                    done += count
                file.check(handle, start + done)
        except StreamloaderError:
            raise
        except OSError as error:
            raise UnreadableStream(
                f"cannot read {file.key} at byte {start + done}: {error.strerror}",
                stream=file.key,
                address=file.path,
                offset=start + done,
            ) from error
        if done < size:
            raise file.changed_error(start + done)
        self._buffer, self._buffer_start = buffer, start

    def _buffer_bytes(self, wanted: int) -> int:
        """Return the number of bytes to read ahead for `wanted` bytes at the position."""
        return min(max(wanted, _READ_AHEAD_BYTES), self._file.size - self._position)

    @override
    async def seek(self, step: int) -> None:
        self._position = clamp_step(step, self._file.size, self._file.key)

    @override
    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._remote is None or self._in_thread:
            await in_lane_thread(self._close)
        else:
            self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()
