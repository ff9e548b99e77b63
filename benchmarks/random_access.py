"""The measurement of readers by frame number, in a fresh process: single frames, slices, and a scan.

Every frame that comes is looked at while the clock stands: its number is in its corner.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.clips import number_of
from benchmarks.job import Job


class _Clock:
    """Adds up what is done, and the time that it takes; counts the frames that are not those asked for."""

    def __init__(self) -> None:
        self.wrong = self.asked = 0

    def rate(self, work: Iterator[tuple[Sequence[int], Callable[[], Any]]]) -> tuple[float, float]:
        """Do all of `work`; return frames/s, and the median of the calls in ms."""
        seconds, frames, calls = 0.0, 0, []
        for numbers, call in work:
            begin = time.perf_counter()
            found = call()
            calls.append(time.perf_counter() - begin)
            seconds += calls[-1]
            frames += len(numbers)
            if found is None:
                continue
            came = [number_of(image) for image in found]
            self.asked += len(numbers)
            self.wrong += sum(a != b for a, b in zip(came, numbers, strict=False)) + abs(len(numbers) - len(came))
        return frames / seconds, 1000 * statistics.median(calls)


def random_access(
    open_peer: Callable[[Job], Any], job: Job, *, singles: int, slices: int, length: int, scan: int, seed: int = 0
) -> dict[str, Any]:
    """Frames/s of `singles` random frames, of `slices` random slices of `length`, and of the first `scan` frames.

    All contenders are asked for the same numbers, none of them twice for the same frame by itself.
    """
    open_peer(job).close()  # what is loaded once in a process
    begin = time.perf_counter()
    reader = open_peer(job)
    opened = getattr(reader, "opened", time.perf_counter() - begin)
    count = len(reader)
    reader.get([0])  # what is set up for the first frame of all
    dice = random.Random(seed)
    numbers = dice.sample(range(1, count), singles)
    starts = [dice.randrange(count - length) for _ in range(slices)]
    clock = _Clock()
    single, single_ms = clock.rate(([n], lambda n=n: reader.get([n])) for n in numbers)  # type: ignore[misc]
    cut, slice_ms = clock.rate(
        (range(s, s + length), lambda s=s: reader.get(range(s, s + length)))  # type: ignore[misc]
        for s in starts
    )
    batches = reader.scan(scan, length)
    windows = (range(s, min(s + length, scan)) for s in range(0, scan, length))
    scanned, _ = clock.rate((window, lambda: next(batches)) for window in windows)
    reader.close()
    return {
        "single": single,
        "single_ms": single_ms,
        "slice": cut,
        "slice_ms": slice_ms,
        "scan": scanned,
        "open_ms": 1000 * opened,
        "wrong": clock.wrong,
        "asked": clock.asked,
    }
