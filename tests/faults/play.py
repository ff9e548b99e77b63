"""Finds the cases of all kits, and plays them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.cases import Case, Outcome, settle

AT_ONCE = 12  # cases; most of their time they wait


def kits() -> list[str]:
    """Return the names of all kits: each has a module `<kit>_cases` beside this one."""
    return sorted(file.stem.removesuffix("_cases") for file in Path(__file__).parent.glob("*_cases.py"))


def cases_of(kit: str) -> list[Case]:
    """Return the cases of one kit."""
    found: list[Case] = importlib.import_module(f"faults.{kit}_cases").cases()
    return found


async def play(cases: Sequence[Case], at_once: int = AT_ONCE, told: Callable[[Outcome], None] = bool) -> list[Outcome]:
    """Play cases, some at a time, and return the outcomes in their order."""
    turns = asyncio.Semaphore(at_once)

    async def one(case: Case) -> Outcome:
        async with turns:
            outcome = await settle(case)
        told(outcome)
        return outcome

    return list(await asyncio.gather(*(one(case) for case in cases)))
