"""How long does the training loop wait? For a batch that is ready, and for batches while it works 20 ms on each.

``python -m benchmarks.latency [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders as who
from benchmarks import transport, video
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table

_WORK = 0.02
_SPDL = tuple(
    dataclasses.replace(c, options={**c.options, "tasks": 2}) for c in (who.SPDL_THREADS, who.SPDL_POOL, who.SPDL_RING)
)
_READY = (
    dataclasses.replace(transport.COHERENT, family="peer"),
    *(dataclasses.replace(c, family="peer") for c in _SPDL),
    dataclasses.replace(who.GRAIN, family="peer"),
    dataclasses.replace(who.REFERENCE, family="peer"),
    who.REFERENCE_VIEW,
    who.STREAMLOADER,
    who.RING,
)
_WORKING = (
    *(
        dataclasses.replace(c, family="peer")
        for c in (
            who.NAIVE,
            who.TUNED_PYAV,
            who.TUNED_OPENCV,
            who.TUNED_TORCHCODEC,
            who.TUNED_DECORD,
            who.SPDL_THREADS,
            who.SPDL_POOL,
            who.GRAIN,
            who.REFERENCE,
        )
    ),
    who.REFERENCE_VIEW,
    who.STREAMLOADER,
    who.RING_MALLOC,
    who.RING_DIRECT,
)
_READY_NOTE = (
    "Median time of `next()` for a batch that has been ready for long: the consumer sleeps {gap:.0f} ms before each. "
    "Batches of {size}, each contender as it hands them out."
)
_WORK_NOTE = (
    "640x360 video as in the question of that name. The consumer works on each batch for 20 ms, {how}. "
    '"Lost" is what '
    "a batch costs beyond those 20 ms: waiting, and the consumer's own work slowed down by the loader."
)


def question(quick: bool) -> Question:
    """Describe the tables."""
    count = 30 if quick else 200
    columns = (Column("ready_ms", "ready, ms", 3, less_is_better=True), Column("ready_p95_ms", "p95, ms", 3))
    bar = Bar("median of a ready batch, ms", "streamloader", (), "ready_ms", 0.1, at_most=True)
    tiny = Table(
        "ready-tiny",
        "A batch of 640 B that is ready",
        _READY_NOTE.format(gap=10, size="640 B"),
        transport.TINY,
        "ready",
        {"warm": 10, "batches": count, "gap": 0.01},
        _READY,
        columns,
        (bar,),
    )
    big = dataclasses.replace(
        tiny,
        name="ready-big",
        title="A batch of 15.7 MB that is ready",
        note=_READY_NOTE.format(gap=50, size="15.7 MB"),
        job=transport.BIG,
        args={"warm": 10, "batches": count // 2, "gap": 0.05},
    )
    args = {"warm": 8, "batches": 12 if quick else 60, "work": _WORK}
    asleep = Table(
        "asleep",
        "Waits of a consumer that sleeps 20 ms a batch",
        _WORK_NOTE.format(how="asleep, as one that waits for a GPU"),
        video.job(video.HEIGHT, video.WIDTH),
        "waits",
        {**args, "style": "sleep"},
        _WORKING,
        (
            Column("wait_ms", "mean wait, ms", 1, less_is_better=True),
            Column("wait_median_ms", "median", 1),
            Column("wait_p95_ms", "p95", 1),
            Column("lost_ms", "lost, ms", 1),
            Column("batches_per_s", "batches/s", 1),
        ),
        (
            Bar("best peer's mean wait", "streamloader", ("peer",), "wait_ms", 0.5, at_most=True),
            Bar("best peer's lost time", "streamloader", ("peer",), "lost_ms", 0.5, at_most=True),
        ),
    )
    busy = dataclasses.replace(
        asleep,
        name="busy",
        title="Waits of a consumer that computes in Python for 20 ms a batch",
        note=_WORK_NOTE.format(how="in a loop of Python that holds the GIL and a core"),
        args={**args, "style": "python"},
    )
    return Question("latency", "Latency", (tiny, big, asleep, busy))


if __name__ == "__main__":
    main(question)
