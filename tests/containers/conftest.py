"""Leaves to the slow tier what one binding of the container suite repeats of another."""

from __future__ import annotations

from pathlib import Path

import pytest

# What differs between the formats of one kind: how members are found, and how damage is noticed.
OWN_TESTS = {
    "test_scan_returns_names_and_sizes_in_order",
    "test_names_of_all_kinds",
    "test_a_pass_equals_scan_and_stream",
    "test_mutants",
}


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items):
    for item in items:
        is_repeat = getattr(getattr(item, "cls", None), "repeats", None) and item.originalname not in OWN_TESTS
        if is_repeat and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
