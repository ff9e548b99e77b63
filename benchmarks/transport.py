"""How fast do batches get from the workers to the consumer? 15.7 MB batches and 640 B batches, as views and as clones.

The streams are synthetic: each window of each lane is overwritten with one value (a memset), the same work in every
contender, so every byte of every batch is written afresh.

``python -m benchmarks.transport [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders as who
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job

BIG = Job("fill", (256, 320, 3))
TINY = Job("fill", (10,))

COHERENT = dataclasses.replace(
    who.NAIVE,
    label="DataLoader, coherent lanes, concatenated",
    options={"prefetch": 4},
)
WHOLE = dataclasses.replace(
    who.NAIVE,
    name="DataLoader whole",
    label="DataLoader, whole batches (not coherent: workers take turns)",
    options={"whole": True, "prefetch": 4},
    family="DataLoader whole",
)


def _spdl(contender: who.Contender, family: str, **options: object) -> who.Contender:
    return dataclasses.replace(contender, family=family, options={**contender.options, **options})


def spdl_variants(tasks: int) -> tuple[who.Contender, ...]:
    """SPDL in threads and behind its arenas, `tasks` threads a batch, and with the order of lanes given up."""
    unordered = dataclasses.replace(
        _spdl(who.SPDL_THREADS, "SPDL unordered", tasks=1, unordered=True),
        name="SPDL threads whole",
        label="SPDL, threads, whole batches (not coherent: two at once)",
    )
    return (
        _spdl(who.SPDL_THREADS, "SPDL threads", tasks=tasks),
        unordered,
        _spdl(who.SPDL_POOL, "SPDL arena", tasks=tasks),
        _spdl(who.SPDL_RING, "SPDL arena", tasks=tasks),
    )


RING_MANY = dataclasses.replace(
    who.RING, name="bare ring x 32", label="Bare shared ring, 32 batches a hand-over", options={"hand_over": 32}
)

_REFERENCES = (who.REFERENCE, who.REFERENCE_VIEW, who.REFERENCE_QUEUE)
_NOTE = (
    "A consumer takes batch after batch of {shape} bytes and does nothing else; every byte of every batch is written "
    "afresh, by one memset a lane. All but those marked otherwise keep each lane with one worker and in order."
)
_RATE = (Column("batches_per_s", "batches/s"), Column("gb_per_s", "GB/s", 2))


def question(quick: bool) -> Question:
    """Describe the tables."""
    args = {"warm": 8, "seconds": 0.5 if quick else 2.0}
    big = Table(
        "big",
        "15.7 MB batches",
        _NOTE.format(shape="(8, 8, 256, 320, 3)")
        + ' Rows that end in "each batch cloned" are the like for like of those that hand out memory of their own.',
        BIG,
        "throughput",
        args,
        (
            COHERENT,
            WHOLE,
            who.GRAIN,
            *spdl_variants(2),
            *_REFERENCES,
            who.cloned(_spdl(who.SPDL_POOL, "SPDL arena", tasks=2)),
            who.cloned(who.REFERENCE_VIEW),
            who.STREAMLOADER,
            who.cloned(who.STREAMLOADER),
            who.RING,
            who.cloned(who.RING),
        ),
        _RATE,
        (
            Bar("DataLoader, coherent lanes; as views", "streamloader", ("DataLoader",), "batches_per_s", 6),
            Bar("best SPDL; as views", "streamloader", ("SPDL arena", "SPDL threads"), "batches_per_s", 3),
            Bar(
                "best SPDL arena; as clones",
                "streamloader (clones)",
                ("SPDL ring arena", "SPDL arena (clones)"),
                "batches_per_s",
                1.4,
            ),
        ),
    )
    # Slots are what the ring needs to hand over many at a time; streamloader has as many for batches of this size.
    many = dataclasses.replace(RING_MANY, options={**RING_MANY.options, "ahead": 128})
    tiny = Table(
        "tiny",
        "640 B batches",
        _NOTE.format(shape="(8, 8, 10)"),
        TINY,
        "throughput",
        {"warm": 256, "seconds": args["seconds"]},
        (
            COHERENT,
            WHOLE,
            who.GRAIN,
            *spdl_variants(1),
            *_REFERENCES,
            who.STREAMLOADER,
            who.cloned(who.STREAMLOADER),
            who.RING,
            many,
        ),
        _RATE[:1],
        (
            Bar("DataLoader, coherent lanes; as views", "streamloader", ("DataLoader",), "batches_per_s", 20),
            Bar("best reference design as it is; as views", "streamloader", ("reference",), "batches_per_s", 1.3),
        ),
    )
    return Question("transport", "Transport", (big, tiny))


if __name__ == "__main__":
    main(question)
