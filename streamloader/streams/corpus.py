"""A set of texts, wherever they are, and texts in memory."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from streamloader.errors import ClosedError, ConfigError
from streamloader.stream_table import Blobs, StreamTable, Texts
from streamloader.streams.base import Expected, Stream
from streamloader.values import Array, StreamInfo

__all__ = ["Corpus", "Memory", "StepsInMemory", "seekable"]


class Corpus(abc.ABC):
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

    def all_texts(self, infos: Iterable[StreamInfo]) -> Generator[str, None, None]:
        """Yield all texts whole, one after the other."""
        yield from map(self.text, infos)

    async def expect(self, info: StreamInfo) -> Expected | None:
        """Get ready to open one text as bytes."""
        return None

    @abc.abstractmethod
    async def open(self, info: StreamInfo) -> Stream:
        """Open one text as bytes."""


class Memory(Corpus):
    """Texts in memory."""

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
        """See the base class."""
        count = len(self._texts)
        return StreamTable(count, self._texts.sizes, {"item": range(count)})

    def text(self, info: StreamInfo) -> str:
        """See the base class."""
        return str(self._texts[info.extra["item"]])

    async def open(self, info: StreamInfo) -> Stream:
        """See the base class."""
        return StepsInMemory(self._texts[info.extra["item"]], info.key)


def _utf8(text: str | bytes, number: int) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ConfigError(f"text {number} cannot be written as UTF-8: {error}", stream=str(number)) from error


class StepsInMemory(Stream):
    """Steps that are in memory."""

    def __init__(self, tokens: Array, key: str) -> None:
        self._tokens: Array | None = tokens
        self._key = key
        self._position = 0

    async def read_into(self, out: Mapping[str, Array]) -> int:
        """See the base class."""
        if self._tokens is None:
            raise ClosedError(f"stream {self._key!r} was closed", stream=self._key)
        block = self._tokens[self._position : self._position + len(out["data"])]
        out["data"][: len(block)] = block
        self._position += len(block)
        return len(block)

    async def seek(self, step: int) -> None:
        """See the base class."""
        self._position = seekable(step, 0 if self._tokens is None else len(self._tokens), self._key)

    async def aclose(self) -> None:
        """See the base class."""
        self._tokens = None


def seekable(step: int, length: int, key: str) -> int:
    """Return where to go for `step`: the end, for what lies behind it."""
    if step < 0:
        raise ConfigError(f"cannot seek to step {step} of stream {key!r}", stream=key)
    return min(step, length)
