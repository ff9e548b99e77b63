"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["free_memory"]

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def free_memory() -> int | None:
    """Return the bytes that the machine and this process's control group have left, or None where that is unknown."""
    rooms = [room for room in (_machine(), _container()) if room is not None]
    return min(rooms) if rooms else None


def _machine() -> int | None:
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


def _container() -> int | None:
    for limit, usage, stat in _CGROUPS:
        try:
            allowed = Path(limit).read_text().strip()
            if not allowed.isdigit() or int(allowed) > 1 << 60:  # "max", or version 1's "no limit"
                continue
            used = int(Path(usage).read_text())
            cache = [int(line.split()[1]) for line in Path(stat).read_text().splitlines() if "inactive_file" in line]
            return max(0, int(allowed) - used + max(cache, default=0))
        except (OSError, ValueError):
            continue
    return None
