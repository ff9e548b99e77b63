"""Objects of web servers that never end, with and without a declared size: every reader stops at a total."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading

import pytest
from servers.endless import DECLARED_BYTES, endless_server

import streamloader as sl
from streamloader.archive.ingest.sources import open_source
from streamloader.errors import LimitExceeded, NotSupported, StoreError, UnreadableStream
from streamloader.media.video.indexer import index_video
from streamloader.media.video.remote import RemoteVideo
from streamloader.stores.addresses import expand_addresses
from streamloader.stores.io_thread import close_shared_stores
from streamloader.stores.readahead import MAX_FILE_BYTES, RemoteFile
from streamloader.values import ObjectInfo

LIMITS = sl.Limits(object_bytes=1 << 20, unsized_bytes=2 << 20, header_bytes=2 << 20)
OPTIONS = {"limits": LIMITS, "retry": None}
IN_FLIGHT_BYTES = 24 << 20  # buffers of two sockets, and read-ahead


@pytest.fixture
def server():
    with endless_server() as server:
        yield server
        close_shared_stores()


def read(url, use):
    async def main():
        async with sl.open_store(url.rpartition("/")[0], **OPTIONS) as store:
            return await use(store, url.rpartition("/")[2])

    return asyncio.run(main())


async def stream(store, path):
    received = 0
    async with contextlib.aclosing(store.stream(path)) as pieces:
        async for piece in pieces:
            received += len(piece)
    return received


@pytest.mark.parametrize(
    ("path", "use", "limit"),
    [
        ("chunked/a.bin", lambda store, path: store.read(path), "object_bytes"),
        ("chunked/a.bin", lambda store, path: store.read(path, sl.ByteRange(10)), "object_bytes"),
        ("chunked/a.bin", stream, "unsized_bytes"),
        ("declared/a.bin", lambda store, path: store.read(path), "object_bytes"),
        ("declared/a.bin", stream, "stream_bytes"),
    ],
)
def test_reads_end(server, path, use, limit):
    with pytest.raises(LimitExceeded, match=limit) as caught:
        read(server.url(path), use)
    assert caught.value.address == server.url(path)
    assert server.sent_bytes < IN_FLIGHT_BYTES


@pytest.mark.parametrize("path", ["chunked/a.mp4", "declared/a.mp4"])
def test_a_copy_for_cutting_ends_and_is_removed(server, path, tmp_path):
    address = server.url(path)
    with pytest.raises(StoreError) as caught, open_source(address, None, OPTIONS, str(tmp_path), lambda *_: None):
        pytest.fail("it was copied")
    assert ("unsized_bytes" if path.startswith("chunked") else f"{DECLARED_BYTES:,} bytes") in str(caught.value)
    assert os.listdir(tmp_path) == []
    assert server.sent_bytes < IN_FLIGHT_BYTES


def test_a_copy_for_cutting_has_the_size_of_the_listing(server, tmp_path):
    info = ObjectInfo("a.mp4", 1_000_000)
    with (
        pytest.raises(sl.ObjectChanged, match="1000000 bytes when it was listed"),
        open_source(server.url("chunked/a.mp4"), info, {"retry": None}, str(tmp_path), lambda *_: None),
    ):
        pytest.fail("it was copied")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["moov.mp4", "boxes.mp4", "padding.ts"])
def test_the_search_for_a_video_ends(server, name):
    info = ObjectInfo(f"declared-39/{name}", 1 << 39, '"endless"')
    with pytest.raises(LimitExceeded, match="header_bytes") as caught:
        index_video(RemoteVideo(server.url(f"declared-39/{name}"), info, OPTIONS))
    assert caught.value.address == server.url(f"declared-39/{name}")
    assert server.sent_bytes < LIMITS.header_bytes + MAX_FILE_BYTES + IN_FLIGHT_BYTES


def test_an_endless_header_is_refused_by_its_size(server):
    info = ObjectInfo("moov.mp4", 1 << 39)
    with pytest.raises(LimitExceeded, match="its header has"):
        index_video(RemoteVideo(server.url("declared-39/moov.mp4"), info, {"retry": None}))
    assert server.sent_bytes < IN_FLIGHT_BYTES


def test_the_index_of_a_dataset_ends(server):
    loader = sl.VideoStreams(server.url("declared/moov.mp4"), size=(8, 8), storage_options=OPTIONS)
    with pytest.raises(sl.StreamloaderError, match="stream_bytes"):
        asyncio.run(loader.index())
    with pytest.raises(NotSupported, match="does not report its size"):
        asyncio.run(sl.TextStreams(server.url("chunked/a.txt"), storage_options=OPTIONS).index())
    assert server.sent_bytes < IN_FLIGHT_BYTES


def test_a_file_of_a_huge_object_is_refused(server):
    (source,) = expand_addresses(server.url("declared/a.bin"), None, OPTIONS)
    assert source.info.size == DECLARED_BYTES
    with pytest.raises(LimitExceeded, match="stream_bytes"):
        RemoteFile(source.address, source.info, OPTIONS)
    with RemoteFile(server.url("declared-30/a.bin"), ObjectInfo("a.bin", 1 << 30), OPTIONS) as file:
        assert file.read_at(5, 10) == bytes(10)
        with pytest.raises(LimitExceeded, match="object_bytes"):
            file.readall()


READER = """
import asyncio, resource, sys
import streamloader as sl

async def main():
    async with sl.open_store(sys.argv[1], retry=None, limits=sl.Limits(object_bytes=8 << 20)) as store:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in ("chunked/a.bin", "declared/a.bin"):
            try:
                await store.read(path)
            except sl.LimitExceeded:
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


def test_the_memory_of_a_reader_is_that_of_its_limit(server):
    found = subprocess.run(
        [sys.executable, "-c", READER, server.url("")[:-1]], capture_output=True, text=True, check=True, timeout=100
    )
    grown_kib = [int(line) for line in found.stdout.split()]
    assert len(grown_kib) == 2
    assert max(grown_kib) < 64 << 10


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_is_no_file_is_not_cut(kind, tmp_path):
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe.mp4")
        os.mkfifo(path)
    with (
        pytest.raises(UnreadableStream, match="is not a file"),
        open_source(path, None, {}, str(tmp_path), lambda *_: None),
    ):
        pytest.fail("it was read")


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "grows.mp4"
    path.write_bytes(bytes(6 << 20))
    grown = threading.Event()

    def append(*_):
        if not grown.is_set() or path.stat().st_size < 64 << 20:  # as fast as it is read
            grown.set()
            with open(path, "ab") as file:
                file.write(bytes(8 << 20))

    with (
        pytest.raises(sl.ObjectChanged),
        open_source(str(path), None, {}, str(tmp_path), append),
    ):
        pytest.fail("it was read")
    assert path.stat().st_size <= 32 << 20
