"""One measurement of one contender, in the fresh process that it is run in: ``python -m benchmarks.measure SPEC``.

SPEC is JSON: the contender's module, its job, what to measure and how. The last line printed is the result, as JSON.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import psutil

from benchmarks.job import Job, Peer
from benchmarks.random_access import random_access

Result = dict[str, Any]
_MIB = 1 << 20


def throughput(
    open_peer: Callable[[Job], Peer],
    job: Job,
    *,
    warm: int,
    batches: int = 0,
    seconds: float = 0.0,
    clone: bool = False,
) -> Result:
    """Batches/s from the end of `warm` batches, over so many batches or seconds; time to the first; CPU; memory."""
    before = _memory([psutil.Process()])
    begin = time.perf_counter()
    peer = open_peer(job)
    stream = _cloned(peer.epoch(0)) if clone else peer.epoch(0)
    next(stream)
    first = time.perf_counter() - begin
    start_cpu = [_cpu([child]) for child in psutil.Process().children(recursive=True)]
    for _ in islice(stream, warm):
        pass
    family = _family()
    cpu, count = _cpu(family), 0
    begin = now = time.perf_counter()
    # The clock is read once a batch in both cases, which costs 0.05 us.
    for _ in stream:
        count += 1
        now = time.perf_counter()
        if count == batches or (seconds and now - begin >= seconds):
            break
    if batches and count < batches:
        raise RuntimeError(f"the epoch ended after {count} of {batches} batches: give more clips")
    cpu = _cpu(family) - cpu
    rate, steps = count / (now - begin), count * job.batch_size * job.window
    ours, *workers = family
    del _
    result = {
        "batches_per_s": rate,
        "steps_per_s": rate * job.batch_size * job.window,
        "gb_per_s": rate * job.batch_bytes / 1e9,
        "cpu_ms_per_step": 1000 * cpu / steps,
        "first_batch_s": first,
        "worker_start_cpu_s": max(start_cpu, default=0.0),
        "parent_before": before,
        "parent": _memory([ours]),
        "workers": _memory(workers),
        "largest_worker": max((_memory([worker]) for worker in workers), key=lambda m: m["rss_mib"], default=None),
        "processes": len(family),
    }
    result["pss_mib"] = result["parent"]["pss_mib"] + result["workers"]["pss_mib"]
    stream.close()
    peer.close()
    return result


def ready(open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int, gap: float) -> Result:
    """How long ``next()`` takes when the batch has long been ready: the consumer sleeps `gap` seconds before it."""
    peer, waits = open_peer(job), []
    stream = peer.epoch(0)
    for number in range(warm + batches):
        time.sleep(gap)
        begin = time.perf_counter()
        next(stream)
        if number >= warm:
            waits.append(1000 * (time.perf_counter() - begin))
    stream.close()
    peer.close()
    return {"ready_ms": statistics.median(waits), "ready_p95_ms": _percentile(waits, 95)}


def waits(open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int, work: float, style: str) -> Result:
    """Waits of a consumer that works `work` seconds a batch: asleep, or in Python with the GIL."""
    turns = _calibrate(work) if style == "python" else 0
    peer, waited, worked = open_peer(job), [], []
    stream = peer.epoch(0)
    for number in range(warm + batches):
        begin = time.perf_counter()
        next(stream)
        middle = time.perf_counter()
        if style == "python":
            _busy(turns)
        else:
            time.sleep(work)
        end = time.perf_counter()
        if number >= warm:
            waited.append(1000 * (middle - begin))
            worked.append(1000 * (end - middle))
    stream.close()
    peer.close()
    mean_wait, mean_work = statistics.fmean(waited), statistics.fmean(worked)
    return {
        "wait_ms": mean_wait,
        "wait_median_ms": statistics.median(waited),
        "wait_p95_ms": _percentile(waited, 95),
        "work_ms": mean_work,
        # What the training loop loses: its wait, and what its own work takes longer than it would alone.
        "lost_ms": mean_wait + mean_work - 1000 * work,
        "batches_per_s": 1000 / (mean_wait + mean_work),
    }


def border(open_peer: Callable[[Job], Peer], job: Job, *, epochs: int, work: float) -> Result:
    """Wait for the first batch of a later epoch, beside the median of all other waits."""
    peer, borders, inside = open_peer(job), [], []
    for number in range(epochs):
        begin = time.perf_counter()
        for position, _ in enumerate(peer.epoch(number)):
            wait = 1000 * (time.perf_counter() - begin)
            if number:
                (inside if position else borders).append(wait)
            time.sleep(work)
            begin = time.perf_counter()
        # The time between the last batch and the end of iteration belongs to the border too: `begin` is kept.
        if number + 1 < epochs:
            borders.append(1000 * (time.perf_counter() - begin))
    peer.close()
    ends, firsts = borders[0::2], borders[1::2]
    stalls = [end + first for end, first in zip(ends, firsts, strict=True)]
    return {"border_ms": statistics.median(stalls), "inside_ms": statistics.median(inside)}


def alone(job: Job, *, warm: int, windows: int) -> Result:
    """Frames/s of decoding with no transport at all."""
    from benchmarks.peers.alone import rate

    return {"steps_per_s": rate(job, warm, windows)}


def content(open_peer: Callable[[Job], Peer], job: Job) -> Result:
    """What a whole epoch delivers: for each stream its length, a digest of its bytes, and a few coarse frames."""
    peer = open_peer(job)
    playing: list[Digest | None] = [None] * job.batch_size
    streams: list[list[Any]] = [[] for _ in playing]
    for data, reset in peer.epoch(0):
        frames = data if tuple(data.shape[2:]) == job.shape else data.permute(0, 1, 3, 4, 2)  # channels go last
        pixels, mask = frames.contiguous().numpy(), reset.numpy()
        for lane, found in enumerate(streams):
            firsts = mask[lane].nonzero()[0].tolist()
            for start, end in pairwise(sorted({0, *firsts, job.window})):
                if start in firsts:
                    _finish(playing[lane], found)
                    playing[lane] = Digest()
                digest = playing[lane]
                if digest is None:
                    raise RuntimeError(f"lane {lane} begins without a reset")
                digest.add(pixels[lane, start:end])
    for digest, found in zip(playing, streams, strict=True):
        _finish(digest, found)
    peer.close()
    return {"streams": streams}


def _finish(digest: Digest | None, found: list[Any]) -> None:
    if digest is not None:
        found.append(digest.finish())


class Digest:
    """Length, SHA-1 and coarse frames (4 x 4 blocks a channel, every 50th frame) of one stream."""

    def __init__(self) -> None:
        self._hash, self._length, self._coarse = hashlib.sha1(usedforsecurity=False), 0, []

    def add(self, frames: Any) -> None:
        """Take further frames."""
        for frame in frames:
            self._hash.update(frame)
            if self._length % 50 == 0:
                height, width, channels = frame.shape
                blocks = frame.reshape(4, height // 4, 4, width // 4, channels).mean(axis=(1, 3))
                self._coarse.append([round(float(value), 2) for value in blocks.ravel()])
            self._length += 1

    def finish(self) -> list[Any]:
        """Describe the stream."""
        return [self._length, self._hash.hexdigest(), self._coarse]


def _cloned(batches: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for data, reset in batches:
        yield data.clone(), reset.clone()


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def _memory(processes: list[psutil.Process]) -> dict[str, float]:
    found = [process.memory_full_info() for process in processes]
    return {f"{kind}_mib": sum(getattr(info, kind) for info in found) / _MIB for kind in ("rss", "pss", "uss")}


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _busy(turns: int) -> int:
    total = 0
    for number in range(turns):
        total += number * number
    return total


def _calibrate(seconds: float) -> int:
    """Turns of the busy loop that take `seconds` when nothing else runs."""
    turns, times = 200_000, []
    for _ in range(7):
        begin = time.perf_counter()
        _busy(turns)
        times.append(time.perf_counter() - begin)
    return round(turns * seconds / min(times))


MEASURES: dict[str, Any] = {
    "throughput": throughput,
    "ready": ready,
    "waits": waits,
    "border": border,
    "content": content,
    "random": random_access,
}


def main() -> None:
    """Measure what the only argument says and print the result."""
    spec = json.loads(sys.argv[1])
    job = Job.from_json(spec["job"])
    import torch  # noqa: F401 - a training process has it anyway, so no contender is charged for loading it

    begin = time.perf_counter()
    if spec["measure"] == "alone":
        result = alone(job, **spec["args"])
    else:
        open_peer = importlib.import_module(f"benchmarks.peers.{spec['module']}").open_peer
        imported = time.perf_counter() - begin
        result = MEASURES[spec["measure"]](open_peer, job, **spec["args"])
        result["import_s"] = imported
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
