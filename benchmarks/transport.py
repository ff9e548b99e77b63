"""How fast do batches get from the workers to the consumer? 15.7 MB batches and 640 B batches, as views and as clones.

The streams are synthetic: each window of each lane is filled with one value (a memset). All contenders do the same
work, and every byte of every batch is newly written.

``python -m benchmarks.transport [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job

BIG = Job("fill", (256, 320, 3))
TINY = Job("fill", (10,))

COHERENT = dataclasses.replace(
    contenders.NAIVE,
    label="DataLoader, coherent lanes, concatenated",
    options={"prefetch": 4},
)
WHOLE = dataclasses.replace(
    contenders.NAIVE,
    name="DataLoader whole",
    label="DataLoader, whole batches (not coherent: workers take turns)",
    options={"whole": True, "prefetch": 4},
    family="DataLoader whole",
)


def _spdl(contender: contenders.Contender, family: str, **options: object) -> contenders.Contender:
    return dataclasses.replace(contender, family=family, options={**contender.options, **options})


def spdl_variants(tasks: int) -> tuple[contenders.Contender, ...]:
    """Return SPDL in threads and with its arenas, with `tasks` threads per batch, and a variant without lane order."""
    unordered = dataclasses.replace(
        _spdl(contenders.SPDL_THREADS, "SPDL unordered", tasks=1, unordered=True),
        name="SPDL threads whole",
        label="SPDL, threads, whole batches (not coherent: two at once)",
    )
    return (
        _spdl(contenders.SPDL_THREADS, "SPDL threads", tasks=tasks),
        unordered,
        _spdl(contenders.SPDL_POOL, "SPDL arena", tasks=tasks),
        _spdl(contenders.SPDL_RING, "SPDL arena", tasks=tasks),
    )


RING_MANY = dataclasses.replace(
    contenders.RING,
    name="bare ring x 32",
    label="Bare shared ring, 32 batches per hand-over",
    options={"hand_over": 32},
)

_REFERENCES = (contenders.REFERENCE, contenders.REFERENCE_VIEW, contenders.REFERENCE_QUEUE)
_NOTE = (
    "A consumer only takes one batch of {shape} bytes after the other. Every byte of every batch is newly written, by "
    "one memset per lane. All contenders, unless marked otherwise, keep each lane in one worker and in order."
)
_RATE = (Column("batches_per_s", "batches/s"), Column("gb_per_s", "GB/s", 2))


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    args = {"warm": 8, "seconds": 0.5 if quick else 2.0}
    big = Table(
        "big",
        "15.7 MB batches",
        _NOTE.format(shape="(8, 8, 256, 320, 3)")
        + ' Rows that end in "each batch cloned" compare directly with rows that return their own memory.',
        BIG,
        "throughput",
        args,
        (
            COHERENT,
            WHOLE,
            contenders.GRAIN,
            *spdl_variants(2),
            *_REFERENCES,
            contenders.with_clones(_spdl(contenders.SPDL_POOL, "SPDL arena", tasks=2)),
            contenders.with_clones(contenders.REFERENCE_VIEW),
            contenders.STREAMLOADER,
            contenders.with_clones(contenders.STREAMLOADER),
            contenders.RING,
            contenders.with_clones(contenders.RING),
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
    # The ring needs many slots to hand over many batches at a time; streamloader has as many for this batch size.
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
            contenders.GRAIN,
            *spdl_variants(1),
            *_REFERENCES,
            contenders.STREAMLOADER,
            contenders.with_clones(contenders.STREAMLOADER),
            contenders.RING,
            many,
        ),
        _RATE[:1],
        (
            Bar("DataLoader, coherent lanes; as views", "streamloader", ("DataLoader",), "batches_per_s", 20),
            Bar("best unmodified reference design; as views", "streamloader", ("reference",), "batches_per_s", 1.3),
        ),
    )
    return Question("transport", "Transport", (big, tiny))


if __name__ == "__main__":
    main(question)
