"""Examine this machine: Python and its packages, cores, memory, limits, the cache, and GPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from streamloader.common.cores import count_cores
from streamloader.common.file_systems import is_network_folder
from streamloader.common.printable import make_printable

__all__ = ["examine_machine"]

_PACKAGE: Final = "streamloader"
_DEVELOPMENT_EXTRAS: Final = frozenset({"test", "lint", "types", "bench", "dev"})
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_PYTHON_MARKER: Final = re.compile(r"""python_version\s*<\s*['"](\d+)\.(\d+)['"]""")
_MIN_DESCRIPTORS: Final = 1024
_MIN_FREE_CACHE_BYTES: Final = 1 << 30
_MEMORY_LINE: Final = re.compile(r"(\w+):\s+(\d+) kB")
_CGROUP_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MAX_CGROUP_BYTES: Final = 1 << 60  # more stands for no limit
_CUDA_VERSION: Final = re.compile(r"""^cuda\b[^=]*=\s*['"]([\d.]+)['"]""", re.MULTILINE)
_NVIDIA_FOLDER: Final = Path("/proc/driver/nvidia/gpus")


def examine_machine(timeout_s: float) -> dict[str, Any]:
    """Return a report of this machine (docs/stores.md describes its keys).

    Args:
        timeout_s: Deadline of the query for GPUs in seconds.
    """
    required, extras = _find_packages()
    report: dict[str, Any] = {
        "ok": False,
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
        },
        "platform": platform.platform(),
        "packages": required,
        "extras": extras,
        "cores": {"usable": count_cores(), "machine": os.cpu_count()},
        "memory": _measure_memory(),
        "shared_memory": _measure_disk("/dev/shm"),  # noqa: S108 - it is only measured
        "memfd": hasattr(os, "memfd_create"),
        "descriptors": _find_descriptor_limits(),
        "cache": _examine_cache(),
        "gpu": _find_gpus(timeout_s),
        "problems": [],
        "notes": [],
    }
    _find_problems(report)
    report["ok"] = not report["problems"]
    return report


def _find_problems(report: dict[str, Any]) -> None:
    def add(problem: str, advice: str) -> None:
        report["problems"].append({"problem": problem, "advice": advice})

    missing = [name for name, version in report["packages"].items() if version is None and name != "torch"]
    if missing:
        add(f"required packages are missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if report["packages"].get("torch", "") is None:
        report["notes"].append("torch is not installed: batches are NumPy arrays")
    soft, hard = report["descriptors"]["soft"], report["descriptors"]["hard"]
    if soft is not None and soft < _MIN_DESCRIPTORS:
        add(
            f"a process may open {soft} files at the same time",
            f"raise the limit (ulimit -n {min(hard or 65_536, 65_536)}): hundreds of streams need a descriptor each",
        )
    cache = report["cache"]
    if not cache["writable"]:
        add(
            f"the cache folder {cache['folder']} cannot be written",
            "let STREAMLOADER_CACHE name another folder: without it, videos are indexed again in each run",
        )
    elif cache["free_bytes"] is not None and cache["free_bytes"] < _MIN_FREE_CACHE_BYTES:
        add(
            f"the disk of the cache folder {cache['folder']} has {cache['free_bytes']:,} bytes left",
            "free some space, or let STREAMLOADER_CACHE name another folder",
        )
    elif cache["network"]:
        report["notes"].append(
            "the cache folder is on a file system that several machines share: a local one is faster "
            "(STREAMLOADER_CACHE)"
        )
    if not report["memfd"]:
        report["notes"].append("this system has no memory without a name: batches are in named shared memory")
    gpu = report["gpu"]
    if gpu["devices"] and gpu["torch"] is not None and gpu["torch_cuda"] is None:
        add(
            "this machine has a GPU, but the installed torch is built without CUDA",
            "install a build of torch for CUDA, as its web site describes",
        )
    if gpu["devices"] and gpu["visible"] == "":
        report["notes"].append("CUDA_VISIBLE_DEVICES is empty: programs see no GPU")


# --- packages --------------------------------------------------------------------------------------------------------


def _find_packages() -> tuple[dict[str, str | None], dict[str, dict[str, Any]]]:
    """Return the version of each required package, and for each extra whether it is installed, with its packages."""
    required: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # it runs from its sources
        return {}, {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        name, marker = match[1].lower(), match[3] or ""
        python = _PYTHON_MARKER.search(marker)
        if python is not None and sys.version_info >= (int(python[1]), int(python[2])):
            continue
        extra = _EXTRA.search(marker)
        if extra is None:
            required[name] = _find_version(name)
        elif extra[1] not in _DEVELOPMENT_EXTRAS and name != _PACKAGE:
            extras.setdefault(extra[1], {})[name] = _find_version(name)
    described = {
        extra: {"installed": None not in packages.values(), "packages": packages}
        for extra, packages in sorted(extras.items())
    }
    return {_PACKAGE: _find_version(_PACKAGE), **required}, described


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- resources -------------------------------------------------------------------------------------------------------


def _measure_memory() -> dict[str, int | None]:
    """Return the memory of the machine, what is available of it, and the limit of the cgroup, in bytes."""
    try:
        values = dict(_MEMORY_LINE.findall(Path("/proc/meminfo").read_text("ascii")))
    except (OSError, ValueError):
        values = {}
    limits = [limit for path in _CGROUP_LIMITS if (limit := _read_integer(path)) is not None]
    return {
        "total_bytes": int(values["MemTotal"]) << 10 if "MemTotal" in values else _measure_pages(),
        "available_bytes": int(values["MemAvailable"]) << 10 if "MemAvailable" in values else None,
        "limit_bytes": next((limit for limit in limits if limit < _MAX_CGROUP_BYTES), None),
    }


def _measure_pages() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _read_integer(path: str) -> int | None:
    try:
        return int(Path(path).read_text("ascii"))
    except (OSError, ValueError):  # "max" stands for no limit
        return None


def _measure_disk(folder: str) -> dict[str, int] | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def _find_descriptor_limits() -> dict[str, int | None]:
    import resource

    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return {"soft": soft, "hard": hard}


def _examine_cache() -> dict[str, Any]:
    from streamloader.media.video.index_cache import index_cache_folder

    folder = index_cache_folder().parent
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    disk = _measure_disk(str(existing))
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        "bytes": _measure_folder(folder),
        "free_bytes": None if disk is None else disk["free_bytes"],
        "network": is_network_folder(str(existing)),
    }


def _measure_folder(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # it was removed
                continue
    return total


# --- GPUs ------------------------------------------------------------------------------------------------------------


def _find_gpus(timeout_s: float) -> dict[str, Any]:
    """Return the GPUs of NVIDIA's driver, and whether torch is built for them. torch is not imported."""
    version, cuda = _find_torch()
    return {
        "devices": _query_driver(timeout_s) or _list_driver_files(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "torch": version,
        "torch_cuda": cuda,
    }


def _query_driver(timeout_s: float) -> list[dict[str, str]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = ("name", "memory.total", "driver_version")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    rows = [[make_printable(cell.strip()) for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [{"name": row[0], "memory": row[1], "driver": row[2]} for row in rows if len(row) == len(fields)]


def _list_driver_files() -> list[dict[str, str]]:
    """Return the GPUs by the files of the driver, for machines without its programs, such as containers."""
    devices = []
    try:
        folders = sorted(_NVIDIA_FOLDER.iterdir())
    except OSError:
        return []
    for folder in folders:
        try:
            lines = (folder / "information").read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        values: Mapping[str, str] = {
            key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
        }
        devices.append({"name": make_printable(values.get("Model", "unknown")), "memory": "", "driver": ""})
    return devices


def _find_torch() -> tuple[str | None, str | None]:
    """Return the version of torch, and that of CUDA it is built for, from its files."""
    version = _find_version("torch")
    spec = None if version is None else importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return version, None
    try:
        match = _CUDA_VERSION.search(Path(spec.origin).with_name("version.py").read_text("utf-8"))
    except OSError:
        return version, None
    return version, None if match is None else match[1]
