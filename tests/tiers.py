"""Which parameters of a test the fast tier has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

# Tests of a kind of stream that begin many loaders. What they show depends on the kind, and not on its form.
RESUME_TESTS = {"test_resumes_at_every_step", "test_resumes_in_longer_windows", "test_resumes_in_worker_processes"}


def fast_first(parameters: Iterable[Any]) -> list[Any]:
    """Mark all parameters but the first as slow: they repeat what it shows."""
    parameters = list(parameters)
    return only_fast(parameters, parameters[:1])


def only_fast(parameters: Iterable[Any], fast: Iterable[Any]) -> list[Any]:
    """Mark all parameters as slow but those in `fast`, whose proofs they repeat."""
    fast = list(fast)
    return [
        one if one in fast else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow)
        for one in parameters
    ]


def mark_repeats(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what a binding of a suite repeats of the one that its attribute `resumes_like` names."""
    for item in items:
        if getattr(getattr(item, "cls", None), "resumes_like", None) and item.originalname in RESUME_TESTS:
            item.add_marker(pytest.mark.slow)
