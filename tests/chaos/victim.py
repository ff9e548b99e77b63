"""A program that plays for ever, to be killed or interrupted: `python -m chaos.victim SEED WORKERS FOLDER`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
from chaos.data import KINDS, Deadly, make_dataset

import streamloader as sl

EACH = 25  # batches, after which one of the workers dies, in one program of three


def main(seed: int, workers: int, folder: Path) -> None:
    """Say "begin", then play epochs until the end comes, and say "plays" with the first batch."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    rng = np.random.default_rng(seed)
    logging.getLogger("streamloader").setLevel(logging.CRITICAL)  # it warns of every death
    dataset = Deadly(make_dataset(KINDS[seed % len(KINDS)], rng, folder), [], pause=0.001 * int(rng.integers(3)))
    # A kill that comes too early is blamed on the stream: it is not what is tested here.
    loader = sl.MultiStreamer(
        dataset, 5, 6, num_workers=workers, prefetch_factor=2, timeout=60.0, seed=seed, on_error="skip"
    )
    dies = (seed // 2) % 3 == 0
    batches = 0
    print("begin", flush=True)
    while True:
        for batch in loader:
            if not batches:
                print("plays", flush=True)
            batches += 1
            for array in batch.numpy().values():
                array.sum()
            if dies and batches % EACH == 0:
                pids = loader._supervisor.pids
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[int(rng.integers(len(pids)))], signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
