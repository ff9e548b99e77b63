"""SQLite catalogs pass the suite of catalogs, by path and by address."""

from __future__ import annotations

import pytest

from streamloader.testing import CatalogSuite


class TestSqliteCatalog(CatalogSuite):
    schemes = ("", "sqlite")

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.root = tmp_path

    def location(self):
        return f"sqlite://{self.root}/a folder/50%? #1/catalog.sqlite", {}
