"""Texts in local files and in stores, and how one of them is read."""

from __future__ import annotations

import abc
import contextlib
import os
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import numpy as np

from streamloader.errors import (
    ClosedError,
    CorruptStream,
    NotSupported,
    StreamloaderError,
    StreamNotFound,
    UnreadableStream,
)
from streamloader.redaction import redact
from streamloader.stores.addresses import Found, Pattern, expand, unique_keys
from streamloader.stores.io_thread import shared_store
from streamloader.stores.readahead import RemoteFile
from streamloader.stores.registry import scheme_of, split_address
from streamloader.stream_table import StreamTable
from streamloader.streams.base import Expected, Stream
from streamloader.streams.corpus import Corpus, seekable
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_sources import CLOSING
from streamloader.values import Array, ObjectInfo, StreamInfo

__all__ = ["Files"]

_READ_AHEAD: Final = 1 << 16  # small windows are served from memory: one visit to the lane's thread for 64 KiB
_AT_ONCE: Final = 16  # texts in stores that are read side by side, to be tokenised


class Files(Corpus):
    """Files of this machine and objects of stores."""

    def __init__(
        self, addresses: list[str], pattern: Pattern, encoding: str, options: Mapping[str, Any] | None
    ) -> None:
        self._addresses = addresses
        self._pattern = pattern
        self._options = None if options is None else dict(options)
        self._secret: dict[str, str] = {}  # key -> address, where the address says more than may be shown
        self.encoding = encoding

    def find(self) -> StreamTable:
        """See the base class."""
        try:
            found = expand(self._addresses, self._pattern, self._options)
        except StreamNotFound as error:
            raise StreamNotFound(
                f"{error.message}; texts in memory go to TextStreams.from_texts", address=error.address
            ) from error
        names = [one.address if one.info is None else redact(one.address) for one in found]
        keys = unique_keys(names)
        self._secret = {
            key: one.address for key, name, one in zip(keys, names, found, strict=True) if name != one.address
        }
        paths, versions = names, [""] * len(names)
        sizes, modified = array("q"), array("q")
        for number, (one, key) in enumerate(zip(found, keys, strict=True)):
            if one.info is None:
                paths[number] = os.path.abspath(one.address)  # a worker may have another current directory
                status = _status(one.address, paths[number], key)
                sizes.append(status.st_size)
                modified.append(status.st_mtime_ns)
            else:
                sizes.append(_size(one, key))
                modified.append(_moment(one.info))
                versions[number] = one.info.version or ""
        facts: dict[str, Any] = {"size": np.array(sizes, np.int64), "mtime_ns": np.array(modified, np.int64)}
        return StreamTable(keys, facts["size"], {"path": paths, "version": versions, **facts})

    def text(self, info: StreamInfo) -> str:
        """See the base class."""
        file = self._file(info)
        data = file.whole()
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

    def all_texts(self, infos: Iterable[StreamInfo]) -> Generator[str, None, None]:
        """See the base class."""
        return _ahead(self.text, infos)

    async def open(self, info: StreamInfo) -> Stream:
        """See the base class."""
        return await _begun(_FileBytes(self._file(info)))

    async def expect(self, info: StreamInfo) -> Expected | None:
        """See the base class."""
        file = self._file(info)
        if not isinstance(file, _ObjectFile) or not file.version:
            return None
        try:
            return _ExpectedObject(file, file.open(_READ_AHEAD))
        except StreamloaderError:  # it is raised again, by open
            return None

    def _file(self, info: StreamInfo) -> _File:
        facts = info.extra
        if scheme_of(facts["path"]):
            address = self._secret.get(info.key, facts["path"])
            known = facts["size"], facts["mtime_ns"], facts["version"]
            return _ObjectFile(info.key, facts["path"], *known, address, self._options)
        return _LocalFile(info.key, facts["path"], facts["size"], facts["mtime_ns"])


def _ahead(text: Callable[[StreamInfo], str], infos: Iterable[StreamInfo]) -> Generator[str, None, None]:
    """Read texts side by side where that is mostly waiting: those that lie in stores."""
    with ThreadPoolExecutor(_AT_ONCE, "texts") as pool:
        under_way: deque[Future[str]] = deque()
        try:
            for info in infos:
                if scheme_of(info.extra["path"]):
                    under_way.append(pool.submit(text, info))
                    if len(under_way) > _AT_ONCE:
                        yield under_way.popleft().result()
                else:
                    while under_way:
                        yield under_way.popleft().result()
                    yield text(info)
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _status(path: str, absolute: str, key: str) -> os.stat_result:
    try:
        status = os.stat(absolute)
    except FileNotFoundError as error:
        raise StreamNotFound(f"{path} has just vanished", stream=key, address=absolute) from error
    except OSError as error:
        raise UnreadableStream(f"cannot look at {path}: {error.strerror}", stream=key, address=absolute) from error
    if not os.access(absolute, os.R_OK):
        raise UnreadableStream(f"{path} may not be read (permission denied)", stream=key, address=absolute)
    return status


def _size(found: Found, key: str) -> int:
    if found.info is None or found.info.size is None:
        raise NotSupported(
            f"the server of {key} does not tell its size, so its length in steps is not known: keep a copy of it where "
            "sizes are known",
            stream=key,
            address=found.address,
        )
    return found.info.size


class _File(abc.ABC):
    """A file as it was when it was indexed.

    Attributes:
        key: of its stream.
        path: of the file, or its address without secrets.
        size: in bytes.
    """

    key: str
    path: str
    size: int

    @abc.abstractmethod
    def open(self) -> Any:
        """Open it as a raw file."""

    @abc.abstractmethod
    def check(self, handle: Any, offset: int) -> None:
        """Refuse to go on at `offset` if the file is another than at index time."""

    @abc.abstractmethod
    def whole(self) -> bytes:
        """Read all of it."""

    def changed(self, offset: int, size: int | None = None) -> CorruptStream:
        now = "" if size is None else f" and has {size} now"
        return CorruptStream(
            f"{self.key} changed since it was indexed, noticed at byte {offset}: it had {self.size} bytes{now}. "
            f"Build the loader anew, and leave its files alone while it runs",
            stream=self.key,
            address=self.path,
            offset=offset,
        )


@dataclass(frozen=True, slots=True)
class _LocalFile(_File):
    key: str
    path: str
    size: int
    mtime_ns: int

    def open(self) -> Any:
        try:
            return open(self.path, "rb", buffering=0)
        except FileNotFoundError as error:
            raise StreamNotFound(
                f"{self.key} has vanished since it was indexed", stream=self.key, address=self.path
            ) from error
        except OSError as error:
            raise UnreadableStream(
                f"cannot open {self.key}: {error.strerror}", stream=self.key, address=self.path
            ) from error

    def check(self, handle: Any, offset: int) -> None:
        status = os.fstat(handle.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self.changed(min(offset, status.st_size), status.st_size)

    def whole(self) -> bytes:
        with self.open() as handle:
            self.check(handle, 0)
            data = bytes(handle.readall())
            self.check(handle, len(data))
        if len(data) != self.size:
            raise self.changed(min(len(data), self.size))
        return data


@dataclass(frozen=True, slots=True)
class _ObjectFile(_File):
    key: str
    path: str
    size: int
    mtime_ns: int
    version: str
    address: str = field(repr=False)
    options: Mapping[str, Any] | None = field(repr=False)

    def open(self, ahead: int = 0) -> RemoteFile:
        """Open it, and begin to fetch so many bytes. Blocks only where there is no version."""
        self._look_again()
        info = ObjectInfo(split_address(self.address)[1], self.size, self.version or None)
        return RemoteFile(self.address, info, self.options, opening=[(0, ahead)] if ahead else ())

    def check(self, handle: Any, offset: int) -> None:
        """Do nothing: every request asks for this version."""

    def whole(self) -> bytes:
        with _naming(self.key):
            self._look_again()
            shared, path = shared_store(self.address, self.options)
            with shared:
                data = shared.read(path, version=self.version or None)
        if len(data) != self.size:
            raise self.changed(min(len(data), self.size), len(data))
        return data

    def _look_again(self) -> None:
        """Compare it with what was indexed where reading cannot, for want of a version to ask for."""
        if not self.version:
            shared, path = shared_store(self.address, self.options)
            with shared:
                now = shared.head(path)
            if (now.size, _moment(now)) != (self.size, self.mtime_ns):
                raise self.changed(0, now.size)


def _moment(info: ObjectInfo) -> int:
    return 0 if info.modified is None else round(info.modified * 1e9)


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Have errors of stores say which stream they struck."""
    try:
        yield
    except StreamloaderError as error:
        if error.stream is None:
            error.stream = key
        raise


async def _begun(stream: _FileBytes) -> Stream:
    try:
        await in_lane_thread(stream.begin)
    except BaseException:  # cancelled, perhaps: the thread goes on and opens it
        with anyio.move_on_after(CLOSING, shield=True):
            await stream.aclose()
        raise
    return stream


class _ExpectedObject(Expected):
    """A text in a store whose first bytes are on their way."""

    def __init__(self, file: _ObjectFile, handle: RemoteFile) -> None:
        self._file = file
        self._handle = handle

    @property
    def ready(self) -> bool:  # type: ignore[override]
        return self._handle.idle

    async def open(self, rng: np.random.Generator) -> Stream:
        if self._handle.sound:
            return await _begun(_FileBytes(self._file, self._handle))
        self._handle.close()  # what went wrong a while ago may be over
        return await _begun(_FileBytes(self._file))

    def release(self) -> None:
        self._handle.close()


class _FileBytes(Stream):
    """The bytes of a file. A window that is in the read-ahead needs no visit to the lane's thread."""

    def __init__(self, file: _File, handle: RemoteFile | None = None) -> None:
        self._file = file
        self._handle: Any = handle
        self._closed = False
        self._position = 0
        self._ahead: Array = np.zeros(0, np.uint8)
        self._ahead_start = 0

    def begin(self) -> None:
        if self._handle is not None:
            return
        with _naming(self._file.key):
            handle = self._file.open()
        try:
            self._file.check(handle, 0)
        except BaseException:
            handle.close()
            raise
        self._handle = handle

    async def read_into(self, out: Mapping[str, Array]) -> int:
        data = out["data"]
        if self._closed:
            raise ClosedError(f"stream {self._file.key!r} was closed", stream=self._file.key)
        wanted = min(len(data), self._file.size - self._position)
        if wanted <= 0:
            return 0
        count = self._from_memory(data, wanted)
        if count == 0:
            await in_lane_thread(self._read_ahead, wanted)
            count = self._from_memory(data, wanted)
        self._position += count
        return count

    def _from_memory(self, data: Array, wanted: int) -> int:
        begin = self._position - self._ahead_start
        if not 0 <= begin < len(self._ahead):
            return 0
        block = self._ahead[begin : begin + wanted]
        data[: len(block)] = block
        return len(block)

    def _read_ahead(self, wanted: int) -> None:
        file, handle, start = self._file, self._handle, self._position
        size = min(max(wanted, _READ_AHEAD), file.size - start)
        ahead = self._ahead if len(self._ahead) == size else np.empty(size, np.uint8)
        self._ahead = np.zeros(0, np.uint8)  # not valid while it is written
        view, done = ahead.data, 0
        try:
            with _naming(file.key):
                handle.seek(start)
                while done < size and (read := handle.readinto(view[done:])):
                    done += read
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
            raise file.changed(start + done)
        self._ahead, self._ahead_start = ahead, start

    async def seek(self, step: int) -> None:
        self._position = seekable(step, self._file.size, self._file.key)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await in_lane_thread(self._close)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()
