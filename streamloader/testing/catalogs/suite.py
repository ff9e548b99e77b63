"""The conformance suite of catalogs: a subclass provides the location of a catalog and inherits the tests.

A binding::

    from streamloader.testing import CatalogSuite

    class TestMyCatalog(CatalogSuite):
        schemes = ("mine",)

        @pytest.fixture(autouse=True)
        def _server(self, my_server):
            self.url = f"mine://{my_server.host}/{secrets.token_hex(4)}"

        def location(self):
            return self.url, {"password": "open-sesame"}

        secrets = ("open-sesame",)

The binding of a catalog that :func:`streamloader.archive.catalog.registry.open_catalog` cannot open overrides
``make_catalog`` instead of ``location``; such a catalog cannot be shared. The suite uses ``os.fork``, so it runs on
Linux and macOS.
"""

from __future__ import annotations

from streamloader.testing.catalogs.life import LifeCatalogSuite
from streamloader.testing.catalogs.reads import ReadCatalogSuite
from streamloader.testing.catalogs.writes import WriteCatalogSuite

__all__ = ["CatalogSuite"]


class CatalogSuite(ReadCatalogSuite, WriteCatalogSuite, LifeCatalogSuite):
    """All tests of catalogs. Inherit from it in a class whose name pytest collects."""
