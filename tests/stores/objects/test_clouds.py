"""Requests and credentials of gs:// and az://, with a small server that imitates both."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from canaries import canary

from streamloader.errors import AccessDenied, ConfigError, NotFound, ObjectChanged, ServerBusy
from streamloader.stores.registry import open_store
from streamloader.testing.faults.shutdown import stop_web_runner
from streamloader.values import ByteRange

DATA = bytes(range(256)) * 40
TAG = '"0x8D4BCC2E4835CD0"'


@pytest.fixture(autouse=True)
def _no_own_credentials(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)


@asynccontextmanager
async def cloud(allowed):
    """Serve one object. Yield the server's address and its requests.

    Args:
        allowed: "header" or "query", and the text that it must contain. None allows all requests.
    """
    seen = []

    async def answer(request):
        seen.append(request)
        kind, wanted = allowed
        credentials = request.headers.get("Authorization", "") if kind == "header" else request.query_string
        if wanted is not None and not credentials.startswith(wanted) and wanted not in credentials:
            return web.Response(
                status=403, text=f"<Error><Code>AuthenticationFailed</Code><Message>{credentials}</Message></Error>"
            )
        if request.path.endswith("busy.bin"):
            return web.Response(status=503, text="<Error><Code>ServerBusy</Code></Error>")
        if not request.path.endswith("a.bin"):
            return web.Response(status=404, text="<Error><Code>BlobNotFound</Code></Error>")
        headers = {"ETag": TAG, "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
        if request.headers.get("If-Match", TAG) != TAG:
            return web.Response(status=412, text="<Error><Code>ConditionNotMet</Code></Error>")
        requested = request.headers.get("x-ms-range") or request.headers.get("Range")
        if requested is None:
            return web.Response(body=DATA, headers=headers)
        first, _, last = requested.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(DATA) - int(last)
        end = min(len(DATA), int(last) + 1) if first and last else len(DATA)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(DATA)}"
        return web.Response(status=206, body=DATA[start:end], headers=headers)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", seen
    finally:
        await stop_web_runner(runner)


KEY = "a2V5IG9mIHRoZSBhY2NvdW50"  # base64, as account keys are


async def provided():
    return {"token": canary("gs-token"), "expires_at": None}


CASES = [
    ("gs://bucket", {"token": canary("gs-token")}, ("header", f"Bearer {canary('gs-token')}")),
    ("gs://bucket", {"credential_provider": provided}, ("header", f"Bearer {canary('gs-token')}")),
    ("gs://bucket", {"anonymous": True}, ("header", None)),
    ("az://box", {"account_name": "acc", "account_key": KEY}, ("header", "SharedKey acc:")),
    ("az://box", {"account_name": "acc", "sas_token": f"?sv=1&sig={canary('az-key')}"}, ("query", canary("az-key"))),
    ("az://box", {"account_name": "acc", "token": canary("az-key")}, ("header", f"Bearer {canary('az-key')}")),
    ("az://box", {"connection_string": f"AccountName=acc;AccountKey={KEY}"}, ("header", "SharedKey acc:")),
    ("az://box", {"account_name": "acc", "anonymous": True}, ("header", None)),
]


@pytest.mark.parametrize(("url", "options", "allowed"), CASES)
def test_reads_with_credentials(url, options, allowed):
    async def read():
        async with cloud(allowed) as (endpoint, seen):
            async with open_store(url, endpoint_url=endpoint, retry=None, **options) as store:
                info = await store.head("dir/a.bin")
                assert (info.size, info.version) == (len(DATA), TAG.strip('"'))
                assert await store.read("dir/a.bin", version=info.version) == DATA
                for span in (ByteRange(5, 700), ByteRange(-9), ByteRange(100)):
                    start, end = span.within(len(DATA))
                    assert await store.read("dir/a.bin", span, version=info.version) == DATA[start:end]
                with pytest.raises(ObjectChanged):
                    await store.read("dir/a.bin", version="another")
                with pytest.raises(NotFound):
                    await store.read("none")
                with pytest.raises(ServerBusy):
                    await store.read("busy.bin")
            if options.get("anonymous"):
                assert not any("Authorization" in request.headers for request in seen)

    asyncio.run(read())


@pytest.mark.parametrize(("url", "options", "allowed"), CASES)
def test_refused_credentials_are_not_shown(url, options, allowed):
    # Like some servers, this one quotes the credentials in its error.
    async def read():
        async with (
            cloud(("header", "nobody")) as (endpoint, _),
            open_store(url, endpoint_url=endpoint, retry=None, **options) as store,
        ):
            with pytest.raises(AccessDenied) as caught:
                await store.read("a.bin")
            assert KEY not in f"{caught.value} {caught.value.details}"

    asyncio.run(read())


def test_emulators_of_variables(monkeypatch):
    async def read(url):
        async with open_store(url, retry=None) as store:
            return await store.read("a.bin")

    async def both():
        async with cloud(("header", None)) as (endpoint, _):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint.removeprefix("http://"))
            assert await read("gs://bucket") == DATA
            connection = f"AccountName=acc;AccountKey={KEY};BlobEndpoint={endpoint}/acc"
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            assert await read("az://box") == DATA

    asyncio.run(both())


def test_azure_needs_an_account():
    async def read():
        async with open_store("az://box", retry=None) as store:
            with pytest.raises(ConfigError, match="account_name"):
                await store.read("a.bin")

    asyncio.run(read())
