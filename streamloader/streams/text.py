"""Texts as streams of bytes or of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamFailed
from streamloader.stores.addresses import Addresses, Pattern, as_addresses
from streamloader.stream_table import StreamTable
from streamloader.streams.base import Expected, Stream, StreamDataset
from streamloader.streams.corpus import Corpus, Memory, StepsInMemory
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.step_writer import qualified_name
from streamloader.streams.text_files import Files
from streamloader.values import Array, Field, StreamInfo

__all__ = ["TextStreams"]

Tokenizer: TypeAlias = "Callable[[str], Sequence[int]]"


class TextStreams(StreamDataset):
    """One stream for each text file, in one field ``"data"``: its bytes (uint8), or its tokens (int64).

    Bytes are exactly those of the file, read where they are needed; a local file of any size costs 64 KiB of memory,
    one in a store what is fetched ahead (16 MiB at most).
    With a tokenizer, each document is read, decoded and tokenised as a whole when its stream begins - and once
    before, when the loader is built, to count its tokens, so that ``len(loader)`` is exact.

    Args:
        addresses: a path, a glob pattern (``**`` for any depth), a directory, or a list of these. Files of one
            pattern or directory come sorted by code point; a list keeps its order. Addresses (``s3://corpus/*.txt``,
            ``ssh://``, ``https://``, ...) work like paths, also beside them; see
            :func:`streamloader.stores.open_store`.
        tokenizer: a function from str to a sequence of ints, always the same ones for the same text, such as
            ``tokenizer.encode``. None streams bytes.
        pattern: which files of a directory are texts; see :func:`streamloader.stores.addresses.expand`.
        encoding: how files are decoded for the tokenizer. Bytes are never decoded.
        fill: the value of padding, for instance the tokenizer's padding token.
        storage_options: keyword arguments of :func:`streamloader.stores.open_store`, for all addresses.

    For texts in memory see :meth:`from_texts`. Steps are timed at one a second.

    Raises:
        ConfigError: the arguments do not go together.
        StreamNotFound: a path does not exist, or a directory or pattern holds no text (from :meth:`index`).
        UnreadableStream: a file may not be read, or is not in `encoding`: ``offset`` is the byte.
        CorruptStream: a file is not what it was when it was indexed: ``offset`` is the byte.
        StoreError: bytes of a text in a store could not be had; ObjectChanged where it is another one by now.
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
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            b" ".decode(encoding)
        except LookupError as error:
            raise ConfigError(f"encoding={encoding!r} is not one of a text: {error}") from error
        except UnicodeError:  # known, and one in which a byte is no character
            pass
        self._corpus: Corpus = Files(as_addresses(addresses), pattern, encoding, storage_options)
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
        self._corpus = Memory(texts, tokenizer is not None)
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
        return StepsInMemory(await in_lane_thread(self._reread, self._tokenizer, info), info.key)

    async def expect(self, info: StreamInfo) -> Expected | None:
        """Begin to fetch a text of bytes that lies in a store."""
        return await self._corpus.expect(info) if self._tokenizer is None else None

    def _index(self) -> StreamTable:
        tokenizer, found = self._tokenizer, self._corpus.find()
        if tokenizer is None:
            return found
        with contextlib.closing(self._corpus.all_texts(found)) as texts:
            counted = (len(_tokenize(tokenizer, text, info.key)) for info, text in zip(found, texts, strict=True))
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
