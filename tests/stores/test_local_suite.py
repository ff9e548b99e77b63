"""Local files pass the suite of stores, by path and by address."""

from __future__ import annotations

import os

import pytest

from streamloader.testing import StoreSuite


class TestLocalStore(StoreSuite):
    schemes = ("", "file")
    deep_levels = 300

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.root = tmp_path

    def location(self):
        return str(self.root), {}

    def populate(self, files):
        # Without a sync for each file, which writing through the store costs.
        for name, data in files.items():
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name("unfinished")
            unfinished.write_bytes(data)
            os.replace(unfinished, target)
