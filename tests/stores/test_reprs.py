"""The reprs of what carries addresses and options show no secret."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from streamloader.archive.ingest.unit import WorkUnit
from streamloader.compat.butterfly.settings import ButterflySettings
from streamloader.errors import StreamloaderError
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.video.remote import RemoteVideo
from streamloader.stores.addresses import FileKeys, SourceFile
from streamloader.stores.http.auth import make_credentials
from streamloader.stores.http.client import HttpServerConfig
from streamloader.stores.objects.aws_profiles import AwsProfile
from streamloader.stores.objects.config import ObjectStoreConfig
from streamloader.stores.registry import open_store
from streamloader.stores.ssh.connect import SshLogin, SshTarget
from streamloader.values import ObjectInfo

ADDRESS = "https://user:Zeb@ra'Yonder@host.example/a.mp4?h=Zebra&Yonder"
INFO = ObjectInfo("a.mp4?h=Zebra&Yonder", 5, "v", 1.0)
OPTIONS = {"password": "Zebra", "headers": {"X-Key": "Yonder"}}
TARGET = SshTarget.parse("ssh://Yonder:Zebra@box")
THINGS = {
    "info": INFO,
    "source": SourceFile(ADDRESS, INFO),
    "keys": FileKeys.of_files([SourceFile(ADDRESS, INFO)]),
    "video": RemoteVideo(ADDRESS, INFO, OPTIONS),
    "unit": WorkUnit(1, ADDRESS, INFO, OPTIONS, CutSettings(), (), 1),
    "ssh target": TARGET,
    "ssh login": SshLogin(TARGET, (TARGET,), (), "Zebra", None, None, trust_any=False),
    "http server": HttpServerConfig("https://host", {"Authorization": "Zebra"}, 0, None, {}),
    "http credentials": make_credentials({"X-Key": "Zebra"}, None, ("user", "Yonder"), None),
    "profile": AwsProfile("x", {"aws_secret_access_key": "Zebra"}, {"s3": "Yonder"}),
    "object store": ObjectStoreConfig(
        scheme="az", bucket="x", connection_string="AccountKey=Zebra", config={"a": "Yonder"}
    ),
    "settings": ButterflySettings(mongodb_uri="mongodb://me:Zebra@host", remote_password="Yonder"),
    "store": open_store("ssh://me:Zeb@ra'Yonder@box/x", password="Yonder", passphrase="Zebra"),
    "http store": open_store("https://me:Zeb@ra'Yonder@host/x", headers={"X-Key": "Zebra"}),
    "ipfs store": open_store(
        "ipfs://", gateways=["https://me:Zebra@host"], rpc="http://Yonder@127.0.0.1:1", token="Zebra"
    ),
}


@pytest.mark.parametrize("name", THINGS)
def test_reprs(name):
    text = f"{THINGS[name]!r} {THINGS[name]!s} {[THINGS[name]]}"
    assert not any(word in text for word in ("Zeb", "Yonder"))


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("ipfs://", {"gateways": ["https://me:Zeb/ra@host"]}),
        ("ipfs://", {"gateways": ["https://me:12/Zebra@host"]}),
        ("ipfs://", {"gateways": ["me:Zebra@host"]}),
        ("ipfs://", {"rpc": "https://[Zebra@host"}),
        ("ipfs://", {"rpc": "/dns/me:Zebra@host/tcp/5001"}),
        ("ipfs://", {"rpc": "https://host/?token=Zebra"}),
        ("s3://bucket", {"endpoint_url": "https://me:Zeb/ra@host"}),
        ("s3://bucket", {"endpoint_url": "me:Zebra@host"}),
        ("s3://Zeb:ra@bucket/x", {}),
        ("https://me:Zeb/ra@host", {}),
        ("https://me:Zeb ra@host:99999999", {}),
        ("https://[me:Zebra@host", {}),
        ("ssh://me:Zeb/ra@host", {}),
        ("ssh://me@host", {"jump": "me:Zeb/ra@jump"}),
        ("https://me:Zebra@host", {"no_such_option": "Yonder"}),
        ("ftp://me:Zebra@host", {"retry": None, "x": "Yonder"}),
    ],
)
def test_what_is_refused_is_not_shown(url, options):
    with pytest.raises(StreamloaderError) as caught:
        asyncio.run(use(url, options))
    text = "".join(traceback.format_exception(caught.value))
    assert not any(word in text.replace(repr(url), "") for word in ("Zeb", "ra@", "Yonder"))


async def use(url, options):
    async with open_store(url, **options) as store:
        await store.head("a")
