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
REPORT_INTERVAL_S = 5.0


class Progress:
    """Prints the progress at intervals."""

    def __init__(self, what: str, wanted: int) -> None:
        self._what, self._wanted = what, wanted
        self.began = self._last_printed = time.monotonic()
        print(f"{what}: {wanted} ...", flush=True)

    def __call__(self, done: int, faults: int, more: str = "") -> None:
        now = time.monotonic()
        if now - self._last_printed >= REPORT_INTERVAL_S or done >= self._wanted:
            self._last_printed = now
            line = f"{self._what}: {done} of {self._wanted} in {now - self.began:.0f} s, {faults} faults{more}"
            print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested parts, and write the tables; return 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--seed", type=int, default=1, help="decides everything")
    parser.add_argument("--kills", type=int, default=1000, help="workers to be killed")
    parser.add_argument("--first-round", type=int, default=0, help="of the workers' part: to play one again")
    parser.add_argument("--parents", type=int, default=100, help="programs to be killed")
    parser.add_argument("--interrupts", type=int, default=200, help="programs to be interrupted")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file, between its markers")
    arguments = parser.parse_args(argv)
    logging.getLogger("streamloader").setLevel(logging.CRITICAL)  # it warns of every death
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sl-chaos-") as name:
        folder = Path(name)
        os.environ["STREAMLOADER_CACHE"] = str(folder / "cache")
        for part in PARTS:
            if part not in arguments.only:
                continue
            began = time.monotonic()
            if part == "workers":
                option = f"--kills {arguments.kills}"
                table, wrong = _workers(arguments.seed, arguments.kills, arguments.first_round, folder)
            elif part == "parents":
                option = f"--parents {arguments.parents}"
                table, wrong = _programs(
                    "programs killed",
                    programs.kill_parent,
                    arguments.seed,
                    arguments.parents,
                    folder,
                    programs.GONE_WITHIN_S,
                )
            else:
                option = f"--interrupts {arguments.interrupts}"
                table, wrong = _programs(
                    "Ctrl-C",
                    programs.interrupt_program,
                    arguments.seed,
                    arguments.interrupts,
                    folder,
                    programs.EXIT_WITHIN_S,
                )
            about = (
                f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: "
                f"`tox -e chaos -- --only {part} --seed {arguments.seed} {option}`, "
                f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores, Python {platform.python_version()}, "
                f"{platform.system()} {platform.release()}."
            )
            text = f"{about}\n\n{table}"
            print(f"\n{text}\n", flush=True)
            if arguments.write is not None:
                report.put(arguments.write, part, text)
            faults += wrong
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _workers(seed: int, kills: int, first: int, folder: Path) -> tuple[str, list[str]]:
    progress = Progress("workers killed", kills)

    def on_round(total: rounds.Result) -> None:
        more = f", {total.batches} batches compared in {total.rounds} rounds"
        progress(sum(total.kills.values()), len(total.mismatches), more)

    result = rounds.play_rounds(seed, kills, folder, first=first, on_round=on_round)
    return report.format_workers(result), result.mismatches


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
    return report.format_programs(ended, within), faults


if __name__ == "__main__":
    sys.exit(main())
