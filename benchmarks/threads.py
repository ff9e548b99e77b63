"""What do decoder threads bring to few lanes, and what do they cost many lanes?

``python -m benchmarks.threads [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

from benchmarks.clips import clips, large_clip
from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_WINDOW = 8


def measure(lanes: int, large: bool, stride: int, batches: int, passes: int) -> dict[str, float]:
    """Measure a loader with the default number of threads, and with one, two, and one per core, alternately.

    Returns frames/s with the default, and the default's rate divided by those of the others and by the best of them.
    """
    import streamloader as sl
    from streamloader.common.cores import count_cores
    from streamloader.loader import multistreamer

    choose: Any = multistreamer.threads_per_lane
    paths = [large_clip(250)] if large else clips()
    streams = lanes + lanes * stride * (batches + 8) * _WINDOW // 250
    dataset = sl.VideoStreams((paths * streams)[:streams], stride=stride)

    def run(threads: int | None) -> float:
        multistreamer.threads_per_lane = choose if threads is None else lambda lanes: threads
        with sl.MultiStreamer(dataset, lanes, _WINDOW, num_workers=min(2, lanes), prefetch_factor=2) as loader:
            iterator = iter(loader)
            for _ in itertools.islice(iterator, 4):
                pass
            start = time.perf_counter()
            count = sum(1 for _ in itertools.islice(iterator, batches))
            return count * lanes * _WINDOW / (time.perf_counter() - start)

    modes = {"default": None, "one": 1, "two": 2, "cores": count_cores()}
    rates: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(passes):
        for name, threads in modes.items():
            rates[name].append(run(threads))
    figures = {"fps": statistics.median(rates["default"])}
    for name in ("one", "two", "cores"):
        figures[name] = statistics.median(a / b for a, b in zip(rates["default"], rates[name], strict=True))
    figures["best"] = min(figures["one"], figures["two"], figures["cores"])
    return figures


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    cases = [(1, False, 1), (1, True, 1), (1, False, 8), (2, False, 1), (8, False, 1)]
    rows = [
        Row(
            f"{lanes} lanes of {'1280x720' if large else '640x360'}, stride {stride}",
            {
                "lanes": lanes,
                "large": large,
                "stride": stride,
                "batches": 4 if quick else 160 // lanes // stride,
                "passes": 1 if quick else 3,
            },
        )
        for lanes, large, stride in cases
    ]
    table = OwnTable(
        "threads",
        "Decoder threads of few lanes",
        f"Windows of {_WINDOW} as RGB of the videos' own size, at most two workers. The other columns are the rate "
        "with the default number of threads divided by that with one thread, two threads, and one thread per core in "
        "each lane, and by the best of them.",
        rows,
        (
            Column("fps", "frames/s", 0),
            Column("one", "to one thread", 2),
            Column("two", "to two", 2),
            Column("cores", "to one per core", 2),
            Column("best", "to the best", 2),
        ),
    )
    return OwnQuestion("threads", "Decoder threads", "benchmarks.threads", (table,))


if __name__ == "__main__":
    main(question)
