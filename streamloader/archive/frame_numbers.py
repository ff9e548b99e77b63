"""Normalize the index of an array of frames (a number, slice, list or mask) to frame numbers."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError, FrameIndexError

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["normalize_index", "require_int"]


def normalize_index(index: Any, length: int, owner: str) -> tuple[Array, bool]:
    """Return the frame numbers (int64, from 0 to `length` - 1) that `index` selects, and whether it is a single number.

    Args:
        index: Whole number, slice, or sequence, array or tensor of whole numbers or of `length` booleans.
        length: Number of frames.
        owner: Name of the sequence of frames in error messages.

    Raises:
        FrameIndexError: If a number is out of range.
        ConfigError: If `index` has another type.
    """
    if isinstance(index, slice):
        try:
            span = range(*index.indices(length))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{owner} takes slices of whole numbers, got {index}: {error}") from error
        return np.arange(span.start, span.stop, span.step, dtype=np.int64), False
    single = False
    if isinstance(index, (list, tuple, range)) and not len(index):
        return np.zeros(0, np.int64), False
    try:
        numbers = np.asarray(operator.index(index), dtype=np.int64)
        single = not isinstance(index, bool)
    except OverflowError:
        raise _index_error(int(index), length, owner) from None
    except TypeError:
        numbers = np.asarray(index)
    if numbers.dtype == bool and numbers.shape == (length,):
        return np.flatnonzero(numbers), False
    if numbers.dtype.kind not in "iu" or numbers.ndim != (0 if single else 1):
        kind = type(index).__name__
        raise ConfigError(f"{owner} takes a whole number, a slice or a list of whole numbers, got {kind} {index!r:.60}")
    numbers = numbers.reshape(-1).astype(np.int64)
    outside = (numbers < -length) | (numbers >= length)
    if outside.any():
        raise _index_error(int(numbers[outside][0]), length, owner)
    return np.where(numbers < 0, numbers + length, numbers), single


def require_int(value: Any) -> int:
    """Return `value` as an int.

    Raises:
        ConfigError: If it is not a whole number.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"expected a whole number, got {type(value).__name__}") from None


def _index_error(number: int, length: int, owner: str) -> FrameIndexError:
    frames = f"frames 0 to {length - 1}" if length else "no frames"
    return FrameIndexError(f"{owner} has {frames}, and no frame number {number}", offset=number)
