"""The conformance suite of stores: a subclass provides the location of a store and inherits the tests.

A binding of a store that supports writes::

    from streamloader.testing import StoreSuite

    class TestMyStore(StoreSuite):
        schemes = ("mine",)

        @pytest.fixture(autouse=True)
        def _server(self, my_server):
            self.server = my_server

        def location(self):
            return f"mine://{self.server.host}/bucket", {"key": "sesame-open"}

        secrets = ("sesame-open",)

The class of a read-only store sets ``supports_writes = False``, and its binding creates the objects in another way::

        def populate(self, files):
            for name, data in files.items():
                self.server.put(name, data)   # atomically: by a rename, never in place

If the paths of a store differ from the names, the binding overrides ``path``. HTTP paths, for example, are
percent-encoded: ``return urllib.parse.quote(name)``. A wrapper, or a store that :func:`streamloader.open_store` cannot
open, overrides ``make_store`` instead of ``location``. :class:`streamloader.testing.stores.binding.StoreBinding` lists
all settings.

A store that speaks HTTP is tested for redirects into the user's network if the binding says how it is pointed to a
given server::

        def http_location(self, server_url):
            return HttpLocation(server_url, "a.bin", {"token": "sesame-open"}, secrets=("sesame-open",))

A store declares missing features by ``supports_writes`` and ``supports_listing`` of its class; the tests then expect
NotSupported. The suite uses ``os.fork``, so it runs on Linux and macOS.
"""

from __future__ import annotations

from streamloader.testing.stores.life import LifeSuite
from streamloader.testing.stores.lists import ListSuite
from streamloader.testing.stores.reads import ReadSuite
from streamloader.testing.stores.redirects import RedirectSuite
from streamloader.testing.stores.totals import TotalsSuite
from streamloader.testing.stores.writes import WriteSuite

__all__ = ["StoreSuite"]


class StoreSuite(ReadSuite, ListSuite, WriteSuite, RedirectSuite, LifeSuite, TotalsSuite):
    """All tests of stores. Inherit from it in a class whose name pytest collects."""
