"""How do I write a kind of stream of my own? In three lines, and in full.

The streams here are random walks; think of a simulator, a log file, a sensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import streamloader as sl

FIELDS = {"position": sl.Field((2,), "float32"), "speed": sl.Field((), "float32")}


def walk(steps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield one step after the other: all that IterStreams asks for."""
    position = np.zeros(2, np.float32)
    for _ in range(steps):
        move = rng.normal(size=2).astype(np.float32)
        position = position + move
        yield {"position": position, "speed": np.hypot(*move)}


class Walks(sl.StreamDataset):
    """The same in full: it fills whole windows at once, knows its lengths, times and how to seek."""

    def __init__(self, lengths: Sequence[int], rate: float) -> None:
        """`rate` is in steps per second."""
        self.lengths, self.rate = lengths, rate

    @property
    def fields(self) -> Mapping[str, sl.Field]:
        """What one step holds."""
        return FIELDS

    async def index(self) -> Sequence[sl.StreamInfo]:
        """Name the streams and their lengths; nothing is opened yet."""
        return [sl.StreamInfo(f"walk-{number}", length) for number, length in enumerate(self.lengths)]

    async def open(self, info: sl.StreamInfo, rng: np.random.Generator) -> sl.Stream:
        """Open one, in a worker. All randomness comes from `rng`."""
        return Walk(rng.normal(size=(info.length, 2)).astype(np.float32), self.rate)


class Walk(sl.Stream):
    """One walk."""

    def __init__(self, moves: np.ndarray, rate: float) -> None:
        """Keep the moves; the positions are their running sum."""
        self.speeds, self.positions, self.rate = np.hypot(*moves.T), moves.cumsum(0), rate
        self.at = 0

    async def read_into(self, out: Mapping[str, np.ndarray]) -> int:
        """Fill as many leading steps of `out` as there are, in place; 0 is the end."""
        count = min(len(out["speed"]), len(self.speeds) - self.at)
        out["position"][:count] = self.positions[self.at : self.at + count]
        out["speed"][:count] = self.speeds[self.at : self.at + count]
        self.at += count
        return count

    async def seek(self, step: int) -> None:
        """Go to a step without reading those before it."""
        self.at = step

    def times(self, start: int, out: np.ndarray) -> None:
        """Seconds of the steps from `start` on."""
        out[:] = np.arange(start, start + len(out)) / self.rate


if __name__ == "__main__":
    lengths = [5, 9, 3, 7]
    for streams in (sl.IterStreams(lengths, walk, fields=FIELDS, lengths=lengths), Walks(lengths, rate=10.0)):
        print(type(streams).__name__)
        with sl.MultiStreamer(streams, batch_size=2, window=4, num_workers=1) as loader:
            for batch in loader:
                for lane in range(2):
                    row = zip(batch.stream[lane].tolist(), batch.step[lane].tolist(), batch.reset[lane], strict=True)
                    print(
                        "  ", *(f"{'>' if new else ' '}{s}:{n}" if s >= 0 else "   -" for s, n, new in row), end="  |"
                    )
                print(f"  speed {batch['speed'][batch.valid].mean():.2f}")
