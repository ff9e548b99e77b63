"""Runs one question: every contender in a fresh process, in interleaved rounds, compared round by round.

The machine drifts (neighbours, clocks, caches), so contenders are never measured one after the other for long: a
round measures each of them once, the order turns by one each round, and a ratio is taken between two figures of
the same round. Tables show the median over rounds and the smallest and largest value.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.job import Job

ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT = 180.0
_PACKAGES = (
    "torch", "numpy", "av", "spdl-core", "spdl-io", "torchcodec", "opencv-python-headless", "decord", "grain", "uvloop",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        metric: its name in the measurement's result; dots lead into nested ones.
        title: what the table calls it, with the unit.
        digits: behind the point.
        less_is_better: how ratios are to be read.
    """

    metric: str
    title: str
    digits: int = 0
    less_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class Bar:
    """What streamloader has to reach, as a ratio to the best of some contenders in the same round.

    Attributes:
        text: in words.
        ours: the contender that has to reach it.
        theirs: names, or families, of contenders; the best of them counts. Empty: `factor` is an absolute figure.
        metric: the figure compared.
        factor: at least this often theirs; with `at_most`, at most.
        at_most: for times.
    """

    text: str
    ours: str
    theirs: tuple[str, ...]
    metric: str
    factor: float
    at_most: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """One workload and all who take part in it.

    Attributes:
        name: short and unique in the question.
        title: heading of the table.
        note: what a reader has to know: what is measured, as views or as clones.
        job: what is asked of everyone, without the options of the contenders.
        measure: of :mod:`benchmarks.measure`.
        args: of the measurement.
        contenders: in the order of the table.
        columns: the first is the main one: ratios and plots are of it.
        bars: what has to be reached.
    """

    name: str
    title: str
    note: str
    job: Job
    measure: str
    args: dict[str, Any]
    contenders: Sequence[Contender]
    columns: Sequence[Column]
    bars: Sequence[Bar] = ()


@dataclasses.dataclass(frozen=True)
class Question:
    """What one file of benchmarks asks."""

    name: str
    title: str
    tables: Sequence[Table]


Values = dict[str, list[float | None]]  # metric -> one value a round, None where the run failed


def run(question: Question, rounds: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure all tables of a question; return a plain dictionary of everything that was found."""
    tables = {}
    for table in question.tables:
        if not only or table.name in only:
            tables[table.name] = _run_table(table, rounds)
    return {"question": question.name, "machine": machine(), "rounds": rounds, "tables": tables}


def _run_table(table: Table, rounds: int) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {c.name: {"runs": [], "errors": []} for c in table.contenders}
    for number in range(rounds):
        turn = number % len(table.contenders)
        for contender in [*table.contenders[turn:], *table.contenders[:turn]]:
            begin = time.perf_counter()
            result, error = measure(table, contender)
            found[contender.name]["runs"].append(result)
            if error:
                found[contender.name]["errors"].append(error)
            value = None if result is None else pick(result, table.columns[0].metric)
            shown = f"{value:,.3f}" if value is not None else f"FAILED: {error}"
            seconds = time.perf_counter() - begin
            print(f"{table.name} {number + 1}/{rounds} {contender.name}: {shown} ({seconds:.1f} s)", file=sys.stderr)
    return found


def measure(table: Table, contender: Contender) -> tuple[dict[str, Any] | None, str]:
    """Measure one contender once, in a process of its own; return (result, "") or (None, what went wrong)."""
    options = {**table.job.options, **contender.options}
    job = dataclasses.replace(table.job, ahead=options.pop("ahead", table.job.ahead), options=options)
    kind = contender.measure or table.measure
    args = dict(table.args)
    if kind == "alone":
        args = {"warm": 4, "windows": 30}
    elif kind == "throughput":
        args["clone"] = contender.clone
    spec = {"module": contender.module, "job": job.to_json(), "measure": kind, "args": args}
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(spec)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"no result after {_TIMEOUT:.0f} s"
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            return json.loads(line), ""
    reasons = [line for line in err.splitlines() if line.strip()]
    return None, reasons[-1] if reasons else f"exit status {process.returncode}"


def pick(result: dict[str, Any] | None, metric: str) -> float | None:
    """Return one figure of a result, or None."""
    value: Any = result
    for part in metric.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return None if value is None else float(value)


def series(found: dict[str, Any], name: str, metric: str) -> list[float | None]:
    """Return the figure of one contender in each round."""
    return [pick(result, metric) for result in found[name]["runs"]] if name in found else []


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Return ours / theirs of each round in which both were measured."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]


def best(table: Table, found: dict[str, Any], who: Sequence[str], metric: str, *, least: bool) -> list[float | None]:
    """Return the best figure of the contenders with these names or families, in each round."""
    names = [c.name for c in table.contenders if c.name in who or c.family in who]
    columns = [series(found, name, metric) for name in names]
    choose = min if least else max
    return [choose((v for v in values if v is not None), default=None) for values in zip(*columns, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Write median and range."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of what is compared."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "versions": versions,
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }
