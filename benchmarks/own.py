"""Questions about streamloader alone: the rows of a table are sizes or situations instead of contenders.

As for the other questions, each figure comes from a fresh process, and a round measures each row once, in a rotating
order. The file of such a question has a function ``question(quick)``, which returns an :class:`OwnQuestion`, and a
function ``measure(**args)``, which is called in the fresh process and returns the figures by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Column, describe_machine, format_spread, get_metric, metric_series

_TIMEOUT_S = 300.0
_PACKAGES = ("torch", "numpy", "av", "uvloop")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: its name and the arguments of its measurement."""

    name: str
    args: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OwnTable:
    """One table. `name` is short and unique in the question."""

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    columns: Sequence[Column]


@dataclasses.dataclass(frozen=True)
class OwnQuestion:
    """The question of one file. `module` is the module of its function ``measure``."""

    name: str
    title: str
    module: str
    tables: Sequence[OwnTable]


def run(question: OwnQuestion, rounds: int) -> dict[str, Any]:
    """Measure all rows, and return all results as a plain dictionary."""
    machine = describe_machine()
    machine["versions"] = {name: machine["versions"][name] for name in _PACKAGES}
    tables = {table.name: _run_table(question, table, rounds) for table in question.tables}
    return {"question": question.name, "machine": machine, "rounds": rounds, "tables": tables}


def _run_table(question: OwnQuestion, table: OwnTable, rounds: int) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {row.name: {"runs": [], "errors": []} for row in table.rows}
    for number in range(rounds):
        shift = number % len(table.rows)
        for row in [*table.rows[shift:], *table.rows[:shift]]:
            result, error = _measure_row(question.module, row)
            results[row.name]["runs"].append(result)
            if error:
                results[row.name]["errors"].append(error)
            value = get_metric(result, table.columns[0].metric)
            text = f"{value:,.3f}" if value is not None else f"FAILED: {error}"
            print(f"{table.name} {number + 1}/{rounds} {row.name}: {text}", file=sys.stderr)
    return results


def _measure_row(module: str, row: Row) -> tuple[dict[str, Any] | None, str]:
    command = [sys.executable, "-m", "benchmarks.own", module, json.dumps(row.args)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"no result after {_TIMEOUT_S:.0f} s"
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1]), ""
    reasons = [line for line in err.splitlines() if line.strip()]
    return None, reasons[-1] if reasons else f"exit status {process.returncode}"


def render(question: OwnQuestion, results: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    return "\n\n".join(_table(table, results["tables"][table.name]) for table in question.tables)


def _table(table: OwnTable, results: dict[str, Any]) -> str:
    lines = [f"### {table.title}", "", table.note, ""]
    lines += [
        _markdown_row(["", *(column.title for column in table.columns)]),
        _markdown_row(["---", *["---:"] * len(table.columns)]),
    ]
    for row in table.rows:
        figures = [
            format_spread(
                [value for value in metric_series(results, row.name, column.metric) if value is not None], column.digits
            )
            for column in table.columns
        ]
        lines.append(_markdown_row([row.name, *figures]))
    for row in table.rows:
        if errors := results[row.name]["errors"]:
            lines += ["", f"{row.name}: {len(errors)} run(s) failed: `{errors[-1]}`"]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(make: Callable[[bool], OwnQuestion]) -> None:
    """Run the command line of the question that `make` builds: measure, print the tables, and store the results."""
    parser = argparse.ArgumentParser(description=sys.modules[make.__module__].__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="use small counts: shows that it works, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    arguments = parser.parse_args()
    question = make(arguments.quick)
    results = run(question, arguments.rounds or (1 if arguments.quick else 5))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(render(question, results))


if __name__ == "__main__":
    print(json.dumps(importlib.import_module(sys.argv[1]).measure(**json.loads(sys.argv[2]))), flush=True)
