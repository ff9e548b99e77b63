"""Measurement of random access by frame number, in a fresh process: single frames, slices, and a scan.

Each returned frame is checked outside the measured time: its number is drawn in its corner.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.clips import read_number
from benchmarks.job import Job


class _Clock:
    """Measures the rate of calls that return frames, and counts frames that are not the requested ones."""

    def __init__(self) -> None:
        self.wrong = self.checked = 0

    def rate(self, work: Iterator[tuple[Sequence[int], Callable[[], Any]]]) -> tuple[float, float]:
        """Make the calls of `work`. Return frames/s, and the median duration of a call in ms."""
        seconds, frames, calls = 0.0, 0, []
        for numbers, call in work:
            start = time.perf_counter()
            images = call()
            calls.append(time.perf_counter() - start)
            seconds += calls[-1]
            frames += len(numbers)
            if images is None:
                continue
            returned = [read_number(image) for image in images]
            self.checked += len(numbers)
            self.wrong += sum(a != b for a, b in zip(returned, numbers, strict=False)) + abs(
                len(numbers) - len(returned)
            )
        return frames / seconds, 1000 * statistics.median(calls)


def random_access(
    open_peer: Callable[[Job], Any], job: Job, *, singles: int, slices: int, length: int, scan: int, seed: int = 0
) -> dict[str, Any]:
    """Measure the frames/s of single frames, of slices, and of a scan. All contenders read the same frame numbers.

    Args:
        open_peer: Function that opens the contender.
        job: Workload with the path of the clip.
        singles: Number of random single frames, all different.
        slices: Number of random slices.
        length: Number of frames in a slice.
        scan: Number of frames to scan from the start.
        seed: Seed of the random numbers.
    """
    open_peer(job).close()  # loads what a process loads only once
    start = time.perf_counter()
    reader = open_peer(job)
    opened = getattr(reader, "opened", time.perf_counter() - start)
    count = len(reader)
    reader.get([0])  # sets up what the first frame needs
    generator = random.Random(seed)
    numbers = generator.sample(range(1, count), singles)
    starts = [generator.randrange(count - length) for _ in range(slices)]
    clock = _Clock()
    single_rate, single_ms = clock.rate(([n], lambda n=n: reader.get([n])) for n in numbers)  # type: ignore[misc]
    slice_rate, slice_ms = clock.rate(
        (range(s, s + length), lambda s=s: reader.get(range(s, s + length)))  # type: ignore[misc]
        for s in starts
    )
    batches = reader.scan(scan, length)
    windows = (range(s, min(s + length, scan)) for s in range(0, scan, length))
    scan_rate, _ = clock.rate((window, lambda: next(batches)) for window in windows)
    reader.close()
    return {
        "single": single_rate,
        "single_ms": single_ms,
        "slice": slice_rate,
        "slice_ms": slice_ms,
        "scan": scan_rate,
        "open_ms": 1000 * opened,
        "wrong": clock.wrong,
        "checked": clock.checked,
    }
