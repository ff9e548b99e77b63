"""Credentials that AWS gives to a machine, from servers that speak its protocols by its documents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from canaries import canary
from faults.s3_server import PlainS3
from tiers import fast_first

from streamloader.errors import AccessDenied, ConfigError, NotSupported, ServerBusy, UntrustedHost
from streamloader.stores.registry import open_store

TOKEN = canary("s3-session-token")
SECRET = canary("s3-secret-key")
ROLE = "arn:aws:iam::123456789012:role/reader"


@pytest.fixture(autouse=True)
def _no_own_settings(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


class Services:
    """The metadata service of an instance, the agent of a container, and STS. Each call returns other keys."""

    def __init__(self):
        self.calls = 0
        self.seen = []
        self.busy = 0
        self.lifetime = timedelta(hours=6)

    async def answer(self, request):  # noqa: PLR0911 - one for each service
        self.seen.append((request.method, request.path))
        if self.busy:
            self.busy -= 1
            return web.Response(status=503, headers={"Retry-After": "1"})
        if request.path == "/latest/api/token":
            allowed = request.method == "PUT" and "x-aws-ec2-metadata-token-ttl-seconds" in request.headers
            return web.Response(text="imds-token") if allowed else web.Response(status=400)
        if request.path.startswith("/latest/"):
            if request.headers.get("x-aws-ec2-metadata-token") != "imds-token":
                return web.Response(status=401)
            folder = "/latest/meta-data/iam/security-credentials/"
            if request.path == folder:
                return web.Response(text="my-role\n")
            return self.give({"Code": "Success"}) if request.path == f"{folder}my-role" else web.Response(status=404)
        if request.path == "/agent":
            allowed = request.headers.get("Authorization") == TOKEN
            return self.give({}) if allowed else web.Response(status=403, text='{"code": "Refused"}')
        form = parse_qs((await request.content.read()).decode())
        if form.get("WebIdentityToken") != [TOKEN] or form["Action"] != ["AssumeRoleWithWebIdentity"]:
            text = (
                "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no</Message></Error></ErrorResponse>"
            )
            return web.Response(status=400, text=text)
        assert (form["RoleArn"], form["Version"]) == ([ROLE], ["2011-06-15"])
        fields = json.loads(self.give({}).text)
        fields["SessionToken"] = fields.pop("Token")
        fields = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        return web.Response(text=f"<AssumeRoleWithWebIdentityResponse><Credentials>{fields}</Credentials></...>")

    def give(self, fields):
        self.calls += 1
        expires_at = (datetime.now(UTC) + self.lifetime).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {
            "AccessKeyId": f"AK{self.calls}",
            "SecretAccessKey": SECRET,
            "Token": "session",
            "Expiration": expires_at,
        }
        return web.json_response({**fields, **keys})


def use_instance(monkeypatch, url, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)


def use_container(monkeypatch, url, tmp_path):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/agent")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))


def use_web_identity(monkeypatch, url, tmp_path):
    (tmp_path / "identity").write_text(TOKEN)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "identity"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)


def use_profile(monkeypatch, url, tmp_path):
    (tmp_path / "identity").write_text(TOKEN)
    text = f"[default]\nrole_arn = {ROLE}\nweb_identity_token_file = {tmp_path / 'identity'}\n"
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)


SOURCES = [use_instance, use_container, use_web_identity, use_profile]


@contextlib.asynccontextmanager
async def serve(services):
    runner = web.ServerRunner(web.Server(services.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


def play(use, source, monkeypatch, tmp_path, **options):
    async def main():
        services = Services()
        keys = {f"a/{number}": b"x" for number in range(7)} | {"a//b": b"unusual"}
        async with serve(services) as url, PlainS3(keys) as server, asyncio.timeout(60):
            source(monkeypatch, url, tmp_path)
            server.page_keys = 3
            server.access_keys = {"AK1"}
            async with open_store("s3://bucket", **{"endpoint_url": server.url, "retry": None, **options}) as store:
                return await use(store, services, server)

    return asyncio.run(main())


@pytest.mark.parametrize("source", SOURCES)
def test_everything_works_with_them(source, monkeypatch, tmp_path):
    async def use(store, services, server):
        assert len([info async for info in store.list()]) == 8
        assert await store.read("a/0") == b"x"
        assert await store.read("a//b") == b"unusual"
        await store.write("a/8", b"y")
        assert services.calls == 1
        server.access_keys = {"AK2"}  # they expire hours before they say
        assert len([info async for info in store.list()]) == 9
        assert await store.read("a/8") == b"y"
        assert services.calls == 2

    play(use, source, monkeypatch, tmp_path)


@pytest.mark.parametrize("source", fast_first(SOURCES))
def test_they_are_renewed_when_they_expire(source, monkeypatch, tmp_path):
    async def use(store, services, server):
        server.access_keys = None
        services.lifetime = timedelta(seconds=150)  # of which some are a margin
        for _ in range(3):
            await store.read("a//b")
        assert services.calls == 3

    play(use, source, monkeypatch, tmp_path)


@pytest.mark.parametrize("source", fast_first(SOURCES))
def test_a_busy_service_is_transient(source, monkeypatch, tmp_path):
    async def use(store, services, _):
        services.busy = 2
        for work in (store.read("a/0"), store.read("a//b")):
            with pytest.raises(ServerBusy, match="credentials") as caught:
                await work
            assert caught.value.details["retry_after"] == 1
        assert await store.read("a/0") == b"x"

    play(use, source, monkeypatch, tmp_path)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("path", fast_first(["a/0", "a//b"]))
def test_a_refusal_says_who_refuses(source, path, monkeypatch, tmp_path):
    async def use(store, services, _):
        def refuse(fields):
            return web.Response(status=403, text="<Code>No</Code>")

        services.give = refuse
        if source in (use_web_identity, use_profile):
            (tmp_path / "identity").write_text("another")
        with pytest.raises(AccessDenied, match="no credentials") as caught:
            await store.read(path)
        assert "127.0.0.1" in str(caught.value)
        assert TOKEN not in str(caught.value)

    play(use, source, monkeypatch, tmp_path)


def test_nothing_answers(monkeypatch, tmp_path):
    for source in SOURCES[:2]:
        with monkeypatch.context() as patch:
            source(patch, "http://127.0.0.1:1", tmp_path)

            async def read():
                async with open_store("s3://bucket", endpoint_url="http://127.0.0.1:2", retry=None) as store:
                    with pytest.raises(AccessDenied, match=r"no credentials .*anonymous=True"):
                        [info async for info in store.list()]

            asyncio.run(read())


@pytest.mark.parametrize("path", ["a/0", "a//b"])
def test_a_server_cannot_redirect_to_the_metadata_service(path, monkeypatch, tmp_path):
    async def use(store, services, server):
        def intercept(*_):
            location = f"{os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT']}/latest/meta-data/stolen"
            return web.Response(status=307, headers={"Location": location})

        server.intercept = intercept
        with pytest.raises(UntrustedHost):
            await store.read(path)
        assert ("GET", "/latest/meta-data/stolen") not in services.seen

    play(use, use_instance, monkeypatch, tmp_path)


def test_the_token_of_a_container_is_not_sent_anywhere(monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://collector.example/agent")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN)

    async def read():
        async with open_store("s3://bucket", endpoint_url="http://127.0.0.1:2", retry=None) as store:
            await store.read("a")

    with pytest.raises(ConfigError, match="not encrypted"):
        asyncio.run(read())


def test_a_web_identity_needs_a_role(monkeypatch):
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere")

    async def read():
        async with open_store("s3://bucket", endpoint_url="http://127.0.0.1:2", retry=None) as store:
            await store.read("a")

    with pytest.raises(ConfigError, match="AWS_ROLE_ARN"):
        asyncio.run(read())


def test_keys_in_the_configuration_of_obstore_sign_everything():
    config = {"aws_access_key_id": "AK1", "aws_secret_access_key": SECRET}

    async def main():
        async with PlainS3({"a//b": b"unusual"}) as server:
            server.access_keys = {"AK1"}
            async with open_store("s3://bucket", endpoint_url=server.url, config=config, retry=None) as store:
                assert await store.read("a//b") == b"unusual"
            server.access_keys = None
            options = {"config": {"aws_skip_signature": True}}
            async with open_store("s3://bucket", endpoint_url=server.url, retry=None, **options) as store:
                assert [info.path async for info in store.list()] == ["a//b"]
            options = {"config": {"aws_skip_signature": True}, "client_options": {"default_headers": {}}}
            async with open_store("s3://bucket", endpoint_url=server.url, retry=None, **options) as store:
                with pytest.raises(NotSupported, match="client_options"):
                    await store.read("a//b")

    asyncio.run(main())
