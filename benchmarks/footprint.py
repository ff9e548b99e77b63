"""What does a loader cost? Time to the first batch, memory of consumer and workers, CPU per frame and per worker start.

``python -m benchmarks.footprint [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

from benchmarks import contenders, transport
from benchmarks.clips import HEIGHT, WIDTH, clips
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job

_CONTENDERS = (
    contenders.NAIVE,
    contenders.TUNED_PYAV,
    contenders.TUNED_OPENCV,
    contenders.TUNED_TORCHCODEC,
    contenders.TUNED_DECORD,
    contenders.GRAIN,
    contenders.SPDL_THREADS,
    contenders.SPDL_POOL,
    contenders.REFERENCE,
    contenders.REFERENCE_VIEW,
    contenders.STREAMLOADER,
    contenders.STREAMLOADER_COLD,
    contenders.RING_PYAV,
    contenders.RING_DIRECT,
)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    video_costs = Table(
        "video",
        "Costs of 640x360 video",
        "The consumer has torch loaded before it starts. Time to the first batch starts when the contender is "
        "created, with its modules imported; streamloader scans each video only once and keeps its index in a cache. "
        "Memory after a few seconds, in MiB: RSS of the consumer, of all workers and of the largest worker, the "
        "private memory of that worker (USS), and PSS of all processes, which counts shared pages (the ring, forked "
        "memory) once. Four batches of 44 MB are 169 MiB.",
        Job("video", (HEIGHT, WIDTH, 3), paths=tuple(clips())),
        "throughput",
        {"warm": 4, "batches": 12 if quick else 48},
        _CONTENDERS,
        (
            Column("first_batch_s", "first batch, s", 2, less_is_better=True),
            Column("cpu_ms_per_step", "CPU ms/frame", 2),
            Column("parent.rss_mib", "consumer RSS", 0),
            Column("workers.rss_mib", "workers RSS", 0),
            Column("largest_worker.rss_mib", "largest worker RSS", 0),
            Column("largest_worker.uss_mib", "largest worker USS", 0),
            Column("pss_mib", "PSS of all", 0),
        ),
    )
    start = Table(
        "start",
        "Costs of starting",
        "640 B batches of synthetic streams, to measure only the loader itself: CPU of the busiest child process at "
        "the first batch, time to that batch, and memory of the processes.",
        transport.TINY,
        "throughput",
        {"warm": 4, "batches": 20},
        (
            transport.COHERENT,
            *(c for c in transport.spdl_variants(1) if c.family != "SPDL unordered"),
            contenders.REFERENCE_VIEW,
            contenders.STREAMLOADER,
            contenders.RING,
        ),
        (
            Column("worker_start_cpu_s", "CPU s of a worker", 2, less_is_better=True),
            Column("first_batch_s", "first batch, s", 2),
            Column("import_s", "imports, s", 2),
            Column("largest_worker.rss_mib", "largest worker RSS", 0),
            Column("largest_worker.uss_mib", "largest worker USS", 0),
            Column("pss_mib", "PSS of all", 0),
        ),
        (Bar("CPU of a worker's start, s", "streamloader", (), "worker_start_cpu_s", 0.5, at_most=True),),
    )
    return Question("footprint", "Footprint", (video_costs, start))


if __name__ == "__main__":
    main(question)
