"""The suite that every kind of catalog passes: a subclass says where one is, and inherits the tests.

How to bind one::

    from streamloader.testing import CatalogSuite

    class TestMyCatalog(CatalogSuite):
        schemes = ("mine",)

        @pytest.fixture(autouse=True)
        def _place(self, my_server):
            self.url = f"mine://{my_server.host}/{secrets.token_hex(4)}"

        def location(self):
            return self.url, {"password": "open-sesame"}

        secrets = ("open-sesame",)

A catalog that :func:`streamloader.archive.catalog.registry.open_catalog` does not know overrides ``make_catalog``
instead, and cannot be shared. The suite uses ``os.fork``, so it is for Linux and macOS.
"""

from __future__ import annotations

from streamloader.testing.catalogs.life import LifeCatalogSuite
from streamloader.testing.catalogs.reads import ReadCatalogSuite
from streamloader.testing.catalogs.writes import WriteCatalogSuite

__all__ = ["CatalogSuite"]


class CatalogSuite(ReadCatalogSuite, WriteCatalogSuite, LifeCatalogSuite):
    """Inherit from it in a class whose name pytest collects; see the beginning of this module."""
