"""Files behind a real OpenSSH server pass the suite of stores."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from streamloader.testing import StoreSuite

_numbers = itertools.count()


class TestSshStore(StoreSuite):
    schemes = ("ssh", "sftp")

    @pytest.fixture(autouse=True)
    def _server(self, ssh_server):
        self.place = ssh_server.data / f"suite-{next(_numbers)}"
        self.server = ssh_server

    def location(self):
        return self.server.address(self.place), self.server.options()

    def populate(self, files):
        for name, data in files.items():
            target = self.place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.parent / ".streamloader-new-suite"
            unfinished.write_bytes(data)
            # SFTP tells whole seconds, within which two objects of one size would look the same.
            self.now = getattr(self, "now", time.time()) + 1
            os.utime(unfinished, (self.now, self.now))
            os.replace(unfinished, target)
