"""Redirects: allowed targets, and the headers sent to them."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiohttp import web
from canaries import canary
from servers.web import serving

from streamloader.config import Limits
from streamloader.errors import AccessDenied, LimitExceeded, ProtocolError, UntrustedHost
from streamloader.stores.http import address_scope
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.http.store import HttpStore
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.values import ByteRange

DATA = random.Random(4).randbytes(5_000)
TOKEN = canary("http-bearer")
HEADER = canary("http-header")
SECRETS = {"headers": {"X-Key": HEADER, "Cookie": f"session={HEADER}"}, "token": TOKEN}


def redirected(location, **fault):
    return HttpFault("redirect", location=location, everywhere=True, methods=("GET", "HEAD"), **fault)


def secrets_in(request):
    return sorted(name for name in ("authorization", "cookie", "x-key") if name in request.headers)


@pytest.mark.parametrize(
    "location",
    [
        "/b/c.bin",
        "b/c.bin",
        "./x/../b/c.bin",
        "?other=1",
        "{url}/b/c.bin",
        "{url}/b/c.bin#part",
        "//{host}/b/c.bin",
        "/b/ü x.bin",
        "/b/%C3%BC%20x.bin",
    ],
)
def test_follows_addresses_of_any_form(location):
    async def read():
        files = {"a.bin": DATA, "b/c.bin": DATA, "b/ü x.bin": DATA}
        async with HttpServer(files) as server, HttpStore(server.url, **SECRETS) as store:
            to = location.format(url=server.url, host=server.url.partition("//")[2])
            server.fault = redirected(to.encode().decode("latin-1"), times=1)
            assert await store.read("a.bin", ByteRange(7, 99)) == DATA[7:99]
            assert server.fault_count == 1
            assert secrets_in(server.requests[-1]) == ["authorization", "cookie", "x-key"], "it is the same server"
            assert server.requests[-1].headers["range"] == "bytes=7-98"

    asyncio.run(read())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_follows_all_kinds(status, monkeypatch):
    async def read():
        async with HttpServer({"a.bin": DATA, "b.bin": DATA[::-1]}) as server, HttpStore(server.url) as store:
            server.fault = HttpFault("redirect", location="/b.bin", status=status, everywhere=True, times=1)
            assert await store.read("a.bin") == DATA[::-1]

    asyncio.run(read())


@pytest.mark.parametrize("hops", [5, 6])
def test_follows_five(hops):
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = redirected("/a.bin?{n}", times=hops)
            if hops <= Limits().redirects:
                assert await store.read("a.bin") == DATA
            else:
                with pytest.raises(LimitExceeded, match="redirects="):
                    await store.read("a.bin")
        none = Limits(redirects=0)
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url, limits=none) as store:
            assert await store.read("a.bin") == DATA
            server.fault = redirected("/a.bin?{n}")
            with pytest.raises(LimitExceeded, match="more than 0"):
                await store.read("a.bin")

    asyncio.run(read())


@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "http://",
        "https:///a",
        "http://[::1",
        "http://a:99999/",
        "javascript:1",
    ],
)
def test_follows_nothing_else(location):
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = redirected(location)
            with pytest.raises(ProtocolError, match="redirects"):
                await store.read("a.bin")
            assert len(server.requests) == 1

    asyncio.run(read())


# --- credentials -----------------------------------------------------------------------------------------------------


def test_other_servers_get_no_credentials(tmp_path, monkeypatch):
    # Not by options, nor from the address of the redirect, nor from .netrc; and not when it leads back again.
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))

    async def read(**options):
        async with HttpServer({"a.bin": DATA}) as first, HttpServer({"a.bin": DATA, "b.bin": DATA}) as second:
            servers = [server.url.partition("//")[2] for server in (first, second)]
            netrc.write_text("".join(f"machine {name} login me password {canary('http-netrc')}\n" for name in servers))
            with_user = second.url.replace("//", f"//me:{canary('http-password')}@")
            first.fault = redirected(f"{with_user}/b.bin", times=1)
            second.fault = redirected(f"{first.url}/a.bin?again", times=1)
            async with HttpStore(first.url, **options) as store:
                assert await store.read("a.bin") == DATA
                assert await store.read("a.bin") == DATA
            received = [secrets_in(request) for request in first.requests]
            assert received[0] == received[2] != []
            assert received[1] == [], "the way back was another server's idea"
            assert [secrets_in(request) for request in second.requests] == [[]]

    asyncio.run(read())
    asyncio.run(read(**SECRETS))


def test_another_port_or_scheme_is_another_server(tmp_path):
    certificate = make_certificate()
    (tmp_path / "ca.pem").write_bytes(certificate.pem)

    async def read():
        async with (
            HttpServer({"a.bin": DATA}, tls=certificate.server_context()) as safe,
            HttpServer({"a.bin": DATA}) as plain,
        ):
            plain.fault = redirected(f"{safe.url}/a.bin")
            async with HttpStore(plain.url, ca_file=tmp_path / "ca.pem", **SECRETS) as store:
                assert await store.read("a.bin") == DATA
            assert secrets_in(plain.requests[0]) != []
            assert secrets_in(safe.requests[0]) == []
            safe.fault = HttpFault("status", status=401)
            async with HttpStore(plain.url, ca_file=tmp_path / "ca.pem", **SECRETS) as store:
                with pytest.raises(AccessDenied, match=f"{safe.url}, the target of a redirect, does not receive them"):
                    await store.read("a.bin")

    asyncio.run(read())


def test_never_from_https_to_http(tmp_path):
    certificate = make_certificate()
    (tmp_path / "ca.pem").write_bytes(certificate.pem)

    async def read():
        async with (
            HttpServer({"a.bin": DATA}, tls=certificate.server_context()) as safe,
            HttpServer({"a.bin": DATA}) as plain,
            HttpStore(safe.url, ca_file=tmp_path / "ca.pem") as store,
        ):
            safe.fault = redirected(f"{plain.url}/a.bin")
            with pytest.raises(ProtocolError, match="not encrypted"):
                await store.read("a.bin")
            assert plain.connections == 0

    asyncio.run(read())


# --- into the inside -------------------------------------------------------------------------------------------------

PLACES = {
    "127.0.0.2": AddressScope.PUBLIC,
    "127.0.0.3": AddressScope.PUBLIC,
    "127.0.0.4": AddressScope.PRIVATE,
    "127.0.0.5": AddressScope.PRIVATE,
    "127.0.0.6": AddressScope.LOOPBACK,
    "127.0.0.7": AddressScope.LOOPBACK,
}


@pytest.fixture
def world(monkeypatch):
    """Treat some loopback addresses as public or private ones."""
    real = address_scope.classify_address
    monkeypatch.setattr(
        address_scope, "classify_address", lambda address: PLACES[address] if address in PLACES else real(address)
    )


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sender", ["127.0.0.2", "127.0.0.4", "127.0.0.6"])
@pytest.mark.parametrize("target", ["127.0.0.3", "127.0.0.5", "127.0.0.7"])
def test_a_redirect_stays_in_the_scope_of_its_server(sender, target, named):
    names = {"sender.test": [sender], "target.test": [target]}

    async def read():
        async with (
            HttpServer({"a.bin": DATA}, host=sender, name="sender.test" if named else None) as first,
            HttpServer({"a.bin": DATA}, host=target, name="target.test" if named else None) as second,
            HttpStore(first.url) as store,
        ):
            first.fault = redirected(f"{second.url}/a.bin")
            if PLACES[target] <= PLACES[sender]:
                assert await store.read("a.bin") == DATA
                return
            with pytest.raises(UntrustedHost, match=f"is {target}, a {PLACES[target].name.lower()} address") as caught:
                await store.read("a.bin", ByteRange(3, 9))
            assert (caught.value.address, caught.value.offset) == (f"{first.url}/a.bin", 3)
            with pytest.raises(UntrustedHost):
                await store.head("a.bin")
            assert second.connections == 0

    with override_host_names(names):
        asyncio.run(read())


@pytest.mark.usefixtures("world")
def test_a_chain_of_redirects_stays_in_the_smallest_scope():
    # From this machine to the world, which sends us to this machine: to the very server of the first request.
    async def read():
        async with (
            HttpServer({"a.bin": DATA, "secret": b"s"}, host="127.0.0.6") as near,
            HttpServer({"a.bin": DATA}, host="127.0.0.2") as far,
            HttpStore(near.url) as store,
        ):
            assert await store.read("a.bin") == DATA  # there is a connection that could be used again
            near.fault = redirected(f"{far.url}/a.bin", times=1)
            far.fault = redirected(f"{near.url}/secret")
            with pytest.raises(UntrustedHost):
                await store.read("a.bin")
            assert [request.target for request in near.requests] == ["/a.bin", "/a.bin"]

    asyncio.run(read())


@pytest.mark.usefixtures("world")
def test_a_name_that_changes_its_address_gains_nothing():
    # First it is a public address; for the redirect to another port of the same name it is this machine.
    async def read():
        async with (
            HttpServer({"a.bin": DATA}, host="127.0.0.2", name="rebind.test") as first,
            HttpServer({"a.bin": DATA}, host="127.0.0.1", name="rebind.test") as second,
            HttpStore(first.url) as store,
        ):
            first.fault = redirected(f"{second.url}/a.bin")
            with pytest.raises(UntrustedHost, match=r"rebind\.test is 127\.0\.0\.1"):
                await store.read("a.bin")
            assert second.connections == 0

    with override_host_names({"rebind.test": ["127.0.0.2", "127.0.0.1"]}):
        asyncio.run(read())


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/",
        "http://0.0.0.0:{port}/a.bin",
        "http://[::]:{port}/a.bin",
        "http://[::ffff:169.254.169.254]/",
        "http://224.0.0.1/",
    ],
)
def test_some_addresses_are_never_redirected_to(location):
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = redirected(location.format(port=server.url.rpartition(":")[2]))
            with pytest.raises(UntrustedHost, match="link-local"):
                await store.read("a.bin")
            assert len(server.requests) == 1

    asyncio.run(read())


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
def test_embedded_addresses_are_classified(host):
    # A public server sends us to this machine, in the ways in which old programs write its address.
    async def read():
        async with (
            HttpServer({"a.bin": DATA}, host="127.0.0.2") as public,
            HttpServer({"a.bin": DATA}) as here,
            HttpStore(public.url) as store,
        ):
            public.fault = redirected(f"http://{host}:{here.url.rpartition(':')[2]}/a.bin")
            with pytest.raises((UntrustedHost, ProtocolError)):
                await store.read("a.bin")
            assert here.connections == 0

    asyncio.run(read())


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("scope", ["public", "private", "loopback", "any"])
@pytest.mark.parametrize("place", ["127.0.0.2", "127.0.0.4", "127.0.0.6"])
@pytest.mark.parametrize("named", [False, True])
def test_the_scope_of_a_server_can_be_restricted(scope, place, named):
    near = {"any": AddressScope.SPECIAL}.get(scope) or AddressScope[scope.upper()]

    async def read():
        async with (
            HttpServer({"a.bin": DATA}, host=place, name="a.test" if named else None) as server,
            HttpStore(server.url, scope=scope) as store,
        ):
            if PLACES[place] <= near:
                assert await store.read("a.bin") == DATA
            else:
                with pytest.raises(UntrustedHost):
                    await store.read("a.bin")
                assert server.connections == 0

    with override_host_names({"a.test": [place]}):
        asyncio.run(read())


@pytest.mark.parametrize(
    "answer", [b"220 page-of-the-inside ready\r\n", b"HTTP/1.1 200 page-of-the-inside\r\nA\r\n\r\n"]
)
def test_a_service_that_is_no_web_server_is_not_quoted(answer):
    # A server on this machine sends us to another port of it, where mail or a database is served.
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def read():
        inner = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
                server.fault = redirected(f"http://127.0.0.1:{inner.sockets[0].getsockname()[1]}/")
                with pytest.raises(ProtocolError) as caught:
                    await store.read("a.bin")
                return f"{caught.value} {caught.value!r} {caught.value.__cause__}"
        finally:
            inner.close()
            await inner.wait_closed()

    assert "page-of-the-inside" not in asyncio.run(read())


def test_a_redirect_to_a_host_with_forbidden_characters_is_refused():
    async def read(location):
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = redirected(location)
            with pytest.raises(ProtocolError, match="redirects to"):
                await store.read("a.bin")

    for location in ("http://a;b/", "http://$(id)/", "http://-a/", "http://a`b/"):
        asyncio.run(read(location))


# --- cookies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", [{}, {"headers": {"cookie": "mine=1"}}])
def test_a_server_that_checks_for_its_cookie_is_served(user):
    async def answer(request):
        if request.cookies.get("seen") != "yes":
            raise web.HTTPFound(request.path_qs, headers={"Set-Cookie": "seen=yes; Path=/; HttpOnly"})
        assert request.cookies.get("mine") == ((user and "1") or None)
        return web.Response(body=DATA, headers={"ETag": '"1"'})

    async def read():
        async with serving(answer) as url, HttpStore(url, **user) as store:
            assert (await store.head("a.bin")).size == len(DATA)
            assert await store.read("a.bin") == DATA

    asyncio.run(read())


def test_a_login_at_another_server_leads_back_and_shares_no_cookie():
    logins = []

    async def read():
        async def login(request):
            assert "token" not in request.cookies
            logins.append(request.cookies.get("login"))
            if "login" not in request.cookies:
                raise web.HTTPFound(request.path_qs, headers={"Set-Cookie": "login=1"})
            raise web.HTTPFound(f"{urls[0]}/back")

        async def data(request):
            assert "login" not in request.cookies
            if request.path == "/back":
                raise web.HTTPFound("/a.bin", headers={"Set-Cookie": "token=2"})
            if request.cookies.get("token") != "2":
                raise web.HTTPFound(urls[1])
            return web.Response(body=DATA)

        async with serving(data) as first, serving(login) as second, HttpStore(first) as store:
            urls[:] = first, second.replace("127.0.0.1", "localhost")
            assert await store.read("a.bin") == DATA
            assert logins == [None, "1"]
            assert await store.read("a.bin") == DATA
            assert logins == [None, "1"] * 2, "no cookie outlives its request"

    urls = []
    asyncio.run(read())


def test_a_circle_that_sets_new_cookies_ends():
    async def answer(request):
        raise web.HTTPFound(request.path_qs, headers={"Set-Cookie": f"n={int(request.cookies.get('n', '0')) + 1}"})

    async def read():
        async with serving(answer) as url, HttpStore(url) as store:
            with pytest.raises(LimitExceeded):
                await store.read("a.bin")

    asyncio.run(read())
