"""obstore connects only to the server of the bucket, and asks metadata services only for servers of their cloud."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest
import servers.obstore_threads  # noqa: F401
from canaries import canary

from streamloader.errors import AccessDenied, StoreError, UntrustedHost
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.objects.aws_profiles import ProfileCredentials
from streamloader.stores.objects.config import ObjectStoreConfig
from streamloader.stores.objects.credentials import NoCredentials
from streamloader.stores.objects.machine_credentials import InstanceCredentials
from streamloader.stores.registry import open_store
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.testing.faults.redirects import InnerServer, RedirectServer, override_address_scopes

KEYS = {
    "access_key_id": "key-id",
    "secret_access_key": canary("s3-secret-key"),
    "session_token": canary("s3-session-token"),
    "retry": None,
}
CLOUDS = {
    "s3://bucket": KEYS,
    "gs://bucket": {"token": canary("gs-token"), "retry": None},
    "az://box": {"account_name": "acc", "token": canary("az-key"), "retry": None},
}


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "GCE_", "STORAGE_EMULATOR", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


async def listed(store):
    return [info async for info in store.list("")]


SERVICE = "http://169.254.169.254"
WORKS = {
    "read": lambda store: store.read("a.bin"),
    "head": lambda store: store.head("a.bin"),
    "list": listed,
    "write": lambda store: store.write("a.bin", b"x" * 100),
    "delete": lambda store: store.delete("a.bin"),
}


async def fail(url, work="read", **options):
    async with open_store(url, **options) as store:
        with pytest.raises(StoreError) as caught:
            await WORKS[work](store)
        return caught.value


@pytest.mark.parametrize("url", CLOUDS)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_redirects_to_another_server_are_refused(url, work, name):
    with InnerServer(name=name) as inner, RedirectServer(f"{inner.url}/bucket/a.bin", status=307, name=name) as outer:
        error = asyncio.run(fail(url, work, endpoint_url=outer.url, **CLOUDS[url]))
        assert outer.requests
        assert inner.requests == []
    assert isinstance(error, UntrustedHost) or work == "write"  # uploads are not redirected in the first place
    assert "endpoint_url=" in str(error)


@pytest.mark.parametrize("target", ["http", "https"])
def test_redirects_of_an_encrypted_server_are_refused(target):
    certificate = make_certificate()

    async def read():
        async with (
            HttpServer({"bucket/a.bin": b"x"}, tls=certificate.server_context(), name="localhost") as outer,
            HttpServer({"a.bin": b"y"}, tls=certificate.server_context() if target == "https" else None) as inner,
        ):
            outer.fault = HttpFault("redirect", location=f"{inner.url}/a.bin", everywhere=True, methods=("GET", "HEAD"))
            options = {"allow_invalid_certificates": True}  # this one is its own authority
            error = await fail("s3://bucket", endpoint_url=outer.url, client_options=options, **KEYS)
            assert outer.requests
            assert inner.connections == 0
            return error

    assert isinstance(asyncio.run(read()), UntrustedHost)


def test_a_redirect_within_the_server_is_followed():
    async def read():
        async with HttpServer({"bucket/a.bin": b"x", "bucket/b.bin": b"moved"}) as server:
            server.fault = HttpFault("redirect", location="/bucket/b.bin", everywhere=True, times=1)
            async with open_store("s3://bucket", endpoint_url=server.url, **KEYS) as store:
                assert await store.read("a.bin") == b"moved"
            assert "x-amz-security-token" in server.requests[-1].headers

    asyncio.run(read())


def test_a_name_keeps_its_first_address_until_the_server_is_gone():
    # Then it is resolved again, but a public name is not followed into the inside.
    async def read():
        with override_host_names({"s3.test": ["127.0.0.2", "127.0.0.3", "127.0.0.1"]}):
            async with HttpServer({"bucket/a.bin": b"first"}, host="127.0.0.2", name="s3.test") as server:
                store = open_store("s3://bucket", endpoint_url=server.url, **KEYS)
                port = int(server.url.rpartition(":")[2])
                assert await store.read("a.bin") == b"first"
                assert await store.read("a.bin") == b"first"
            with pytest.raises(StoreError):
                await store.read("a.bin")
            with pytest.raises(StoreError):  # the second address, where nothing listens
                await store.read("a.bin")
            inner = await asyncio.start_server(lambda *_: touched.append(1), "127.0.0.1", port)
            try:
                with pytest.raises(UntrustedHost, match="DNS rebinding"):
                    await store.read("a.bin")
            finally:
                inner.close()
                await inner.wait_closed()
            await store.aclose()

    touched = []
    public = dict.fromkeys(["127.0.0.2", "127.0.0.3"], AddressScope.PUBLIC)
    with override_address_scopes(public):
        asyncio.run(read())
    assert touched == []


def test_a_name_with_several_addresses_finds_the_server():
    async def read():
        async with (
            HttpServer({"bucket/a.bin": b"x"}, name="localhost") as server,
            open_store("s3://bucket", endpoint_url=server.url, **KEYS) as store,
        ):
            assert await store.read("a.bin") == b"x"

    asyncio.run(read())


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_the_proxy_of_the_environment_gets_all_requests(variable, monkeypatch):
    with InnerServer() as proxy, contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv(variable, proxy.url)
        error = asyncio.run(fail("s3://bucket", endpoint_url=f"http://s3.test:{unused.getsockname()[1]}", **KEYS))
        assert [request.line.split()[1].partition("/a.bin")[1] for request in proxy.requests] == ["/a.bin"]
        assert isinstance(error, AccessDenied)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with RedirectServer(proxy.url) as outer:
            asyncio.run(fail("s3://bucket", endpoint_url=outer.url, **KEYS))
        assert len(proxy.requests) == 1


# --- metadata services -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_metadata_services_of_other_clouds_are_asked_for_their_own_servers_only(scheme):
    options = {"account_name": "acc"} if scheme == "az" else {}
    for endpoint in (None, "https://cloud.test"):
        settings = ObjectStoreConfig(scheme=scheme, bucket="bucket", endpoint_url=endpoint, **options).find_settings()
        assert ("169.254.169.254" in settings.credential_hosts) == (settings.provider is None) == (endpoint is None)


@pytest.mark.parametrize("url", CLOUDS)
def test_nothing_asks_a_metadata_service_by_itself(url):
    # The server is also the only one that obstore could ask through the fence.
    options = {"account_name": "acc"} if url.startswith("az") else {}
    with InnerServer() as server:
        error = asyncio.run(fail(url, endpoint_url=server.url, retry=None, **options))
        assert server.requests == []
    assert isinstance(error, AccessDenied)
    assert "no credentials" in str(error)
    assert "metadata service" in str(error)


def test_a_metadata_service_that_the_environment_names_is_asked(monkeypatch):
    with InnerServer() as metadata, InnerServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        error = asyncio.run(fail("s3://bucket", endpoint_url=server.url, retry=None))
        assert metadata.requests[0].line.split()[1].startswith("/latest/")
        assert server.requests == []
    assert isinstance(error, AccessDenied)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://localhost:9", "https://s3.test"])
def test_the_credentials_of_a_container_are_asked_for(endpoint, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(canary("s3-session-token"))
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    with InnerServer() as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/credentials")
        asyncio.run(fail("s3://bucket", endpoint_url=endpoint, retry=None))
        assert [request.line for request in agent.requests] == ["GET /credentials HTTP/1.1"]


@pytest.mark.parametrize(
    ("variables", "for_amazon", "for_others"),
    [
        ({}, True, False),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, False, False),
        ({"AWS_EC2_METADATA_DISABLED": "true", "AWS_EC2_METADATA_SERVICE_ENDPOINT": SERVICE}, False, False),
        ({"AWS_EC2_METADATA_DISABLED": "false"}, True, True),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{SERVICE}/"}, True, True),
        ({"AWS_METADATA_ENDPOINT": SERVICE}, True, True),
    ],
)
@pytest.mark.parametrize("endpoint", [None, "https://s3.test"])
def test_when_the_metadata_service_of_amazon_is_asked(variables, for_amazon, for_others, endpoint, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    allowed = for_others if endpoint else for_amazon
    settings = ObjectStoreConfig(scheme="s3", bucket="bucket", endpoint_url=endpoint).find_settings()
    assert ("169.254.169.254" in settings.credential_hosts) == allowed
    assert isinstance(settings.provider, InstanceCredentials if allowed else NoCredentials)
    for options in ({"access_key_id": "a", "secret_access_key": "b"}, {"anonymous": True}):
        settings = ObjectStoreConfig(scheme="s3", bucket="bucket", endpoint_url=endpoint, **options).find_settings()
        assert settings.credential_hosts == ()


@pytest.mark.parametrize(
    ("lines", "variables", "allowed"),
    [
        ("sso_start_url = https://x.test", {}, False),
        ("role_arn = arn:x", {"AWS_EC2_METADATA_DISABLED": "true"}, False),
        ("role_arn = arn:x", {"AWS_EC2_METADATA_DISABLED": "false"}, True),
        ("role_arn = arn:x\ncredential_source = Ec2InstanceMetadata", {}, True),
        ("role_arn = arn:x\ncredential_source = Environment", {}, False),
    ],
)
def test_boto3_asks_the_metadata_service_only_if_the_user_says_so(lines, variables, allowed, tmp_path, monkeypatch):
    # It is the last resort of boto3 for a profile of any kind. Zero attempts keep it from that.
    (tmp_path / "config").write_text(f"[profile p]\n{lines}\n")
    for name, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **variables}.items():
        monkeypatch.setenv(name, value)
    settings = {}

    class CoreSession:
        def __init__(self, profile):
            settings["profile"] = profile

        def set_config_variable(self, name, value):
            settings[name] = value

    class Session:
        def __init__(self, botocore_session):
            assert isinstance(botocore_session, CoreSession)

        def get_credentials(self):
            keys = SimpleNamespace(access_key="key-id", secret_key="key-text", token=None)
            return SimpleNamespace(get_frozen_credentials=lambda: keys)

    modules = {"boto3": {"Session": Session}, "botocore.session": {"Session": CoreSession}}
    modules["botocore.exceptions"] = {"BotoCoreError": KeyError, "ClientError": KeyError}
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    assert asyncio.run(ProfileCredentials("p")())["access_key_id"] == "key-id"
    assert settings == {"profile": "p", **({} if allowed else {"metadata_service_num_attempts": 0})}
