"""Archives whose chunks are in stores: which bytes are fetched, when, and how failed requests are handled."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
from archive_data import copy_to_memory, make_archive

from streamloader.archive.archive import open_archive
from streamloader.errors import ClosedError, CorruptStream, NotFound, ServerBusy
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.memory import MemoryStore
from streamloader.stores.registry import register_store


class GateStore(MemoryStore):
    """A store in memory whose transfers can be delayed, counted and refused."""

    open = threading.Event()
    requests: ClassVar[list[tuple[str, int, int]]] = []
    refused: ClassVar[list[Exception]] = []

    def _get(self, path, span, version):
        self.requests.append((path, *((span.start, span.end) if span else ())))
        if self.refused:
            raise self.refused.pop()
        return super()._get(path, span, version)

    async def stream(self, path, span=None, **options):
        while not self.open.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # the gate belongs to another thread
        async for piece in super().stream(path, span, **options):
            yield piece


register_store("gate", GateStore)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    frames = make_archive(folder, ("b_frames.mp4", "open_groups.mkv"))
    return folder / "store", np.concatenate(list(frames.values()))


@pytest.fixture
def remote(made):
    GateStore.open.set()
    GateStore.requests.clear()
    GateStore.refused.clear()
    address = copy_to_memory(made[0], "archive").replace("memory://", "gate://")
    store, root = open_shared_store(address)
    with store, open_shared_store("memory://archive")[0] as source:
        for info in list(source.list("here")):
            store.write(info.path, source.read(info.path))
    assert root == "here"
    GateStore.requests.clear()
    return address


def _open(made, remote, **options):
    return open_archive(made[0], places={0: remote}, **({"threads": 1} | options))


def test_frames_are_the_same_as_from_local_files(made, remote):
    with _open(made, remote) as archive:
        assert np.array_equal(archive[:].numpy(), made[1])
        assert np.array_equal(archive[::-3].numpy(), made[1][::-3])
        assert all(np.array_equal(frame.numpy(), made[1][n]) for n, frame in enumerate(archive))


def test_only_the_bytes_of_needed_packets_are_fetched(made, remote):
    with _open(made, remote) as archive:
        archive[2]
        stats = archive.stats()
        ((path, start, end),) = GateStore.requests
        assert path.startswith("here/chunks/")
        assert stats["requests"] == 1
        assert stats["byte_misses"] == end - start
        files = {str(file.relative_to(made[0])): file.stat().st_size for file in made[0].rglob("*") if file.is_file()}
        assert 0 < end - start < files[path.removeprefix("here/")]


def test_cached_bytes_are_not_fetched_again(made, remote):
    with _open(made, remote) as archive:
        archive[9]
        before = archive.stats()
        archive[7], archive[8]
        after = archive.stats()
        assert after["byte_misses"] - before["byte_misses"] < before["byte_misses"]
        assert after["byte_hits"] > before["byte_hits"]
    with _open(made, remote, cache_limit=0) as archive:
        assert np.array_equal(archive[9].numpy(), made[1][9])
        assert np.array_equal(archive[9].numpy(), made[1][9])
        assert archive.stats()["byte_hits"] == 0
        assert archive.reader._get_session().chunks._blocks == {}


def test_chunks_of_a_slice_are_fetched_concurrently(made, remote):
    with _open(made, remote) as archive:
        GateStore.open.clear()
        got = []
        reading = threading.Thread(target=lambda: got.append(archive[:]))
        reading.start()
        session = archive.reader._get_session()
        while session.counts.requests < 6:  # all are requested before the first has arrived
            assert reading.is_alive()
            time.sleep(0.001)  # a busy loop could starve the threads it waits for
        assert GateStore.requests == []
        GateStore.open.set()
        reading.join()
        assert np.array_equal(got[0].numpy(), made[1])
        assert len(GateStore.requests) == 6


def test_sequential_reads_are_prefetched(made, remote):
    with _open(made, remote) as archive:
        archive[0:4]
        assert archive.stats()["prefetched"] == 0
        for start in range(4, 80, 4):
            assert np.array_equal(archive[start : start + 4].numpy(), made[1][start : start + 4])
        stats = archive.stats()
        assert stats["prefetched"] > stats["byte_misses"] / 2
        assert stats["byte_hits"] >= stats["prefetched"] / 2
    with _open(made, remote, prefetch=False) as archive:
        for start in range(0, 80, 4):
            archive[start : start + 4]
        assert archive.stats()["prefetched"] == 0


def test_an_error_of_the_store_names_the_video_and_a_later_read_tries_again(made, remote):
    with _open(made, remote, storage_options={"gate://": {"retry": None}}) as archive:
        GateStore.refused.append(ServerBusy("too much to do", address="gate://archive/x"))
        with pytest.raises(ServerBusy, match="too much to do") as caught:
            archive[3]
        assert caught.value.stream == "b_frames"
        assert np.array_equal(archive[3].numpy(), made[1][3])


def test_a_truncated_longer_or_missing_object_is_detected(made, remote):
    store, _ = open_shared_store(remote)
    with store, _open(made, remote) as archive:
        archive[0]
        path = GateStore.requests[0][0]
        data = store.read(path)
        for wrong in (data[:-1], data + b"x", data[:40]):
            store.write(path, wrong)
            with _open(made, remote) as other, pytest.raises(CorruptStream, match="the catalog says") as caught:
                other[0:12]
            assert caught.value.stream == "b_frames"
        store.write(path, data[:-20] + bytes(20))
        store.delete(path)
        with _open(made, remote) as other, pytest.raises(NotFound):
            other[0]
        store.write(path, data)
        assert np.array_equal(archive[0:12].numpy(), made[1][0:12])


def test_closing_ends_pending_reads(made, remote):
    archive = _open(made, remote)
    session = archive.reader._get_session()
    GateStore.open.clear()
    errors = []

    def read():
        try:
            archive[0:30]
        except ClosedError as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not session.counts.requests:
        assert reading.is_alive()
        time.sleep(0.001)  # a busy loop could starve the thread it waits for
    archive.close()
    reading.join(60)
    assert not reading.is_alive()
    GateStore.open.set()
    assert len(errors) == 1


def test_over_ssh(made, ssh_server):
    shutil.copytree(made[0] / "chunks", ssh_server.data / "archive" / "chunks")
    address = ssh_server.address("archive")
    with open_archive(made[0], places={0: address}, storage_options=ssh_server.options(), threads=2) as archive:
        assert np.array_equal(archive[:].numpy(), made[1])
        assert np.array_equal(archive[[70, 3, 41]].numpy(), made[1][[70, 3, 41]])
