"""Objects in memory pass the suite of stores."""

from __future__ import annotations

import functools
import secrets

from streamloader.testing import StoreSuite


class TestMemoryStore(StoreSuite):
    schemes = ("memory",)

    @functools.cached_property
    def space(self):
        return f"memory://suite-{secrets.token_hex(4)}"

    def location(self):
        return self.space, {}
