"""Proxies and certificate authorities of the environment: the same for all stores that speak HTTP."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import ipaddress
import os
import ssl
from pathlib import Path

import pytest
import servers.obstore_threads  # noqa: F401
from canaries import canary
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from servers.proxy import serve_proxy

from streamloader.errors import AccessDenied, ConfigError, ServerBusy, Unreachable, UntrustedHost
from streamloader.stores.environment import CA_VARIABLES, find_proxy
from streamloader.stores.registry import open_store
from streamloader.testing.faults.certificates import Certificate, make_certificate
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.testing.faults.ipfs_dags import DagBuilder
from streamloader.testing.faults.ipfs_gateway import FaultyGateway
from streamloader.values import ByteRange

DATA = bytes(range(256)) * 2_000
S3 = {"access_key_id": "AKPROXY", "secret_access_key": "checked-by-nobody"}


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *CA_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def read_all(url, path, **options):
    async with open_store(url, retry=None, **options) as store:
        info = await store.head(path)
        assert await store.read(path, ByteRange(5, 9), version=info.version, size=info.size) == DATA[5:9]
        return await store.read(path)


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_reaches_a_host_that_only_it_can_resolve(variable, monkeypatch):
    async def main():
        async with (
            HttpServer({"a.bin": DATA}, name="hidden.test") as server,
            serve_proxy({"hidden.test": "127.0.0.1"}) as proxy,
        ):
            monkeypatch.setenv(variable, proxy.url)
            assert await read_all(server.url, "a.bin") == DATA
            assert proxy.requests[0] == f"HEAD {server.url}/a.bin"

    asyncio.run(main())


def test_a_tunnel_keeps_the_encryption_and_the_credentials_from_the_proxy(monkeypatch, tmp_path):
    certificate = make_certificate(["hidden.test"])
    (tmp_path / "ca.pem").write_bytes(certificate.pem)
    password = canary("http-password")

    async def main():
        async with (
            HttpServer({"a.bin": DATA}, tls=certificate.server_context(), name="hidden.test") as server,
            serve_proxy({"hidden.test": "127.0.0.1"}) as proxy,
        ):
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", f"//me:{password}@"))
            found = await read_all(server.url, "a.bin", token=canary("http-bearer"), ca_file=tmp_path / "ca.pem")
            assert found == DATA
            assert {request.split(" ")[0] for request in proxy.requests} == {"CONNECT"}
            login = base64.b64encode(f"me:{password}".encode()).decode()
            assert all(headers["proxy-authorization"] == f"Basic {login}" for headers in proxy.headers)
            assert not any("authorization" in headers for headers in proxy.headers)
            assert all(request.headers["authorization"].startswith("Bearer") for request in server.requests)
            assert not any("proxy-authorization" in request.headers for request in server.requests)

    asyncio.run(main())


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "other.test,127.0.0.1"])
def test_hosts_without_proxy_are_connected_to_directly(exempt, monkeypatch):
    async def main():
        async with HttpServer({"a.bin": DATA}) as server, serve_proxy() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("NO_PROXY", exempt)
            assert await read_all(server.url, "a.bin") == DATA
            assert proxy.requests == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "exceptions", "is_exempt"),
    [
        ("http://a.example.com", "example.com", True), ("http://a.example.com", ".example.com", True),
        ("http://a.example.com", "*.example.com", True), ("http://example.com", ".example.com", True),
        ("http://badexample.com", "example.com", False), ("http://badexample.com", "*.example.com", False),
        ("http://H.Example.Com.", "h.example.COM", True), ("http://h", "h.", True), ("http://x", "a, *", True),
        ("http://k", " h , k ", True), ("http://k", "h k", True), ("http://k", ",,", False), ("http://k", "", False),
        ("http://h:8080", "h:8080", True), ("http://h:8081", "h:8080", False), ("http://h", "h:80", True),
        ("https://h", "h:443", True), ("https://h", "h:80", False), ("http://u:p@h:8080", "h", True),
        ("http://[::1]:8080", "::1", True), ("http://[::1]", "[::1]", True), ("http://[::1]:81", "[::1]:81", True),
        ("http://[::1]:82", "[::1]:81", False), ("http://[fe80::1]", "fe80::/10", True),
        ("http://[2001:db8::5]", "2001:DB8:0:0::5", True), ("http://10.1.2.3:81", "10.0.0.0/8", True),
        ("http://11.1.2.3", "10.0.0.0/8", False), ("http://10.1.2.3", "10.0.0.0/99", False),
        ("http://10.1.2.30", "10.1.2.3", False), ("http://110.1.2.3", "10.1.2.3", False),
        ("http://10.1.2.3", "2.3", False), ("http://xn--bcher-kva.de", "b\u00fccher.de", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_exceptions_to_the_proxy(url, exceptions, is_exempt, name, monkeypatch):
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ALL_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv(name, exceptions)
    assert find_proxy(url) == (None if is_exempt else "http://proxy.test:3128")


@pytest.mark.parametrize(
    "proxy",
    ["http://", "http://pro xy", "http://proxy:99999", "http://me:wo#rd@proxy:1", "http://me:wo/rd@proxy:1", "://"],
)
def test_a_malformed_proxy_is_an_error_without_its_password(proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY or ALL_PROXY is malformed") as caught:
        find_proxy("https://host.test")
    assert "me:" not in str(caught.value)


def test_the_proxy_gets_the_requests_after_a_redirect_too(monkeypatch):
    async def main():
        async with HttpServer({"a.bin": DATA}) as server, HttpServer({"a.bin": b""}) as outer, serve_proxy() as proxy:
            outer.fault = HttpFault("redirect", location=f"{server.url}/a.bin", methods=("GET", "HEAD"))
            monkeypatch.setenv("http_proxy", proxy.url)
            assert await read_all(outer.url, "a.bin", token=canary("http-bearer")) == DATA
            assert f"HEAD {server.url}/a.bin" in proxy.requests
            assert not any("authorization" in request.headers for request in server.requests)

    asyncio.run(main())


def test_ipfs_uses_the_proxy(monkeypatch):
    dag = DagBuilder()
    entry = dag.file(DATA)

    async def main():
        async with FaultyGateway(dag.blocks) as gateway, serve_proxy() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            assert await read_all("ipfs://", str(entry.cid), gateways=gateway.url) == DATA
            assert proxy.requests
            assert all(gateway.url in request for request in proxy.requests)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind"), [(407, AccessDenied), (403, AccessDenied), (502, Unreachable), (503, Unreachable)]
)
def test_a_proxy_that_refuses_plain_requests_is_named(status, kind, monkeypatch):
    async def main():
        async with serve_proxy() as proxy:
            proxy.status = status
            monkeypatch.setenv("http_proxy", proxy.url)
            with pytest.raises((kind, ServerBusy), match="proxy" if status == 407 else str(status)):
                await read_all("http://host.test", "a.bin")

    asyncio.run(main())


def test_a_proxy_that_is_away_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    for url in ("http://host.test", "https://host.test"):
        with pytest.raises(Unreachable, match=r"the proxy of the environment cannot be reached.*NO_PROXY"):
            asyncio.run(read_all(url, "a.bin"))


@pytest.mark.parametrize(
    ("status", "kind"), [(407, AccessDenied), (403, AccessDenied), (502, Unreachable), (503, Unreachable)]
)
@pytest.mark.parametrize("url", ["https://host.test", "ipfs://"])
def test_a_proxy_that_refuses_is_named(status, kind, url, monkeypatch):
    options = {"gateways": "https://host.test"} if url.startswith("ipfs") else {}
    path = str(DagBuilder().file(DATA).cid) if options else "a.bin"

    async def main():
        async with serve_proxy() as proxy:
            proxy.status = status
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", f"//me:{canary('http-password')}@"))
            with pytest.raises(kind, match="proxy") as caught:
                await read_all(url, path, **options)
            assert canary("http-password") not in str(caught.value)
            assert "NO_PROXY" in str(caught.value)

    asyncio.run(main())


def test_a_proxy_that_is_none_for_http(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://me:word@127.0.0.1:1080")
    with pytest.raises(ConfigError, match="NO_PROXY") as caught:
        find_proxy("https://host.test")
    assert "word" not in str(caught.value)
    monkeypatch.setenv("ALL_PROXY", "proxy.test:3128")
    assert find_proxy("https://host.test") == "http://proxy.test:3128"


# --- certificate authorities -----------------------------------------------------------------------------------------


def make_certificates():
    """Return a server's certificate, and the PEM of the authority that signed it."""
    key, authority_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("server", "authority")]

    def usage(is_authority):
        return x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=is_authority, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip

    def build(subject, public_key, *, is_authority):
        names_of_hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(names[1])
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names_of_hosts), critical=False)
            .add_extension(usage(is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(  # Python 3.13 wants these three
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    authority = build(names[1], authority_key.public_key(), is_authority=True)
    return Certificate(build(names[0], key.public_key(), is_authority=False), private), authority


async def read_over_tls(kind, certificate, **options):
    if kind == "ipfs":
        dag = DagBuilder()
        path = str(dag.file(DATA).cid)
        async with FaultyGateway(dag.blocks, tls=certificate.server_context()) as gateway:
            return await read_all("ipfs://", path, gateways=gateway.url, **options)
    async with HttpServer(
        {"a.bin": DATA, "bucket/a.bin": DATA}, tls=certificate.server_context(), name="localhost"
    ) as server:
        if kind == "s3":
            return await read_all("s3://bucket", "a.bin", endpoint_url=server.url, **S3, **options)
        return await read_all(server.url, "a.bin", **options)


@pytest.mark.parametrize("kind", ["http", "ipfs", "s3"])
@pytest.mark.parametrize("way", ["ca_file", *CA_VARIABLES])
@pytest.mark.parametrize("bundled", [False, True])
def test_an_own_certificate_authority_is_trusted_everywhere(kind, way, bundled, monkeypatch, tmp_path):
    certificate, authority = make_certificates()
    others = Path(ssl.get_default_verify_paths().cafile or os.devnull).read_bytes() if bundled else b""
    (tmp_path / "ca.pem").write_bytes(others + authority)
    with pytest.raises(UntrustedHost):
        asyncio.run(read_over_tls(kind, certificate))
    options = {}
    if way == "ca_file":
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))  # the option comes first
        options = {"ca_file": tmp_path / "ca.pem"}
    else:
        monkeypatch.setenv(way, str(tmp_path / "ca.pem"))
    assert asyncio.run(read_over_tls(kind, certificate, **options)) == DATA


@pytest.mark.parametrize("kind", ["http", "ipfs", "s3"])
def test_a_file_without_certificates_is_named(kind, tmp_path):
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        asyncio.run(read_over_tls(kind, make_certificate(), ca_file=str(tmp_path / "ca.pem")))
