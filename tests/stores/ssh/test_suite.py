"""The SSH store passes the store suite with a real OpenSSH server."""

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
        self.remote_folder = ssh_server.data / f"suite-{next(_numbers)}"
        self.server = ssh_server

    def location(self):
        return self.server.address(self.remote_folder), self.server.options()

    def populate(self, files):
        for name, data in files.items():
            target = self.remote_folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.parent / ".streamloader-new-suite"
            unfinished.write_bytes(data)
            # SFTP reports whole seconds. Two objects of one size from the same second would look the same.
            self.now = getattr(self, "now", time.time()) + 1
            os.utime(unfinished, (self.now, self.now))
            os.replace(unfinished, target)
