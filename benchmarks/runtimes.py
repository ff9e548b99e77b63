"""How long does it take to deliver a batch of the reference's examples: text, a grid of videos, a virtual camera?

``python -m benchmarks.runtimes [--quick] [--rounds N] [--table NAME] [--json FILE]``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from benchmarks import measure
from benchmarks.clips import clips
from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job, Peer

_SIZE = (360, 640, 1)  # of the reference's video example
_WINDOW, _TEXT_WINDOW = 10, 80
_REFERENCE = Contender("reference", "the reference's design", "group_reference", {"lock": "one"}, "views")
_REFERENCE_AHEAD = replace(
    _REFERENCE,
    name="reference, ahead",
    label="the reference's design, with a lock for each array",
    options={"lock": "each"},
)
_FROM_ENV = Contender(
    "streamloader", "streamloader, `from_env` of the same class", "group_peer", {"streams": "group"}, "leased views"
)
_OWN = Contender("streamloader, own", "streamloader, {}", "group_peer", {"streams": "own"}, "leased views")
_OWN_STREAMS = {
    "text": "TextStreams",
    "video": "VideoStreams",
    "camera": "CameraStreams",
}  # by kind, see peers/group_peer.py: make_dataset
_NOTE = (
    "{} 2 workers, 4 batches ahead. The reference's design and `from_env` run the same group class. Ready: median time "
    "of `next()` for a consumer that sleeps {:.0f} ms before each call, so that the batch is there. Busy: time per "
    "batch of a consumer that takes them as fast as it gets them. CPU includes consumer and workers."
)


def deliver(
    open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int, ready: int, gap: float
) -> dict[str, float]:
    """Measure the delivery of `batches` in a row, and of `ready` more with `gap` seconds before each."""
    start = time.perf_counter()
    peer = open_peer(job)
    stream: Iterator[Any] = peer.epoch(0)
    next(stream)
    first = time.perf_counter() - start
    for _ in islice(stream, warm):
        pass
    family = measure.process_family()
    cpu, start = measure.cpu_seconds(family), time.perf_counter()
    for _ in islice(stream, batches):
        pass
    busy, cpu = time.perf_counter() - start, measure.cpu_seconds(family) - cpu
    waits = []
    for _ in range(ready):
        time.sleep(gap)
        start = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - start)
    result = {
        "ready_ms": 1000 * statistics.median(waits),
        "busy_ms": 1000 * busy / batches,
        "cpu_ms": 1000 * cpu / batches,
        "first_s": first,
    }
    del _
    stream.close()  # type: ignore[attr-defined] - it is a generator
    peer.close()
    return result


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    columns = (
        Column("ready_ms", "ready, ms", 3, less_is_better=True),
        Column("busy_ms", "busy, ms", 3, less_is_better=True),
        Column("cpu_ms", "CPU, ms", 3, less_is_better=True),
        Column("first_s", "first batch, s", 2, less_is_better=True),
    )
    same = ("reference",)
    tables = [
        Table(
            "text",
            "Text",
            _NOTE.format("27 texts of 5,890 bytes; batches of 8 rows of 80 bytes.", 5),
            Job("text", (1,), window=_TEXT_WINDOW),
            "runtimes:deliver",
            {"warm": 100, "batches": 500 if quick else 10_000, "ready": 50 if quick else 200, "gap": 0.005},
            [
                _REFERENCE,
                _REFERENCE_AHEAD,
                _FROM_ENV,
                replace(_OWN, label=_OWN.label.format(f"`{_OWN_STREAMS['text']}`")),
            ],
            columns,
            (
                Bar("a ready batch of the same class / reference", "streamloader", same, "ready_ms", 1.0, at_most=True),
                Bar("a busy batch of the same class / reference", "streamloader", same, "busy_ms", 1.0, at_most=True),
            ),
        )
    ]
    frames = {"warm": 4, "batches": 8 if quick else 30, "ready": 4 if quick else 15, "gap": 0.25}
    for kind, title, note in (
        ("video", "A grid of videos", "16 clips of 640x360 in grey, 8 rows of 10 frames: 18.4 MB."),
        ("camera", "A virtual camera", "Images of 640x360 in grey, warped by cv2, 8 rows of 10 frames: 18.4 MB."),
    ):
        paths = clips(16)
        if kind == "camera":
            from benchmarks.peers.group_streams import camera_images

            paths = camera_images(paths)
        own = [replace(_OWN, label=_OWN.label.format(f"`{_OWN_STREAMS[kind]}`"))] if kind in _OWN_STREAMS else []
        tables.append(
            replace(
                tables[0],
                name=kind,
                title=title,
                note=_NOTE.format(note, 1000 * frames["gap"]),
                job=Job(kind, _SIZE, window=_WINDOW, paths=tuple(paths)),
                args=frames,
                contenders=[_REFERENCE, _REFERENCE_AHEAD, _FROM_ENV, *own],
            )
        )
    return Question("runtimes", "The reference's examples", tables)


if __name__ == "__main__":
    main(question)
