"""What does latency cost? 8 lanes of 640x360 videos from a server that takes 20 or 100 ms for each request.

``python -m benchmarks.remote [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

from benchmarks.clips import HEIGHT, WIDTH, clips
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
    return Question("remote", "Remote videos", tables)


if __name__ == "__main__":
    main(question)
