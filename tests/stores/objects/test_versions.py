"""Versions of objects: S3's versionId, and Google's generation."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from faults.s3_server import PlainS3
from object_servers import run_beside
from tiers import only_fast

import streamloader as sl
from streamloader.errors import ConfigError, NotFound, ObjectChanged
from streamloader.redaction import identify_address, redact_address
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.registry import open_store
from streamloader.values import ByteRange

OPTIONS = {"access_key_id": "AKVERSIONS", "secret_access_key": "checked-by-nobody", "retry": None}
IDS = [
    "v1",
    "3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY+MTRCxvjVBH40Nr8X8gdRQBpUMLUo",
    "null",
    "UIORUnfndfiufdisojhr398493jfdkjFJjkndnqUifhnw89493jJFJ",
]
KEYS = ["a.txt", "dir/b c+%20.txt", "/lead//c.txt", "star*?.txt"]


def make_server():
    server = PlainS3(dict.fromkeys(KEYS, b"the newest of all"))
    for key in KEYS:
        for number, version_id in enumerate(IDS):
            server.versions[key, version_id] = b"version %d of " % number + key.encode()
        server.versions[key, "deleted"] = None
    return server


def play(use, address="s3://bucket", **options):
    async def main():
        async with make_server() as server, asyncio.timeout(60):
            store = open_store(address, **{**OPTIONS, "endpoint_url": server.url, **options})
            async with store:
                return await use(store, server)

    return asyncio.run(main())


@pytest.mark.parametrize("key", only_fast(KEYS, KEYS[1:3]))
@pytest.mark.parametrize("number", only_fast(range(len(IDS)), [1]))
def test_a_version_is_read_exactly(key, number):
    data = b"version %d of " % number + key.encode()
    path = f"{key}?versionId={IDS[number]}"

    async def read(store, _):
        info = await store.head(path)
        assert (info.path, info.size) == (path, len(data))
        assert await store.read(path) == data
        assert await store.read(path, ByteRange(3, 9), version=info.version, size=info.size) == data[3:9]
        assert await store.read(path, ByteRange(-4), version=info.version) == data[-4:]
        with pytest.raises(ObjectChanged):
            await store.read(path, version="0123456789abcdef")
        assert await store.read(key) == b"the newest of all"
        escaped = path.replace("/L4", "%2FL4")
        assert await store.read(escaped) == data

    play(read)


@pytest.mark.parametrize("key", only_fast(KEYS, KEYS[1:3]))
@pytest.mark.parametrize("version_id", ["deleted", "never-was"])
def test_a_version_that_is_gone_is_named(key, version_id):
    path = f"{key}?versionId={version_id}"

    async def read(store, _):
        for work in (store.head(path), store.read(path), store.read(path, ByteRange(1, 2))):
            with pytest.raises(NotFound, match="no such version") as caught:
                await work
            assert f"versionId={version_id}" in str(caught.value)

    play(read)


def test_versions_are_not_written_and_have_no_contents():
    async def refuse(store, _):
        for work in (store.write("a.txt?versionId=v1", b"x"), store.delete("a.txt?versionId=v1")):
            with pytest.raises(ConfigError, match="version"):
                await work
        with pytest.raises(ConfigError, match="version"):
            [info async for info in store.list("dir?versionId=v1")]

    play(refuse)
    with pytest.raises(ConfigError, match="version"):
        open_store("s3://bucket/dir?versionId=v1")


def test_versions_of_directories_and_patterns_are_refused():
    with run_beside(make_server()) as server:
        options = {**OPTIONS, "endpoint_url": server.url}
        for address in ("s3://bucket/dir/?versionId=v1", "s3://bucket/*.txt?versionId=v1", "s3://bucket/?versionId=v1"):
            with pytest.raises(ConfigError, match="version"):
                expand_addresses(address, None, options)
        (file,) = expand_addresses("s3://bucket/star*?.txt?versionId=v1", None, options)
        assert file.address == "s3://bucket/star*?.txt?versionId=v1"
        with pytest.raises(FileNotFoundError, match=r"no such version.*versionId=never"):
            expand_addresses("s3://bucket/a.txt?versionId=never", None, options)


def play_loader(loader, count=None):
    parts = {}
    for number, batch in enumerate(loader, 1):
        for row, ordinals, valid in zip(batch["data"], batch.stream, batch.valid, strict=True):
            for byte, ordinal in zip(np.asarray(row)[np.asarray(valid)], ordinals[valid], strict=True):
                key = loader.streams[int(ordinal)].key
                parts[key] = parts.get(key, b"") + bytes([int(byte)])
        if number == count:
            break
    return parts


def test_a_pinned_version_is_resumed_when_the_object_was_replaced():
    addresses = [f"s3://bucket/a.txt?versionId={version_id}" for version_id in IDS]
    with run_beside(make_server()) as server:
        options = {**OPTIONS, "endpoint_url": server.url}

        def load():
            return sl.MultiStreamer(sl.TextStreams(addresses, storage_options=options), batch_size=2, window=4, seed=3)

        with load() as loader:
            whole = play_loader(loader)
            assert sorted(whole) == sorted(addresses)
            assert sorted(whole.values()) == sorted(b"version %d of a.txt" % number for number in range(len(IDS)))
        with load() as loader:
            first = play_loader(loader, 2)
            state = loader.state_dict()
        server.objects["a.txt"] = b"replaced in the bucket since then"
        with load() as loader:
            loader.load_state_dict(state)
            rest = play_loader(loader)
        assert {key: first.get(key, b"") + rest.get(key, b"") for key in whole} == whole


def test_addresses_of_versions_are_shown_and_distinguished():
    for version_id in IDS:
        address = f"s3://bucket/a.txt?versionId={version_id}"
        assert redact_address(address) == address
        assert identify_address(address) == address
        assert redact_address(f"{address}!/b?token=secret") != f"{address}!/b?token=secret"
    assert redact_address("s3://bucket/a.txt?token=1&versionId=v1") == "s3://bucket/a.txt?token=***&versionId=***"
    assert "v1" not in redact_address("https://host/a.txt?versionId=v1")


def test_generations_of_google_are_read():
    seen = []

    async def answer(request):
        seen.append(request.query.get("generation"))
        if seen[-1] != "17":
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        headers = {"ETag": '"1"', "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
        return web.Response(body=b"old", headers=headers)

    async def main():
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        try:
            async with open_store("gs://bucket", endpoint_url=url, token="t0ken-of-nobody", retry=None) as store:
                assert (await store.head("a.bin?generation=17")).size == 3
                assert await store.read("a.bin?generation=17") == b"old"
                with pytest.raises(NotFound, match=r"no such version.*generation=18"):
                    await store.read("a.bin?generation=18")
        finally:
            await runner.cleanup()

    asyncio.run(main())
    assert seen == ["17", "17", "18"]
