"""How fast is the loading of real videos? 16 H.264 clips, 8 lanes, windows of 8, 2 workers; 640x360 and 224x224.

``python -m benchmarks.video [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import dataclasses

from benchmarks import contenders
from benchmarks.clips import HEIGHT, WIDTH, clips
from benchmarks.command import main
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job

COLUMNS = (Column("steps_per_s", "frames/s"), Column("cpu_ms_per_step", "CPU ms/frame", 2, less_is_better=True))

_LOADERS = (
    contenders.NAIVE,
    contenders.TUNED_PYAV,
    contenders.TUNED_OPENCV,
    contenders.TUNED_TORCHCODEC,
    contenders.TUNED_DECORD,
    contenders.GRAIN,
    contenders.SPDL_THREADS,
    contenders.SPDL_POOL,
    contenders.SPDL_RING,
    contenders.REFERENCE,
    contenders.REFERENCE_VIEW,
)
CONTENDERS = (
    *_LOADERS,
    contenders.STREAMLOADER,
    contenders.with_clones(contenders.STREAMLOADER),
    contenders.STREAMLOADER_PLANAR,
    contenders.STREAMLOADER_YUV,
    contenders.STREAMLOADER_YUV_RGB,
    contenders.RING_PYAV,
    contenders.RING_MALLOC,
    contenders.RING_DIRECT,
    contenders.ALONE_PYAV,
    contenders.ALONE_DIRECT,
    contenders.ALONE_DECODE,
)

_NOTE = (
    "Coherent batches (8, 8, {height}, {width}, 3) of uint8 with a reset mask. The consumer only takes and drops them. "
    '"Own memory": the batch was copied for the consumer. The bare ring and the loops without transport are not '
    'loaders but upper limits. CPU includes consumer and workers. "rgbp" batches are RGB in planes, YUV batches are '
    "the planes of 4:2:0, and batch.rgb() converts those in the consumer's process."
)
_BARS = (
    Bar("DataLoader, the usual way", "streamloader", ("DataLoader",), "steps_per_s", 2.5),
    Bar("best tuned DataLoader", "streamloader", ("tuned DataLoader",), "steps_per_s", 1.8),
    Bar("best SPDL", "streamloader", ("SPDL",), "steps_per_s", 1.5),
    Bar("bare ring on the same decoder", "streamloader", ("ring/direct",), "steps_per_s", 0.93),
    Bar("YUV: decoding alone", "streamloader, YUV", ("decode",), "steps_per_s", 0.97),
)
_PEERS = ("DataLoader", "tuned DataLoader", "grain", "SPDL", "reference")


def job(height: int, width: int) -> Job:
    """Return a job with every clip four times, so that no epoch ends during a measurement."""
    return Job("video", (height, width, 3), paths=tuple(clips() * 4))


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    args = {"warm": 4, "batches": 16} if quick else {"warm": 8, "batches": 64}
    native = Table(
        "640x360",
        "Video at 640x360 (as stored)",
        _NOTE.format(height=HEIGHT, width=WIDTH),
        job(HEIGHT, WIDTH),
        "throughput",
        args,
        CONTENDERS,
        COLUMNS,
        _BARS,
    )
    scaled = dataclasses.replace(
        native,
        name="224x224",
        title="Video scaled to 224x224",
        note=_NOTE.format(height=224, width=224),
        job=job(224, 224),
        bars=(
            Bar("best peer that is a loader", "streamloader", _PEERS, "steps_per_s", 1.25),
            Bar("rgbp: best peer that is a loader", "streamloader, rgbp", _PEERS, "steps_per_s", 1.25),
        ),
    )
    return Question("video", "Video", (native, scaled))


if __name__ == "__main__":
    main(question)
