"""A client names a server and its keys: it opens nothing, travels to workers, and shows no secrets."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
from canaries import canary
from servers.seaweed import FULL, READER, WRONG

from streamloader import AccessDenied, ConfigError
from streamloader.datasets.shards.client import S3Client, make_client
from streamloader.stores import open_store
from streamloader.stores.io_thread import open_shared_store

SECRET = canary("s3-secret-key")


def connect(server, keys=FULL, **options):
    return make_client(server.endpoint, keys.access_key_id, keys.secret_access_key, region="us-east-1", **options)


def test_its_options_open_the_bucket_on_a_real_server(seaweed_server):
    client = connect(seaweed_server)
    address = client.address(seaweed_server.bucket(), "set/train")
    store, path = open_shared_store(f"{address}/a.bin", client.storage_options)
    with store:
        store.write(path, b"content")
        assert path == "set/train/a.bin"
        assert store.read(path) == b"content"


def test_a_copy_by_pickle_opens_it_too(seaweed_server):
    bucket = seaweed_server.bucket()
    client = connect(seaweed_server)
    for twin in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):
        assert twin == client
        store, path = open_shared_store(twin.address(bucket, "twin"), twin.storage_options)
        with store:
            store.write(path, b"by the twin")
            assert store.read(path) == b"by the twin"


@pytest.mark.parametrize("keys", [WRONG, READER], ids=["wrong key", "read-only key"])
def test_keys_that_may_not_write_are_a_typed_error(seaweed_server, keys):
    client = connect(seaweed_server, keys)
    store, path = open_shared_store(client.address(seaweed_server.bucket(), "a"), client.storage_options)
    with store, pytest.raises(AccessDenied) as caught:
        store.write(path, b"content")
    assert keys.secret_access_key not in f"{caught.value}{caught.value.details}"


@pytest.mark.parametrize(
    ("folder", "address"),
    [
        ("", "s3://bucket"),
        ("set", "s3://bucket/set"),
        ("/set/", "s3://bucket/set"),
        ("a/b c/ü", "s3://bucket/a/b c/ü"),
    ],
)
def test_addresses(folder, address):
    assert make_client(None).address("bucket", folder) == address


@pytest.mark.parametrize("bucket", ["", None, 3, "a/b", "user:key@bucket", "bucket?region=x", "bucket#", b"bucket"])
def test_what_is_no_bucket_is_refused(bucket):
    with pytest.raises(ConfigError, match="bucket"):
        make_client(None).address(bucket, "folder")


@pytest.mark.parametrize("keys", [("key", None), (None, SECRET)])
def test_one_key_alone_is_refused(keys):
    with pytest.raises(ConfigError, match="both access_key and secret_key"):
        make_client("http://127.0.0.1:9000", *keys)


def test_options_that_are_left_out_come_from_the_environment():
    assert make_client(None).storage_options == {}
    client = make_client("http://127.0.0.1:9000", "key", SECRET, region="r")
    assert client.storage_options == {
        "endpoint_url": "http://127.0.0.1:9000",
        "access_key_id": "key",
        "secret_access_key": SECRET,
        "region": "r",
    }


def test_an_unknown_option_is_named_by_the_store():
    client = make_client("http://127.0.0.1:9000", "key", SECRET, flavour="strawberry")
    with pytest.raises((ConfigError, TypeError), match="flavour"):
        open_store("s3://bucket", **client.storage_options)


def test_nothing_that_is_printed_shows_secrets():
    user, password = "someone", canary("http-address-password")
    client = make_client(f"http://{user}:{password}@127.0.0.1:9000", "AKNAME", SECRET)
    for text in (repr(client), str(client), f"{client!r:>200}", repr([client])):
        assert "127.0.0.1:9000" in text
        assert SECRET not in text
        assert password not in text


def test_it_cannot_be_changed():
    client = make_client(None, "key", SECRET)
    with pytest.raises(AttributeError):
        client.endpoint = "http://127.0.0.1:1"
    assert isinstance(client, S3Client)


def test_it_opens_nothing():
    """A server that does not exist is no error before it is used, and neither obstore nor torch is imported."""
    program = (
        "import sys; from streamloader.datasets.shards.client import make_client;"
        "make_client('http://127.0.0.1:1', 'a', 'b').address('bucket', 'folder');"
        "assert not {'obstore', 'torch', 'aiohttp'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
