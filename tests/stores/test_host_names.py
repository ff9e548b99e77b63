"""Host and user names in addresses, options and variables have an allow-list of characters, in every store."""

from __future__ import annotations

import asyncio
import string
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamloader.archive.catalog.mongo.connection import MongoAddress
from streamloader.errors import ConfigError
from streamloader.stores.addresses import check_authority, check_host_name, check_user_name, split_url
from streamloader.stores.registry import open_store

HOSTILE_HOSTS = [
    "a$(id)",
    "a`id`",
    "a;id",
    "a|id",
    "a&id",
    "a>id",
    "a<id",
    "a'b",
    'a"b',
    "a\\b",
    "a(b)",
    "a{b}",
    "a*",
    "-a",
]
HOSTILE_USERS = [
    *HOSTILE_HOSTS,
    "a b",
    "a\tb",
    "a\nb",
    "a/b",
    "a%b",
    "a~b",
    "a!b",
    "a?b",
    "a#b",
    ".a",
    "a\\",
    "\\a",
    "a\0b",
]
HOSTILE_USERS.remove("a\\b")
KEYS = {"access_key_id": "key-id", "secret_access_key": "key-text"}


@pytest.mark.parametrize(
    "host",
    ["a", "A-1.b_c.example", "i-0abc", "_x", "10.0.0.1", "::1", "fe80::1%eth0", "größe.test", "xn--gre-6ka8i", "a."],
)
def test_honest_hosts(host):
    assert check_host_name(host) == host


@pytest.mark.parametrize(
    "host", [*HOSTILE_HOSTS, "", ".a", "..", "a b", "a\n", "a/b", "a%41", "a@b", "::1%e;id", "1:2", "℀", "a" * 254]
)
def test_hostile_hosts(host):
    with pytest.raises(ConfigError) as caught:
        check_host_name(host)
    assert len(host) < 3 or host not in str(caught.value), "it may contain parts of a password"


@pytest.mark.parametrize(
    "user", ["a", "A.b-c_d", "me@example.org", "a+b", "AKIA=", "CORP\\me", "jürgen", "user:x@host:22"]
)
def test_honest_users(user):
    assert check_user_name(user) == user


@pytest.mark.parametrize("user", [*HOSTILE_USERS, "", "a" * 257])
def test_hostile_users(user):
    with pytest.raises(ConfigError):
        check_user_name(user)


@given(st.text(max_size=6))
def test_no_character_of_a_shell_passes(text):
    for check in (check_host_name, check_user_name):
        try:
            check(text)
        except ConfigError:
            continue
        rest = set(text) & set(string.punctuation + string.whitespace) - set("._-@+=,:\\%")
        assert not rest
        assert "%" not in text or ":" in text  # the zone of an IPv6 address
        assert all(char.isprintable() for char in text if not unicodedata.category(char).startswith("M"))


@pytest.mark.parametrize(
    "authority", ["host", "host:80", "me@host", "me:p%40%24(x)@host:1", "[::1]", "[::1]:80", "m%40e@host"]
)
def test_honest_authorities(authority):
    check_authority(authority)


@pytest.mark.parametrize(
    "authority",
    ["", ":80", "host:x", "host:99999", "host:80:80", "[::1", "[::1]x", "::1", "a;b@host", "%3Bid@host", "-h", "h,i"],
)
def test_malformed_authorities(authority):
    with pytest.raises(ConfigError):
        check_authority(authority)


@pytest.mark.parametrize("url", ["ssh://a\tb", "ssh://a b", "http://a\nb", "http://a\rb", "http://[::1"])
def test_characters_that_urlsplit_removes_are_refused(url):
    with pytest.raises(ConfigError):
        split_url(url)


@pytest.mark.parametrize("host", HOSTILE_HOSTS)
def test_every_store_refuses_hostile_hosts(host, monkeypatch):
    for url, options in (
        (f"ssh://{host}/data", {}),
        (f"sftp://me@{host}:22/data", {}),
        ("ssh://a/data", {"jump": host}),
        (f"http://{host}/a", {}),
        (f"https://me:hunter2@{host}:8443/a", {}),
        ("ipfs://", {"gateways": f"https://{host}"}),
        ("ipfs://", {"gateways": f"/dns4/{host}/tcp/80"}),
        ("ipfs://", {"gateways": f"https://{host}", "verify": "none"}),
        ("ipns://", {"rpc": f"http://{host}:5001"}),
        ("s3://bucket", {"endpoint_url": f"https://{host}:9000", **KEYS}),
        (f"s3://{host}", KEYS),
        ("s3://bucket", {"region": host, **KEYS}),
        ("gs://bucket", {"endpoint_url": f"http://{host}"}),
        ("az://box", {"account_name": host}),
        ("az://box", {"account_name": "acc", "endpoint_url": f"https://{host}"}),
        (f"ftp://{host}/a", {}),
        (f"ftp://me:hunter2@{host}:21/a", {}),
        ("ftp://host/a", {"host": host}),
        ("ftp://host/a", {"host": f"{host}:21"}),
    ):
        with pytest.raises(ConfigError) as caught:
            open_store(url, **options)
        assert "hunter2" not in str(caught.value)
    for url in (f"mongodb://{host}/data", f"mongodb://a,{host}:27017/data", f"mongodb+srv://me:hunter2@{host}/data"):
        with pytest.raises(ConfigError) as caught:
            MongoAddress(url)


@pytest.mark.parametrize("user", HOSTILE_USERS)
def test_every_store_refuses_hostile_users(user):
    quoted = quote(user, safe="")
    for url, options in (
        (f"ssh://{quoted}@a/data", {}),
        (f"sftp://{quoted}:password@a:22/data", {}),
        ("ssh://a/data", {"jump": [f"{quoted}@b"]}),
        (f"https://{quoted}:password@a/a", {}),
        ("ipfs://", {"gateways": f"https://{quoted}:password@a"}),
        ("ipns://", {"rpc": f"http://{quoted}@a:5001"}),
        (f"ftp://{quoted}:password@a/a", {}),
        ("ftp://a/a", {"username": user}),
    ):
        with pytest.raises(ConfigError):
            open_store(url, **options)
    with pytest.raises(ConfigError):
        MongoAddress(f"mongodb://{quoted}:password@a/data")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_REGION"])
def test_hosts_from_the_environment_are_checked(variable, monkeypatch):
    value = "a;id" if variable == "AWS_REGION" else "https://a;id"
    monkeypatch.setenv(variable, value)

    async def read():
        async with open_store("s3://bucket", retry=None, **KEYS) as store:
            await store.read("a.bin")

    with pytest.raises(ConfigError):
        asyncio.run(read())


def test_honest_addresses_of_other_kinds_still_open():
    for url, options in (
        ("s3://my-bucket.with.dots_1", KEYS),
        ("gs://my_bucket", {"token": "t"}),
        ("az://$web", {"account_name": "acc", "account_key": "a2V5"}),
        ("ftp://me%40corp@host:2121/a", {}),
        ("https://me:p%2F%24(x)@größe.test:8443/a", {}),
        ("ipfs://", {"gateways": ["https://gw.example/sub/", "/dns4/gw.example/tcp/443/https", "/ip6/::1/tcp/80"]}),
    ):
        open_store(url, **options)
    for url in (
        "mongodb://me:p%24@a:27017,b.example:27018/data",
        "mongodb+srv://a.example/data",
        "mongodb://%2Ftmp%2Fm-1.sock/d",
    ):
        MongoAddress(url)
