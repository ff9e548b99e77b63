"""How fast is random access by frame number? Single frames, slices of 32 and a scan of 720p, GOP 250 and GOP 12.

``python -m benchmarks.archive [--quick] [--rounds N] [--table gop250|gop12] [--json FILE]``
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.clips import BIG_HEIGHT, BIG_WIDTH, GOPS, large_clip
from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job
from benchmarks.peers.archive_peer import NO_CACHE

_AUTO_THREADS = {"threads": 0}  # FFmpeg uses the number of cores plus one


def _peer(name: str, label: str, **options: Any) -> Contender:
    return Contender(name, label, "random_readers", options, family="peer")


def _archive(name: str, label: str, **options: Any) -> Contender:
    return Contender(name, label, "archive_peer", options, family="archive")


_RAW = dataclasses.replace(
    _peer("decode", "PyAV, decoding only, default threads", reader="pyav", convert=False),
    hands_out="nothing",
    family="raw",
)
CONTENDERS = (
    _peer("torchcodec", "torchcodec exact, default (1 thread)", reader="torchcodec"),
    _peer("torchcodec/auto", "torchcodec exact, FFmpeg's choice of threads", reader="torchcodec", **_AUTO_THREADS),
    _peer(
        "torchcodec/approximate",
        "torchcodec approximate, FFmpeg's choice of threads",
        reader="torchcodec",
        mode="approximate",
        **_AUTO_THREADS,
    ),
    _peer("decord", "decord, default (all cores)", reader="decord"),
    _peer("opencv", "OpenCV, default (all cores)", reader="opencv"),
    _peer("pyav", "PyAV with an index, default (slice threads)", reader="pyav"),
    _peer("pyav/auto", "PyAV with an index, frame threads", reader="pyav", **_AUTO_THREADS),
    _archive("streamloader", "streamloader"),
    _archive("streamloader/no-cache", "streamloader, nothing cached", **NO_CACHE),
    _archive("streamloader/ssh", "streamloader over SSH", ssh=True),
    _RAW,
    dataclasses.replace(
        _RAW, name="decode/auto", label="PyAV, decoding only, frame threads", options={**_RAW.options, **_AUTO_THREADS}
    ),
)
COLUMNS = (
    Column("single", "single frames, frames/s", 1),
    Column("slice", "slices of 32, frames/s"),
    Column("scan", "scan, frames/s"),
    Column("single_ms", "a single frame, ms", 1, less_is_better=True),
    Column("open_ms", "open, ms", 1, less_is_better=True),
    Column("wrong", "wrong frames", 0, less_is_better=True),
)
_NOTE = (
    "H.264 of 1280x720, 1,000 frames, a key frame every {gop}, x264's default settings with B frames. Each contender "
    "reads the same frame numbers: {singles} single frames and {slices} slices of 32 at random, then the first {scan} "
    "frames in slices of 32, as RGB of uint8. The number in the corner of each frame is checked outside the measured "
    "time, and wrong frames are counted. Opening (which scans the file in some libraries) is not part of the rates. "
    "Threads: the peers run with their defaults and, where it differs, with the setting that was fastest in trials "
    "(torchcodec 1, 2 and FFmpeg's choice; decord, OpenCV and PyAV 1, 2 and their own). streamloader runs with its "
    "defaults, so its cache may contain a frame that was decoded on the way to an earlier one; in the rows without a "
    "cache it does not. Over SSH: an OpenSSH server on loopback, which shares the cores. Decoding only does not "
    "convert frames and knows where to start: it decodes every frame from the key frame to the last requested one, as "
    "fast as PyAV can."
)
_BARS = tuple(
    Bar(text, ours, theirs, metric, factor)
    for text, ours, theirs, metric, factor in (
        ("single frames: fastest peer", "streamloader/no-cache", ("peer",), "single", 1.0),
        ("slices: fastest peer", "streamloader/no-cache", ("peer",), "slice", 1.0),
        ("slices: decoding only, PyAV's defaults", "streamloader/no-cache", ("decode",), "slice", 0.9),
        ("scan: decoding only, PyAV's defaults", "streamloader/no-cache", ("decode",), "scan", 0.9),
        ("slices: decoding only, frame threads", "streamloader/no-cache", ("decode/auto",), "slice", 0.9),
        ("scan: decoding only, frame threads", "streamloader/no-cache", ("decode/auto",), "scan", 0.9),
        ("slices over SSH: the same, local", "streamloader/ssh", ("streamloader",), "slice", 0.7),
    )
)
_BARS += (Bar("wrong frames", "streamloader", (), "wrong", 0.0, at_most=True),)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    tables = []
    for gop in GOPS:
        is_fast = gop == min(GOPS)
        counts = {"singles": 40 if is_fast else 10, "slices": 10 if is_fast else 6, "length": 32, "scan": 320}
        if quick:
            counts = {"singles": 4, "slices": 2, "length": 32, "scan": 64}
        table = Table(
            f"gop{gop}",
            f"720p with a key frame every {gop} frames",
            _NOTE.format(gop=gop, **counts),
            Job("random", (BIG_HEIGHT, BIG_WIDTH, 3), paths=(large_clip(gop),)),
            "random",
            counts,
            CONTENDERS,
            COLUMNS,
            _BARS,
        )
        tables.append(table)
    return Question("archive", "Random access", tuple(tables))


if __name__ == "__main__":
    main(question)
