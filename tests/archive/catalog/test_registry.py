"""The registry of catalogs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from streamloader.archive.catalog import registry
from streamloader.archive.catalog.registry import catalog_schemes, get_shared_catalog, open_catalog, register_catalog
from streamloader.archive.catalog.sqlite.catalog import SqliteCatalog
from streamloader.errors import ConfigError, MissingDependency
from streamloader.testing import CatalogSuite
from streamloader.testing.catalogs.binding import PLACES

HERE = Path(__file__).parent


def bound_schemes():
    """Return scheme -> the class that tests it."""
    found = {}
    for file in sorted(HERE.glob("*/test_suite.py")):
        name = f"bindings.{file.parent.name}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, CatalogSuite) and kind.__name__.startswith("Test"):
                found.update(dict.fromkeys(kind.schemes, kind))
    return found


def test_every_scheme_is_bound():
    own = {scheme for scheme, target in catalog_schemes().items() if target.startswith("streamloader.")}
    assert own == set(bound_schemes())


@pytest.mark.parametrize("scheme", ["", "sqlite"])
def test_bindings_leave_out_no_test(scheme):
    kind = bound_schemes()[scheme]
    tests = [name for name in dir(CatalogSuite) if name.startswith("test_")]
    assert [name for name in tests if getattr(kind, name) is not getattr(CatalogSuite, name)] == []


def test_sqlite_by_path_and_address(tmp_path):
    for url in (tmp_path / "a.sqlite", str(tmp_path / "a.sqlite"), f"sqlite://{tmp_path}/a.sqlite"):
        catalog = open_catalog(url, timeout=3)
        assert isinstance(catalog, SqliteCatalog)
        assert (catalog.path, catalog.timeout) == (str(tmp_path / "a.sqlite"), 3.0)


@pytest.mark.parametrize("url", ["ssh://host/catalog", "postgres://x", "http://x/y.sqlite"])
def test_unknown_schemes_are_refused(url):
    with pytest.raises(ConfigError, match="sqlite://"):
        open_catalog(url)


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not accept an option"):
        open_catalog(tmp_path / "a", tiemout=3)
    with pytest.raises(ConfigError, match="plain values"):
        get_shared_catalog(tmp_path / "a", {"timeout": lambda: 3})


class Own(SqliteCatalog):
    def __init__(self, url, **options):
        super().__init__(url.removeprefix("own://"), **options)


def test_a_registered_class_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_CATALOG_CLASSES", dict(registry._CATALOG_CLASSES))
    monkeypatch.setitem(sys.modules, "own_catalog", sys.modules[__name__])
    register_catalog("own", "own_catalog:Own")
    assert isinstance(open_catalog(f"own://{tmp_path}/x"), Own)
    register_catalog("Gone", "nowhere.at.all:Catalog")
    with pytest.raises(ConfigError, match="cannot be imported"):
        open_catalog("gone://x")
    with pytest.raises(ConfigError, match="not a valid scheme"):
        register_catalog("a b", Own)


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise MissingDependency("pip install streamloader[more]")

    monkeypatch.setattr(registry.importlib, "import_module", missing)
    with pytest.raises(MissingDependency):
        open_catalog("/a/b")


def test_one_for_each_address_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        get_shared_catalog("a.sqlite") as one,
        get_shared_catalog(tmp_path / "a.sqlite") as same,
        get_shared_catalog("a.sqlite", {"timeout": 5}) as other,
    ):
        assert one.resource is same.resource
        assert one.resource is not other.resource
        one.call(one.resource.create(PLACES))
        assert other.call(other.resource.get_header()).places == PLACES


def test_it_imports_nothing_heavy():
    program = (
        "import sys, streamloader.archive.catalog.registry as r; r.open_catalog('/a'); "
        "print(sorted({'torch', 'av', 'motor', 'pymongo', 'aiohttp', 'asyncssh', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() in ("[]", "['numpy']")
