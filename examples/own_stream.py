"""How do I write my own kind of stream? In a few lines, and in full.

The streams here are random walks. They stand for a simulator, a log file or a sensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import streamloader as sl

FIELDS = {"position": sl.Field((2,), "float32"), "speed": sl.Field((), "float32")}


def walk(steps: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield one step after the other. IterStreams needs no more than this."""
    position = np.zeros(2, np.float32)
    for _ in range(steps):
        move = rng.normal(size=2).astype(np.float32)
        position = position + move
        yield {"position": position, "speed": np.hypot(*move)}


class Walks(sl.StreamDataset):
    """The same streams in full: fill whole windows at once, declare lengths and times, and seek."""

    def __init__(self, lengths: Sequence[int], rate: float) -> None:
        """Create the dataset. `rate` is in steps per second."""
        self.lengths, self.rate = lengths, rate

    @property
    def fields(self) -> Mapping[str, sl.Field]:
        """Fields of one step."""
        return FIELDS

    async def index(self) -> Sequence[sl.StreamInfo]:
        """Return the keys and lengths of the streams, without opening them."""
        return [sl.StreamInfo(f"walk-{number}", length) for number, length in enumerate(self.lengths)]

    async def open(self, info: sl.StreamInfo, rng: np.random.Generator) -> sl.Stream:
        """Open one stream, in a worker. All randomness must come from `rng`."""
        return Walk(rng.normal(size=(info.length, 2)).astype(np.float32), self.rate)


class Walk(sl.Stream):
    """One walk."""

    def __init__(self, moves: np.ndarray, rate: float) -> None:
        """Create the walk from its moves."""
        self.speeds, self.positions, self.rate = np.hypot(*moves.T), moves.cumsum(0), rate
        self.step = 0

    async def read_into(self, out: Mapping[str, np.ndarray]) -> int:
        """Fill the leading steps of `out` in place, and return their number. 0 means the end."""
        count = min(len(out["speed"]), len(self.speeds) - self.step)
        out["position"][:count] = self.positions[self.step : self.step + count]
        out["speed"][:count] = self.speeds[self.step : self.step + count]
        self.step += count
        return count

    async def seek(self, step: int) -> None:
        """Continue at `step`, without reading the steps before it."""
        self.step = step

    def times(self, start: int, out: np.ndarray) -> None:
        """Write the times of the steps from `start` on, in seconds."""
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
