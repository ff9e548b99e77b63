"""Finds the cases of all kits, and plays them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from clocks import JumpingLoop, run_in
from faults.cases import Case, Outcome, settle

AT_ONCE = 12  # cases; most of their time they wait


def kits() -> list[str]:
    """Return the names of all kits: each has a module `<kit>_cases` beside this one."""
    return sorted(file.stem.removesuffix("_cases") for file in Path(__file__).parent.glob("*_cases.py"))


def cases_of(kit: str) -> list[Case]:
    """Return the cases of one kit."""
    found: list[Case] = importlib.import_module(f"faults.{kit}_cases").cases()
    return found


def play(cases: Sequence[Case], at_once: int = AT_ONCE, report: Callable[[Outcome], None] = bool) -> list[Outcome]:
    """Play cases, some at a time, those with stalls one by one, and return the outcomes in their order."""
    return run_in(JumpingLoop, lambda: _play(cases, at_once, report))


async def _play(cases: Sequence[Case], at_once: int, report: Callable[[Outcome], None]) -> list[Outcome]:
    turns = asyncio.Semaphore(at_once)

    async def one(case: Case) -> Outcome:
        async with turns:
            outcome = await settle(case)
        report(outcome)
        return outcome

    others = await asyncio.gather(*(one(case) for case in cases if not case.stalls))
    stalled = [await one(case) for case in cases if case.stalls]
    outcomes = {id(outcome.case): outcome for outcome in [*others, *stalled]}
    return [outcomes[id(case)] for case in cases]
