"""Addresses of MongoDB, secrets in them, and servers that deny access or do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import traceback

import pytest
from canaries import canary
from servers.mongo import names

from streamloader.archive.catalog.mongo.catalog import MongoCatalog
from streamloader.archive.catalog.mongo.connection import MongoAddress
from streamloader.errors import CatalogError, CatalogTimeout, ConfigError

SECRET = canary("mongo-password")


@pytest.mark.parametrize(
    ("url", "shown", "database", "archive", "driver"),
    [
        ("mongodb://h", "mongodb://h/streamloader?archive=streamloader", "streamloader", "streamloader", "motor"),
        ("mongodb://h:1,i:2/d?archive=a", "mongodb://h:1,i:2/d?archive=a", "d", "a", "motor"),
        (f"mongodb://u:{SECRET}@x#'\"@h/d?archive=a", "mongodb://h/d?archive=a", "d", "a", "motor"),
        ("mongodb://%2Ftmp%2Fm-1.sock/d?archive=a", "mongodb://%2Ftmp%2Fm-1.sock/d?archive=a", "d", "a", "motor"),
        ("mongodb://[::1]:1,h:2/d?archive=a", "mongodb://[::1]:1,h:2/d?archive=a", "d", "a", "motor"),
        ("mongodb+srv://h/d?driver=pymongo", "mongodb+srv://h/d?archive=streamloader", "d", "streamloader", "pymongo"),
        (
            f"mongodb://u:{SECRET}@h/d?authSource=admin&tlsCertificateKeyFilePassword={SECRET}&tls=true",
            "mongodb://h/d?authSource=admin&tls=true&archive=streamloader",
            "d",
            "streamloader",
            "motor",
        ),
    ],
)
def test_an_address_is_shown_without_secrets(url, shown, database, archive, driver):
    address = MongoAddress(url)
    assert (address.url, address.database, address.archive, address.driver) == (shown, database, archive, driver)
    assert ("archive=" in address.uri, "driver=" in address.uri) == (False, False)
    assert (SECRET in address.uri) == (SECRET in url)
    catalog = MongoCatalog(url)
    assert catalog.url == shown
    assert repr(catalog) == f"MongoCatalog({shown!r})"


@pytest.mark.parametrize(
    "url",
    [
        "mongo://h/d",
        "mongodb:///d",
        f"mongodb://u:{SECRET}/x@h/d",
        f"mongodb://u:x/{SECRET}@h/d",
        f"mongodb://u:{SECRET}?x@h/d",
        f"mongodb://u:x?{SECRET}@h/d",
        f"mongodb://u?{SECRET}:x@h/d",
        f"mongodb://{SECRET}/u:x@h/d",
        f"mongodb://h'{SECRET}/d",
        "mongodb://h/d?archive=no-name",
        "mongodb://h/d?archive=1st",
        "mongodb://h/a.b",
        "mongodb://h/d?driver=mongoose",
    ],
)
def test_an_address_that_makes_no_sense_is_refused_at_once(url):
    with pytest.raises(ConfigError) as caught:
        MongoCatalog(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@pytest.mark.parametrize("url", [f"mongodb://u:{SECRET}%@h/d", f"mongodb://u:a:{SECRET}@h/d", "mongodb://h:port/d"])
def test_errors_of_the_driver_show_no_secrets(url, driver):
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        asyncio.run(MongoCatalog(url, driver=driver).get_header())
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_option_that_the_driver_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="options must be those of MongoDB's connection strings"):
        asyncio.run(MongoCatalog("mongodb://h", driver="pymongo", timeout=1.0, no_such_thing=1).get_header())


# PyMongo leaves a socket to the collector if it is closed while it connects.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("motor_threads")
@pytest.mark.parametrize("driver", ["motor", "pymongo"])
@pytest.mark.parametrize("listening", [False, True])
def test_a_server_that_does_not_answer_costs_the_timeout_and_shows_no_secret(driver, listening):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not listening:
            silent.close()

        async def connect():
            url = f"mongodb://u:{SECRET}@127.0.0.1:{port}/d"
            async with contextlib.aclosing(MongoCatalog(url, driver=driver, timeout=0.4)) as catalog:
                await catalog.get_header()

        with pytest.raises(CatalogTimeout, match=r"127\.0\.0\.1:\d+/d.* took longer than 0\.4 s") as caught:
            asyncio.run(connect())
    gc.collect()
    assert 0.3 < caught.value.details["waited"] < 30.0  # far from it: the driver's own deadline
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("mongo_server", names()[-1:], indirect=True)  # nx-27017 knows no users
def test_a_wrong_password_is_reported_and_not_shown(mongo_server):
    async def connect():
        url = mongo_server.url("d").replace("://", f"://somebody:{SECRET}@")
        async with contextlib.aclosing(MongoCatalog(url, driver="pymongo", timeout=60.0)) as catalog:
            await catalog.get_header()

    with pytest.raises(CatalogError, match="denies access: check user, password and authSource") as caught:
        asyncio.run(connect())
    assert SECRET not in "".join(traceback.format_exception(caught.value))
