"""Questions about streamloader alone: rows of a table are sizes or situations instead of contenders.

As with the others, each figure comes from a fresh process, and a round measures each row once, in an order that turns.
A file that asks such a question has ``question(quick)``, which returns an :class:`OwnQuestion`, and
``measure(**args)``, which is called in the fresh process and returns the figures by name.
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

from benchmarks.harness import ROOT, Column, machine, pick, series, spread

_TIMEOUT = 300.0
_PACKAGES = ("torch", "numpy", "av", "uvloop")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: what is measured with which arguments."""

    name: str
    args: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OwnTable:
    """Rows and columns; `name` is short and unique in the question."""

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    columns: Sequence[Column]


@dataclasses.dataclass(frozen=True)
class OwnQuestion:
    """What one file asks. `module` is where its ``measure`` is."""

    name: str
    title: str
    module: str
    tables: Sequence[OwnTable]


def run(question: OwnQuestion, rounds: int) -> dict[str, Any]:
    """Measure all rows; return a plain dictionary of everything that was found."""
    about = machine()
    about["versions"] = {name: about["versions"][name] for name in _PACKAGES}
    tables = {table.name: _run_table(question, table, rounds) for table in question.tables}
    return {"question": question.name, "machine": about, "rounds": rounds, "tables": tables}


def _run_table(question: OwnQuestion, table: OwnTable, rounds: int) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {row.name: {"runs": [], "errors": []} for row in table.rows}
    for number in range(rounds):
        turn = number % len(table.rows)
        for row in [*table.rows[turn:], *table.rows[:turn]]:
            result, error = _measured(question.module, row)
            found[row.name]["runs"].append(result)
            if error:
                found[row.name]["errors"].append(error)
            value = pick(result, table.columns[0].metric)
            shown = f"{value:,.3f}" if value is not None else f"FAILED: {error}"
            print(f"{table.name} {number + 1}/{rounds} {row.name}: {shown}", file=sys.stderr)
    return found


def _measured(module: str, row: Row) -> tuple[dict[str, Any] | None, str]:
    command = [sys.executable, "-m", "benchmarks.own", module, json.dumps(row.args)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"no result after {_TIMEOUT:.0f} s"
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1]), ""
    reasons = [line for line in err.splitlines() if line.strip()]
    return None, reasons[-1] if reasons else f"exit status {process.returncode}"


def render(question: OwnQuestion, found: dict[str, Any]) -> str:
    """Return all tables that were measured, as Markdown."""
    return "\n\n".join(_table(table, found["tables"][table.name]) for table in question.tables)


def _table(table: OwnTable, found: dict[str, Any]) -> str:
    lines = [f"### {table.title}", "", table.note, ""]
    lines += [_row(["", *(column.title for column in table.columns)]), _row(["---", *["---:"] * len(table.columns)])]
    for row in table.rows:
        figures = [
            spread([value for value in series(found, row.name, column.metric) if value is not None], column.digits)
            for column in table.columns
        ]
        lines.append(_row([row.name, *figures]))
    for row in table.rows:
        if errors := found[row.name]["errors"]:
            lines += ["", f"{row.name}: {len(errors)} run(s) failed: `{errors[-1]}`"]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(make: Callable[[bool], OwnQuestion]) -> None:
    """The command line of one question: measure, print the tables, keep the figures if asked to."""
    parser = argparse.ArgumentParser(description=sys.modules[make.__module__].__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    chosen = parser.parse_args()
    question = make(chosen.quick)
    found = run(question, chosen.rounds or (1 if chosen.quick else 5))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found, indent=1))
    print(render(question, found))


if __name__ == "__main__":
    print(json.dumps(importlib.import_module(sys.argv[1]).measure(**json.loads(sys.argv[2]))), flush=True)
