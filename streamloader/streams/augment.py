"""The user's transform on its way through one stream of frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamFailed, StreamloaderError
from streamloader.values import Array, Field

__all__ = ["Augment", "Transform", "transform_rng", "transformed"]

Transform: TypeAlias = "Callable[[Array, np.random.Generator], Array]"


class Augment:
    """The user's transform on its way through one stream."""

    def __init__(self, transform: Transform, key: Array, field: Field, stream: str) -> None:
        self._transform = transform
        self._key = key
        self._field = field
        self._stream = stream
        self._frames = np.empty(0, np.uint8)

    def room(self, count: int, shape: tuple[int, int, int]) -> Array:
        """Return memory for the frames that the transform is given."""
        if len(self._frames) < count:
            self._frames = np.empty((count, *shape), np.uint8)
        return self._frames

    def apply(self, frames: Array, out: Array, step: int) -> None:
        """Write what the transform makes of `frames`, which begin at `step`, into `out`."""
        try:
            done = transformed(self._transform, frames, transform_rng(self._key))
        except StreamloaderError as error:
            error.stream, error.offset = self._stream, step
            raise
        shape, dtype = self._field.shape, self._field.dtype
        if done.shape != (len(frames), *shape) or done.dtype != dtype:
            raise StreamFailed(
                f"transform returned {done.shape} {done.dtype} for {self._stream}, but {shape} {dtype} for each frame "
                "when it was tried on zeros: shape and dtype of a step must not change",
                stream=self._stream,
                offset=step,
            )
        out[: len(frames)] = done


def transform_rng(key: Array) -> np.random.Generator:
    """Return the generator of a stream, at its beginning."""
    return np.random.Generator(np.random.Philox(key=key))


def transformed(transform: Transform, frames: Array, rng: np.random.Generator) -> Array:
    """Call `transform`, and check that it returns one result for each frame."""
    try:
        done = np.asarray(transform(frames, rng))
    except StreamloaderError:
        raise
    except Exception as error:
        raise StreamFailed(f"transform raised {type(error).__name__}: {error}", cause=type(error).__name__) from error
    if done.ndim < 1 or len(done) != len(frames):
        raise ConfigError(
            f"transform must return one result for each of the {len(frames)} frames, got shape {done.shape}"
        )
    return done
