"""Permute numbers by raw words of a counter-based generator, whose results never change with NumPy's version."""

from __future__ import annotations

import numpy as np
from numpy.random import Philox  # now: imported during an iteration, this module swallows a Ctrl-C

from streamloader.values import Array

__all__ = ["draw_words", "permute"]

_DOMAIN = 0x64617461  # sets the words of data sets apart from those that plans and augmentations draw
_MASK = (1 << 64) - 1


def draw_words(n: int, *, seed: int, epoch: int, purpose: int, number: int = 0) -> Array:
    """Draw n random words, uint64 (n,). They are a pure function of the arguments.

    Philox is counter based (Salmon et al., 2011): its key is (seed, epoch), its counter starts at (purpose, number).

    Args:
        n: Number of words.
        seed: Seed of the data set.
        epoch: Number of the epoch.
        purpose: Number of what the words are for. Different purposes get independent words.
        number: Number of the object that they are for, such as a window.
    """
    key = np.array([seed & _MASK, epoch & _MASK], np.uint64)  # a list would pass through float64
    words = Philox(key=key, counter=[0, number & _MASK, purpose, _DOMAIN]).random_raw(n)
    return np.asarray(words, np.uint64).reshape(n)


def permute(n: int, *, seed: int, epoch: int, purpose: int, number: int = 0) -> Array:
    """Return a permutation of range(n), int64 (n,). Arguments are those of :func:`draw_words`."""
    words = draw_words(n, seed=seed, epoch=epoch, purpose=purpose, number=number)
    return np.argsort(words, kind="stable").astype(np.int64)
