"""The command line of one question: measure, print the tables, and keep the figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Question, run
from benchmarks.report import render


def main(make: Callable[[bool], Question]) -> None:
    """Run the command line of the question that `make` builds.

    Args:
        make: Builds the question; its argument says whether to use small counts (``--quick``).
    """
    parser = argparse.ArgumentParser(description=make.__module__ and sys.modules[make.__module__].__doc__)
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="use small counts: shows that it works, not how fast")
    parser.add_argument("--table", action="append", default=[], help="measure only this table; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, print the tables of an earlier --json")
    arguments = parser.parse_args()
    question = make(arguments.quick)
    if arguments.from_json:
        results = json.loads(Path(arguments.from_json).read_text())
    else:
        results = run(question, arguments.rounds or (1 if arguments.quick else 5), arguments.table)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    print(render(question, results))
