"""Shared by tests of resuming: seekable streams, splits of the same lanes over ranks, states as JSON.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from engine_data import Numbered, NumberedStream, draw


class Seekable(Numbered):
    """The streams of :class:`Numbered` with ``seek``, and with any `settings`."""

    def __init__(self, lengths, declared=None, *, chunk=1 << 30, at_step=None, settings=None, prefix="s"):
        super().__init__(lengths, declared, chunk=chunk, at_step=at_step)
        self.settings_given, self.prefix = settings or {}, prefix

    @property
    def settings(self):
        return self.settings_given

    async def index(self):
        infos = await super().index()
        return [type(info)(self.prefix + info.key[1:], info.length) for info in infos]

    async def open(self, info, rng):
        return SeekableStream(self, int(info.key[len(self.prefix) :]), draw(rng))


class SeekableStream(NumberedStream):
    async def seek(self, step):
        self.step = step


def arrays(batch: Any) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in batch.numpy().items()}


def take(iterator: Any, count: int | None = None) -> list[dict[str, np.ndarray]]:
    """Copy the next `count` batches, or all remaining ones."""
    return [arrays(batch) for batch in itertools.islice(iterator, count)]


def plain(state: Any) -> Any:
    """Return a state as another process receives it, and check that it is plain JSON."""
    decoded = json.loads(json.dumps(state, allow_nan=False))
    assert decoded == state
    return decoded


def rows_of_ranks(batches: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Concatenate the batches of all ranks to batches of the global lanes."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*batches, strict=True)
    ]
