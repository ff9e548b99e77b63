"""The object store passes the store suite with a real S3 server."""

from __future__ import annotations

import functools

import pytest
from canaries import canary
from servers.seaweed import FULL

from streamloader.testing import StoreSuite
from streamloader.testing.stores.binding import HttpLocation


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

    def http_location(self, server_url):
        keys = {
            "access_key_id": FULL.access_key_id,
            "secret_access_key": canary("s3-secret-key"),
            "session_token": canary("s3-session-token"),
        }
        return HttpLocation("s3://bucket", "a.bin", {"endpoint_url": server_url, **keys}, tuple(keys.values())[1:])
