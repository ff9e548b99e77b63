"""Decoding without any transport: one process a core, each playing its lanes into one private window."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np

from benchmarks.job import Job
from benchmarks.peers.lanes import open_lane


class DecodeOnly:
    """Decode and throw the frame away, unconverted."""

    def __init__(self, path: str) -> None:
        import av

        self._container = av.open(path)
        stream = self._container.streams.video[0]
        stream.codec_context.thread_count = 1
        self._frames = self._container.decode(stream)

    def skip(self, count: int) -> int:
        """Decode up to `count` frames; return how many there were."""
        return sum(next(self._frames, None) is not None for _ in range(count))


def _decode(job: Job, lane: int) -> Any:
    """Yield once for every window of one lane, decoded but not converted."""
    missing = job.window
    for path in job.clips(lane):
        clip = DecodeOnly(path)
        while got := clip.skip(missing):
            missing -= got
            if not missing:
                yield
                missing = job.window


def _convert(job: Job, lane: int) -> Any:
    """Yield once for every window of one lane, decoded and converted."""
    window, reset = np.empty((job.window, *job.shape), np.uint8), np.empty(job.window, np.bool_)
    player = open_lane(job, lane)
    while player.fill(window, reset):
        yield


def _work(job: Job, worker: int, warm: int, windows: int, start: Any, rates: Any) -> None:
    play = _convert if "decoder" in job.options else _decode
    lanes = [play(job, lane) for lane in job.lanes(worker)]
    for _ in range(warm):
        for lane in lanes:
            next(lane)
    start.wait()
    begin = time.perf_counter()
    for _ in range(windows):
        for lane in lanes:
            next(lane)
    rates.put(windows * job.window * len(lanes) / (time.perf_counter() - begin))


def rate(job: Job, warm: int, windows: int) -> float:
    """Return frames/s of all processes together, after `warm` windows of each lane."""
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
