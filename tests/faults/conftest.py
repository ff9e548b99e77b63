"""Fixtures that last for the whole run, and that start before a test counts its resources."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def _obstore_has_its_threads():
    importlib.import_module("servers.obstore_threads")
