"""How long does it take to go on? From ``load_state_dict`` in a new loader to its first batch, beside a fresh start.

``python -m benchmarks.resume [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

# 250 frames a clip: 10, 1,010 and 100,010 windows of 8 steps are all 80 frames into one.
_CONSUMED, _LAST = (10, 1010, 100_010), 100_010
_WINDOW = 8
_TEXT_LANES, _VIDEO_LANES = 8, 2
_TIMES = 3  # pairs of a fresh start and a restored one in each process


def _numbers(item: int) -> Iterator[int]:
    for step in range((_LAST + 100) * _WINDOW):
        yield (step + item) & 255


@contextmanager
def _opened(kind: str) -> Iterator[tuple[Any, int]]:
    """Give the data set and its lanes."""
    import numpy as np

    import streamloader as sl

    length = (_LAST + 100) * _WINDOW
    if kind == "generator":
        yield (
            sl.IterStreams(range(_TEXT_LANES), _numbers, fields=sl.Field(), lengths=[length] * _TEXT_LANES),
            _TEXT_LANES,
        )
    elif kind == "text":
        with tempfile.TemporaryDirectory() as folder:
            for number in range(_TEXT_LANES):
                data = np.random.default_rng(number).integers(0, 256, length, np.uint8)
                Path(folder, f"{number}.txt").write_bytes(data.tobytes())
            yield sl.TextStreams(folder), _TEXT_LANES
    else:
        from benchmarks.clips import LONG, clips

        paths = clips()
        yield sl.VideoStreams(paths * -(-_VIDEO_LANES * length // (LONG * len(paths)))), _VIDEO_LANES


def _played(loader: Any, batches: int) -> tuple[dict[str, Any], float, list[bytes]]:
    """Consume batches; return the state after them, what it cost, and the rows of the batch that comes next."""
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    costs = []
    for _ in range(20):
        begin = time.perf_counter()
        state = loader.state_dict()
        costs.append(time.perf_counter() - begin)
    return state, statistics.median(costs), _content(next(iterator))


def _content(batch: Any) -> list[bytes]:
    return [array.tobytes() for array in batch.numpy().values()]


def measure(kind: str, batches: int) -> dict[str, Any]:
    """Restore after `batches`, in turns with fresh starts.

    Of texts and generators all of them are really consumed. Of videos, where that would take an hour, the lanes are
    placed by the lengths that the plan knows: the state names no lane.
    """
    import torch  # noqa: F401 - a training process has it anyway

    import streamloader as sl

    with _opened(kind) as (dataset, lanes):

        def new(workers: int) -> Any:
            return sl.MultiStreamer(dataset, lanes, _WINDOW, num_workers=workers, shuffle=False)

        with new(2) as loader:
            played = 0 if kind == "video" and batches > 1000 else batches
            state, cost, content = _played(loader, played)
        size = len(json.dumps(state))
        if played != batches:
            state["batch"], state["lanes"] = batches, {}
        times: dict[str, list[float]] = {"fresh": [], "restored": [], "fresh_alone": [], "restored_alone": []}
        for workers, more in ((2, ""), (0, "_alone")) * _TIMES:
            with new(workers) as loader:
                begin = time.perf_counter()
                next(iter(loader))
                times[f"fresh{more}"].append(time.perf_counter() - begin)
            with new(workers) as loader:
                begin = time.perf_counter()
                loader.load_state_dict(state)
                batch = next(iter(loader))
                times[f"restored{more}"].append(time.perf_counter() - begin)
                if played == batches and _content(batch) != content:
                    raise AssertionError("the batch after the restore is not the one that would have come")
                if batch.step[:, 0].tolist() != [batches * _WINDOW % (250 if kind == "video" else 1 << 60)] * lanes:
                    raise AssertionError(f"the lanes were restored to steps {batch.step[:, 0].tolist()}")
                del batch
    pairs = zip(times["restored"], times["fresh"], strict=True)
    return {
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(restored / fresh for restored, fresh in pairs),
        "state_ms": 1000 * cost,
        "state_bytes": size,
    }


def question(quick: bool) -> OwnQuestion:
    """Describe the table."""
    names = {"text": "text", "video": "video", "generator": "generator, replayed"}
    table = OwnTable(
        "resume",
        "Going on after so many batches",
        "From `load_state_dict` in a new loader to its first batch, the start of 2 workers included; a fresh "
        "start is the same without a state, and the ratio is of the two in turns in one process; without workers, "
        "a thread of the process plays, which has no start. Texts: "
        f"{_TEXT_LANES} lanes of bytes, windows of {_WINDOW}. Video: {_VIDEO_LANES} lanes of 640x360 clips "
        "with one key frame each, all rows 80 frames behind one (for the larger two, lanes are placed there "
        "by the plan, without having played what lies before). For contrast, a Python generator, which can "
        "only be played again. State: what `state_dict` costs, and its size as JSON.",
        [
            Row(f"{names[kind]}, {batches:,} batches", {"kind": kind, "batches": batches})
            for kind in names
            for batches in (_CONSUMED[:2] if quick else _CONSUMED)
        ],
        (
            Column("restored_ms", "restored, ms", 0),
            Column("fresh_ms", "fresh start, ms", 0),
            Column("ratio", "restored / fresh", 2),
            Column("restored_alone_ms", "restored, no workers, ms", 0),
            Column("fresh_alone_ms", "fresh, no workers, ms", 0),
            Column("state_ms", "state_dict, ms", 3),
            Column("state_bytes", "state, bytes", 0),
        ),
    )
    return OwnQuestion("resume", "Resume", "benchmarks.resume", (table,))


if __name__ == "__main__":
    main(question)
