"""Streams whose steps contain their own position, and a model of the batches that a loader must deliver.

Imports no torch: the workers of the tests import this module.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from streamloader.engine.plan import Plan, make_plan
from streamloader.streams.base import Stream, StreamDataset, stream_rng
from streamloader.values import Field, StreamInfo

FILL = -7
Cell = tuple[int, int, bool]  # (stream, step, repeat)


class Numbered(StreamDataset):
    """Stream s yields `lengths[s]` steps; step t of it is (s, t, a number drawn from the stream's rng).

    Args:
        lengths: True number of steps of each stream.
        declared: Lengths that the index declares. Defaults to the true lengths.
        chunk: Maximum number of steps that one read returns.
        at_step: Function that is called with (stream, step) before each step is read.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        declared: Sequence[int | None] | None = None,
        *,
        chunk: int = 1 << 30,
        at_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.declared = self.lengths if declared is None else list(declared)
        self.chunk, self.at_step = chunk, at_step

    @property
    def fields(self):
        return {"data": Field((3,), "int32", fill=FILL)}

    async def index(self):
        return [StreamInfo(f"s{number}", length) for number, length in enumerate(self.declared)]

    async def open(self, info, rng):
        return NumberedStream(self, int(info.key[1:]), draw(rng))


class NumberedStream(Stream):
    def __init__(self, dataset: Numbered, number: int, drawn: int) -> None:
        self.dataset, self.number, self.drawn, self.step = dataset, number, drawn, 0

    async def read_into(self, out):
        array = out["data"]
        count = min(len(array), self.dataset.chunk, self.dataset.lengths[self.number] - self.step)
        for at in range(count):
            if self.dataset.at_step is not None:
                self.dataset.at_step(self.number, self.step)
            array[at] = (self.number, self.step, self.drawn)
            self.step += 1
        return count


def draw(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))


def copies(loader: Any) -> list[dict[str, np.ndarray]]:
    """Read one epoch; return a copy of every array of every batch."""
    return [{name: array.copy() for name, array in batch.numpy().items()} for batch in loader]


def fingerprint(batches: list[dict[str, np.ndarray]]) -> str:
    """Hash names, dtypes, shapes and bytes of all arrays of all batches, in order."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, array in batch.items():
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(array.tobytes())
        digest.update(b"|")
    return f"{len(batches)} {digest.hexdigest()}"


def assert_fails_again(iterator: Iterator[Any], error: Exception) -> None:
    """Check that an iteration that has failed raises its error again, and neither ends nor goes on."""
    try:
        outcome: Any = next(iterator)
    except Exception as again:  # noqa: BLE001 - compared below
        outcome = again
    assert type(outcome) is type(error), outcome
    assert isinstance(error, TimeoutError) or str(outcome) == str(error)  # the message of a timeout has the time


def has_torch() -> bool:
    return "torch" in sys.modules


# --- the model: lists of cells, no arrays, no processes ------------------------------------------------------


def model_epoch(
    lengths: Sequence[int],
    declared: Sequence[int | None],
    epoch: int,
    *,
    lanes: int,
    window: int,
    seed: int = 0,
    shuffle: bool = True,
    switch: str = "pack",
    tail: str = "pad",
) -> list[dict[str, np.ndarray]]:
    """Return the batches that an epoch must have.

    - ``pad`` and ``cycle`` deliver every step of every stream once, apart from marked repeats. Where all lengths
      are declared the epoch has at least ``len(loader)`` batches, and goes on if a stream turns out longer than that;
      where one is unknown it ends with the last lane.
    - ``drop`` ends before the first batch that some lane cannot fill with its own streams.
    - An epoch that was planned to be empty is empty.
    """
    plan = make_plan(declared, lanes=lanes, window=window, seed=seed, shuffle=shuffle, switch=switch, tail=tail)
    own = [sum(1 for _ in _own_windows(plan, epoch, lane, lengths)) for lane in range(lanes)]
    full = [
        sum(None not in cells or switch == "align" for cells in _own_windows(plan, epoch, lane, lengths))
        for lane in range(lanes)
    ]
    if plan.batches == 0:
        count = 0
    elif tail == "drop":
        count = min(full) if plan.batches is None else min(*full, plan.batches)
    else:
        count = max(*own, plan.batches or 0)
    padding: list[Cell | None] = [None] * window
    rows = [
        list(itertools.islice(itertools.chain(_windows(plan, epoch, lane, lengths), itertools.repeat(padding)), count))
        for lane in range(lanes)
    ]
    return [_batch([row[index] for row in rows], seed, epoch) for index in range(count)]


def _own_windows(plan: Plan, epoch: int, lane: int, lengths: Sequence[int]) -> Iterator[list[Cell | None]]:
    """Yield the windows of a lane that hold steps that are no repeats, without the repeats."""
    for cells in _windows(plan, epoch, lane, lengths):
        own = [cell if cell is not None and not cell[2] else None for cell in cells]
        if own[0] is None:
            return
        yield own


def _windows(plan: Plan, epoch: int, lane: int, lengths: Sequence[int]) -> Iterator[list[Cell | None]]:
    listed = plan.lane(epoch, lane)
    order = listed.ordinals.tolist()
    repeated = order if any(lengths[s] for s in order) else listed.substitute.tolist()
    repetitions = (
        itertools.repeat((repeated, True)) if plan.tail == "cycle" and any(lengths[s] for s in repeated) else ()
    )
    window: list[Cell | None] = []
    for streams, repeat in itertools.chain([([] if listed.borrowed else order, False)], repetitions):
        for stream in streams:
            for step in range(lengths[stream]):
                window.append((stream, step, repeat))
                if len(window) == plan.window:
                    yield window
                    window = []
            if plan.switch == "align" and window:
                yield window + [None] * (plan.window - len(window))
                window = []
    if window:
        yield window + [None] * (plan.window - len(window))


def _batch(rows: list[list[Cell | None]], seed: int, epoch: int) -> dict[str, np.ndarray]:
    def each(make: Callable[[Cell], Any], padding: Any, dtype: Any) -> np.ndarray:
        return np.array([[padding if cell is None else make(cell) for cell in row] for row in rows], dtype)

    drawn = {cell[0]: draw(stream_rng(seed, epoch, cell[0])) for row in rows for cell in row if cell is not None}
    return {
        "data": each(lambda cell: (cell[0], cell[1], drawn[cell[0]]), (FILL,) * 3, np.int32),
        "reset": each(lambda cell: cell[1] == 0, False, bool),
        "valid": each(lambda cell: True, False, bool),
        "repeat": each(lambda cell: cell[2], False, bool),
        "step": each(lambda cell: cell[1], -1, np.int64),
        "time": each(lambda cell: float(cell[1]), -1.0, np.float64),
        "stream": each(lambda cell: cell[0], -1, np.int64),
    }


def assert_same_batches(got: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    """Compare names, dtypes, shapes and bytes; fail at the first batch and array that differ."""
    for index, (one, other) in enumerate(zip(got, expected, strict=False)):
        assert list(one) == list(other), f"batch {index}"
        for name, array in one.items():
            wanted = other[name]
            assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape), f"batch {index}, {name}"
            assert array.tobytes() == wanted.tobytes(), f"batch {index}, {name}:\n{array}\ninstead of\n{wanted}"
    assert len(got) == len(expected)
