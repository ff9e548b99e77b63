"""Who takes part, under which name, and how: one line for each contender and variant."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: short and unique; what ratios and plots refer to.
        label: what a reader of the table sees.
        module: of :mod:`benchmarks.peers`; empty for loops that have no transport.
        options: the variant, see the module.
        hands_out: "views" of shared memory that the next batch may overwrite, "leased views" that stay valid as long
            as they are held, or "own memory".
        family: what bars are about: the best of a family counts.
        clone: the consumer clones each batch.
        measure: the measurement, where it is not the question's own.
    """

    name: str
    label: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    hands_out: str = "own memory"
    family: str = ""
    clone: bool = False
    measure: str = ""


def cloned(contender: Contender) -> Contender:
    """The same contender, with a consumer that clones each batch."""
    return dataclasses.replace(
        contender,
        name=f"{contender.name} (clones)",
        label=f"{contender.label}; each batch cloned",
        hands_out="clones",
        family=f"{contender.family} (clones)" if contender.family else "",
        clone=True,
    )


def _option(contender: Contender, name: str, label: str, **options: Any) -> Contender:
    return dataclasses.replace(contender, name=name, label=label, options={**contender.options, **options})


STREAMLOADER = Contender("streamloader", "streamloader", "streamloader_peer", {}, "leased views", "streamloader")

STREAMLOADER_COLD = _option(STREAMLOADER, "streamloader, cold", "streamloader, videos never indexed before", cold=True)

NAIVE = Contender(
    "DataLoader", "DataLoader + PyAV as everyone writes it", "dataloader", {"naive": True}, family="DataLoader"
)
_TUNED = Contender("", "", "dataloader", {"prefetch": 4}, family="tuned DataLoader")
TUNED_PYAV = _option(
    _TUNED, "DataLoader/PyAV", "DataLoader tuned: PyAV, 1 decode thread, kept reformatter", decoder="pyav"
)
TUNED_OPENCV = _option(_TUNED, "DataLoader/OpenCV", "DataLoader tuned: OpenCV", decoder="opencv")
TUNED_TORCHCODEC = _option(_TUNED, "DataLoader/torchcodec", "DataLoader tuned: torchcodec", decoder="torchcodec")
TUNED_DECORD = _option(_TUNED, "DataLoader/decord", "DataLoader tuned: decord", decoder="decord")

SPDL_THREADS = Contender("SPDL threads", "SPDL, threads in this process", "spdl_peer", {}, family="SPDL")
SPDL_POOL = Contender(
    "SPDL arena", "SPDL, one subprocess, arena of segments", "spdl_peer", {"arena": "pool"}, "leased views", "SPDL"
)
GRAIN = Contender("grain", "grain, worker processes, concatenated", "grain_peer", {"decoder": "pyav"}, family="grain")

SPDL_RING = Contender(
    "SPDL ring arena", "SPDL, one subprocess, ring arena", "spdl_peer", {"arena": "ring"}, family="SPDL"
)

_QUEUES = Contender("", "", "reference", {"queue": "simple", "decoder": "pyav"}, family="reference")
REFERENCE = _option(
    _QUEUES, "queues + arrays", "Reference design: queues + shared arrays, concatenated", collate="concatenate"
)
# Better than the design it is derived from: nothing to put together. Not counted as the reference in what is to reach.
REFERENCE_VIEW = dataclasses.replace(
    _option(
        _QUEUES, "queues + views", "Reference design, improved: workers share arrays of whole batches", collate="view"
    ),
    hands_out="views",
    family="improved reference",
)
REFERENCE_QUEUE = _option(
    REFERENCE, "mp.Queue + arrays", "Reference design, multiprocessing.Queue, concatenated", queue="full"
)

_RING = Contender("", "", "ring", {"decoder": "pyav"}, "views", "bare ring")
RING = _option(_RING, "bare ring", "Bare shared ring")
RING_PYAV = dataclasses.replace(_option(_RING, "ring/PyAV", "Bare ring, PyAV's own calls"), family="ring, PyAV")
RING_MALLOC = dataclasses.replace(
    _option(_RING, "ring/PyAV+malloc", "Bare ring, PyAV, raised mmap threshold", mmap_threshold=1 << 30),
    family="ring, PyAV",
)
RING_DIRECT = _option(
    _RING,
    "ring/direct",
    "Bare ring, streamloader's decoder (swscale writes into the slot)",
    decoder="direct",
    mmap_threshold=1 << 30,
)

_ALONE = Contender("", "", "", {}, "nothing", "", measure="alone")
ALONE_DECODE = _option(_ALONE, "decode", "Decoding alone, no conversion, no transport")
ALONE_PYAV = _option(_ALONE, "decode+PyAV", "Decoding + PyAV's conversion, no transport", decoder="pyav")
ALONE_DIRECT = _option(_ALONE, "decode+direct", "Decoding + swscale into place, no transport", decoder="direct")
