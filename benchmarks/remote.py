"""What does latency cost? 8 lanes of videos and of short texts, from a server that takes 20 or 100 ms per request.

``python -m benchmarks.remote [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.clips import HEIGHT, WIDTH, cache_folder, clips
from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job

_COLUMNS = (Column("steps_per_s", "frames/s"), Column("first_batch_s", "first batch, s", 2, less_is_better=True))
_NOTE = (
    "Coherent batches (8, 8, 360, 640, 3) from 8 lanes and 2 workers; each lane streams one clip of 250 frames after "
    "the other. A server in a separate process on this machine waits {ms} ms before it responds to a request. All rows "
    "have the same loader, decoder and index; only the way in which FFmpeg's reads are served differs. Frames/s: after "
    "16 batches. First batch: with 64 addresses of 16 videos that were not indexed before."
)
_TEXT_BYTES, _TEXTS, _TEXT_MS = 64 << 10, 1024, 100
_TEXT_WINDOW = 256
_TEXT_COLUMNS = (Column("steps_per_s", "bytes/s"), Column("first_batch_s", "first batch, s", 2, less_is_better=True))
_TEXT_NOTE = (
    f"Coherent batches (8, {_TEXT_WINDOW}) of the bytes of {_TEXTS} texts of {_TEXT_BYTES >> 10} KiB, from 8 lanes and "
    "2 workers. Each text is an object of its own, and one request to a server in a separate process on this machine, "
    f"which waits {_TEXT_MS} ms before it responds, and shares the processor with the loader. Bytes/s: of "
    "{batches} batches, after {warm}."
)


def _contenders(latency: float) -> tuple[Contender, ...]:
    def row(name: str, label: str, **options: object) -> Contender:
        return Contender(name, label, "remote", {"latency": latency, **options}, "leased views")

    return (
        Contender("local", "local disk", "remote", {}, "leased views"),
        row("read-ahead", "streamloader over HTTP"),
        row("plain, 32 KiB", "one blocking request per read, PyAV's buffer of 32 KiB", reader="plain", buffer=32 << 10),
        row("plain, 256 KiB", "one blocking request per read, a buffer of 256 KiB", reader="plain", buffer=256 << 10),
        row("fsspec", "fsspec's HTTP file, read-ahead of 5 MiB", reader="fsspec", buffer=32 << 10),
    )


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    args = {"warm": 4, "batches": 16} if quick else {"warm": 16, "batches": 96}
    job = Job("video", (HEIGHT, WIDTH, 3), paths=tuple(clips() * 4))
    tables = [
        Table(
            f"{ms}ms",
            f"Videos with a latency of {ms} ms",
            _NOTE.format(ms=ms),
            job,
            "throughput",
            args,
            _contenders(ms / 1000),
            _COLUMNS,
            (
                Bar("the same from local disk", "read-ahead", ("local",), "steps_per_s", 0.9),
                Bar("plain blocking reader", "read-ahead", ("plain, 32 KiB", "plain, 256 KiB"), "steps_per_s", 1.0),
            ),
        )
        for ms in (20, 100)
    ]
    return Question("remote", "Remote videos and texts", [*tables, _texts_table(quick)])


def _texts_table(quick: bool) -> Table:
    args = {"warm": 64, "batches": 512} if quick else {"warm": 4096, "batches": 24576}
    latency = Contender("texts", "streamloader over HTTP", "remote", {"latency": _TEXT_MS / 1000}, "leased views")
    return Table(
        f"texts-{_TEXT_MS}ms",
        f"Texts of {_TEXT_BYTES >> 10} KiB with a latency of {_TEXT_MS} ms",
        _TEXT_NOTE.format(**args),
        Job("text", (), window=_TEXT_WINDOW, options={"texts": str(_make_texts())}),
        "throughput",
        args,
        (Contender("local texts", "local disk", "remote", {}, "leased views"), latency),
        _TEXT_COLUMNS,
        (Bar("the same from local disk", "texts", ("local texts",), "steps_per_s", 0.9),),
    )


def _make_texts() -> Path:
    """Return a folder of random texts, which is created once."""
    folder = cache_folder() / f"texts-{_TEXTS}"
    if not folder.exists():
        unfinished = folder.with_suffix(".new")
        unfinished.mkdir(parents=True, exist_ok=True)
        for number in range(_TEXTS):
            letters = random.Random(number).choices(b"etaoin shrdlu", k=_TEXT_BYTES)
            (unfinished / f"{number:05}.txt").write_bytes(bytes(letters))
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    main(question)
