"""Objects behind real web servers pass the suite of stores."""

from __future__ import annotations

import sys
import urllib.parse

import pytest
from canaries import canary
from servers import web
from servers.listings import list_with
from servers.nginx_fixture import USER

from streamloader.stores.http.listing_pages import encode_name
from streamloader.testing import StoreSuite
from streamloader.testing.stores.binding import HttpLocation


@pytest.fixture(scope="session")
def web_folder():
    with web.folder() as server:
        yield server


class OfHttp(StoreSuite):
    schemes = ("http", "https")

    def path(self, name):
        return urllib.parse.quote(name)

    def populate(self, files):
        self.server.put(files)

    def http_location(self, server_url):
        secret = canary("http-bearer")
        return HttpLocation(server_url, "a.bin", {"token": secret, "headers": {"X-Key": secret}}, (secret,))


class TestHttpStore(OfHttp):
    """nginx, with a password."""

    secrets = (canary("http-password"),)

    @pytest.fixture(autouse=True)
    def _server(self, nginx_server):
        self.server = nginx_server

    def location(self):
        return f"{self.server.url}/private", {"auth": (USER, canary("http-password"))}


@pytest.mark.slow
class TestHttpStoreOfDates(TestHttpStore):
    """nginx without ETags: versions are dates and sizes."""

    secrets = ()

    def location(self):
        return f"{self.server.url}/undated", {}


@pytest.fixture(scope="session")
def listed_folder(tmp_path_factory):
    data = tmp_path_factory.mktemp("listed")
    with list_with("python{}.{}".format(*sys.version_info), data) as url:
        yield web.Folder(url, data)


@pytest.mark.slow
class TestHttpStoreWithListings(OfHttp):
    """Python's server: listings, but no ranges."""

    @pytest.fixture(autouse=True)
    def _server(self, listed_folder):
        self.server = listed_folder

    def path(self, name):
        return "/".join(encode_name(part.encode()) or part for part in name.split("/"))

    def location(self):
        return self.server.url, {}


@pytest.mark.slow
class TestHttpStoreOfAiohttp(OfHttp):
    """aiohttp's static files."""

    @pytest.fixture(autouse=True)
    def _server(self, web_folder):
        self.server = web_folder

    def location(self):
        return self.server.url, {}
