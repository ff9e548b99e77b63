"""Kill workers, kill programs, press Ctrl-C, all of it often (`tox -e chaos`)."""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos import programs, report, rounds

PARTS = ("workers", "parents", "ctrl-c")
SAYS_EVERY = 5.0  # seconds


class Progress:
    """Says now and then how far it is."""

    def __init__(self, what: str, wanted: int) -> None:
        self._what, self._wanted = what, wanted
        self.began = self._said = time.monotonic()
        print(f"{what}: {wanted} ...", flush=True)

    def __call__(self, done: int, faults: int, more: str = "") -> None:
        now = time.monotonic()
        if now - self._said >= SAYS_EVERY or done >= self._wanted:
            self._said = now
            said = f"{self._what}: {done} of {self._wanted} in {now - self.began:.0f} s, {faults} faults{more}"
            print(said, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for, and write the table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--seed", type=int, default=1, help="decides everything")
    parser.add_argument("--kills", type=int, default=1000, help="workers to be killed")
    parser.add_argument("--first-round", type=int, default=0, help="of the workers' part: to play one again")
    parser.add_argument("--parents", type=int, default=100, help="programs to be killed")
    parser.add_argument("--interrupts", type=int, default=200, help="programs to be interrupted")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file, between its markers")
    asked = parser.parse_args(argv)
    logging.getLogger("streamloader").setLevel(logging.CRITICAL)  # it warns of every death
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sl-chaos-") as name:
        folder = Path(name)
        os.environ["STREAMLOADER_CACHE"] = str(folder / "cache")
        for part in PARTS:
            if part not in asked.only:
                continue
            began = time.monotonic()
            if part == "workers":
                option = f"--kills {asked.kills}"
                table, wrong = _workers(asked.seed, asked.kills, asked.first_round, folder)
            elif part == "parents":
                option = f"--parents {asked.parents}"
                table, wrong = _programs(
                    "programs killed", programs.parent_killed, asked.seed, asked.parents, folder, programs.GONE_WITHIN
                )
            else:
                option = f"--interrupts {asked.interrupts}"
                table, wrong = _programs(
                    "Ctrl-C", programs.interrupted, asked.seed, asked.interrupts, folder, programs.EXIT_WITHIN
                )
            about = (
                f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: `tox -e chaos -- --only {part} --seed {asked.seed} {option}`, "
                f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores, Python {platform.python_version()}, "
                f"{platform.system()} {platform.release()}."
            )
            text = f"{about}\n\n{table}"
            print(f"\n{text}\n", flush=True)
            if asked.write is not None:
                report.put(asked.write, part, text)
            faults += wrong
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _workers(seed: int, kills: int, first: int, folder: Path) -> tuple[str, list[str]]:
    progress = Progress("workers killed", kills)

    def told(total: rounds.Result) -> None:
        more = f", {total.batches} batches compared in {total.rounds} rounds"
        progress(sum(total.kills.values()), len(total.mismatches), more)

    result = rounds.play_rounds(seed, kills, folder, first=first, told=told)
    return report.of_workers(result), result.mismatches


def _programs(
    what: str,
    attack: Callable[[int, Path], programs.Ended],
    seed: int,
    count: int,
    folder: Path,
    within: float,
) -> tuple[str, list[str]]:
    programs.prepare(folder)
    progress, ended = Progress(what, count), []
    faults: list[str] = []
    for number in range(count):
        one = attack(seed * 1_000_003 + number, folder)
        ended.append(one)
        faults += [f"{what}, seed {seed}, number {number}: {fault}" for fault in one.faults]
        progress(number + 1, len(faults), f", all gone within {max(each.seconds for each in ended):.2f} s")
    return report.of_programs(ended, within), faults


if __name__ == "__main__":
    sys.exit(main())
