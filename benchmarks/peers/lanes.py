"""Lanes of coherent batches, for the contenders that have no lanes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from benchmarks.job import Job
from benchmarks.peers.decoders import DECODERS
from benchmarks.peers.image_decoders import IMAGE_DECODERS

Array = np.ndarray[Any, Any]


class Clip(Protocol):
    """One stream in time order."""

    def read_into(self, out: Array) -> int:
        """Fill the leading steps of `out`, and return their number. 0 means the end."""


class Fill:
    """The synthetic stream: each window is filled with one value, and the next window with another."""

    def __init__(self) -> None:
        self._value = 0

    def read_into(self, out: Array) -> int:
        """Overwrite all of `out`."""
        self._value = (self._value + 1) & 255
        out.fill(self._value)
        return len(out)


class Lane:
    """Reads its clips one after the other, without a gap between them."""

    def __init__(self, clips: Iterator[Clip]) -> None:
        self._clips = clips
        self._clip: Clip | None = None

    def fill(self, data: Array, reset: Array) -> bool:
        """Fill one window in place. Return False if the lane ended before the window was full."""
        reset[:] = False
        filled = 0
        while filled < len(data):
            if self._clip is None:
                self._clip = next(self._clips, None)
                if self._clip is None:
                    return False
                reset[filled] = True
            count = self._clip.read_into(data[filled:])
            filled += count
            if not count:
                self._clip = None
        return True


def open_lane(job: Job, lane: int) -> Lane:
    """Open one lane with the decoder that the job's options name."""
    if job.kind == "fill":
        return Lane(iter([Fill()]))
    decoder = (IMAGE_DECODERS if job.kind == "images" else DECODERS)[job.options["decoder"]]
    height, width, _ = job.shape
    return Lane(decoder(path, height, width) for path in job.clips(lane))


def is_epoch_over(job: Job, batches: int) -> bool:
    """Return whether an epoch of synthetic streams is over after `batches`. Video ends on its own."""
    return job.kind == "fill" and batches >= job.batches
