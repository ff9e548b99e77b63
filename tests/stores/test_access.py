"""What stores say of their servers and credentials before they connect: sources, and never a secret."""

from __future__ import annotations

import pytest
from canaries import canary

from streamloader.stores.access import ServerAddress
from streamloader.stores.registry import open_store

SECRET = canary("http-password")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "AWS_PROFILE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ENDPOINT_URL",
        "NETRC",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def describe(url, **options):
    store = open_store(url, **options)
    access = store.describe_access()
    assert SECRET not in repr(access)
    return access


@pytest.mark.parametrize(
    ("url", "options", "source"),
    [
        ("https://host", {}, "none"),
        (f"https://me:{SECRET}@host", {}, "login from the address"),
        ("https://host", {"token": SECRET}, "login from the option token"),
        ("https://host", {"auth": ("me", SECRET)}, "login from the option auth"),
        ("https://host", {"headers": {"Authorization": SECRET}}, "login from the option headers"),
    ],
)
def test_http(url, options, source):
    access = describe(url, **options)
    assert access.facts["credentials"] == source
    assert access.servers == (ServerAddress("server", "host", 443, tls=True),)
    assert describe("http://[::1]:8080").servers == (ServerAddress("server", "::1", 8080),)
    assert str(ServerAddress("server", "::1", 8080)) == "[::1]:8080"


def test_s3(tmp_path, monkeypatch):
    assert describe("s3://bucket", anonymous=True).facts["credentials"] == "none: requests are anonymous"
    own = describe("s3://bucket", endpoint_url="http://127.0.0.1:8333")
    assert (own.facts["credentials"], own.facts["endpoint"]) == ("none found", "http://127.0.0.1:8333")
    assert own.servers == (ServerAddress("server", "127.0.0.1", 8333),)
    keys = {"access_key_id": "some", "secret_access_key": SECRET}
    assert describe("s3://bucket", **keys).facts["credentials"] == "options access_key_id, secret_access_key"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(f"[work]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\n")
    assert describe("s3://bucket", profile="work").facts["credentials"] == "AWS profile work"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("https_proxy", f"http://me:{SECRET}@proxy.test:3128")
    access = describe("s3://bucket", region="eu-central-1")
    assert access.facts["credentials"] == "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment"
    assert access.facts["proxy"] == "http://***@proxy.test:3128 of the environment"
    assert access.servers == (ServerAddress("proxy", "proxy.test", 3128),)


def test_gs_and_az():
    assert describe("gs://bucket", token=SECRET).facts["credentials"] == "options token"
    access = describe("az://container", account_name="mine", account_key="c2VjcmV0")
    assert access.facts["credentials"] == "options account_key"
    assert access.servers == (ServerAddress("server", "mine.blob.core.windows.net", 443, tls=True),)


def test_ipfs():
    access = describe(
        "ipfs://", rpc="/ip4/127.0.0.1/tcp/5001", gateways=f"https://me:{SECRET}@gateway.test", token=SECRET
    )
    assert access.servers == (
        ServerAddress("node", "127.0.0.1", 5001), ServerAddress("gateway", "gateway.test", 443, tls=True),
    )  # fmt: skip
    assert access.facts["credentials"] == "login from the address and the option token"
    assert access.facts["gateway"] == "https://***@gateway.test"
    access = describe("ipfs://", gateways="https://gateway.test", verify="none")
    assert (access.facts["verification"], len(access.notes)) == ("none", 1)


def test_ssh(tmp_path):
    key = tmp_path / "key"
    key.touch()
    config = tmp_path / "config"
    config.write_text(
        f"Host box\n  HostName 127.0.0.1\n  Port 2222\n  User me\n  IdentityFile {key}\n  IdentityFile {key}-none\n"
        f"Host far\n  ProxyJump box\nHost tunnelled\n  ProxyCommand nc {SECRET} %p\n"
    )
    options = {"config": str(config)}
    access = describe("ssh://box", **options)
    assert access.servers == (ServerAddress("server", "127.0.0.1", 2222),)
    assert (access.facts["user"], access.facts["keys"], access.facts["known hosts"]) == ("me", str(key), "none")
    access = describe(f"ssh://you:{SECRET}@far", **options)
    assert access.servers == (ServerAddress("jump host", "127.0.0.1", 2222),)
    assert (access.facts["jump hosts"], access.facts["password"]) == ("box", "given")
    access = describe("ssh://tunnelled", **options)
    assert (access.servers, access.facts["proxy"]) == ((), "the ProxyCommand of the configuration")
    access = describe("ssh://box", **options, trust="any_host_key_even_of_an_impostor")
    assert "without verification" in access.notes[0]


def test_stores_without_servers(tmp_path):
    for url in (str(tmp_path), "memory://some"):
        access = describe(url)
        assert (access.servers, access.facts, access.notes) == ((), {}, ())
    member = describe("http://host/set.zip!")
    assert member.servers == (ServerAddress("server", "host", 80),)
    assert open_store("http://host/set.zip!").supports_ranges
