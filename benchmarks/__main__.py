"""Run all questions: ``python -m benchmarks [--quick] [--only QUESTION] [--docs]``.

Results are stored as JSON in the folder ``--keep`` (default: results/ in the cache folder of the clips). ``--docs``
writes tables and plots into docs/benchmarks.md from the stored results, without measuring anything.
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
from benchmarks.clips import cache_folder
from benchmarks.exact import ExactQuestion
from benchmarks.harness import ROOT, Question
from benchmarks.own import OwnQuestion
from benchmarks.report import format_machine, plot

QUESTIONS = (
    "video",
    "images",
    "camera",
    "index",
    "stride",
    "threads",
    "transport",
    "latency",
    "footprint",
    "border",
    "runtimes",
    "scale",
    "index_file",
    "resume",
    "remote",
    "ranges",
    "containers",
    "ssh",
    "archive",
    "environments",
    "exact",
)
_LOGARITHMIC = {"transport", "latency"}
_PLOTTED = {"video", "transport", "latency", "remote", "archive"}


def measure(names: list[str], keep: Path, *, quick: bool, rounds: int) -> None:
    """Measure the questions, store the results, and print them."""
    keep.mkdir(parents=True, exist_ok=True)
    for name in names:
        question = _load_question(name, quick=quick)
        if isinstance(question, ExactQuestion):
            results = question.run()
        else:
            results = own.run(question, rounds) if isinstance(question, OwnQuestion) else harness.run(question, rounds)
        (keep / f"{name}.json").write_text(json.dumps(results, indent=1))
        print(_render(question, results), end="\n\n", flush=True)


def write_docs(names: list[str], keep: Path) -> None:
    """Write tables, machine and plots of the stored results into docs/benchmarks.md."""
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text()
    for name in names:
        path = keep / f"{name}.json"
        if not path.exists():
            print(f"{name}: there are no results in {path}", file=sys.stderr)
            continue
        question, results = _load_question(name, quick=False), json.loads(path.read_text())
        block = [format_machine(results["machine"])]
        if not isinstance(question, ExactQuestion):
            block = [f"Median of {results['rounds']} interleaved rounds (smallest-largest). {block[0]}"]
        if name in _PLOTTED and isinstance(question, Question):
            picture = f"benchmarks-{name}.png"
            panels = [(t, results["tables"][t.name]) for t in question.tables if t.name in results["tables"]]
            plot(panels, f"{question.title}: median and range", ROOT / "docs" / picture, log=name in _LOGARITHMIC)
            block.append(f"![{question.title}: median and range of every contender]({picture})")
        block.append(_render(question, results))
        text = _replace_section(text, name, "\n\n".join(block))
    page.write_text(text)


def _render(question: Question | OwnQuestion | ExactQuestion, results: dict[str, Any]) -> str:
    if isinstance(question, ExactQuestion):
        return question.render(results)
    return own.render(question, results) if isinstance(question, OwnQuestion) else report.render(question, results)


def _replace_section(text: str, name: str, block: str) -> str:
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"docs/benchmarks.md has no section for {name}: it must contain {start} and {end}")
    return pattern.sub(lambda _: f"{start}\n\n{block}\n\n{end}", text)


def _load_question(name: str, *, quick: bool) -> Question | OwnQuestion | ExactQuestion:
    question: Any = importlib.import_module(f"benchmarks.{name}").question
    return question(quick)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round with small counts: shows that everything runs")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--only", action="append", choices=QUESTIONS, help="run only this question; may be repeated")
    parser.add_argument("--keep", type=Path, default=cache_folder() / "results", help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="measure nothing, write docs/benchmarks.md")
    arguments = parser.parse_args()
    names = arguments.only or list(QUESTIONS)
    if arguments.docs:
        write_docs(names, arguments.keep)
    else:
        measure(names, arguments.keep, quick=arguments.quick, rounds=arguments.rounds or (1 if arguments.quick else 5))


if __name__ == "__main__":
    main()
