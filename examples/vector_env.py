"""How do I stream a simulator that steps all its lanes at once?

Each lane is a game of catch: a ball falls, and a paddle tries to be under it. One object runs all games of its worker,
and writes them directly into the batch. Here, each batch is one step. A producer can also write windows of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np

import streamloader as sl

SIZE, LANES = 7, 8


class Catch:
    """One game per lane. Created and called in a worker, always in the same thread."""

    def __init__(self, lanes: range, rng: np.random.Generator) -> None:
        """Create the games of `lanes`, the rows that this worker fills. All randomness must come from `rng`."""
        self.rng, self.every = rng, np.arange(len(lanes))
        self.row = rng.integers(-1, SIZE - 2, size=len(lanes))  # row of each ball; games end at different times
        self.ball, self.paddle = rng.integers(SIZE, size=(2, len(lanes)))
        self.new = np.ones(len(lanes), bool)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Run one step, and write it into `arrays` in place. The return value becomes part of ``batch.infos``."""
        move = self.rng.integers(-1, 2, size=len(self.every))
        self.paddle = np.clip(self.paddle + move, 0, SIZE - 1)
        self.row += 1
        down = self.row == SIZE - 1
        caught = down & (self.ball == self.paddle)

        frame = arrays["frame"]
        frame[:] = 0
        frame[self.every, self.row, self.ball] = 255
        frame[self.every, SIZE - 1, self.paddle] = 128
        arrays["action"][:] = move
        arrays["reward"][:] = np.where(down, np.where(caught, 1.0, -1.0), 0.0)
        arrays["reset"][:] = self.new  # the first step of a game, where hidden state must be cleared

        self.new, self.row[down] = down, -1
        self.ball[down] = self.rng.integers(SIZE, size=int(down.sum()))
        return {"games": int(down.sum()), "caught": int(caught.sum())}


def show(frames: np.ndarray) -> None:
    """Print the games side by side."""
    letters = {0: ".", 128: "=", 255: "o"}
    for line in frames.transpose(1, 0, 2).tolist():
        print("   ".join("".join(letters[pixel] for pixel in game) for game in line))
    print()


if __name__ == "__main__":
    dims = {
        "frame": ((SIZE, SIZE), "uint8"),
        "action": ((), "int8"),
        "reward": (),  # float32 by default
        "reset": ((), "bool"),
    }
    with sl.MultiStreamer.from_env(Catch, dims, batchsize=LANES, max_q_size=4, num_workers=2, seed=1) as loader:
        for batch in islice(loader, 3):  # endless, so the loop limits it
            print(f"step {batch.index}: frame {tuple(batch['frame'].shape)}, infos of the workers {batch.infos}")
            show(batch["frame"].numpy())

        games = caught = 0
        for batch in islice(loader, 500):  # continues with step 3
            games += sum(info["games"] for info in batch.infos)
            caught += sum(info["caught"] for info in batch.infos)
        print(f"steps 3 to {batch.index}: {caught} of {games} balls caught by moving at random")
