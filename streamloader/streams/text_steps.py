"""Steps of a text: its bytes, or the tokens that a function of the user returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamFailed
from streamloader.streams.step_writer import qualified_name
from streamloader.values import Array, Field, StreamInfo

__all__ = ["TextSteps", "Tokenizer"]

Tokenizer: TypeAlias = "Callable[[str], Sequence[int]]"


class TextSteps:
    """Turns texts into steps: bytes of UTF-8 (uint8), or tokens (int64).

    Args:
        tokenizer: Function from str to a sequence of ints. None for bytes.
        fill: Value of padding.

    Attributes:
        field: Field of a step.

    Raises:
        ConfigError: If `tokenizer` is not a function.
    """

    def __init__(self, tokenizer: Tokenizer | None, fill: int) -> None:
        if tokenizer is not None and not callable(tokenizer):
            raise ConfigError(f"tokenizer must be a function from str to ids, got {type(tokenizer).__name__}")
        self._tokenizer = tokenizer
        self.field = Field((), "uint8" if tokenizer is None else "int64", fill)

    @property
    def is_tokenized(self) -> bool:
        """Whether steps are tokens."""
        return self._tokenizer is not None

    @property
    def tokenizer_name(self) -> str | None:
        """Qualified name of the tokenizer, or None."""
        return None if self._tokenizer is None else qualified_name(self._tokenizer)

    def encode(self, text: bytes, key: str) -> Array:
        """Return the steps of a text in UTF-8.

        Args:
            text: The text.
            key: Key of its stream, for error messages.

        Raises:
            StreamFailed: If the tokenizer raises an error, or does not return ints.
        """
        if self._tokenizer is None:
            return np.frombuffer(text, np.uint8)
        return self.tokenize(text.decode(), key)

    def tokenize(self, text: str, key: str) -> Array:
        """Return the tokens of a text, int64 (n,).

        Args:
            text: The text.
            key: Key of its stream, for error messages.

        Raises:
            StreamFailed: If the tokenizer raises an error, or does not return ints.
        """
        assert self._tokenizer is not None
        return _tokenize(self._tokenizer, text, key)

    def check_count(self, tokens: Array, info: StreamInfo) -> None:
        """Check that a text has as many tokens as its stream declares.

        Raises:
            StreamFailed: If the numbers differ.
        """
        if info.length is not None and len(tokens) != info.length:
            raise StreamFailed(
                f"the tokenizer returned {info.length} tokens for {info.key} when the loader was built, and "
                f"{len(tokens)} now: it must always return the same ones for the same text",
                stream=info.key,
                offset=min(len(tokens), info.length),
            )


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
