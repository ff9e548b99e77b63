"""How long does resuming take? From ``load_state_dict`` in a new loader to its first batch, compared to a fresh start.

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

# Clips have 250 frames: 10, 1,010 and 100,010 windows of 8 steps all end 80 frames into one.
_CONSUMED, _LAST = (10, 1010, 100_010), 100_010
_WINDOW = 8
_TEXT_LANES, _VIDEO_LANES = 8, 2
_REPETITIONS = 3  # pairs of a fresh and a restored start in each process


def _numbers(item: int) -> Iterator[int]:
    for step in range((_LAST + 100) * _WINDOW):
        yield (step + item) & 255


@contextmanager
def _open_dataset(kind: str) -> Iterator[tuple[Any, int]]:
    """Yield the dataset and its number of lanes."""
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


def _consume(loader: Any, batches: int) -> tuple[dict[str, Any], float, list[bytes]]:
    """Consume batches. Return the state after them, the duration of ``state_dict``, and the next batch."""
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    costs = []
    for _ in range(20):
        start = time.perf_counter()
        state = loader.state_dict()
        costs.append(time.perf_counter() - start)
    return state, statistics.median(costs), _content(next(iterator))


def _content(batch: Any) -> list[bytes]:
    return [array.tobytes() for array in batch.numpy().values()]


def measure(kind: str, batches: int) -> dict[str, Any]:
    """Measure restored starts after `batches`, alternating with fresh starts.

    For texts and generators, all batches are consumed before. For videos this would take an hour, so the state contains
    no lanes, and their positions are inferred from the declared lengths.
    """
    import torch  # noqa: F401 - a training process has it anyway

    import streamloader as sl

    with _open_dataset(kind) as (dataset, lanes):

        def new_loader(workers: int) -> Any:
            return sl.MultiStreamer(dataset, lanes, _WINDOW, num_workers=workers, shuffle=False)

        with new_loader(2) as loader:
            consumed = 0 if kind == "video" and batches > 1000 else batches
            state, cost, content = _consume(loader, consumed)
        size = len(json.dumps(state))
        if consumed != batches:
            state["batch"], state["lanes"] = batches, {}
        times: dict[str, list[float]] = {"fresh": [], "restored": [], "fresh_alone": [], "restored_alone": []}
        for workers, suffix in ((2, ""), (0, "_alone")) * _REPETITIONS:
            with new_loader(workers) as loader:
                start = time.perf_counter()
                next(iter(loader))
                times[f"fresh{suffix}"].append(time.perf_counter() - start)
            with new_loader(workers) as loader:
                start = time.perf_counter()
                loader.load_state_dict(state)
                batch = next(iter(loader))
                times[f"restored{suffix}"].append(time.perf_counter() - start)
                if consumed == batches and _content(batch) != content:
                    raise AssertionError("the batch after the restore is not the expected one")
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
    """Return the question with its table."""
    names = {"text": "text", "video": "video", "generator": "generator, replayed"}
    table = OwnTable(
        "resume",
        "Resuming after a number of batches",
        "Time from `load_state_dict` in a new loader to its first batch, including the start of 2 workers. A fresh "
        "start is the same without a state. The ratio compares both in alternation, in one process. Without workers, "
        f"a thread of the process fills the batches, and nothing has to be started. Texts: {_TEXT_LANES} lanes of "
        f"bytes, windows of {_WINDOW}. Video: {_VIDEO_LANES} lanes of 640x360 clips with one key frame each, where "
        "all rows resume 80 frames after it (for the two larger numbers, the positions come from the plan, without "
        "reading the batches before). For comparison, a Python generator, which can only start over. State: duration "
        "of `state_dict`, and its size as JSON.",
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
