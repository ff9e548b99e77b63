"""How long does the training loop wait? For the first batch, a ready batch, and batches while it works 20 ms on each.

``python -m benchmarks.latency [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders, transport, video
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table

_WORK_S = 0.02
_SPDL = tuple(
    dataclasses.replace(c, options={**c.options, "tasks": 2})
    for c in (contenders.SPDL_THREADS, contenders.SPDL_POOL, contenders.SPDL_RING)
)
_READY = (
    dataclasses.replace(transport.COHERENT, family="peer"),
    *(dataclasses.replace(c, family="peer") for c in _SPDL),
    dataclasses.replace(contenders.GRAIN, family="peer"),
    dataclasses.replace(contenders.REFERENCE, family="peer"),
    contenders.REFERENCE_VIEW,
    contenders.STREAMLOADER,
    contenders.RING,
)
_STARTING = (
    contenders.TUNED_PYAV,
    contenders.TUNED_OPENCV,
    contenders.SPDL_THREADS,
    contenders.SPDL_POOL,
    contenders.REFERENCE_VIEW,
    contenders.STREAMLOADER,
    contenders.RING_DIRECT,
)
_WORKING = (
    *(
        dataclasses.replace(c, family="peer")
        for c in (
            contenders.NAIVE,
            contenders.TUNED_PYAV,
            contenders.TUNED_OPENCV,
            contenders.TUNED_TORCHCODEC,
            contenders.TUNED_DECORD,
            contenders.SPDL_THREADS,
            contenders.SPDL_POOL,
            contenders.GRAIN,
            contenders.REFERENCE,
        )
    ),
    contenders.REFERENCE_VIEW,
    contenders.STREAMLOADER,
    contenders.RING_MALLOC,
    contenders.RING_DIRECT,
)
_FIRST_NOTE = (
    "640x360 video as in the question about video, with indexes in the cache. Time from before the contender is "
    "created, with its modules imported, to its first batch, and the part of it that the creation takes. The workers "
    "of streamloader and of the bare ring are new interpreters; the other contenders fork."
)
_READY_NOTE = (
    "Median time of `next()` for a batch that is ready: the consumer sleeps {gap:.0f} ms before each call. Batches of "
    "{size}, in the form in which each contender returns them."
)
_WORK_NOTE = (
    "640x360 video as in the question about video. The consumer works on each batch for 20 ms, {how}. "
    '"Lost" is the time per batch beyond these 20 ms: waiting, and the slowdown of the consumer by the loader.'
)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    count = 30 if quick else 200
    columns = (Column("ready_ms", "ready, ms", 3, less_is_better=True), Column("ready_p95_ms", "p95, ms", 3))
    bar = Bar("median of a ready batch, ms", "streamloader", (), "ready_ms", 0.1, at_most=True)
    tiny = Table(
        "ready-tiny",
        "A ready batch of 640 B",
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
        title="A ready batch of 15.7 MB",
        note=_READY_NOTE.format(gap=50, size="15.7 MB"),
        job=transport.BIG,
        args={"warm": 10, "batches": count // 2, "gap": 0.05},
        bars=(dataclasses.replace(bar, factor=0.15),),
    )
    first = Table(
        "first",
        "The first batch of video",
        _FIRST_NOTE,
        video.job(video.HEIGHT, video.WIDTH),
        "first",
        {},
        _STARTING,
        (
            Column("first_s", "first batch, s", 3, less_is_better=True),
            Column("created_s", "of which creation, s", 3),
        ),
        (Bar("time to the first batch, s", "streamloader", (), "first_s", 0.35, at_most=True),),
    )
    args = {"warm": 8, "batches": 12 if quick else 60, "work": _WORK_S}
    asleep = Table(
        "asleep",
        "Waits of a consumer that sleeps 20 ms per batch",
        _WORK_NOTE.format(how="asleep, as if it waited for a GPU"),
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
        note=_WORK_NOTE.format(how="in a Python loop that holds the GIL and one core"),
        args={**args, "style": "python"},
    )
    return Question("latency", "Latency", (first, tiny, big, asleep, busy))


if __name__ == "__main__":
    main(question)
