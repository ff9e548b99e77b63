"""What lasts for the whole run, and is begun before a test counts what there is."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def _obstore_has_its_threads():
    importlib.import_module("servers.obstore_threads")
