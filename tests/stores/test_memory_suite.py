"""Objects in memory pass the suite of stores."""

from __future__ import annotations

import functools
import secrets

from streamloader.testing import StoreSuite


class TestMemoryStore(StoreSuite):
    schemes = ("memory",)
    deep_levels = 1_100

    @functools.cached_property
    def space(self):
        return f"memory://suite-{secrets.token_hex(4)}"

    def location(self):
        return self.space, {}
