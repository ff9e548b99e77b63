"""The suite that every kind of store passes: a subclass says where one is, and inherits the tests.

How to bind a store that takes objects::

    from streamloader.testing import StoreSuite

    class TestMyStore(StoreSuite):
        schemes = ("mine",)

        @pytest.fixture(autouse=True)
        def _server(self, my_server):
            self.server = my_server

        def location(self):
            return f"mine://{self.server.host}/bucket", {"key": "sesame-open"}

        secrets = ("sesame-open",)

A store that is read-only says ``writes = False`` in its class, and its binding puts the objects there another way::

        def populate(self, files):
            for name, data in files.items():
                self.server.put(name, data)   # as a whole: a rename, never in place

Where paths are not the names themselves the binding overrides ``path``: for HTTP, whose paths are percent-encoded,
``return urllib.parse.quote(name)``. A wrapper, or a store that :func:`streamloader.open_store` does not know, overrides
``make_store`` instead. :class:`streamloader.testing.stores.binding.StoreBinding` lists everything that can be said.

What a store cannot do it says with ``writes`` and ``lists`` of its class; the tests then ask for NotSupported. The
suite uses ``os.fork``, so it is for Linux and macOS.
"""

from __future__ import annotations

from streamloader.testing.stores.life import LifeSuite
from streamloader.testing.stores.lists import ListSuite
from streamloader.testing.stores.reads import ReadSuite
from streamloader.testing.stores.writes import WriteSuite

__all__ = ["StoreSuite"]


class StoreSuite(ReadSuite, ListSuite, WriteSuite, LifeSuite):
    """Inherit from it in a class whose name pytest collects; see the beginning of this module."""
