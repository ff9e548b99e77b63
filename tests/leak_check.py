"""Finds what a test left behind: processes, descriptors, shared memory, threads, tasks, temporary files."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

PROC = Path("/proc")
SHM = Path("/dev/shm")

# Every process that a test starts inherits this variable, so that it is found even when its parent is dead already.
MARK = "STREAMLOADER_TEST_PROCESS"

# Python's own helper, started by the first use of a multiprocessing primitive and meant to stay until the end.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

# Ids of processes that were seen not to be of the tests. What they are does not change, and each look costs time.
_foreign: set[int] = set()

# Whether Python has mapped anything since no shared memory was found: to list all mappings takes milliseconds.
_may_share = threading.Event()


@dataclass(frozen=True)
class Holdings:
    """What this process holds at one moment. The keys of each are compared, the values say what they are."""

    processes: frozenset[int]
    descriptors: dict[tuple[int, str], str]
    threads: dict[int, str]
    tasks: dict[int, str]
    shared_names: dict[str, str]
    temporary: dict[str, str]
    memory: Counter[str]

    @classmethod
    def now(cls) -> Holdings:
        """Take stock."""
        return cls(
            processes=_processes(),
            descriptors=_descriptors(),
            threads={id(thread): repr(thread) for thread in threading.enumerate()},
            tasks=_tasks(),
            shared_names={name: str(SHM / name) for name in _names(SHM)},
            temporary={name: name for name in _names(Path(tempfile.gettempdir()))},
            memory=_shared_mappings(),
        )

    def gained_since(self, before: Holdings) -> list[str]:
        """Name, one a line, what is here and was not there before."""
        lines = [
            f"processes: {what}"
            for pid in sorted(self.processes - before.processes)
            if (what := _describe_process(pid))
        ]
        for kind in ("descriptors", "threads", "tasks", "temporary"):
            old, new = getattr(before, kind), getattr(self, kind)
            lines += [f"{kind}: {what}" for key, what in new.items() if key not in old]
        lines += [
            f"shared_names: {what}"
            for name, what in self.shared_names.items()
            if name not in before.shared_names and _is_ours(name)
        ]
        lines += [f"memory: {count} x {name}" for name, count in (self.memory - before.memory).items()]
        return lines


class AsyncioComplaints(logging.Handler):
    """Collects what asyncio only logs: tasks destroyed while pending, errors that nobody took, unclosed things."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text."""
        self.lines.append(f"asyncio: {self.format(record)}")


def left_behind(before: Holdings, *, patience: float, release: Callable[[], object] = bool) -> list[str]:
    """Return what is held beyond `before`, once that is nothing or `patience` seconds have passed.

    Resources are released a moment after the request (a process is reaped, a thread ends), hence the wait; cycles
    of garbage are collected first, because Python promises no moment at which it would do so itself. `release` frees
    what is meant to stay for a while; again each time, because a thread that is about to end may use it once more.
    """
    release()
    if not (lines := Holdings.now().gained_since(before)):
        return []
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        gc.collect()  # again each time: what a thread has just let go of may be a cycle as well
        release()
        if not (lines := Holdings.now().gained_since(before)):
            break
        time.sleep(0.02)  # between two looks at a condition
    return lines


def _processes() -> frozenset[int]:
    """Return the ids of all processes of the tests: descendants of this one, and orphans with its mark."""
    if not PROC.exists():
        return frozenset(child.pid for child in psutil.Process().children(recursive=True))
    me = os.getpid()
    pids = {int(name) for name in _names(PROC) if name.isdigit()}
    _foreign.intersection_update(pids)
    mark = f"{MARK}={me}".encode()
    parents, marked = {}, set()
    for pid in pids - _foreign - {me}:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                parents[pid] = int(stat.read().rpartition(b")")[2].split()[1])
            with open(f"/proc/{pid}/environ", "rb") as environ:
                if mark in environ.read().split(b"\0"):
                    marked.add(pid)
        except OSError:  # it has ended, or is another user's
            pass
    ours = set(marked)
    while more := {pid for pid, parent in parents.items() if parent == me or parent in ours} - ours:
        ours |= more
    _foreign.update(parents.keys() - ours)
    return frozenset(ours)


def _describe_process(pid: int) -> str | None:
    """Say what a process is; None if it has ended, or is one of Python's helpers."""
    try:
        process = psutil.Process(pid)
        try:
            command = " ".join(process.cmdline()) or process.name()
        except psutil.ZombieProcess:
            command = "(never waited for)"
        status = process.status()
    except psutil.NoSuchProcess:
        return None
    return None if any(helper in command for helper in _HELPERS) else f"{pid} {status} {command[:200]}"


def _descriptors() -> dict[tuple[int, str], str]:
    found = {}
    for name in _names(PROC / "self" / "fd"):
        with contextlib.suppress(OSError):  # the descriptor that listed the folder is closed again
            target = os.readlink(PROC / "self" / "fd" / name)
            if not _of_a_helper(int(name)):
                found[int(name), target] = f"{name} -> {target}"
    return found


def _of_a_helper(fd: int) -> bool:
    return fd in (
        resource_tracker._resource_tracker._fd,
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
    )


def _tasks() -> dict[int, str]:
    return {id(task): repr(task) for task in _known_tasks() if not task.done()}


def _known_tasks() -> list[asyncio.Task]:
    """Return the tasks of all loops: from asyncio's own list, for which it has no public name."""
    lists = [vars(asyncio.tasks).get(name) for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks")]
    if any(tasks is not None for tasks in lists):
        return [task for tasks in lists for task in list(tasks or ())]
    # Not there (3.14 keeps them elsewhere): look at everything, which takes a tenth of a second. By type and not by
    # isinstance, which would ask objects for their __class__: lazy ones would wake up.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), asyncio.Task)]


def _notice_mapping(event: str, _arguments: tuple[object, ...]) -> None:
    if event == "mmap.__new__":
        _may_share.set()


sys.addaudithook(_notice_mapping)


def _shared_mappings() -> Counter[str]:
    if not _may_share.is_set():
        return Counter()
    _may_share.clear()
    found = _read_shared_mappings()
    if found:
        _may_share.set()
    return found


def _read_shared_mappings() -> Counter[str]:
    try:
        with open("/proc/self/maps", "rb") as maps:
            data = maps.read()
    except OSError:
        return Counter()
    if b"memfd:streamloader" not in data and b" /dev/shm/" not in data:
        return Counter()
    lines = data.decode(errors="replace").splitlines()
    return Counter(line.split(maxsplit=5)[5] for line in lines if "memfd:streamloader" in line or " /dev/shm/" in line)


def _is_ours(name: str) -> bool:
    """Whether a new name in /dev/shm was left by the tests: nobody has it open, or a process of the tests does.

    Others on the machine use that folder as well.
    """
    target = str(SHM / name)
    family = {os.getpid(), *_processes()}
    holders = set()
    for pid in filter(str.isdigit, _names(PROC)):
        with contextlib.suppress(OSError):
            if target in (PROC / pid / "maps").read_text() or any(
                os.readlink(entry) == target for entry in (PROC / pid / "fd").iterdir()
            ):
                holders.add(int(pid))
    return (SHM / name).exists() and (not holders or bool(holders & family))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
