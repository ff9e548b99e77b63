"""Run one question: measure every contender in a fresh process, in interleaved rounds.

The speed of a machine drifts (other tenants, clocks, caches), so no contender is measured repeatedly in a row. A round
measures each contender once, the order rotates by one each round, and a ratio compares two figures of the same round.
Tables show the median over the rounds, and the smallest and largest value.
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
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.job import Job

ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 180.0
_PACKAGES = (
    "torch", "numpy", "av", "spdl-core", "spdl-io", "torchcodec", "opencv-python-headless", "decord", "grain", "uvloop",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        metric: Name of the figure in the result of the measurement. Dots separate nested names.
        title: Heading of the column, with the unit.
        digits: Number of decimal places.
        less_is_better: Whether a smaller value is better.
    """

    metric: str
    title: str
    digits: int = 0
    less_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar for streamloader, as a ratio to the best of some contenders in the same round.

    Attributes:
        text: Description of the bar.
        contender: Name of the contender that has to reach it.
        baselines: Names or families of contenders, of which the best counts. If empty, `factor` is an absolute figure.
        metric: Name of the compared figure.
        factor: Minimum ratio of the contender to the best baseline, or maximum ratio with `at_most`.
        at_most: Whether `factor` is a maximum, as for times.
    """

    text: str
    contender: str
    baselines: tuple[str, ...]
    metric: str
    factor: float
    at_most: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """One workload and its contenders.

    Attributes:
        name: Short name, unique in the question.
        title: Heading of the table.
        note: Explanation for the reader: the measured quantity, and whether batches are views or clones.
        job: Workload for all contenders, without their own options.
        measure: Name of a measurement of :mod:`benchmarks.measure`.
        args: Arguments of the measurement.
        contenders: Contenders in the order of the table.
        columns: Columns of the table. Ratios and plots use the first one.
        bars: Bars for streamloader.
        by_default: Whether the table is measured if no tables are selected. Defaults to True.
        prepare: Function that makes the data, before anything is measured. Defaults to none.
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
    by_default: bool = True
    prepare: Callable[[], object] | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """The question of one file, with its tables."""

    name: str
    title: str
    tables: Sequence[Table]


Values = dict[str, list[float | None]]  # metric -> one value per round, None for a failed run


def run(question: Question, rounds: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Measure all tables of a question, and return all results as a plain dictionary."""
    tables = {}
    for table in question.tables:
        if table.name in only or (not only and table.by_default):
            tables[table.name] = _run_table(table, rounds)
    return {"question": question.name, "machine": describe_machine(), "rounds": rounds, "tables": tables}


def _run_table(table: Table, rounds: int) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {c.name: {"runs": [], "errors": []} for c in table.contenders}
    if table.prepare is not None:
        table.prepare()
    for number in range(rounds):
        shift = number % len(table.contenders)
        for contender in [*table.contenders[shift:], *table.contenders[:shift]]:
            start = time.perf_counter()
            result, error = measure(table, contender)
            results[contender.name]["runs"].append(result)
            if error:
                results[contender.name]["errors"].append(error)
            value = None if result is None else get_metric(result, table.columns[0].metric)
            text = f"{value:,.3f}" if value is not None else f"FAILED: {error}"
            seconds = time.perf_counter() - start
            print(f"{table.name} {number + 1}/{rounds} {contender.name}: {text} ({seconds:.1f} s)", file=sys.stderr)
    return results


def measure(table: Table, contender: Contender) -> tuple[dict[str, Any] | None, str]:
    """Measure one contender once, in a separate process. Return (result, "") or (None, error message)."""
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
        out, err = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"no result after {_TIMEOUT_S:.0f} s"
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            return json.loads(line), ""
    reasons = [line for line in err.splitlines() if line.strip()]
    return None, reasons[-1] if reasons else f"exit status {process.returncode}"


def get_metric(result: dict[str, Any] | None, metric: str) -> float | None:
    """Return one figure of a result, or None if it is missing."""
    value: Any = result
    for part in metric.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return None if value is None else float(value)


def metric_series(results: dict[str, Any], name: str, metric: str) -> list[float | None]:
    """Return the figure of one contender in each round."""
    return [get_metric(result, metric) for result in results[name]["runs"]] if name in results else []


def ratios(values: Sequence[float | None], baselines: Sequence[float | None]) -> list[float]:
    """Return value / baseline for each round in which both were measured."""
    return [a / b for a, b in zip(values, baselines, strict=False) if a is not None and b]


def best(
    table: Table, results: dict[str, Any], names: Sequence[str], metric: str, *, lowest: bool
) -> list[float | None]:
    """Return the best figure in each round, among the contenders with these names or families."""
    members = [c.name for c in table.contenders if c.name in names or c.family in names]
    columns = [metric_series(results, name, metric) for name in members]
    choose = min if lowest else max
    return [choose((v for v in values if v is not None), default=None) for values in zip(*columns, strict=True)]


def format_spread(values: Sequence[float], digits: int) -> str:
    """Return median and range as text."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def describe_machine() -> dict[str, Any]:
    """Return properties of this machine, and the versions of the compared packages."""
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
