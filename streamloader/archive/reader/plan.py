"""What has to be read and decoded for the frames that are wanted: pure functions of the index of a chunk."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from streamloader.media.chunks.format import ChunkIndex
    from streamloader.values import Array

__all__ = ["Run", "cut_run", "packets_of", "plan_runs", "spans_of"]

NEAR: Final = 3  # packets between two runs for which a decoder is not emptied and started again


@dataclass(frozen=True, slots=True)
class Run:
    """Packets of one chunk that are decoded in one go, and the frames wanted of them.

    Attributes:
        key: the packet at which decoding begins.
        stop: behind the last packet that is needed.
        frames: int64, ascending: numbers of the wanted frames within the chunk.
    """

    key: int
    stop: int
    frames: Array

    def __len__(self) -> int:
        """Return how many packets it spans."""
        return self.stop - self.key


def plan_runs(index: ChunkIndex, frames: Array) -> list[Run]:
    """Return the runs that give `frames` (int64, ascending, each once), in order.

    Each begins at the last key from which its first frame comes out right. Frames for which a decoder would have to go
    back to no earlier packet than the one that it has come to belong to the same run.
    """
    if not len(frames):
        return []
    keys = index.keys[np.searchsorted(index.first, frames, side="right") - 1]
    bounds = np.flatnonzero(np.diff(keys, prepend=-1))
    lasts = np.maximum.reduceat(index.shown[frames], bounds) + 1
    begun: list[list[int]] = []  # key, stop, and where in `frames` it begins
    for start, key, last in zip(bounds.tolist(), keys[bounds].tolist(), lasts.tolist(), strict=True):
        if begun and key <= begun[-1][1] + NEAR:
            begun[-1][1] = max(begun[-1][1], last)
        else:
            begun.append([key, last, start])
    ends = [*(start for _, _, start in begun[1:]), len(frames)]
    return [Run(key, last, frames[start:end]) for (key, last, start), end in zip(begun, ends, strict=True)]


def cut_run(index: ChunkIndex, run: Run, parts: int) -> list[Run]:
    """Return a run in up to `parts` runs of about the same length, cut at keys, to be decoded side by side."""
    keys = index.keys[np.searchsorted(index.first, run.frames, side="right") - 1]
    places = [int(np.searchsorted(keys, run.key + len(run) * part // parts)) for part in range(1, parts)]
    bounds = sorted({0, *places, len(run.frames)})
    cut = []
    for start, stop in itertools.pairwise(bounds):
        frames = run.frames[start:stop]
        cut.append(Run(int(keys[start]) if start else run.key, int(index.shown[frames].max()) + 1, frames))
    return cut


def packets_of(index: ChunkIndex, run: Run, *, all_of_them: bool = False) -> list[int]:
    """Return the packets that a run has to decode: without spare ones that show no wanted frame."""
    if all_of_them:
        return list(range(run.key, run.stop))
    needed = ~index.spare[run.key : run.stop]
    shown = index.shown[run.frames] - run.key
    needed[shown[(shown >= 0) & (shown < len(needed))]] = True
    packets: list[int] = (np.flatnonzero(needed) + run.key).tolist()
    return packets


def spans_of(index: ChunkIndex, packets: Sequence[int], near: int, largest: int) -> list[tuple[int, int]]:
    """Return the byte spans [start, end) that hold `packets` (ascending), each packet wholly in one of them.

    Args:
        index: of the chunk.
        packets: numbers of packets.
        near: bytes between two packets that are rather read than left out.
        largest: bytes of a span, if not a single packet has more.
    """
    if not len(packets):
        return []
    starts = index.offset[packets]
    ends = starts + index.size[packets]
    order = np.argsort(starts, kind="stable")  # packets may lie in the file in another order than they are decoded in
    spans: list[tuple[int, int]] = []
    for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
        if spans and start - spans[-1][1] <= near and end - spans[-1][0] <= largest:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans
