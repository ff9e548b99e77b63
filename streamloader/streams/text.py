"""Texts as streams of bytes or of tokens."""

from __future__ import annotations

import abc
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import anyio
import numpy as np

from streamloader.errors import ClosedError, ConfigError, CorruptStream, StreamFailed, StreamNotFound, UnreadableStream
from streamloader.streams.addresses import Addresses, Pattern, as_addresses, expand, unique_keys
from streamloader.streams.base import Stream, StreamDataset
from streamloader.streams.blocking import in_lane_thread
from streamloader.streams.playing import CLOSING
from streamloader.streams.steps import qualified_name
from streamloader.table import Blobs, StreamTable, Texts
from streamloader.values import Array, Field, StreamInfo

__all__ = ["TextStreams"]

Tokenizer: TypeAlias = "Callable[[str], Sequence[int]]"

_READ_AHEAD: Final = 1 << 16  # small windows are served from memory: one visit to the lane's thread for 64 KiB


class TextStreams(StreamDataset):
    """One stream for each text file, in one field ``"data"``: its bytes (uint8), or its tokens (int64).

    Bytes are exactly those of the file, read where they are needed; a file of any size costs 64 KiB of memory.
    With a tokenizer, each document is read, decoded and tokenised as a whole when its stream begins - and once
    before, when the loader is built, to count its tokens, so that ``len(loader)`` is exact.

    Args:
        addresses: a path, a glob pattern (``**`` for any depth), a directory, or a list of these. Files of one
            pattern or directory come sorted by code point; a list keeps its order.
        tokenizer: a function from str to a sequence of ints, always the same ones for the same text, such as
            ``tokenizer.encode``. None streams bytes.
        pattern: which files of a directory are texts; see :func:`streamloader.streams.addresses.expand`.
        encoding: how files are decoded for the tokenizer. Bytes are never decoded.
        fill: the value of padding, for instance the tokenizer's padding token.

    For texts in memory see :meth:`from_texts`. Steps are timed at one a second.

    Raises:
        ConfigError: the arguments do not go together.
        StreamNotFound: a path does not exist, or a directory or pattern holds no text (from :meth:`index`).
        UnreadableStream: a file may not be read, or is not in `encoding`: ``offset`` is the byte.
        CorruptStream: a file is not what it was when it was indexed: ``offset`` is the byte.
        StreamFailed: the tokenizer raised, or returned something else than ints.
    """

    def __init__(
        self,
        addresses: Addresses,
        tokenizer: Tokenizer | None = None,
        *,
        pattern: Pattern = "*.txt",
        encoding: str = "utf-8",
        fill: int = 0,
    ) -> None:
        try:
            b" ".decode(encoding)
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is not one of a text: {error}") from error
        except UnicodeError:  # known, and one in which a byte is no character
            pass
        self._corpus: _Corpus = _Files(as_addresses(addresses), pattern, encoding)
        self._configure(tokenizer, fill)

    @classmethod
    def from_texts(cls, texts: Iterable[str | bytes], tokenizer: Tokenizer | None = None, *, fill: int = 0) -> Self:
        """One stream for each text in memory, in the given order; keys are ``"0"``, ``"1"``, ...

        Args:
            texts: str is streamed as UTF-8; bytes as they are (then without a tokenizer).
            tokenizer: as for files.
            fill: as for files.

        Raises:
            ConfigError: something that is no text.
        """
        self = cls.__new__(cls)
        self._corpus = _Memory(texts, tokenizer is not None)
        self._configure(tokenizer, fill)
        return self

    def _configure(self, tokenizer: Tokenizer | None, fill: int) -> None:
        if tokenizer is not None and not callable(tokenizer):
            raise ConfigError(f"tokenizer must be a function from str to ids, got {type(tokenizer).__name__}")
        self._tokenizer = tokenizer
        self._field = Field((), "uint8" if tokenizer is None else "int64", fill)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The field ``"data"``: a scalar, uint8 for bytes or int64 for tokens."""
        return {"data": self._field}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The qualified name of the tokenizer, and what it is given."""
        if self._tokenizer is None:
            return {"tokenizer": None}
        return {"tokenizer": qualified_name(self._tokenizer), "encoding": self._corpus.encoding}

    async def index(self) -> Sequence[StreamInfo]:
        """Find the texts and count their bytes or tokens; keys are the paths as they were given."""
        return await in_lane_thread(self._index)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one text at its first byte or token; `rng` is not used."""
        if self._tokenizer is None:
            return await self._corpus.open(info)
        return _Tokens(await in_lane_thread(self._reread, self._tokenizer, info), info.key)

    def _index(self) -> StreamTable:
        tokenizer, found = self._tokenizer, self._corpus.find()
        if tokenizer is None:
            return found
        counted = (len(_tokenize(tokenizer, self._corpus.text(info), info.key)) for info in found)
        return found.with_lengths(np.fromiter(counted, np.int64, len(found)))

    def _reread(self, tokenizer: Tokenizer, info: StreamInfo) -> Array:
        tokens = _tokenize(tokenizer, self._corpus.text(info), info.key)
        if info.length is not None and len(tokens) != info.length:
            raise StreamFailed(
                f"the tokenizer gave {info.length} tokens for {info.key} when the loader was built and {len(tokens)} "
                f"now: it must always give the same ones for the same text",
                stream=info.key,
                offset=min(len(tokens), info.length),
            )
        return tokens


def _tokenize(tokenizer: Tokenizer, text: str, key: str) -> Array:
    try:
        given = tokenizer(text)
    except Exception as error:
        kind = type(error).__name__
        raise StreamFailed(f"the tokenizer raised {kind}: {error}", stream=key, cause=kind) from error
    try:
        tokens = np.asarray(given)
        empty = tokens.shape == (0,)
        if not empty and (tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not _fits_int64(tokens)):
            raise TypeError(f"shape {tokens.shape}, dtype {tokens.dtype}")
    except Exception as error:
        hint = "; pass lambda text: tokenizer.encode(text).ids" if hasattr(given, "ids") else ""
        raise StreamFailed(
            f"the tokenizer must return a sequence of ints, but returned {type(given).__name__} for {key} "
            f"({error}){hint}",
            stream=key,
        ) from error
    return tokens.astype(np.int64, copy=False)


def _fits_int64(tokens: Array) -> bool:
    return tokens.dtype.kind == "i" or int(tokens.max()) <= np.iinfo(np.int64).max


class _Corpus(abc.ABC):
    """Where the texts are.

    Attributes:
        encoding: of the files.
    """

    encoding: str = "utf-8"

    @abc.abstractmethod
    def find(self) -> StreamTable:
        """Describe all texts, with their length in bytes."""

    @abc.abstractmethod
    def text(self, info: StreamInfo) -> str:
        """Return one text whole."""

    @abc.abstractmethod
    async def open(self, info: StreamInfo) -> Stream:
        """Open one text as bytes."""


class _Memory(_Corpus):
    def __init__(self, texts: Iterable[str | bytes], as_text: bool) -> None:
        if isinstance(texts, (str, bytes)):
            raise ConfigError("from_texts takes a list of texts, got a single one: wrap it into a list")
        listed: list[Any] = list(texts)
        for number, text in enumerate(listed):
            if not isinstance(text, str) and (as_text or not isinstance(text, bytes)):
                raise ConfigError(
                    f"text {number} is {type(text).__name__}, not {'str' if as_text else 'str or bytes'}",
                    stream=str(number),
                )
        # End to end in one array, which workers share.
        self._texts: Any = Texts.pack(listed) if as_text else Blobs.join(map(_utf8, listed, itertools.count()))

    def find(self) -> StreamTable:
        count = len(self._texts)
        return StreamTable(count, self._texts.sizes, {"item": range(count)})

    def text(self, info: StreamInfo) -> str:
        return str(self._texts[info.extra["item"]])

    async def open(self, info: StreamInfo) -> Stream:
        return _Tokens(self._texts[info.extra["item"]], info.key)


def _utf8(text: str | bytes, number: int) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ConfigError(f"text {number} cannot be written as UTF-8: {error}", stream=str(number)) from error


class _Files(_Corpus):
    def __init__(self, addresses: list[str], pattern: Pattern, encoding: str) -> None:
        self._addresses = addresses
        self._pattern = pattern
        self.encoding = encoding

    def find(self) -> StreamTable:
        try:
            paths = expand(self._addresses, self._pattern)
        except StreamNotFound as error:
            raise StreamNotFound(
                f"{error.message}; texts in memory go to TextStreams.from_texts", address=error.address
            ) from error
        keys = unique_keys(paths)
        sizes, modified = array("q"), array("q")
        for number, (path, key) in enumerate(zip(paths, keys, strict=True)):
            paths[number] = os.path.abspath(path)  # a worker may have another current directory
            status = _status(path, paths[number], key)
            sizes.append(status.st_size)
            modified.append(status.st_mtime_ns)
        found: dict[str, Any] = {"size": np.array(sizes, np.int64), "mtime_ns": np.array(modified, np.int64)}
        return StreamTable(keys, found["size"], {"path": paths, **found})

    def text(self, info: StreamInfo) -> str:
        file = _File.of(info)
        with file.open() as handle:
            file.check(handle.fileno(), 0)
            data = bytes(handle.readall())
            file.check(handle.fileno(), len(data))
        if len(data) != file.size:
            raise file.changed(min(len(data), file.size))
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

    async def open(self, info: StreamInfo) -> Stream:
        stream = _FileBytes(_File.of(info))
        try:
            await in_lane_thread(stream.begin)
        except BaseException:  # cancelled, perhaps: the thread goes on and opens it
            with anyio.move_on_after(CLOSING, shield=True):
                await stream.aclose()
            raise
        return stream


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


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was when it was indexed."""

    key: str
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, info: StreamInfo) -> _File:
        return cls(info.key, info.extra["path"], info.extra["size"], info.extra["mtime_ns"])

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

    def check(self, descriptor: int, offset: int) -> None:
        """Refuse to go on at `offset` if the file is another than at index time."""
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self.changed(min(offset, status.st_size), status.st_size)

    def changed(self, offset: int, size: int | None = None) -> CorruptStream:
        now = "" if size is None else f" and has {size} now"
        return CorruptStream(
            f"{self.key} changed since it was indexed, noticed at byte {offset}: it had {self.size} bytes{now}. "
            f"Build the loader anew, and leave its files alone while it runs",
            stream=self.key,
            address=self.path,
            offset=offset,
        )


class _FileBytes(Stream):
    """The bytes of a file. A window that is in the read-ahead needs no visit to the lane's thread."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self._handle: Any = None
        self._closed = False
        self._position = 0
        self._ahead: Array = np.zeros(0, np.uint8)
        self._ahead_start = 0

    def begin(self) -> None:
        handle = self._file.open()
        try:
            self._file.check(handle.fileno(), 0)
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
            handle.seek(start)
            while done < size and (read := handle.readinto(view[done:])):
                done += read
            file.check(handle.fileno(), start + done)
        except OSError as error:
            if isinstance(error, CorruptStream):
                raise
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
        self._position = _seekable(step, self._file.size, self._file.key)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await in_lane_thread(self._close)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()


class _Tokens(Stream):
    """Steps that are in memory."""

    def __init__(self, tokens: Array, key: str) -> None:
        self._tokens: Array | None = tokens
        self._key = key
        self._position = 0

    async def read_into(self, out: Mapping[str, Array]) -> int:
        if self._tokens is None:
            raise ClosedError(f"stream {self._key!r} was closed", stream=self._key)
        block = self._tokens[self._position : self._position + len(out["data"])]
        out["data"][: len(block)] = block
        self._position += len(block)
        return len(block)

    async def seek(self, step: int) -> None:
        self._position = _seekable(step, 0 if self._tokens is None else len(self._tokens), self._key)

    async def aclose(self) -> None:
        self._tokens = None


def _seekable(step: int, length: int, key: str) -> int:
    if step < 0:
        raise ConfigError(f"cannot seek to step {step} of stream {key!r}", stream=key)
    return min(step, length)
