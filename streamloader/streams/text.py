"""Texts as streams of bytes or tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamFailed
from streamloader.stores.addresses import Addresses, Pattern, as_addresses
from streamloader.stream_table import StreamTable
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset
from streamloader.streams.corpus import Corpus, MemoryCorpus, MemoryStream
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_writer import qualified_name
from streamloader.streams.text_files import FileCorpus
from streamloader.values import Array, Field, StreamInfo

__all__ = ["TextStreams"]

Tokenizer: TypeAlias = "Callable[[str], Sequence[int]]"


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
        storage_options: Keyword arguments of :func:`streamloader.stores.open_store` for all addresses.

    For texts in memory, use :meth:`from_texts`. Step k of a stream is at k seconds.

    Raises:
        ConfigError: If the arguments contradict each other.
        StreamNotFound: If a path does not exist, or a directory or pattern contains no text (from :meth:`index`).
        UnreadableStream: If a file cannot be read, or is not in `encoding`. ``offset`` is the byte.
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
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            b" ".decode(encoding)
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is not a text encoding: {error}") from error
        except UnicodeError:  # a valid encoding in which a single byte is no character
            pass
        self._corpus: Corpus = FileCorpus(as_addresses(addresses), pattern, encoding, storage_options)
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
        """The qualified name of the tokenizer, and the encoding of its input."""
        if self._tokenizer is None:
            return {"tokenizer": None}
        return {"tokenizer": qualified_name(self._tokenizer), "encoding": self._corpus.encoding}

    async def index(self) -> Sequence[StreamInfo]:
        """Find the texts and count their bytes or tokens. Keys are the paths as given by the user."""
        return await in_lane_thread(self._index)

    def source_sizes(self, streams: StreamTable) -> SourceSizes:
        """Return the sizes of the texts. Bytes are read step by step, texts for a tokenizer completely."""
        return SourceSizes(*self._corpus.source_sizes(streams), by_step=self._tokenizer is None)

    async def open(self, info: StreamInfo, rng: np.random.Generator) -> Stream:
        """Open one text at its first byte or token. `rng` is not used."""
        if self._tokenizer is None:
            return await self._corpus.open(info)
        return MemoryStream(await in_lane_thread(self._read_tokens, self._tokenizer, info), info.key)

    async def prepare(self, info: StreamInfo) -> PreparedStream | None:
        """Start to fetch the bytes of a text in a store. Texts for a tokenizer are not prepared."""
        return await self._corpus.prepare(info) if self._tokenizer is None else None

    def _index(self) -> StreamTable:
        tokenizer, table = self._tokenizer, self._corpus.index()
        if tokenizer is None:
            return table
        with contextlib.closing(self._corpus.read_texts(table)) as texts:
            counts = (len(_tokenize(tokenizer, text, info.key)) for info, text in zip(table, texts, strict=True))
            return table.with_lengths(np.fromiter(counts, np.int64, len(table)))

    def _read_tokens(self, tokenizer: Tokenizer, info: StreamInfo) -> Array:
        tokens = _tokenize(tokenizer, self._corpus.read_text(info), info.key)
        if info.length is not None and len(tokens) != info.length:
            raise StreamFailed(
                f"the tokenizer returned {info.length} tokens for {info.key} when the loader was built, and "
                f"{len(tokens)} now: it must always return the same ones for the same text",
                stream=info.key,
                offset=min(len(tokens), info.length),
            )
        return tokens


def _tokenize(tokenizer: Tokenizer, text: str, key: str) -> Array:
    try:
        result = tokenizer(text)
    except Exception as error:
        kind = type(error).__name__
        raise StreamFailed(f"the tokenizer raised {kind}: {error}", stream=key, cause=kind) from error
    try:
        tokens = np.asarray(result)
        empty = tokens.shape == (0,)
        if not empty and (tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not _fits_int64(tokens)):
            raise TypeError(f"shape {tokens.shape}, dtype {tokens.dtype}")
    except Exception as error:
        hint = "; pass lambda text: tokenizer.encode(text).ids" if hasattr(result, "ids") else ""
        raise StreamFailed(
            f"the tokenizer must return a sequence of ints, but returned {type(result).__name__} for {key} "
            f"({error}){hint}",
            stream=key,
        ) from error
    return tokens.astype(np.int64, copy=False)


def _fits_int64(tokens: Array) -> bool:
    return tokens.dtype.kind == "i" or int(tokens.max()) <= np.iinfo(np.int64).max
