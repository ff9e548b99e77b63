"""Measure how independent samples are read: rate, first batch and memory, from local files or from a slow server."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.job import Job, Peer
from benchmarks.peers.slow_s3 import SlowS3

_MEMORY_EVERY = 16  # batches


def samples(
    open_peer: Callable[[Job], Peer], job: Job, *, warm: int = 0, whole: bool = False, seconds: float = 0.0
) -> Any:
    """Measure samples/s after `warm` batches for `seconds`, or of a whole epoch from the opening of the data set on.

    Also the time to the first batch, CPU and memory. With ``latency`` in the options of the job, the files are on a
    real S3 server, behind a proxy that delays requests.
    """
    folder = importlib.import_module(open_peer.__module__).find_folder(job.options["images"])
    with contextlib.ExitStack() as stack:
        if "latency" in job.options:
            server = stack.enter_context(contextlib.closing(SlowS3(folder, job.options["latency"])))
            job = dataclasses.replace(job, options={**job.options, "access": server.access})
        return _measure(open_peer, job, warm, whole, seconds)


def _measure(open_peer: Callable[[Job], Peer], job: Job, warm: int, whole: bool, seconds: float) -> dict[str, Any]:
    before = _memory([os.getpid()])
    opened = time.perf_counter()
    peer = open_peer(job)
    stream = peer.epoch(0)
    batch, _ = next(stream)
    first = time.perf_counter() - opened
    for _ in islice(stream, warm):
        pass
    cpu, read, memory = -_cpu_s(_find_processes()), 0, _ReaderMemory(before)
    start = end = time.perf_counter()
    if whole:
        start, read = opened, len(batch)
    for count, (data, _) in enumerate(stream):
        read += len(data)
        end = time.perf_counter()
        if count % _MEMORY_EVERY == 0:
            memory.measure()
        if seconds and end - start >= seconds:
            break
    cpu += _cpu_s(_find_processes())
    result = {
        "samples_per_s": read / (end - start),
        "first_batch_s": first,
        "cpu_us_per_sample": 1e6 * cpu / read,
        "reader": memory.largest,
    }
    getattr(stream, "close", lambda: None)()
    peer.close()
    return result


class _ReaderMemory:
    """The largest memory of the process that reads: of a worker, or what this process has grown by."""

    def __init__(self, before: dict[str, float]) -> None:
        self._before = before  # this process has torch and the interpreter anyway
        self.largest = {"rss_mib": 0.0, "kept_mib": 0.0}

    def measure(self) -> None:
        workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        for pid in workers:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                self._count(_memory([pid]))
        if not workers:
            now = _memory([os.getpid()])
            self._count({kind: now[kind] - self._before[kind] for kind in now})

    def _count(self, memory: dict[str, float]) -> None:
        if memory["kept_mib"] > self.largest["kept_mib"]:
            self.largest = memory


def _find_processes() -> list[psutil.Process]:
    """Return this process and its workers."""
    workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    return [psutil.Process(pid) for pid in (os.getpid(), *workers)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    """Return the processor time of some processes, and of those that this one has waited for."""
    times = [process.cpu_times() for process in processes if process.is_running()]
    ended = times[0].children_user + times[0].children_system
    return ended + sum(each.user + each.system for each in times)


def _memory(pids: list[int]) -> dict[str, float]:
    """Return memory in MiB. "kept" leaves out files in the page cache, which the system may drop at any time."""
    sums = {"rss_mib": 0.0, "kept_mib": 0.0}
    for pid in pids:
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
        sums["rss_mib"] += int(sizes["Rss"]) / 1024
        sums["kept_mib"] += (int(sizes["Pss_Anon"]) + int(sizes["Pss_Shmem"])) / 1024
    return sums
