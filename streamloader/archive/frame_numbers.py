"""Which frames are meant by what stands between the brackets."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError, FrameOutside

if TYPE_CHECKING:
    from streamloader.values import Array

__all__ = ["picked", "whole_number"]


def picked(which: Any, length: int, called: str) -> tuple[Array, bool]:
    """Return the numbers (int64, from 0 to `length` - 1) that `which` means, and whether that is a single one.

    Args:
        which: a whole number, a slice, or a sequence, array or tensor of whole numbers, or of `length` booleans.
        length: how many frames there are.
        called: what errors call them.

    Raises:
        FrameOutside: one is not there.
        ConfigError: `which` is something else.
    """
    if isinstance(which, slice):
        try:
            span = range(*which.indices(length))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{called} takes slices of whole numbers, got {which}: {error}") from error
        return np.arange(span.start, span.stop, span.step, dtype=np.int64), False
    single = False
    if isinstance(which, (list, tuple, range)) and not len(which):
        return np.zeros(0, np.int64), False
    try:
        numbers = np.asarray(operator.index(which), dtype=np.int64)
        single = not isinstance(which, bool)
    except OverflowError:
        raise _outside(int(which), length, called) from None
    except TypeError:
        numbers = np.asarray(which)
    if numbers.dtype == bool and numbers.shape == (length,):
        return np.flatnonzero(numbers), False
    if numbers.dtype.kind not in "iu" or numbers.ndim != (0 if single else 1):
        kind = type(which).__name__
        raise ConfigError(
            f"{called} takes a whole number, a slice or a list of whole numbers, got {kind} {which!r:.60}"
        )
    numbers = numbers.reshape(-1).astype(np.int64)
    outside = (numbers < -length) | (numbers >= length)
    if outside.any():
        raise _outside(int(numbers[outside][0]), length, called)
    return np.where(numbers < 0, numbers + length, numbers), single


def whole_number(value: Any) -> int:
    """Return `value` as an int.

    Raises:
        ConfigError: it is no whole number.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"expected a whole number, got {type(value).__name__}") from None


def _outside(number: int, length: int, called: str) -> FrameOutside:
    has = f"frames 0 to {length - 1}" if length else "no frames"
    return FrameOutside(f"{called} has {has}, and none of number {number}", offset=number)
