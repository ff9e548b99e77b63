"""Texts as streams of bytes or tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.stores.addresses import Addresses, Pattern, as_addresses
from streamloader.stores.search import Unreadable
from streamloader.stream_table import StreamTable
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skips_unreadable
from streamloader.streams.corpus import Corpus, MemoryCorpus, MemoryStream
from streamloader.streams.indexing import validate_unreadable
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.text_files import FileCorpus
from streamloader.streams.text_steps import TextSteps, Tokenizer
from streamloader.streams.unreadable import SkippedVideo
from streamloader.values import Array, Field, StreamInfo

__all__ = ["TextStreams"]


class TextStreams(StreamDataset):
    """One stream for each text file, with one field ``"data"``: its bytes (uint8) or its tokens (int64).

    Bytes are exactly those of the file, read as needed: a local file of any size takes 64 KiB of memory, one in a store
    at most 16 MiB for read-ahead. The first 128 KiB of a lane's next texts in stores are fetched early: of up to 8
    texts and 512 KiB together; of more, up to 64 texts and 4 MiB, where texts have arrived too late. With a tokenizer,
    each document is read, decoded and tokenized completely when its stream starts, and once before when the loader is
    built, to count its tokens, so that ``len(loader)`` is exact.

    Args:
        addresses: A path, a glob pattern (``**`` for any depth), a directory, or a list of these. Files of one pattern
            or directory are sorted by code point; a list keeps its order. Addresses in stores (``s3://corpus/*.txt``,
            ``ssh://``, ``https://``, ...) can be used like paths and mixed with them; see
            :func:`streamloader.stores.open_store`.
        tokenizer: Function from str to a sequence of ints, such as ``tokenizer.encode``. It must always return the same
            ints for the same text. Defaults to None, which streams bytes.
        pattern: Filter for the files of a directory; see :func:`streamloader.stores.addresses.expand_addresses`.
            Defaults to ``"*.txt"``.
        encoding: Encoding of the files for the tokenizer. Bytes are never decoded. Defaults to UTF-8.
        fill: Value of padding, for instance the tokenizer's padding token. Defaults to 0.
        unreadable: ``"raise"`` raises one error that lists all files that cannot be used; ``"skip"`` leaves them out
            and lists them in :attr:`skipped`, as does ``on_error="skip"`` of a loader. None, the
            default, raises for them too, but leaves out directories that may not be read, with one warning.
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    For texts in memory, use :meth:`from_texts`. Step k of a stream is at k seconds.

    Raises:
        ConfigError: If the arguments contradict each other.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no text (from :meth:`index`).
        UnreadableStream: If a file cannot be read, or is not in `encoding`. ``offset`` is the byte. The error lists all
            such files.
        CorruptStream: If a file changed since it was indexed. ``offset`` is the byte.
        StoreError: If a store fails to deliver bytes; ObjectChanged if a text in a store was replaced.
        StreamFailed: If the tokenizer raises an error, or does not return ints.
    """

    def __init__(
        self,
        addresses: Addresses,
        tokenizer: Tokenizer | None = None,
        *,
        pattern: Pattern = "*.txt",
        encoding: str = "utf-8",
        fill: int = 0,
        unreadable: Unreadable = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(encoding, str):
            raise ConfigError(f"encoding must be the name of a text encoding, got {encoding!r:.80}")
        try:
            b" ".decode(encoding)
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is not a text encoding: {error}") from error
        except UnicodeError:  # a valid encoding in which a single byte is no character
            pass
        self._corpus: Corpus = FileCorpus(
            as_addresses(addresses), pattern, encoding, storage_options, validate_unreadable(unreadable)
        )
        self._configure(tokenizer, fill)

    @classmethod
    def from_texts(cls, texts: Iterable[str | bytes], tokenizer: Tokenizer | None = None, *, fill: int = 0) -> Self:
        """Create one stream for each text in memory, in the given order, with the keys ``"0"``, ``"1"``, ...

        Args:
            texts: Texts. str is streamed as UTF-8; bytes are streamed unchanged, and cannot be tokenized.
            tokenizer: Function from str to a sequence of ints, as for files. Defaults to None.
            fill: Value of padding. Defaults to 0.

        Raises:
            ConfigError: If an entry is not a text.
        """
        self = cls.__new__(cls)
        self._corpus = MemoryCorpus(texts, tokenizer is not None)
        self._configure(tokenizer, fill)
        return self

    def _configure(self, tokenizer: Tokenizer | None, fill: int) -> None:
        self._steps = TextSteps(tokenizer, fill)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The field ``"data"``: a scalar, uint8 for bytes or int64 for tokens."""
        return {"data": self._steps.field}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The qualified name of the tokenizer, and the encoding of its input."""
        if not self._steps.is_tokenized:
            return {"tokenizer": None}
        return {"tokenizer": self._steps.tokenizer_name, "encoding": self._corpus.encoding}

    @property
    def skipped(self) -> Sequence[SkippedVideo]:
        """The files that the last call of :meth:`index` left out because they cannot be used, in their order."""
        return self._corpus.skipped

    async def index(self) -> Sequence[StreamInfo]:
        """Find the texts and count their bytes or tokens. Keys are the paths as given by the user."""
        return await in_lane_thread(self._index, skips_unreadable())

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the texts. Bytes are read step by step, texts for a tokenizer completely."""
        return SourceSizes(*self._corpus.source_sizes(streams), by_step=not self._steps.is_tokenized)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one text at its first byte or token. `rng` is not used."""
        if not self._steps.is_tokenized:
            return await self._corpus.open(info)
        return MemoryStream(await in_lane_thread(self._read_tokens, info), info.key)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the bytes of a text in a store. Texts for a tokenizer are not prepared."""
        return None if self._steps.is_tokenized else await self._corpus.prepare(info)

    def _index(self, skips: bool) -> StreamTable:
        return self._corpus.index(self._count_tokens if self._steps.is_tokenized else None, skips=skips)

    def _count_tokens(self, table: StreamTable) -> list[int | StreamloaderError]:
        counts: list[int | StreamloaderError] = []
        with contextlib.closing(self._corpus.read_texts(table)) as texts:
            for info, text in zip(table, texts, strict=True):
                if isinstance(text, StreamloaderError):
                    counts.append(text)
                    continue
                try:
                    counts.append(len(self._steps.tokenize(text, info.key)))
                except StreamFailed as error:
                    counts.append(error)
        return counts

    def _read_tokens(self, info: StreamInfo) -> Array:
        tokens = self._steps.tokenize(self._corpus.read_text(info), info.key)
        self._steps.check_count(tokens, info)
        return tokens
