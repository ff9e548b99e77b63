"""Every store of the registry is bound to the suite of stores."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from streamloader.stores.registry import schemes
from streamloader.testing import StoreSuite

HERE = Path(__file__).parent
BINDINGS = sorted([*HERE.glob("test_*_suite.py"), *HERE.glob("*/test_suite.py")])


def bound_schemes():
    """Return scheme -> the class that tests it."""
    found = {}
    for file in BINDINGS:
        name = f"bindings.{file.parent.name}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, StoreSuite) and kind.__name__.startswith("Test"):
                found.update(dict.fromkeys(kind.schemes, kind))
    return found


def own_schemes():
    """Return the schemes that the package serves itself; tests register others."""
    return {scheme for scheme, target in schemes().items() if target.startswith("streamloader.")}


def test_every_scheme_is_bound():
    missing = sorted(own_schemes() - set(bound_schemes()))
    assert not missing, (
        f"no class in a test_suite.py or test_*_suite.py under {HERE} has one of these in its `schemes`: {missing}"
    )


def test_no_binding_is_of_a_scheme_that_nobody_serves():
    assert sorted(set(bound_schemes()) - own_schemes()) == []


@pytest.mark.parametrize("scheme", sorted(bound_schemes()))
def test_bindings_leave_out_no_test(scheme):
    kind = bound_schemes()[scheme]
    missing = [name for name in dir(StoreSuite) if name.startswith("test_") and getattr(kind, name, None) is None]
    assert missing == []
    own = [name for name in vars(kind) if name.startswith("test_") and hasattr(StoreSuite, name)]
    assert own == [], f"{kind.__name__} replaces tests of the suite"
