"""What does the boundary between two epochs cost? The consumer is so slow that it never waits within an epoch.

``python -m benchmarks.border [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders
from benchmarks.clips import HEIGHT, SHORT, WIDTH, clips
from benchmarks.command import main
from benchmarks.harness import Column, Question, Table
from benchmarks.job import Job

_TUNED = dataclasses.replace(
    contenders.TUNED_PYAV,
    name="DataLoader persistent",
    label="DataLoader tuned (PyAV), persistent_workers=True",
    options={**contenders.TUNED_PYAV.options, "persistent": True},
)


def question(quick: bool) -> Question:
    """Return the question with its table."""
    table = Table(
        "border",
        "Boundary between two epochs",
        "640x360 video, 16 clips of 40 frames, 10 batches an epoch; the consumer sleeps 100 ms per batch. "
        "Boundary: time from the end of the work on the last batch to the first batch of the next epoch. Inside: the "
        "same between two batches of one epoch. Medians, in ms.",
        Job("video", (HEIGHT, WIDTH, 3), paths=tuple(clips(frames=SHORT))),
        "border",
        {"epochs": 3 if quick else 6, "work": 0.1},
        (
            contenders.NAIVE,
            contenders.TUNED_PYAV,
            _TUNED,
            contenders.SPDL_THREADS,
            contenders.SPDL_POOL,
            contenders.REFERENCE_VIEW,
            contenders.STREAMLOADER,
        ),
        (
            Column("border_ms", "boundary, ms", 1, less_is_better=True),
            Column("inside_ms", "inside, ms", 2),
        ),
    )
    return Question("border", "Epoch boundary", (table,))


if __name__ == "__main__":
    main(question)
