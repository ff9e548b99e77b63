"""Play every fault of every kit, and tell what came of it: `python -m faults` with tests/ on the path."""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from faults.cases import POSITIONS, Outcome
from faults.play import cases_of, kits, play

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
SAYS_EVERY = 5.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen kits and write the table. Return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=kits(), default=kits(), metavar="KIT", help="these kits")
    parser.add_argument("--at-once", type=int, default=4, help="cases that are played at the same time")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file, between its markers")
    arguments = parser.parse_args(argv)
    logging.getLogger("streamloader").setLevel(logging.CRITICAL)  # it tells of every retry
    began, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="sl-faults-") as folder:
        os.environ["STREAMLOADER_CACHE"] = os.path.join(folder, "cache")
        for kit in arguments.only:
            cases = cases_of(kit)
            outcomes += play(cases, arguments.at_once, _Progress(kit, len(cases)))
    command = "python -m faults" + ("" if arguments.only == kits() else f" --only {' '.join(arguments.only)}")
    about = (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: `{command}`, {time.monotonic() - began:.0f} s on {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}."
    )
    text = "\n".join([about, "", *summary(outcomes), "", *table(outcomes)])
    print(f"\n{text}\n", flush=True)
    if arguments.write is not None:
        put(arguments.write, text)
    wrong = [f"{outcome.case}: {outcome.wrong}" for outcome in outcomes if outcome.wrong]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Tell, in Markdown, how many ended how."""
    silent = sum(outcome.wrong.startswith("SILENT") for outcome in outcomes)
    right = sum(not outcome.wrong and outcome.result == "right bytes" for outcome in outcomes)
    wrong = sum(bool(outcome.wrong) for outcome in outcomes)
    rows = [
        ("cases", f"{len(outcomes):,}"),
        ("right bytes", f"{right:,}"),
        ("one typed error that names address and offset", f"{len(outcomes) - right - wrong:,}"),
        ("**silent wrong bytes**", f"**{silent:,}**"),
        ("anything else: hung, an error of another kind, one without address and offset", f"{wrong - silent:,}"),
        ("longest", f"{max((outcome.seconds for outcome in outcomes), default=0):.1f} s"),
    ]
    return _markdown(("outcome", "times"), rows)


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """Tell, in Markdown, how each fault ended at each position, and after how many seconds."""
    lines: dict[tuple[str, str], dict[str, Outcome]] = {}
    for outcome in outcomes:
        lines.setdefault((outcome.case.kit, outcome.case.fault), {})[outcome.case.position] = outcome
    rows = [(kit, fault, *(_cell(ends.get(at)) for at in POSITIONS)) for (kit, fault), ends in lines.items()]
    return _markdown(
        ("kit", "fault", *(f"at the {at}" if at != "middle" else "in the middle" for at in POSITIONS)), rows
    )


def put(file: Path, text: str) -> None:
    """Replace what is between the markers.

    Raises:
        ValueError: the file has no such markers.
    """
    whole = file.read_text(encoding="utf-8")
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    new, found = re.subn(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", whole, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{file} has no pair of markers {BEGIN} and {END}")
    file.write_text(new, encoding="utf-8")


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    result = f"**WRONG: {outcome.wrong}**" if outcome.wrong else outcome.result
    return f"{result}, {outcome.seconds:.1f} s".replace("|", r"\|").replace("\n", " ")


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, kit: str, wanted: int) -> None:
        self._kit, self._wanted, self._done, self._wrong = kit, wanted, 0, 0
        self._said = time.monotonic()
        print(f"{kit}: {wanted} cases ...", flush=True)

    def __call__(self, outcome: Outcome) -> None:
        self._done += 1
        self._wrong += bool(outcome.wrong)
        now = time.monotonic()
        if now - self._said >= SAYS_EVERY or self._done >= self._wanted:
            self._said = now
            print(f"{self._kit}: {self._done} of {self._wanted}, {self._wrong} wrong", flush=True)


if __name__ == "__main__":
    sys.exit(main())
