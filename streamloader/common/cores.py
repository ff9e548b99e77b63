"""Count the processor cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["cores_per_worker", "count_cores", "threads_per_lane"]

_CGROUP: Final = Path("/sys/fs/cgroup")
_MAX_THREADS_PER_LANE: Final = 8  # the one thread that converts the frames of a lane cannot keep up with more


def count_cores() -> int:
    """Return the number of cores that this process may use, at least 1: by its affinity, and the quota of its cgroup.

    A quota of a cgroup is found inside a container, where the cgroup of the container is the root.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_quota(_CGROUP)
    return cores if quota is None else max(1, min(cores, round(quota)))


def threads_per_lane(lanes: int) -> int:
    """Return the number of decoder threads of each lane, so that no core of this machine has more than one of them.

    Args:
        lanes: Number of lanes of this process's loader. torchrun's other ranks on this machine are taken to have as
            many.
    """
    return max(1, min(_MAX_THREADS_PER_LANE, count_cores() // (lanes * _count_ranks())))


def cores_per_worker(workers: int) -> int:
    """Return the number of cores for each worker of this process's loader, rounded up, so that no core is left over.

    Args:
        workers: Number of workers, at least 1. torchrun's other ranks on this machine are taken to have as many.
    """
    return -(-count_cores() // (workers * _count_ranks()))


def _count_ranks() -> int:
    """Return the number of torchrun's ranks on this machine, at least 1."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(ranks)) if ranks.isascii() and ranks.isdecimal() else 1


def _read_quota(cgroup: Path) -> float | None:
    """Return the quota of a cgroup in cores (cgroup v2: ``cpu.max``; v1: ``cpu.cfs_quota_us``), or None."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or no quota ("max")
        return None
    return cores if cores > 0 else None
