"""The contenders and their variants, one definition each."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of a table.

    Attributes:
        name: Short, unique name, which ratios and plots use.
        label: Description in the table.
        module: Module of :mod:`benchmarks.peers`. Empty for loops without transport.
        options: Options of the variant, which the module documents.
        hands_out: Memory of the batches: "views" of shared memory that the next batch may overwrite, "leased views"
            that stay valid while they are held, or "own memory".
        family: Group of contenders. Bars refer to the best of a family.
        clone: Whether the consumer clones each batch.
        measure: Name of the measurement, if it differs from the table's.
    """

    name: str
    label: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    hands_out: str = "own memory"
    family: str = ""
    clone: bool = False
    measure: str = ""


def with_clones(contender: Contender) -> Contender:
    """Return the same contender with a consumer that clones each batch."""
    return dataclasses.replace(
        contender,
        name=f"{contender.name} (clones)",
        label=f"{contender.label}; each batch cloned",
        hands_out="clones",
        family=f"{contender.family} (clones)" if contender.family else "",
        clone=True,
    )


def _variant(contender: Contender, name: str, label: str, **options: Any) -> Contender:
    return dataclasses.replace(contender, name=name, label=label, options={**contender.options, **options})


STREAMLOADER = Contender("streamloader", "streamloader", "streamloader_peer", {}, "leased views", "streamloader")

STREAMLOADER_PLANAR = dataclasses.replace(
    _variant(STREAMLOADER, "streamloader, rgbp", 'streamloader, pix_fmt="rgbp"', pix_fmt="rgbp"), family=""
)
STREAMLOADER_YUV = dataclasses.replace(
    _variant(STREAMLOADER, "streamloader, YUV", 'streamloader, pix_fmt="yuv420p"', pix_fmt="yuv420p"), family=""
)
STREAMLOADER_YUV_RGB = dataclasses.replace(
    _variant(STREAMLOADER_YUV, "streamloader, YUV to RGB", 'streamloader, pix_fmt="yuv420p", batch.rgb()', rgb=True),
    hands_out="own memory",
)

STREAMLOADER_COLD = _variant(STREAMLOADER, "streamloader, cold", "streamloader, videos never indexed before", cold=True)

NAIVE = Contender("DataLoader", "DataLoader + PyAV, the usual way", "dataloader", {"naive": True}, family="DataLoader")
_TUNED = Contender("", "", "dataloader", {"prefetch": 4}, family="tuned DataLoader")
TUNED_PYAV = _variant(
    _TUNED, "DataLoader/PyAV", "DataLoader tuned: PyAV, 1 decode thread, kept reformatter", decoder="pyav"
)
TUNED_OPENCV = _variant(_TUNED, "DataLoader/OpenCV", "DataLoader tuned: OpenCV", decoder="opencv")
TUNED_TORCHCODEC = _variant(_TUNED, "DataLoader/torchcodec", "DataLoader tuned: torchcodec", decoder="torchcodec")
TUNED_DECORD = _variant(_TUNED, "DataLoader/decord", "DataLoader tuned: decord", decoder="decord")

SPDL_THREADS = Contender("SPDL threads", "SPDL, threads in this process", "spdl_peer", {}, family="SPDL")
SPDL_POOL = Contender(
    "SPDL arena", "SPDL, one subprocess, arena of segments", "spdl_peer", {"arena": "pool"}, "leased views", "SPDL"
)
GRAIN = Contender("grain", "grain, worker processes, concatenated", "grain_peer", {"decoder": "pyav"}, family="grain")

SPDL_RING = Contender(
    "SPDL ring arena", "SPDL, one subprocess, ring arena", "spdl_peer", {"arena": "ring"}, family="SPDL"
)

_QUEUES = Contender("", "", "reference", {"queue": "simple", "decoder": "pyav"}, family="reference")
REFERENCE = _variant(
    _QUEUES, "queues + arrays", "Reference design: queues + shared arrays, concatenated", collate="concatenate"
)
# Better than the reference design, because it does not concatenate. The bars do not count it as the reference.
REFERENCE_VIEW = dataclasses.replace(
    _variant(
        _QUEUES, "queues + views", "Reference design, improved: workers share arrays of whole batches", collate="view"
    ),
    hands_out="views",
    family="improved reference",
)
REFERENCE_QUEUE = _variant(
    REFERENCE, "mp.Queue + arrays", "Reference design, multiprocessing.Queue, concatenated", queue="full"
)

_RING = Contender("", "", "ring", {"decoder": "pyav"}, "views", "bare ring")
RING = _variant(_RING, "bare ring", "Bare shared ring")
RING_PYAV = dataclasses.replace(_variant(_RING, "ring/PyAV", "Bare ring, PyAV's own calls"), family="ring, PyAV")
RING_MALLOC = dataclasses.replace(
    _variant(_RING, "ring/PyAV+malloc", "Bare ring, PyAV, raised mmap threshold", mmap_threshold=1 << 30),
    family="ring, PyAV",
)
RING_DIRECT = _variant(
    _RING,
    "ring/direct",
    "Bare ring, streamloader's decoder (swscale writes into the slot)",
    decoder="direct",
    mmap_threshold=1 << 30,
)

_ALONE = Contender("", "", "", {}, "nothing", "", measure="alone")
ALONE_DECODE = _variant(_ALONE, "decode", "Decoding alone, no conversion, no transport")
ALONE_PYAV = _variant(_ALONE, "decode+PyAV", "Decoding + PyAV's conversion, no transport", decoder="pyav")
ALONE_DIRECT = _variant(_ALONE, "decode+direct", "Decoding + swscale into place, no transport", decoder="direct")
