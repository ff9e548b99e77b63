"""File systems of fsspec pass the suite of stores: one in threads, over a network, and one of this machine."""

from __future__ import annotations

import os

import fsspec
import pytest
from fsspec.implementations.http import HTTPFileSystem
from servers.ftpd import PASSWORD, USER, Missing, ftpd

from streamloader.testing import StoreSuite
from streamloader.testing.stores.binding import HttpLocation


class WebFileSystem(HTTPFileSystem):
    """A file system over HTTP, under a scheme that the package leaves to fsspec."""

    protocol = ("webtest",)

    @classmethod
    def _strip_protocol(cls, path):
        return path.replace("webtest://", "http://")


fsspec.register_implementation("webtest", WebFileSystem, clobber=True)


@pytest.fixture(scope="session")
def ftp_server(tmp_path_factory):
    context = ftpd(tmp_path_factory.mktemp("ftp"))
    try:
        port = context.__enter__()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield port
    context.__exit__(None, None, None)


class TestFsspecOverFtp(StoreSuite):
    secrets = (PASSWORD,)
    listing_sizes = (300, 2_000)  # each is written over a connection of its own
    deep_levels = 10  # each folder takes many commands

    @pytest.fixture(autouse=True)
    def _server(self, ftp_server):
        self.port = ftp_server

    def http_location(self, server_url):
        return HttpLocation(server_url.replace("http://", "webtest://"), "a.bin", {})

    def location(self):
        return f"ftp://127.0.0.1:{self.port}", {"username": USER, "password": PASSWORD}


@pytest.mark.slow
class TestFsspecLocal(StoreSuite):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.home = tmp_path

    def location(self):
        return f"local://{self.home}", {}
