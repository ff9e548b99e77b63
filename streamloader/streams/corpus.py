"""Sources of texts for text streams, and texts in memory."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import override

from streamloader.errors import ClosedError, ConfigError, StreamloaderError
from streamloader.stream_table import BytesColumn, StreamTable, StringColumn
from streamloader.streams.base import PreparedStream, Stream
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array, StreamInfo

__all__ = ["Corpus", "MeasureTexts", "MemoryCorpus", "MemoryStream", "clamp_step"]

# Returns the number of steps of each text of a table, or the error of the text.
MeasureTexts: TypeAlias = "Callable[[StreamTable], Sequence[int | StreamloaderError]]"


class Corpus(abc.ABC):
    """A set of texts.

    Attributes:
        encoding: Encoding of the texts.
        skipped: Texts that the last call of :meth:`index` left out.
    """

    encoding: str = "utf-8"
    skipped: Sequence[SkippedVideo] = ()

    @abc.abstractmethod
    def index(self, measure: MeasureTexts | None, *, skips: bool) -> StreamTable:
        """Describe all texts.

        Args:
            measure: Function that returns the lengths of texts. None stands for their bytes.
            skips: Whether texts of files that cannot be used are left out.
        """

    @abc.abstractmethod
    def source_sizes(self, table: StreamTable) -> tuple[Array, Array]:
        """Return the size in bytes of each text to be read (int64), and whether it is in a store (bool)."""

    @abc.abstractmethod
    def read_text(self, info: StreamInfo) -> str:
        """Return one complete text."""

    def read_texts(self, infos: Iterable[StreamInfo]) -> Generator[str | StreamloaderError, None, None]:
        """Yield complete texts, or the errors of those that cannot be read, in order."""
        yield from map(self.read_text, infos)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the data needed to open the bytes of one text. Return None if there is nothing to fetch."""
        return None

    @abc.abstractmethod
    async def open(self, info: StreamInfo) -> Stream:
        """Open the bytes of one text."""


class MemoryCorpus(Corpus):
    """Texts in memory.

    Args:
        texts: Texts. str is encoded as UTF-8 unless `as_text`.
        as_text: Whether complete texts will be read, for a tokenizer. Otherwise, bytes are streamed.

    Raises:
        ConfigError: If a text has the wrong type.
    """

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
        # All texts are joined into one array, which workers share.
        self._texts: Any = (
            StringColumn.from_strings(listed)
            if as_text
            else BytesColumn.from_pieces(map(_encode_utf8, listed, itertools.count()))
        )

    @override
    def index(self, measure: MeasureTexts | None, *, skips: bool) -> StreamTable:
        count = len(self._texts)
        table = StreamTable(count, self._texts.sizes, {"item": range(count)})
        if measure is None:
            return table
        lengths = measure(table)
        for length in lengths:
            if isinstance(length, StreamloaderError):
                raise length
        return table.with_lengths(np.array(lengths, np.int64))

    @override
    def source_sizes(self, table: StreamTable) -> tuple[Array, Array]:
        return np.zeros(len(table), np.int64), np.zeros(len(table), bool)

    @override
    def read_text(self, info: StreamInfo) -> str:
        return str(self._texts[info.extra["item"]])

    @override
    async def open(self, info: StreamInfo) -> Stream:
        return MemoryStream(self._texts[info.extra["item"]], info.key)


def _encode_utf8(text: str | bytes, number: int) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise ConfigError(f"text {number} cannot be encoded as UTF-8: {error}", stream=str(number)) from error


class MemoryStream(Stream):
    """A stream of steps in memory.

    Args:
        steps: One value per step.
        key: Key of the stream, for error messages.
    """

    def __init__(self, steps: Array, key: str) -> None:
        self._steps: Array | None = steps
        self._key = key
        self._position = 0

    @override
    async def read_into(self, out: Mapping[str, Array]) -> int:
        if self._steps is None:
            raise ClosedError(f"stream {self._key!r} was closed", stream=self._key)
        block = self._steps[self._position : self._position + len(out["data"])]
        out["data"][: len(block)] = block
        self._position += len(block)
        return len(block)

    @override
    async def seek(self, step: int) -> None:
        self._position = clamp_step(step, 0 if self._steps is None else len(self._steps), self._key)

    @override
    async def aclose(self) -> None:
        self._steps = None


def clamp_step(step: int, length: int, key: str) -> int:
    """Return `step`, or the end of the stream if `step` is after it.

    Raises:
        ConfigError: If `step` is negative.
    """
    if step < 0:
        raise ConfigError(f"cannot seek to step {step} of stream {key!r}", stream=key)
    return min(step, length)
