"""Decoding without any transport: one process per core, which decodes its lanes into one private window."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np

from benchmarks.job import Job
from benchmarks.peers.lanes import open_lane


class DecodeOnly:
    """Decodes frames and drops them without conversion."""

    def __init__(self, path: str) -> None:
        import av

        self._container = av.open(path)
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1
        self._frames = self._container.decode(stream)

    def skip(self, count: int) -> int:
        """Decode up to `count` frames, and return their number."""
        return sum(next(self._frames, None) is not None for _ in range(count))


def _decode(job: Job, lane: int) -> Any:
    """Yield once per window of one lane, decoded but not converted."""
    remaining = job.window
    for path in job.clips(lane):
        clip = DecodeOnly(path)
        while skipped := clip.skip(remaining):
            remaining -= skipped
            if not remaining:
                yield
                remaining = job.window


def _convert(job: Job, lane: int) -> Any:
    """Yield once per window of one lane, decoded and converted."""
    window, reset = np.empty((job.window, *job.shape), np.uint8), np.empty(job.window, np.bool_)
    source = open_lane(job, lane)
    while source.fill(window, reset):
        yield


def _work(job: Job, worker: int, warm: int, windows: int, start: Any, rates: Any) -> None:
    run_lane = _convert if "decoder" in job.options else _decode
    lanes = [run_lane(job, lane) for lane in job.lanes(worker)]
    for _ in range(warm):
        for lane in lanes:
            next(lane)
    start.wait()
    started = time.perf_counter()
    for _ in range(windows):
        for lane in lanes:
            next(lane)
    rates.put(windows * job.window * len(lanes) / (time.perf_counter() - started))


def rate(job: Job, warm: int, windows: int) -> float:
    """Return the total frames/s of all processes, after `warm` windows of each lane."""
    context = multiprocessing.get_context("fork")
    start, rates = context.Barrier(job.workers), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(job, worker, warm, windows, start, rates)) for worker in range(job.workers)
    ]
    for process in workers:
        process.start()
    total = sum(float(rates.get()) for _ in workers)
    for process in workers:
        process.join()
    return total
