"""Measure how much more memory this process may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["free_memory"]

_CGROUP_FILES: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
_UNLIMITED_BYTES: Final = 1 << 60  # cgroup version 1 has a huge limit where no limit is set


def free_memory() -> int | None:
    """Return the bytes that the machine and this process's control group have free, or None where that is unknown."""
    limits = [free for free in (_machine_free_bytes(), _cgroup_free_bytes()) if free is not None]
    return min(limits) if limits else None


def _machine_free_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        return None


def _cgroup_free_bytes() -> int | None:
    for limit_path, usage_path, stat_path in _CGROUP_FILES:
        try:
            limit = Path(limit_path).read_text().strip()
            if not limit.isdigit() or int(limit) > _UNLIMITED_BYTES:  # "max" in cgroup version 2
                continue
            used = int(Path(usage_path).read_text())
            stat = Path(stat_path).read_text().splitlines()
            cached = [int(line.split()[1]) for line in stat if "inactive_file" in line]
            return max(0, int(limit) - used + max(cached, default=0))
        except (OSError, ValueError):
            continue
    return None
