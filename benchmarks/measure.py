"""One measurement of one contender, in a fresh process: ``python -m benchmarks.measure SPEC``.

SPEC is JSON: the contender's module, its job, the measurement and its arguments. The last printed line is the result
as JSON.
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
from benchmarks.samples import samples

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
    """Measure batches/s after `warm` batches, over `batches` or `seconds`; also the first batch, CPU and memory."""
    before = _memory([psutil.Process()])
    start = time.perf_counter()
    peer = open_peer(job)
    stream = _clone_batches(peer.epoch(0)) if clone else peer.epoch(0)
    next(stream)
    first = time.perf_counter() - start
    start_cpu = [cpu_seconds([child]) for child in psutil.Process().children(recursive=True)]
    for _ in islice(stream, warm):
        pass
    family = process_family()
    cpu, count = cpu_seconds(family), 0
    start = now = time.perf_counter()
    # The clock is read once per batch in both cases, which costs 0.05 us.
    for _ in stream:
        count += 1
        now = time.perf_counter()
        if count == batches or (seconds and now - start >= seconds):
            break
    if batches and count < batches:
        raise RuntimeError(f"the epoch ended after {count} of {batches} batches: use more clips")
    cpu = cpu_seconds(family) - cpu
    rate, steps = count / (now - start), count * job.batch_size * job.window
    parent, *workers = family
    del _
    result = {
        "batches_per_s": rate,
        "steps_per_s": rate * job.batch_size * job.window,
        "gb_per_s": rate * job.batch_bytes / 1e9,
        "cpu_ms_per_step": 1000 * cpu / steps,
        "first_batch_s": first,
        "worker_start_cpu_s": max(start_cpu, default=0.0),
        "parent_before": before,
        "parent": _memory([parent]),
        "workers": _memory(workers),
        "largest_worker": max((_memory([worker]) for worker in workers), key=lambda m: m["rss_mib"], default=None),
        "processes": len(family),
    }
    result["pss_mib"] = result["parent"]["pss_mib"] + result["workers"]["pss_mib"]
    stream.close()
    peer.close()
    return result


def first(open_peer: Callable[[Job], Peer], job: Job) -> Result:
    """Measure the time to the first batch, and the part of it that creating the contender takes."""
    start = time.perf_counter()
    peer = open_peer(job)
    created = time.perf_counter()
    stream = peer.epoch(0)
    next(stream)
    end = time.perf_counter()
    stream.close()
    peer.close()
    return {"first_s": end - start, "created_s": created - start, "iterated_s": end - created}


def ready(open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int, gap: float) -> Result:
    """Measure the time of ``next()`` for a ready batch. The consumer sleeps `gap` seconds before each call."""
    peer, waits = open_peer(job), []
    stream = peer.epoch(0)
    for number in range(warm + batches):
        time.sleep(gap)
        start = time.perf_counter()
        next(stream)
        if number >= warm:
            waits.append(1000 * (time.perf_counter() - start))
    stream.close()
    peer.close()
    return {"ready_ms": statistics.median(waits), "ready_p95_ms": _percentile(waits, 95)}


def waits(open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int, work: float, style: str) -> Result:
    """Measure the waits of a consumer that works for `work` seconds per batch: asleep, or in Python with the GIL."""
    iterations = _calibrate(work) if style == "python" else 0
    peer, waited, worked = open_peer(job), [], []
    stream = peer.epoch(0)
    for number in range(warm + batches):
        start = time.perf_counter()
        next(stream)
        middle = time.perf_counter()
        if style == "python":
            _busy_loop(iterations)
        else:
            time.sleep(work)
        end = time.perf_counter()
        if number >= warm:
            waited.append(1000 * (middle - start))
            worked.append(1000 * (end - middle))
    stream.close()
    peer.close()
    mean_wait, mean_work = statistics.fmean(waited), statistics.fmean(worked)
    return {
        "wait_ms": mean_wait,
        "wait_median_ms": statistics.median(waited),
        "wait_p95_ms": _percentile(waited, 95),
        "work_ms": mean_work,
        # Time lost by the training loop: its wait, and the slowdown of its own work.
        "lost_ms": mean_wait + mean_work - 1000 * work,
        "batches_per_s": 1000 / (mean_wait + mean_work),
    }


def border(open_peer: Callable[[Job], Peer], job: Job, *, epochs: int, work: float) -> Result:
    """Measure the wait for the first batch of later epochs, and the median of all other waits."""
    peer, borders, inside = open_peer(job), [], []
    for number in range(epochs):
        start = time.perf_counter()
        for position, _ in enumerate(peer.epoch(number)):
            wait = 1000 * (time.perf_counter() - start)
            if number:
                (inside if position else borders).append(wait)
            time.sleep(work)
            start = time.perf_counter()
        # The time from the last batch to the end of the iteration is part of the border too, so `start` is kept.
        if number + 1 < epochs:
            borders.append(1000 * (time.perf_counter() - start))
    peer.close()
    ends, firsts = borders[0::2], borders[1::2]
    stalls = [end + first for end, first in zip(ends, firsts, strict=True)]
    return {"border_ms": statistics.median(stalls), "inside_ms": statistics.median(inside)}


def alone(job: Job, *, warm: int, windows: int) -> Result:
    """Measure the frames/s of decoding without any transport."""
    from benchmarks.peers.alone import rate

    return {"steps_per_s": rate(job, warm, windows)}


def content(open_peer: Callable[[Job], Peer], job: Job) -> Result:
    """Return the content of a whole epoch: length, digest and a few coarse frames of each stream."""
    peer = open_peer(job)
    digests: list[Digest | None] = [None] * job.batch_size
    streams: list[list[Any]] = [[] for _ in digests]
    for data, reset in peer.epoch(0):
        frames = data if tuple(data.shape[2:]) == job.shape else data.permute(0, 1, 3, 4, 2)  # channels go last
        pixels, mask = frames.contiguous().numpy(), reset.numpy()
        for lane, results in enumerate(streams):
            firsts = mask[lane].nonzero()[0].tolist()
            for start, end in pairwise(sorted({0, *firsts, job.window})):
                if start in firsts:
                    _append_finished(digests[lane], results)
                    digests[lane] = Digest()
                digest = digests[lane]
                if digest is None:
                    raise RuntimeError(f"lane {lane} starts without a reset")
                digest.add(pixels[lane, start:end])
    for digest, results in zip(digests, streams, strict=True):
        _append_finished(digest, results)
    peer.close()
    return {"streams": streams}


def _append_finished(digest: Digest | None, results: list[Any]) -> None:
    if digest is not None:
        results.append(digest.finish())


class Digest:
    """Length, SHA-1 and coarse frames (4 x 4 blocks per channel, every 50th frame) of one stream."""

    def __init__(self) -> None:
        self._hash, self._length, self._coarse = hashlib.sha1(usedforsecurity=False), 0, []

    def add(self, frames: Any) -> None:
        """Add further frames."""
        for frame in frames:
            self._hash.update(frame)
            if self._length % 50 == 0:
                height, width, channels = frame.shape
                blocks = frame.reshape(4, height // 4, 4, width // 4, channels).mean(axis=(1, 3))
                self._coarse.append([round(float(value), 2) for value in blocks.ravel()])
            self._length += 1

    def finish(self) -> list[Any]:
        """Return length, digest and coarse frames."""
        return [self._length, self._hash.hexdigest(), self._coarse]


def _clone_batches(batches: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for data, reset in batches:
        yield data.clone(), reset.clone()


def process_family() -> list[psutil.Process]:
    """Return this process and its descendants."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the processor time of processes."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def _memory(processes: list[psutil.Process]) -> dict[str, float]:
    infos = [process.memory_full_info() for process in processes]
    return {f"{kind}_mib": sum(getattr(info, kind) for info in infos) / _MIB for kind in ("rss", "pss", "uss")}


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _busy_loop(iterations: int) -> int:
    total = 0
    for number in range(iterations):
        total += number * number
    return total


def _calibrate(seconds: float) -> int:
    """Return the number of iterations of the busy loop that take `seconds` on an idle machine."""
    iterations, times = 200_000, []
    for _ in range(7):
        start = time.perf_counter()
        _busy_loop(iterations)
        times.append(time.perf_counter() - start)
    return round(iterations * seconds / min(times))


MEASURES: dict[str, Any] = {
    "throughput": throughput,
    "first": first,
    "ready": ready,
    "waits": waits,
    "border": border,
    "content": content,
    "random": random_access,
    "samples": samples,
}


def _find_measure(kind: str) -> Callable[..., Result]:
    """Return a measurement: one of this module, or "MODULE:FUNCTION" of one that is imported only when needed."""
    module, _, name = kind.rpartition(":")
    measure: Callable[..., Result] = (
        getattr(importlib.import_module(f"benchmarks.{module}"), name) if module else MEASURES[kind]
    )
    return measure


def main() -> None:
    """Run the measurement that the only argument describes, and print the result."""
    spec = json.loads(sys.argv[1])
    job = Job.from_json(spec["job"])
    import torch  # noqa: F401 - a training process has loaded it anyway

    start = time.perf_counter()
    if spec["measure"] == "alone":
        result = alone(job, **spec["args"])
    else:
        open_peer = importlib.import_module(f"benchmarks.peers.{spec['module']}").open_peer
        imported = time.perf_counter() - start
        result = _find_measure(spec["measure"])(open_peer, job, **spec["args"])
        result["import_s"] = imported
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
