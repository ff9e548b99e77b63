"""Addresses that only a document names: which of them are opened, and with which options."""

from __future__ import annotations

import pytest
from canaries import canary

from streamloader.errors import AccessDenied, ConfigError, UntrustedAddress
from streamloader.stores.origins import is_bound, select_access

CATALOG = "/data/catalog.sqlite"
TOKEN = canary("http-bearer")
PUBLIC = {"anonymous": True, "scope": "public"}


def access(address, options=None, *, named=False, document=CATALOG):
    return select_access(address, options, named=named, document=document)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


def test_web_servers_and_s3_are_read_anonymously():
    assert access("https://cdn.example/a") == PUBLIC
    assert access("HTTP://cdn.example:8080/a") == PUBLIC
    assert access("s3://bucket/a") == {"anonymous": True}
    assert access("https://cdn.example/a", {"retry": None, "cache_bytes": 5}) == PUBLIC | {
        "retry": None,
        "cache_bytes": 5,
    }


@pytest.mark.parametrize("scheme", ["ssh", "sftp", "gs", "az", "ftp", "webdav", "hf", "github", "reference", "unknown"])
def test_other_schemes_are_refused_with_a_way_out(scheme):
    with pytest.raises(UntrustedAddress, match=r"catalog\.sqlite") as caught:
        access(f"{scheme}://me@box/data")
    assert isinstance(caught.value, AccessDenied)
    assert "places={" in caught.value.message
    assert "storage_options={" in caught.value.message
    assert access(f"{scheme}://me@box/data", {f"{scheme}://me@box": {}}) == {}
    assert access(f"{scheme}://me@box/data", named=True) == {}


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_server_of_the_environment_is_not_reached_by_a_bucket_of_a_catalog(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(UntrustedAddress, match="AWS_ENDPOINT_URL"):
        access("s3://bucket/a")
    assert access("s3://bucket/a", {"s3://bucket": {"region": "x"}}) == {"region": "x"}


@pytest.mark.parametrize("name", ["token", "headers", "auth", "password", "client_keys", "secret_access_key", "scope"])
def test_options_for_servers_are_sent_to_named_addresses_only(name):
    for address in ("https://cdn.example/a", "s3://bucket/a", "ssh://box/a"):
        with pytest.raises(UntrustedAddress, match=name) as caught:
            access(address, {name: TOKEN})
        assert TOKEN not in str(caught.value)
        assert access(address, {name: TOKEN}, named=True) == {name: TOKEN}


def test_a_prefix_binds_options_to_one_origin():
    options = {"https://cdn.example": {"token": TOKEN}, "https://": {"token": "other"}, "s3://": {"profile": "mine"}}
    assert access("https://cdn.example/a", options) == {"token": TOKEN}
    for address in (
        "https://cdn.example.evil/a", "https://cdn.example@evil/a", "https://cdn.example:444/a", "http://cdn.example/a",
        "https://evil/https://cdn.example/", "https://evil/?https://cdn.example",
    ):  # fmt: skip
        assert access(address, options) == PUBLIC
        assert not is_bound(address, options)
    assert access("s3://bucket/a", options) == {"anonymous": True}  # a scheme alone names nobody
    assert access("s3://bucket/a", options, named=True) == {"profile": "mine"}


def test_the_origin_of_the_document_is_named_with_it():
    options = {"token": TOKEN}
    assert access("https://cdn.example:443/b", options, document="https://cdn.example/catalog") == options
    for document in (
        "https://cdn.example:444/c",
        "http://cdn.example/c",
        "https://evil/c",
        "https://cdn.example.evil/c",
    ):
        with pytest.raises(UntrustedAddress):
            access("https://cdn.example/b", options, document=document)


def test_addresses_without_a_host():
    options = {"gateways": "https://gateway.example", "token": TOKEN}
    assert access("ipfs://bafy/a", options) == options
    for address in ("/data", "file:///data", "memory://x/y"):
        assert access(address, options) == {}


def test_malformed_options_are_refused():
    with pytest.raises(ConfigError):
        access("https://cdn.example/a", {"https://cdn.example": "token"})
