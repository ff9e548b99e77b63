"""Measure how small files are read by name and in order: start, rates and memory, each in a fresh process."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from benchmarks.peers.small_file_reader import SmallFileReader
from benchmarks.peers.small_images import count_files, decode_image, find_files, list_names, read_members

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_CHUNK = 500  # files that a contender and the bare decoder decode in turn
_MIB = 1 << 20
WARM_UP_FILES = 1_000

OpenReader = Callable[[Job], SmallFileReader]


def start(open_peer: OpenReader, job: Job, *, cold: bool = False) -> dict[str, Any]:
    """Measure the time until the first file was read, with all files in the page cache, or without any."""
    name = _shuffle(job)[0]
    _run_in_child(lambda: open_peer(job).read(name))
    if cold:
        os.sync()
        _DROP_CACHES.write_text("3")
    begin = time.perf_counter()
    reader = open_peer(job)
    opened = time.perf_counter()
    size = len(reader.read(name))
    end = time.perf_counter()
    reader.close()
    return {"start_ms": 1e3 * (end - begin), "open_ms": 1e3 * (opened - begin), "first_bytes": size}


def sequential(open_peer: OpenReader, job: Job, *, seconds: float) -> dict[str, Any]:
    """Measure files/s in the order that is fastest, without decoding."""
    return _measure_passes(open_peer, job, SmallFileReader.scan.__name__, (), seconds)


def by_name(open_peer: OpenReader, job: Job, *, seconds: float) -> dict[str, Any]:
    """Measure files/s by name, in the order of a permutation, without decoding."""
    return _measure_passes(open_peer, job, SmallFileReader.read_all.__name__, (_shuffle(job),), seconds)


def _measure_passes(open_peer: OpenReader, job: Job, method: str, args: tuple[Any, ...], seconds: float) -> Any:
    """Measure the first pass over all files, then further passes for some seconds."""
    _run_in_child(lambda: open_peer(job).read(list_names(1)[0]))
    reader = open_peer(job)
    run = getattr(reader, method)
    payload, passes = _get_payload(job), 0
    begin = time.perf_counter()
    totals = {run(*args)}
    later = now = time.perf_counter()
    while now - later < seconds:
        totals.add(run(*args))
        passes += 1
        now = time.perf_counter()
    reader.close()
    if totals != {payload}:
        raise RuntimeError(f"passes read {totals} bytes, and all files have {payload}")
    count = count_files(job)
    return {"files_per_s": passes * count / (now - later), "first_files_per_s": count / (later - begin)}


def memory(open_peer: OpenReader, job: Job) -> dict[str, Any]:
    """Measure the memory that a reader keeps after it has read all files at random, divided by the size of these.

    Before, it has read a few files, so that the code of libraries is in memory: this does not depend on the data.
    """
    names, payload = _shuffle(job), _get_payload(job)
    _run_in_child(lambda: open_peer(job).read(names[0]))
    small = dataclasses.replace(job, options={**job.options, "files": WARM_UP_FILES})
    _read_all(open_peer(small), small, _shuffle(small)).close()
    gc.collect()
    before = _measure_memory()
    reader = open_peer(job)
    _read_all(reader, job, names)
    gc.collect()
    after = _measure_memory()
    reader.close()
    return {kind: (after[kind] - before[kind]) / payload for kind in after} | {"payload_mib": payload / _MIB}


def _read_all(reader: SmallFileReader, job: Job, names: list[str]) -> SmallFileReader:
    """Read all files at random, or in order where the contender cannot do otherwise."""
    total, payload = reader.read_all(names) if job.options.get("by_name", True) else reader.scan(), _get_payload(job)
    if total != payload:
        raise RuntimeError(f"{total} bytes were read, and all files have {payload}")
    return reader


def decoded(open_peer: OpenReader, job: Job, *, images: int) -> dict[str, Any]:
    """Measure decoded images/s by name, in turn with the bare decoder over the same bytes in a list."""
    names = _shuffle(job)[:images]
    wanted = set(names)
    files = {name: data for name, data in read_members(count_files(job)) if name in wanted}
    contents = [files.pop(name) for name in names]
    reader = open_peer(job)
    reader.decode_all(names)  # loads the decoder, and finds changed files
    spent = {"reader": 0.0, "bare": 0.0}
    for first in range(0, len(names), _CHUNK):
        begin = time.perf_counter()
        reader.decode_all(names[first : first + _CHUNK])
        middle = time.perf_counter()
        for data in contents[first : first + _CHUNK]:
            decode_image(data)
        spent["bare"] += time.perf_counter() - middle
        spent["reader"] += middle - begin
    reader.close()
    rates = {kind: len(names) / seconds for kind, seconds in spent.items()}
    return {"images_per_s": rates["reader"], "bare_per_s": rates["bare"], "of_bare": rates["reader"] / rates["bare"]}


def large(open_peer: Callable[[Job], Any], job: Job) -> dict[str, Any]:
    """Measure time and memory of one step of the life of a large directory, and the first read file after it.

    Option ``step`` of the job: "first start" opens a directory that has no packs. "save_state" opens it in the same
    way, and writes the packs: only this is measured. "start" opens a directory that has packs.
    """
    step = job.options["step"]
    _run_in_child(lambda: _prepare(open_peer, job, step))
    name, payload = list_names(1)[0], _get_payload(job)
    is_saving = step == "save_state"
    reader = open_peer(job) if is_saving else None
    before = _measure_memory()
    _reset_peak()
    begin = time.perf_counter()
    if is_saving:
        reader.directory.save_state()
    else:
        reader = open_peer(job)
    reader.read(name)
    end = time.perf_counter()
    gc.collect()
    after, peak = _measure_memory(), _read_peak()
    reader.close()
    sizes = {"peak": peak - before["rss"], **{kind: after[kind] - before[kind] for kind in after}}
    return {"seconds": end - begin, "payload_mib": payload / _MIB} | {
        f"{kind}_mib": size / _MIB for kind, size in sizes.items()
    }


def _prepare(open_peer: Callable[[Job], Any], job: Job, step: str) -> None:
    packs = list(find_files(count_files(job)).glob("*.pack"))
    if step == "start" and not packs:
        open_peer(job).directory.save_state()
    if step != "start":
        for path in packs:
            path.unlink()
    _get_payload(job)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _shuffle(job: Job) -> list[str]:
    names = list_names(count_files(job))
    random.Random(0).shuffle(names)
    return names


def _get_payload(job: Job) -> int:
    root = find_files(count_files(job))
    path = root.parent / "payload"
    if not path.exists():
        path.write_text(str(sum(len(data) for _, data in read_members(count_files(job)))))
    return int(path.read_text())


def _run_in_child(work: Callable[[], Any]) -> None:
    """Call a function in a forked process: what it makes is on disk and in the page cache, and nothing is in memory."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - of any kind: the parent raises it
            os.write(write_end, f"{type(error).__name__}: {error}".encode(errors="replace")[:4096])
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as report:
        problem = report.read().decode(errors="replace")
    if status := os.waitpid(pid, 0)[1]:
        reason = problem or f"status {os.waitstatus_to_exitcode(status)}"
        raise RuntimeError(f"the preparation failed: {reason}")


def _measure_memory() -> dict[str, int]:
    """Return memory in bytes. "kept" leaves out files in the page cache, which the system may drop at any time."""
    sizes = _read_sizes("smaps_rollup")
    return {"rss": sizes["Rss"], "kept": sizes["Pss_Anon"] + sizes["Pss_Shmem"]}


def _read_peak() -> int:
    return _read_sizes("status")["VmHWM"]


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _read_sizes(file: str) -> dict[str, int]:
    text = Path(f"/proc/self/{file}").read_text()
    return {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
