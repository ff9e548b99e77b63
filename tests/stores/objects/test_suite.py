"""The object store passes the store suite with a real S3 server."""

from __future__ import annotations

import functools

import pytest
from servers.seaweed import FULL

from streamloader.testing import StoreSuite


class TestObjectStore(StoreSuite):
    schemes = ("s3", "gs", "az")
    secrets = (FULL.secret_access_key,)
    names = tuple(name for name in StoreSuite.names if "\\" not in name)  # SeaweedFS replaces it with "/"

    @pytest.fixture(autouse=True)
    def _server(self, seaweed_server):
        self.server = seaweed_server

    @functools.cached_property
    def bucket(self):
        return self.server.bucket("suite")

    def location(self):
        return f"s3://{self.bucket}", self.server.options()
