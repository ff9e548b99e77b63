"""What do many streams cost? Time to index, plan and start, and memory of each process, with up to ten million.

``python -m benchmarks.scale [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_MIB = 1 << 20
_LANES, _WINDOW, _WORKERS = 8, 16, 2
_MAX_STEPS = 1000


def measure(streams: int, lengths: str) -> dict[str, Any]:
    """Start to load synthetic streams, measure the processes, and then measure the parts of the start separately."""
    import anyio
    import numpy as np
    import psutil
    import torch  # noqa: F401 - a training process has it anyway

    import streamloader as sl
    from streamloader.engine.plan import make_plan

    rng = np.random.default_rng(0)
    step_counts: Any = rng.permutation(streams) + 1 if lengths == "distinct" else rng.integers(1, _MAX_STEPS, streams)

    def steps(item: int) -> Any:
        return np.broadcast_to(np.uint8(item & 255), step_counts[item])  # takes no memory

    dataset = sl.IterStreams(range(streams), steps, fields=sl.Field((), "uint8"), lengths=step_counts)
    started = time.perf_counter()
    loader = sl.MultiStreamer(dataset, _LANES, _WINDOW, num_workers=_WORKERS)
    built = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    first = time.perf_counter()
    for _ in range(200):
        batch = next(batches)
    del batch
    process = psutil.Process()
    parent, workers = process.memory_full_info(), [child.memory_full_info() for child in process.children()]
    start = time.perf_counter()
    loader.plan_report()
    reported = time.perf_counter() - start
    loader.close()
    results = {
        "first_batch_s": first - started,
        "built_s": built - started,
        "report_s": reported,
        "worker_rss_mib": max(info.rss for info in workers) / _MIB,
        "worker_uss_mib": max(info.uss for info in workers) / _MIB,
        "parent_rss_mib": parent.rss / _MIB,
        "parent_uss_mib": parent.uss / _MIB,
    }
    start = time.perf_counter()
    table = anyio.run(dataset.index)
    results["index_s"] = time.perf_counter() - start
    start = time.perf_counter()
    plan = make_plan(table.lengths, lanes=_LANES, window=_WINDOW)
    results["plan_s"] = time.perf_counter() - start
    start = time.perf_counter()
    plan.lane(0, 0)
    results["lane_s"] = time.perf_counter() - start
    start = time.perf_counter()
    table.digest()
    results["digest_s"] = time.perf_counter() - start
    return results


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    rows = [
        Row(f"{streams:,} streams{suffix}", {"streams": streams, "lengths": lengths})
        for streams, lengths, suffix in [
            (1000, "random", ""),
            (100_000, "random", ""),
            (10_000 if quick else 1_000_000, "random", ""),
            (20_000 if quick else 10_000_000, "random", ""),
            (30_000 if quick else 10_000_000, "distinct", ", all of different lengths"),
        ]
    ]
    table = OwnTable(
        "scale",
        "Costs of many streams",
        "`IterStreams` over a range, whose steps are a NumPy array, with an array of lengths (int64, 1 to "
        f"{_MAX_STEPS - 1} steps unless the row says otherwise); {_LANES} lanes, windows of {_WINDOW} steps, "
        f"{_WORKERS} worker processes, shuffled. First batch: time from the call of the loader's constructor. Index "
        "and plan are the parts of it that grow. They are measured again separately, as are the order of one lane in "
        "one epoch, which workers compute, and the digest of keys and lengths, which saved states contain. "
        "Plan report: `loader.plan_report()`, with all combinations of switch and tail. Memory "
        "after 200 batches, in MiB: resident (RSS) and private (USS), of the consumer, which has torch loaded, and of "
        "the largest worker.",
        rows,
        (
            Column("first_batch_s", "first batch, s", 2),
            Column("index_s", "index, s", 3),
            Column("plan_s", "plan, s", 3),
            Column("lane_s", "order of a lane, s", 3),
            Column("digest_s", "digest, s", 3),
            Column("report_s", "plan report, s", 3),
            Column("worker_rss_mib", "worker RSS", 0),
            Column("worker_uss_mib", "worker USS", 0),
            Column("parent_rss_mib", "consumer RSS", 0),
            Column("parent_uss_mib", "consumer USS", 0),
        ),
    )
    return OwnQuestion("scale", "Scale", "benchmarks.scale", (table,))


if __name__ == "__main__":
    main(question)
