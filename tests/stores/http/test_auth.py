"""Addresses, credentials and certificates of stores behind HTTP."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import random
import traceback

import pytest
from canaries import canary
from servers.nginx_fixture import USER

from streamloader.errors import AccessDenied, ConfigError, NotFound, UntrustedHost
from streamloader.stores.http.auth import parse_server_url, read_netrc_login
from streamloader.stores.http.redirects import quote_url_path
from streamloader.stores.http.store import HttpStore
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.registry import open_store, split_address
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.http import HttpFault, HttpServer

DATA = random.Random(5).randbytes(5_000)
PASSWORD = canary("http-password")
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(autouse=True)
def no_netrc(tmp_path, monkeypatch):
    """Isolate the tests from the user's own credentials."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


async def asked_by(path="a.bin", *, address="{url}", **options):
    """Read through a store; return the request that it sent."""
    async with HttpServer({"a.bin": DATA}) as server:
        async with HttpStore(address.format(url=server.url, host=server.url[7:]), **options) as store:
            assert await store.read(path) == DATA
        return server.requests[0]


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "root", "path"),
    [
        ("http://host/a/b.mp4", "http://host", "a/b.mp4"),
        ("HTTPS://host:8443/a", "https://host:8443", "a"),
        ("http://host", "http://host", ""),
        ("http://host/", "http://host", ""),
        ("http://host?x=/y", "http://host", "?x=/y"),
        ("http://host/a?x=/../y&z=1", "http://host", "a?x=/../y&z=1"),
        ("http://[::1]:80/a b", "http://[::1]:80", "a b"),
        ("http://user:pass@host/a@b", "http://user:pass@host", "a@b"),
        ("http://host/a%20b%2Fc", "http://host", "a%20b%2Fc"),
    ],
)
def test_split(address, root, path):
    assert split_address(address) == (root, path)


@pytest.mark.parametrize(
    "url", ["http://", "http://:80", "http://a:0", "http://a:99999", "http://a:b", "http://[::1", "ftp://a"]
)
def test_refuses_what_is_no_server(url):
    with pytest.raises(ConfigError, match="not the address of an HTTP server"):
        HttpStore(url)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("a b.bin", "a%20b.bin"),
        ("a%20b.bin", "a%20b.bin"),
        ("100%.bin", "100%25.bin"),
        ("%zz%4", "%25zz%254"),
        ("ü/日.bin", "%C3%BC/%E6%97%A5.bin"),
        ("a%2Fb%2fc", "a%2Fb%2fc"),
        ('a[1]{2}|\\^`<>"', "a%5B1%5D%7B2%7D%7C%5C%5E%60%3C%3E%22"),
        ("a:b@c!$&'()*+,;=-._~", "a:b@c!$&'()*+,;=-._~"),
        ("a?b=c d&e=f%20g/h?i", "a?b=c%20d&e=f%20g/h?i"),
        ("a\r\nHost: evil", "a%0D%0AHost:%20evil"),
    ],
)
def test_what_may_not_stand_in_a_url_is_encoded(path, sent):
    async def read():
        async with HttpServer({}) as server, HttpStore(server.url) as store:
            with pytest.raises(NotFound):
                await store.read(path)
            return [request.target for request in server.requests]

    assert quote_url_path(path) == sent
    assert asyncio.run(read()) == [f"/{sent}"]


@pytest.mark.parametrize("path", ["a#b", "%2e%2e/a", "a/%2E./b", "a/%2e", "a/..?x", "#", "a?b#c"])
def test_refuses_paths_that_are_none(path):
    async def read():
        async with HttpStore("http://127.0.0.1:1") as store:
            with pytest.raises(ConfigError):
                await store.read(path)

    asyncio.run(read())


def test_a_query_is_sent_and_what_is_secret_in_it_not_shown():
    signed = f"a.bin?id=5&X-Amz-Signature={canary('http-signature')}&sig={canary('http-signature')}&path=../x"

    async def read():
        request = await asked_by(signed)
        assert request.target == f"/{signed}"
        async with HttpServer({"a.bin": DATA}) as server, open_store(server.url) as store:
            server.fault = HttpFault("no-http")
            for path in (signed, signed.replace("a.bin", "none")):
                with pytest.raises(Exception, match="id=5") as caught:
                    await store.read(path)
                assert canary("http-signature") not in "".join(traceback.format_exception(caught.value))
            assert canary("http-signature") not in store.address(signed)

    asyncio.run(read())


def test_a_directory_is_a_store():
    async def read():
        async with HttpServer({"dir/sub/a b.bin": DATA}) as server, open_store(f"{server.url}/dir/sub") as store:
            assert await store.read("a%20b.bin") == DATA
            assert (await store.head("a b.bin")).path == "a b.bin"

    asyncio.run(read())


# --- credentials -----------------------------------------------------------------------------------------------------

WAYS = {
    "auth": ({"auth": (USER, PASSWORD)}, BASIC),
    "address": ({"address": f"http://{USER}:{PASSWORD}@{{host}}"}, BASIC),
    "token": ({"token": canary("http-bearer")}, f"Bearer {canary('http-bearer')}"),
    "header": ({"headers": {"authorization": canary("http-header")}}, canary("http-header")),
    "none": ({}, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_log_in(way):
    options, sent = WAYS[way]
    request = asyncio.run(asked_by(**options))
    assert request.headers.get("authorization") == sent
    assert "@" not in request.headers["host"]


def test_nginx_accepts_the_login(nginx_server):
    nginx_server.put({"access/a.bin": DATA})
    wrong = canary("http-address-password")

    async def read():
        async with HttpStore(nginx_server.url, auth=(USER, PASSWORD)) as store:
            assert await store.read("private/access/a.bin") == DATA
        for bad in ({"auth": (USER, wrong)}, {"token": wrong}, {}):
            async with HttpStore(nginx_server.url, **bad) as store:
                with pytest.raises(AccessDenied, match="401"):
                    await store.read("private/access/a.bin")

    asyncio.run(read())
    address = f"{nginx_server.url.replace('//', f'//{USER}:{PASSWORD}@')}/private/access/a.bin"
    shared, path = open_shared_store(address)
    with shared:
        assert shared.read(path) == DATA


def test_passwords_with_anything_in_them():
    request = asyncio.run(asked_by(address="http://m%40e:p%2F%3A%C3%BC@{host}"))
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode() == "m@e:p/:ü"


async def sent_login(name, **options):
    """Return the Authorization that a server with this name receives, or None."""
    async with HttpServer({"a.bin": DATA}, name=name) as server, HttpStore(server.url, **options) as store:
        assert await store.read("a.bin") == DATA
        return server.requests[-1].headers.get("authorization")


def entry(machine):
    return f"machine {machine} login {USER} password {PASSWORD}\n"


def test_netrc(no_netrc):
    async def read(address="{url}", **options):
        async with (
            HttpServer({"a.bin": DATA}) as server,
            HttpStore(address.format(url=server.url, host=server.url[7:]), **options) as store,
        ):
            no_netrc.write_text(entry(server.url.partition("//")[2]) + "default login x password y\n")
            assert await store.read("a.bin") == DATA
            return server.requests[-1].headers["authorization"]

    assert asyncio.run(read()) == BASIC
    # The options of the store take precedence.
    for options, sent in WAYS.values():
        if sent is not None:
            assert asyncio.run(read(**options)) == sent


def test_an_anonymous_store_has_no_login_of_netrc(no_netrc):
    no_netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    request = asyncio.run(asked_by(anonymous=True))
    assert "authorization" not in {name.lower() for name in request.headers}


def test_netrc_of_the_home_directory(no_netrc, tmp_path, monkeypatch):
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine data.test\nlogin {USER}\npassword {PASSWORD}\n")
    assert read_netrc_login("https://data.test") == BASIC


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://data.test", True),
        ("https://data.test:443", True),
        ("https://data.test:8443", False),
        ("https://data.test:80", False),
        ("https://exact.test:8443", True),
        ("https://exact.test", False),
        ("https://sub.data.test", False),
        ("http://data.test", False),
        ("http://data.test:443", False),
        ("http://exact.test:8443", False),
        ("http://127.0.0.1", True),
        ("http://127.0.0.1:8000", False),
        ("http://127.0.0.1:8080", True),
        ("http://localhost:80", True),
        ("http://localhost:3128", False),
        ("http://[::1]:8080", True),
        ("http://[::1]", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.data.test", False),
        ("http://localhost.data.test", False),
    ],
)
def test_netrc_logins_are_sent_encrypted_and_to_the_port_that_they_are_for(no_netrc, url, sent):
    machines = ["data.test", "exact.test:8443", "127.0.0.1", "127.0.0.1:8080", "localhost", "[::1]:8080", "10.0.0.1"]
    machines += ["127.0.0.1.data.test", "localhost.data.test"]
    no_netrc.write_text("".join(map(entry, machines)))
    assert read_netrc_login(parse_server_url(url)[0]) == (BASIC if sent else None)


def test_netrc_logins_do_not_cross_the_network_in_plain_text(no_netrc):
    # The name belongs to this machine at the moment, but who knows later.
    no_netrc.write_text(entry("data.test") + entry("127.0.0.1"))
    with override_host_names({"data.test": ["127.0.0.1"]}):
        assert asyncio.run(sent_login("data.test")) is None
    assert asyncio.run(sent_login("127.0.0.1")) is None, "the entry names no port, and the server has an unusual one"


def test_netrc_of_other_hosts(no_netrc):
    no_netrc.write_text(
        f"machine else.test login {USER} password {PASSWORD}\ndefault login {USER} password {PASSWORD}\n"
    )
    assert "authorization" not in asyncio.run(asked_by()).headers


def test_a_netrc_that_cannot_be_read_is_named(no_netrc, caplog):
    no_netrc.write_text(f"machine 127.0.0.1 {canary('http-netrc')} password\n")
    with caplog.at_level(logging.WARNING, "streamloader"):
        assert "authorization" not in asyncio.run(asked_by()).headers
    assert [str(no_netrc) in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    "options",
    [
        {"auth": (USER, PASSWORD), "token": "t"},
        {"auth": (USER, PASSWORD), "headers": {"Authorization": "x"}},
        {"auth": PASSWORD},
        {"auth": (USER,)},
        {"auth": (USER, 5)},
        {"token": "a\nb"},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"X": 5}},
        {"headers": {"Range": "bytes=0-1"}},
        {"headers": {"if-match": '"x"'}},
        {"headers": {"Accept-Encoding": "gzip"}},
        {"scope": "everywhere"},
    ],
)
def test_refuses_invalid_options(options):
    with pytest.raises(ConfigError) as caught:
        HttpStore("http://127.0.0.1:1", **options)
    assert PASSWORD not in str(caught.value)


def test_refuses_a_password_twice():
    with pytest.raises(ConfigError, match="one of") as caught:
        HttpStore(f"http://{USER}:{PASSWORD}@127.0.0.1:1", token=PASSWORD)
    assert PASSWORD not in str(caught.value)


def test_tells_no_secrets():
    secret = [canary(name) for name in ("http-password", "http-bearer", "http-header", "http-address-password")]
    stores = [
        HttpStore("http://127.0.0.1:1", auth=(USER, secret[0])),
        HttpStore("http://127.0.0.1:1", token=secret[1], headers={"X-Key": secret[2]}),
        HttpStore(f"http://{USER}:{secret[3]}@127.0.0.1:1"),
    ]
    for store in stores:
        twin = pickle.loads(pickle.dumps(store))
        shown = f"{store!r} {store.url} {vars(store)!r} {vars(twin)!r} {store.__getstate__()!r} {store.address('a')}"
        assert not [each for each in secret if each in shown or base64.b64encode(each.encode()).decode()[:20] in shown]
        assert vars(twin)["_credentials"] == vars(store)["_credentials"]
        assert store.url == "http://127.0.0.1:1"


def test_sends_a_user_agent():
    assert asyncio.run(asked_by()).headers["user-agent"] == "streamloader"
    assert asyncio.run(asked_by(headers={"User-Agent": "me"})).headers["user-agent"] == "me"


def test_keeps_no_cookies():
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = HttpFault("cookie", everywhere=True)
            for _ in range(2):
                assert await store.read("a.bin") == DATA
            assert server.fault_count == 2
            assert ["cookie" in request.headers for request in server.requests] == [False, False]

    asyncio.run(read())


# --- certificates ----------------------------------------------------------------------------------------------------


def test_a_certificate_authority_of_ones_own(tmp_path):
    certificate = make_certificate(["safe.test"])
    (tmp_path / "ca.pem").write_bytes(certificate.pem)

    async def read():
        async with HttpServer({"a.bin": DATA}, tls=certificate.server_context(), name="safe.test") as server:
            async with HttpStore(server.url, ca_file=tmp_path / "ca.pem") as store:
                assert await store.read("a.bin") == DATA
                assert (await store.head("a.bin")).size == len(DATA)
            async with HttpStore(server.url) as store:
                with pytest.raises(UntrustedHost, match="ca_file="):
                    await store.read("a.bin")

    with override_host_names({"safe.test": ["127.0.0.1"]}):
        asyncio.run(read())


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_without_certificates(content, tmp_path):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)

    async def read():
        async with HttpStore("https://127.0.0.1:1", ca_file=file) as store:
            for _ in range(2):
                with pytest.raises(ConfigError, match=r"ca\.pem"):
                    await store.read("a.bin")

    asyncio.run(read())
