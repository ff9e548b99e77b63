"""Signatures are those of AWS's own examples, and servers of buckets are those that obstore uses."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import os

import pytest
import servers.obstore_threads  # noqa: F401

from streamloader.errors import UntrustedHost
from streamloader.stores.objects.config import ObjectStoreConfig
from streamloader.stores.objects.s3_client import S3Server, can_upload
from streamloader.stores.objects.signing import EMPTY_SHA256, encode_query, quote_key, sign_headers
from streamloader.stores.registry import open_store
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.http import HttpServer

# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
NOW = dt.datetime(2013, 5, 24, tzinfo=dt.UTC)
EXAMPLE = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
HOST = {"host": "examplebucket.s3.amazonaws.com"}


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("path", "query", "headers", "signature"),
    [
        ("/test.txt", {}, {"range": "bytes=0-9"}, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        ("/", {"lifecycle": ""}, {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/", {"max-keys": "2", "prefix": "J"}, {}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_examples_of_amazon(path, query, headers, signature):
    text = encode_query(query)
    signed = sign_headers("GET", path, text, HOST | headers, EMPTY_SHA256, "us-east-1", EXAMPLE, NOW)
    assert signed["authorization"].endswith(f"Signature={signature}")
    assert signed["x-amz-date"] == "20130524T000000Z"


def test_keys_are_quoted_byte_by_byte():
    assert quote_key("a/b c+%é~*'\n\udcff") == "a/b%20c%2B%25%C3%A9~%2A%27%0A%FF"


@pytest.mark.parametrize(
    ("options", "root", "path", "host"),
    [
        ({}, "https://s3.eu-west-3.amazonaws.com", "/my.bucket", "s3.eu-west-3.amazonaws.com"),
        (
            {"config": {"virtual_hosted_style_request": True}},
            "https://my.bucket.s3.eu-west-3.amazonaws.com",
            "",
            "my.bucket.s3.eu-west-3.amazonaws.com",
        ),
        ({"endpoint_url": "http://[::1]:9000/s3/"}, "http://[::1]:9000", "/s3/my.bucket", "[::1]:9000"),
        (
            {"endpoint_url": "https://my.bucket.host.test:443", "config": {"aws_virtual_hosted_style_request": "true"}},
            "https://my.bucket.host.test:443",
            "",
            "my.bucket.host.test",
        ),
    ],
)
def test_servers_of_buckets(options, root, path, host):
    config = ObjectStoreConfig(scheme="s3", bucket="my.bucket", region="eu-west-3", anonymous=True, **options)
    server = S3Server.from_settings(config, config.find_settings())
    assert (server.root, server.path, server.region, server.headers) == (root, path, "eu-west-3", {"host": host})


def test_the_key_of_a_customer_is_sent_with_objects_only():
    key = base64.b64encode(bytes(range(32))).decode()
    options = {"config": {"server_side_encryption": "sse-c", "sse_customer_key_base64": key}}
    config = ObjectStoreConfig(scheme="s3", bucket="bucket", anonymous=True, **options)
    server = S3Server.from_settings(config, config.find_settings())
    name = "x-amz-server-side-encryption-customer-"
    digest = base64.b64encode(hashlib.md5(bytes(range(32))).digest()).decode()
    assert server.object_headers == {f"{name}algorithm": "AES256", f"{name}key": key, f"{name}key-md5": digest}
    assert list(server.headers) == ["host"]
    assert key not in repr(server)
    assert not can_upload(config)


def test_certificates_are_checked(tmp_path):
    certificate = make_certificate()
    (tmp_path / "ca.pem").write_bytes(certificate.pem)
    page = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

    async def collect(**options):
        async with HttpServer({"bucket": page}, tls=certificate.server_context(), name="localhost") as server:
            options = {"endpoint_url": server.url, "anonymous": True, "retry": None, **options}
            async with open_store("s3://bucket", **options) as store:
                return [info async for info in store.list()]

    assert asyncio.run(collect(ca_file=tmp_path / "ca.pem")) == []
    with pytest.raises(UntrustedHost):
        asyncio.run(collect())
