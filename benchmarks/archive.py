"""How fast are frames found by number? Random single frames, slices of 32 and a scan of 720p, GOP 250 and GOP 12.

``python -m benchmarks.archive [--quick] [--rounds N] [--table gop250|gop12] [--json FILE]``
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.clips import BIG_HEIGHT, BIG_WIDTH, GOPS, big_clip
from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job
from benchmarks.peers.archive_peer import NO_CACHE

_AUTO = {"threads": 0}  # FFmpeg decides: as many as there are cores, and one


def _peer(name: str, label: str, **options: Any) -> Contender:
    return Contender(name, label, "random_readers", options, family="peer")


def _ours(name: str, label: str, **options: Any) -> Contender:
    return Contender(name, label, "archive_peer", options, family="archive")


_RAW = dataclasses.replace(
    _peer("decode", "PyAV, decoding alone, by default", reader="pyav", convert=False),
    hands_out="nothing",
    family="raw",
)
CONTENDERS = (
    _peer("torchcodec", "torchcodec exact, by default (1 thread)", reader="torchcodec"),
    _peer("torchcodec/auto", "torchcodec exact, threads of FFmpeg's choice", reader="torchcodec", **_AUTO),
    _peer(
        "torchcodec/approximate",
        "torchcodec approximate, threads of FFmpeg's choice",
        reader="torchcodec",
        mode="approximate",
        **_AUTO,
    ),
    _peer("decord", "decord, by default (all cores)", reader="decord"),
    _peer("opencv", "OpenCV, by default (all cores)", reader="opencv"),
    _peer("pyav", "PyAV with an index, by default (slice threads)", reader="pyav"),
    _peer("pyav/auto", "PyAV with an index, frame threads", reader="pyav", **_AUTO),
    _ours("streamloader", "streamloader"),
    _ours("streamloader/no-cache", "streamloader, nothing cached", **NO_CACHE),
    _ours("streamloader/ssh", "streamloader over SSH", ssh=True),
    _RAW,
    dataclasses.replace(
        _RAW, name="decode/auto", label="PyAV, decoding alone, frame threads", options={**_RAW.options, **_AUTO}
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
    "H.264 of 1280x720, 1,000 frames, a key frame every {gop}, x264's default settings with B frames. Everyone is "
    "asked for the same frames by number, by itself: {singles} single frames and {slices} slices of 32 at random, then "
    "the first {scan} frames in slices of 32. What comes is RGB of uint8; the number in the corner of each frame is "
    "read while the clock stands, and wrong ones are counted. Opening (which scans the file, where a library does "
    "that) is not in the rates. Threads: the peers as they are by default and, where it is another one, with the "
    "setting that was fastest in trials (torchcodec 1, 2 and FFmpeg's choice; decord, OpenCV and PyAV 1, 2 and their "
    "own). streamloader has its own defaults, with which its cache may hold a frame that was decoded on the way to an "
    "earlier one; where nothing is cached, it may not. Over SSH: an OpenSSH on loopback, which shares the cores. "
    "Decoding alone converts nothing and knows where to begin: every frame from the key frame to the last one asked "
    "for, at PyAV's best."
)
_BARS = tuple(
    Bar(text, ours, theirs, metric, factor)
    for text, ours, theirs, metric, factor in (
        ("single frames: fastest peer", "streamloader/no-cache", ("peer",), "single", 1.0),
        ("slices: fastest peer", "streamloader/no-cache", ("peer",), "slice", 1.0),
        ("slices: decoding alone, as PyAV does by default", "streamloader/no-cache", ("decode",), "slice", 0.9),
        ("scan: decoding alone, as PyAV does by default", "streamloader/no-cache", ("decode",), "scan", 0.9),
        ("slices: decoding alone, frame threads", "streamloader/no-cache", ("decode/auto",), "slice", 0.9),
        ("scan: decoding alone, frame threads", "streamloader/no-cache", ("decode/auto",), "scan", 0.9),
        ("slices over SSH: the same, local", "streamloader/ssh", ("streamloader",), "slice", 0.7),
    )
)
_BARS += (Bar("wrong frames", "streamloader", (), "wrong", 0.0, at_most=True),)


def question(quick: bool) -> Question:
    """Describe the tables."""
    tables = []
    for gop in GOPS:
        many = gop == min(GOPS)
        counts = {"singles": 40 if many else 10, "slices": 10 if many else 6, "length": 32, "scan": 320}
        if quick:
            counts = {"singles": 4, "slices": 2, "length": 32, "scan": 64}
        table = Table(
            f"gop{gop}",
            f"720p with a key frame every {gop} frames",
            _NOTE.format(gop=gop, **counts),
            Job("random", (BIG_HEIGHT, BIG_WIDTH, 3), paths=(big_clip(gop),)),
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
