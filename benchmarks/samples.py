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


def samples(open_peer: Callable[[Job], Peer], job: Job, *, warm: int, batches: int = 0, seconds: float = 0.0) -> Any:
    """Measure samples/s after `warm` batches, over `batches` or `seconds`; also the first batch, CPU and memory.

    With ``latency`` in the options of the job, the files are on a real S3 server, behind a proxy that delays requests.
    """
    folder = importlib.import_module(open_peer.__module__).find_folder(job.options["images"])
    with contextlib.ExitStack() as stack:
        if "latency" in job.options:
            server = stack.enter_context(contextlib.closing(SlowS3(folder, job.options["latency"])))
            job = dataclasses.replace(job, options={**job.options, "access": server.access})
        return _measure(open_peer, job, warm, batches, seconds)


def _measure(open_peer: Callable[[Job], Peer], job: Job, warm: int, batches: int, seconds: float) -> dict[str, Any]:
    before = _memory([os.getpid()])
    start = time.perf_counter()
    peer = open_peer(job)
    stream = peer.epoch(0)
    next(stream)
    first = time.perf_counter() - start
    for _ in islice(stream, warm):
        pass
    workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    processes = [psutil.Process(pid) for pid in (os.getpid(), *workers)]
    cpu, count, read = _cpu_s(processes), 0, 0
    start = end = time.perf_counter()
    for data, _ in stream:
        count += 1
        read += len(data)
        end = time.perf_counter()
        if count == batches or (seconds and end - start >= seconds):
            break
    if batches and count < batches:
        raise RuntimeError(f"the epoch ended after {count} of {batches} batches: use more images")
    cpu = _cpu_s(processes) - cpu
    reader = max((_memory([pid]) for pid in workers), key=lambda m: m["kept_mib"], default=None)
    if reader is None:  # this process reads itself, and has torch and the interpreter anyway
        now = _memory([os.getpid()])
        reader = {kind: now[kind] - before[kind] for kind in now}
    result = {
        "samples_per_s": read / (end - start),
        "first_batch_s": first,
        "cpu_us_per_sample": 1e6 * cpu / read,
        "reader": reader,
        "all": _memory([process.pid for process in processes]),
    }
    getattr(stream, "close", lambda: None)()
    peer.close()
    return result


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes if process.is_running()]
    return sum(each.user + each.system for each in times)


def _memory(pids: list[int]) -> dict[str, float]:
    """Return memory in MiB. "kept" leaves out files in the page cache, which the system may drop at any time."""
    sums = {"rss_mib": 0.0, "kept_mib": 0.0}
    for pid in pids:
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
        sums["rss_mib"] += int(sizes["Rss"]) / 1024
        sums["kept_mib"] += (int(sizes["Pss_Anon"]) + int(sizes["Pss_Shmem"])) / 1024
    return sums
