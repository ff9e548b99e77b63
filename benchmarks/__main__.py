"""All questions, one after the other: ``python -m benchmarks [--quick] [--only QUESTION] [--docs]``.

Figures are kept as JSON in ``--keep`` (default: results/ in the cache of the clips). ``--docs`` writes tables and
plots into docs/benchmarks.md from what is kept there, without measuring anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import harness, own, report
from benchmarks.clips import cache
from benchmarks.exact import ExactQuestion
from benchmarks.harness import ROOT, Question
from benchmarks.own import OwnQuestion
from benchmarks.report import machine_text, plot

QUESTIONS = (
    "video",
    "transport",
    "latency",
    "footprint",
    "border",
    "scale",
    "resume",
    "remote",
    "ssh",
    "archive",
    "exact",
)
_LOGARITHMIC = {"transport", "latency"}
_PLOTTED = {"video", "transport", "latency", "remote", "archive"}


def measure(names: list[str], keep: Path, *, quick: bool, rounds: int) -> None:
    """Measure the questions and keep and print what was found."""
    keep.mkdir(parents=True, exist_ok=True)
    for name in names:
        question = _question(name, quick=quick)
        if isinstance(question, ExactQuestion):
            found = question.run()
        else:
            found = own.run(question, rounds) if isinstance(question, OwnQuestion) else harness.run(question, rounds)
        (keep / f"{name}.json").write_text(json.dumps(found, indent=1))
        print(_render(question, found), end="\n\n", flush=True)


def write_docs(names: list[str], keep: Path) -> None:
    """Put tables, machine and plots of what was kept into docs/benchmarks.md."""
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text()
    for name in names:
        path = keep / f"{name}.json"
        if not path.exists():
            print(f"{name}: nothing was kept in {path}", file=sys.stderr)
            continue
        question, found = _question(name, quick=False), json.loads(path.read_text())
        block = [machine_text(found["machine"])]
        if not isinstance(question, ExactQuestion):
            block = [f"Median of {found['rounds']} interleaved rounds (smallest-largest). {block[0]}"]
        if name in _PLOTTED and isinstance(question, Question):
            picture = f"benchmarks-{name}.png"
            panels = [(t, found["tables"][t.name]) for t in question.tables if t.name in found["tables"]]
            plot(panels, f"{question.title}: median and range", ROOT / "docs" / picture, log=name in _LOGARITHMIC)
            block.append(f"![{question.title}: median and range of every contender]({picture})")
        block.append(_render(question, found))
        text = _replaced(text, name, "\n\n".join(block))
    page.write_text(text)


def _render(question: Question | OwnQuestion | ExactQuestion, found: dict[str, Any]) -> str:
    if isinstance(question, ExactQuestion):
        return question.render(found)
    return own.render(question, found) if isinstance(question, OwnQuestion) else report.render(question, found)


def _replaced(text: str, name: str, block: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"docs/benchmarks.md has no place for {name}: it needs {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", text)


def _question(name: str, *, quick: bool) -> Question | OwnQuestion | ExactQuestion:
    question: Any = importlib.import_module(f"benchmarks.{name}").question
    return question(quick)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of small counts: shows that it works")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--only", action="append", choices=QUESTIONS, help="this question; may be given again")
    parser.add_argument("--keep", type=Path, default=cache() / "results", help="folder of the figures")
    parser.add_argument("--docs", action="store_true", help="measure nothing, write docs/benchmarks.md")
    chosen = parser.parse_args()
    names = chosen.only or list(QUESTIONS)
    if chosen.docs:
        write_docs(names, chosen.keep)
    else:
        measure(names, chosen.keep, quick=chosen.quick, rounds=chosen.rounds or (1 if chosen.quick else 5))


if __name__ == "__main__":
    main()
