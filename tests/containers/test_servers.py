"""Containers on real servers: their members are those of a local folder, whatever the store can list."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import zipfile
import zlib

import pytest
from canaries import canary
from made_clips import make_clip
from servers.nginx_fixture import USER

import streamloader as sl
from streamloader.containers.pack.build import PackBuilder

TEXTS = {
    f"texts/part-{number:02}.txt": bytes((number * 37 + at * 11) % 251 for at in range(300 + 977 * number))
    for number in range(5)
}
ENDINGS = (".tar", ".tar.gz", ".tar.zst", ".zip", ".pack")
STORES = ("ssh", "s3", "ipfs", "http")
FAST = {("ssh", ".tar"), ("ssh", ".pack"), ("s3", ".zip"), ("ipfs", ".tar.zst"), ("http", ".tar.gz")}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The files that lie in each container."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_clip(path, frames=19, gop=6)
    return {**TEXTS, "videos/clip.mp4": path.read_bytes()}


@pytest.fixture(scope="module")
def folder(members, tmp_path_factory):
    """The same files in a local folder."""
    folder = tmp_path_factory.mktemp("files")
    for name, data in members.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Zlib:
    """What compresses the members of packs."""

    method = 1
    compress, decompress = staticmethod(zlib.compress), staticmethod(zlib.decompress)


def pack(ending, members):
    file = io.BytesIO()
    if ending == ".pack":
        builder = PackBuilder(file, compressor=Zlib())
        for name, data in sorted(members.items()):
            builder.add(name, data)
        builder.finish()
        return file.getvalue()
    if ending == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz" if ending == ".tar.gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if ending == ".tar.zst":
        from backports import zstd

        return zstd.compress(file.getvalue())
    return file.getvalue()


@pytest.fixture(scope="module")
def put(request):
    """A function that writes an object to one of the servers, and returns its address and the options of its store."""
    fixtures = {"ssh": "ssh_server", "s3": "seaweed_server", "ipfs": "jsipfs_node", "http": "nginx_server"}
    store = request.param
    server = request.getfixturevalue(fixtures[store])

    def put_in_store(name, data):
        if store == "ssh":
            (server.data / name).write_bytes(data)
            return server.address(name), server.options()
        if store == "ipfs":
            return f"ipfs://{server.add({f'sets/{name}': data})['sets']}/{name}", {"rpc": server.rpc}
        if store == "http":
            server.put({f"sets/{name}": data})
            return f"{server.url}/private/sets/{name}", {"auth": (USER, canary("http-password"))}
        url = f"s3://{server.bucket('containers')}"

        async def write():
            async with sl.open_store(url, **server.options()) as opened:
                await opened.write(name, data)

        asyncio.run(write())
        return f"{url}/{name}", server.options()

    return put_in_store


def play(dataset):
    with sl.MultiStreamer(dataset, 2, 8, seed=3) as loader:
        return [{name: array.tobytes() for name, array in batch.numpy().items()} for batch in loader]


@pytest.mark.parametrize(
    ("put", "ending"),
    [
        pytest.param(store, ending, marks=() if (store, ending) in FAST else pytest.mark.slow)
        for store in STORES
        for ending in ENDINGS
    ],
    indirect=["put"],
)
def test_members_on_servers_are_the_files(put, ending, members, folder):
    address, options = put(f"set{ending}", pack(ending, members))
    texts = sl.TextStreams(f"{address}!/texts/*.txt", storage_options=options)
    assert play(texts) == play(sl.TextStreams(f"{folder}/texts/*.txt"))
    videos = sl.VideoStreams(f"{address}!/**/*.mp4", storage_options=options)
    assert play(videos) == play(sl.VideoStreams(f"{folder}/videos/clip.mp4"))

    async def read_all():
        async with (
            sl.open_container(address, **options) as container,
            contextlib.aclosing(container.iterate()) as pairs,
        ):
            return {info.path: b"".join([piece async for piece in pieces]) async for info, pieces in pairs}

    assert asyncio.run(read_all()) == members
