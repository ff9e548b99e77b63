"""Apply the user's transform to the frames of one stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.values import Array, Field

__all__ = ["StreamTransform", "Transform", "call_transform", "make_transform_rng"]

Transform: TypeAlias = "Callable[[Array, np.random.Generator], Array]"


class StreamTransform:
    """The user's transform with the random key of one stream.

    Args:
        transform: The user's function.
        key: Key of the random generator that each call receives, uint64 (2,).
        field: Field that the results must match.
        stream: Key of the stream, for error messages.
    """

    def __init__(self, transform: Transform, key: Array, field: Field, stream: str) -> None:
        self._transform = transform
        self._key = key
        self._field = field
        self._stream = stream
        self._buffer = np.empty(0, np.uint8)

    def input_buffer(self, count: int, shape: tuple[int, int, int]) -> Array:
        """Return an array for at least `count` input frames of `shape`. It is reused by later calls."""
        if len(self._buffer) < count:
            self._buffer = np.empty((count, *shape), np.uint8)
        return self._buffer

    def apply(self, frames: Array, out: Array, step: int) -> None:
        """Transform `frames` and write the results into `out`. `step` is the number of the first frame."""
        try:
            results = call_transform(self._transform, frames, make_transform_rng(self._key))
        except StreamloaderError as error:
            error.stream, error.offset = self._stream, step
            raise
        shape, dtype = self._field.shape, self._field.dtype
        if results.shape != (len(frames), *shape) or results.dtype != dtype:
            raise StreamFailed(
                f"transform returned {results.shape} {results.dtype} for {self._stream}, but {shape} {dtype} for each "
                "frame when it was called on zeros: shape and dtype of a step must not change",
                stream=self._stream,
                offset=step,
            )
        out[: len(frames)] = results


def make_transform_rng(key: Array) -> np.random.Generator:
    """Return the random generator of a stream, in its initial state."""
    return np.random.Generator(np.random.Philox(key=key))


def call_transform(transform: Transform, frames: Array, rng: np.random.Generator) -> Array:
    """Call the user's transform, and check that it returns one result for each frame.

    Raises:
        StreamFailed: If the transform raises an error.
        ConfigError: If the number of results is wrong.
    """
    try:
        results = np.asarray(transform(frames, rng))
    except StreamloaderError:
        raise
    except Exception as error:
        raise StreamFailed(f"transform raised {type(error).__name__}: {error}", cause=type(error).__name__) from error
    if results.ndim < 1 or len(results) != len(frames):
        raise ConfigError(
            f"transform must return one result for each of the {len(frames)} frames, got shape {results.shape}"
        )
    return results
