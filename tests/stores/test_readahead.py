"""RemoteFile: correct bytes for all orders of reads, few requests, and no leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import itertools
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import pytest
from polling import wait_until

from streamloader.config import Retry
from streamloader.errors import ClosedError, NotFound, NotSupported, ObjectChanged, ServerBusy, TransferInterrupted
from streamloader.stores import readahead, register_store, registry
from streamloader.stores.base import Body
from streamloader.stores.io_thread import close_shared_stores, open_shared_store
from streamloader.stores.memory import MemoryStore
from streamloader.stores.readahead import MAX_PROCESS_BYTES, UNIT_BYTES, RemoteFile
from streamloader.values import ObjectInfo

PLAIN = {"retry": None}
_numbers = itertools.count()


class GatedStore(MemoryStore):
    """Objects whose requests wait for `gate`, and fail at the offsets in `failing`."""

    schemes = ("gated",)
    gate = threading.Event()
    requests: ClassVar[list[tuple[int, int]]] = []
    waiting: ClassVar[list[int]] = []  # offsets of the requests that have come to the gate
    cancelled: ClassVar[list[int]] = []
    failing: ClassVar[dict[int, Exception]] = {}  # offset -> error, raised when bytes from there on are due
    short = False  # the last byte is left out, and no end announced

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        self.requests.append((span.start, span.end))
        async with super()._get(path, span, version) as body:
            yield Body(body.info, body.start, None if self.short else body.end, self._gated(body))

    async def _gated(self, body):
        self.waiting.append(body.start)
        try:
            while not self.gate.is_set():  # noqa: ASYNC110 - tests open it from another thread
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.append(body.start)
            raise
        whole = b"".join([chunk async for chunk in body.pieces])[: -1 if self.short else None]
        for start in range(0, len(whole), 1000):
            for offset, error in self.failing.items():
                if body.start + start <= offset < body.start + start + 1000:
                    yield whole[start : offset - body.start]
                    raise error
            yield whole[start : start + 1000]


@pytest.fixture
def gated(monkeypatch):
    """The class, with a gate that is open."""
    for name, value in {
        "gate": threading.Event(), "requests": [], "waiting": [], "cancelled": [], "failing": {}, "short": False
    }.items():  # fmt: skip
        monkeypatch.setattr(GatedStore, name, value)
    monkeypatch.setattr(registry, "_STORE_CLASSES", dict(registry._STORE_CLASSES))
    register_store("gated", GatedStore)
    GatedStore.gate.set()
    return GatedStore


def put(data, scheme="memory"):
    """Write a new object; return its address and info."""
    address = f"{scheme}://readahead/{next(_numbers)}.bin"
    store, path = open_shared_store(address, PLAIN)
    with store:
        store.write(path, data)
        return address, store.head(path)


def opened(data, scheme="memory", **keywords):
    address, info = put(data, scheme)
    return RemoteFile(address, info, PLAIN, **keywords)


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def exactly(file, count):
    parts = b""
    while len(parts) < count and (part := file.read(count - len(parts))):
        parts += part
    return parts


def test_bytes_that_have_arrived_are_known(gated):
    data = noise(3 * UNIT_BYTES)
    gated.gate.clear()
    with opened(data, "gated", initial_spans=[(0, 2 * UNIT_BYTES)]) as file:
        assert not file.has_arrived(0, 1)
        assert file.has_arrived(len(data), 9), "there is nothing to wait for"
        gated.gate.set()
        wait_until(lambda: file.is_idle)
        for start, count in ((0, 1), (0, 2 * UNIT_BYTES), (2 * UNIT_BYTES - 1, 1)):
            assert file.has_arrived(start, count)
        for start, count in ((2 * UNIT_BYTES, 1), (2 * UNIT_BYTES - 1, 2), (0, len(data))):
            assert not file.has_arrived(start, count)
        assert exactly(file, 2 * UNIT_BYTES) == data[: 2 * UNIT_BYTES]


# --- the right bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 1, 3 * UNIT_BYTES + 17, 40 * UNIT_BYTES + 5]
)
def test_all_of_it(size):
    data = noise(size)
    with opened(data) as file:
        assert file.size == size
        assert file.read() == data
        assert file.read() == b""
        assert file.read(10) == b""
        assert file.tell() == size
        assert file.stats.read == file.stats.fetched == size
        assert file.stats.dropped == 0


@pytest.mark.parametrize("seed", range(6))
def test_any_reads_and_seeks_are_those_of_a_local_file(seed):
    draw = random.Random(seed)
    data = noise(draw.choice([5 * UNIT_BYTES, 60 * UNIT_BYTES + 3]), seed)
    local = io.BytesIO(data)
    with opened(data, max_bytes=draw.choice([3 * UNIT_BYTES, 8 * UNIT_BYTES, 64 * UNIT_BYTES])) as file:
        for _ in range(150):
            what = draw.random()
            if what < 0.25:
                offset = draw.choice(
                    [draw.randrange(len(data) + 9), draw.randrange(len(data)) // UNIT_BYTES * UNIT_BYTES]
                )
                assert file.seek(offset) == local.seek(offset)
            elif what < 0.35:
                step = draw.randint(-min(local.tell(), 3 * UNIT_BYTES), 3 * UNIT_BYTES)
                assert file.seek(step, os.SEEK_CUR) == local.seek(step, os.SEEK_CUR)
            elif what < 0.4:
                assert file.seek(-7, os.SEEK_END) == local.seek(-7, os.SEEK_END)
            elif what < 0.6:
                buffer = bytearray(draw.choice([1, 100, 2 * UNIT_BYTES]))
                count = file.readinto(buffer)
                assert (count > 0) == (local.tell() < len(data))
                assert bytes(buffer[:count]) == local.read(count)
            else:
                count = draw.choice([1, 16, 4096, UNIT_BYTES, 5 * UNIT_BYTES])
                assert exactly(file, count) == local.read(count)
            assert file.tell() == local.tell()


def test_it_is_a_file_for_others():
    data = noise(6 * UNIT_BYTES + 11)
    with io.BufferedReader(opened(data), 1 << 16) as file:
        assert file.read(UNIT_BYTES + 5) == data[: UNIT_BYTES + 5]
        file.seek(5 * UNIT_BYTES)
        assert file.read() == data[5 * UNIT_BYTES :]
    assert file.closed


def test_invalid_arguments():
    with opened(b"abc") as file:
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        for arguments in ((-1,), (-4, os.SEEK_END), (0, 7)):
            with pytest.raises(ValueError, match="cannot seek"):
                file.seek(*arguments)
        assert file.read(0) == b""
        assert file.readinto(bytearray()) == 0
    for call in (file.read, lambda: file.readinto(bytearray(1)), lambda: file.read_at(0, 1)):
        with pytest.raises(ValueError, match="closed"):
            call()
    with pytest.raises(NotSupported, match="does not report its size"):
        RemoteFile("memory://readahead/x", ObjectInfo("x"), PLAIN)


def test_spans_and_places_without_going_there():
    data = noise(10 * UNIT_BYTES)
    with opened(data) as file:
        spans = [
            (5, 9),
            (UNIT_BYTES - 3, UNIT_BYTES + 3),
            (9 * UNIT_BYTES, 10 * UNIT_BYTES),
            *((n, n + 1) for n in range(40)),
        ]
        assert file.read_spans(spans) == [data[start:end] for start, end in spans]
        assert file.tell() == 0
        assert file.read_at(10 * UNIT_BYTES - 4, 16) == data[-4:]
        assert file.read_at(10 * UNIT_BYTES, 16) == b""
        requests = file.stats.requests
        assert exactly(file, 100) == data[:100]
        assert file.read_at(50, 16) == data[50:66]
        assert file.stats.requests == requests + 2, "what is there is not fetched again"


# --- ahead of the reader ---------------------------------------------------------------------------------------------


def test_several_requests_are_under_way_before_the_first_answers(gated):
    gated.gate.clear()
    data = noise(64 * UNIT_BYTES)
    with opened(data, "gated") as file:
        reader = threading.Thread(target=file.read, args=(1,))
        reader.start()
        wait_until(lambda: len(gated.requests) == 2)
        gated.gate.set()
        reader.join(60)
        assert gated.requests == [(0, UNIT_BYTES), (UNIT_BYTES, 2 * UNIT_BYTES)]
        assert file.stats.waits == 1
        assert file.stats.waited > 0


def test_depth_and_requests_grow_while_the_reader_has_to_wait(gated, monkeypatch):
    monkeypatch.setattr(readahead, "_MIN_RELEVANT_WAIT_S", 0.0)
    data = noise(160 * UNIT_BYTES)
    with opened(data, "gated") as file, ThreadPoolExecutor(1) as pool:
        whole, reads = b"", []
        while len(whole) < len(data):
            gated.gate.clear()
            reads.append(pool.submit(file.read, UNIT_BYTES))
            wait_until(lambda: file._progress.waiting or reads[-1].done())
            gated.gate.set()
            whole += reads[-1].result(60)
        assert whole == data
        sizes = [end - start for start, end in gated.requests]
        assert sizes[0] == UNIT_BYTES
        assert max(sizes) > 4 * UNIT_BYTES
        assert sum(sizes) == len(data), "nothing is fetched twice"
        assert file.stats.waits > 1


def test_a_reader_that_never_waits_stays_shallow(gated):
    data = noise(40 * UNIT_BYTES)
    with opened(data, "gated") as file:
        for number in range(40):
            wait_until(lambda: all(segment.done for segment in file._segments.values()))
            assert exactly(file, UNIT_BYTES) == data[number * UNIT_BYTES : (number + 1) * UNIT_BYTES]
        assert {end - start for start, end in gated.requests} == {UNIT_BYTES}


def test_memory_is_bounded_and_shared_fairly(monkeypatch):
    monkeypatch.setattr(readahead, "MAX_PROCESS_BYTES", 20 * UNIT_BYTES)
    data = noise(64 * UNIT_BYTES)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(opened(data, max_bytes=32 * UNIT_BYTES)) for _ in range(4)]
        for file in files:
            file._window = 64 * UNIT_BYTES
        for _ in range(60):
            for file in files:
                exactly(file, UNIT_BYTES)
            assert all(file._held <= 5 * UNIT_BYTES for file in files)
    assert MAX_PROCESS_BYTES >= readahead.MAX_FILE_BYTES


def test_a_seek_gives_up_what_is_not_needed_any_more(gated):
    data = noise(200 * UNIT_BYTES)
    with opened(data, "gated") as file:
        file._window = 16 * UNIT_BYTES
        exactly(file, 8 * UNIT_BYTES)
        wait_until(lambda: all(segment.done for segment in file._segments.values()))
        gated.gate.clear()
        exactly(file, 4 * UNIT_BYTES)
        under_way = [segment.start for segment in file._segments.values() if not segment.done]
        assert len(under_way) > 1
        wait_until(lambda: set(under_way) <= set(gated.waiting))
        file.seek(150 * UNIT_BYTES)
        assert gated.cancelled == [], "a seek alone does nothing"

        def open_later():
            try:
                wait_until(lambda: gated.cancelled == under_way)
            finally:
                gated.gate.set()

        opener = threading.Thread(target=open_later)
        opener.start()
        assert file.read(100) == data[150 * UNIT_BYTES : 150 * UNIT_BYTES + 100]
        opener.join()
        assert gated.cancelled == under_way
        assert file.stats.dropped >= len(under_way) * UNIT_BYTES


def test_both_ends_are_kept_while_they_are_needed(gated):
    """Read as a decoder opens an MP4 whose index is at its end."""
    data = noise(100 * UNIT_BYTES)
    with opened(data, "gated") as file:
        exactly(file, 64)
        file.seek(-UNIT_BYTES, os.SEEK_END)
        exactly(file, UNIT_BYTES)
        wait_until(lambda: all(segment.done for segment in file._segments.values()))
        requests = list(gated.requests)
        for _ in range(5):
            file.seek(0)
            assert exactly(file, 500) == data[:500]
            file.seek(-500, os.SEEK_END)
            assert exactly(file, 500) == data[-500:]
        assert gated.requests == requests


def test_initial_spans_are_requested_up_to_a_limit(gated):
    data = noise(10 * UNIT_BYTES)
    address, info = put(data, "gated")
    spans = [(-5 * UNIT_BYTES, UNIT_BYTES), (0, 1 << 50), (2 * UNIT_BYTES, 3 * UNIT_BYTES)]
    with RemoteFile(address, replace(info, size=1 << 40), PLAIN, initial_spans=spans) as file:
        assert file.stats.requests == 1


def test_initial_spans_are_requested_at_once(gated):
    gated.gate.clear()
    data = noise(100 * UNIT_BYTES)
    with opened(data, "gated", initial_spans=((0, UNIT_BYTES), (98 * UNIT_BYTES, 100 * UNIT_BYTES))) as file:
        wait_until(lambda: gated.requests == [(0, UNIT_BYTES), (98 * UNIT_BYTES, 100 * UNIT_BYTES)])
        gated.gate.set()
        file.seek(99 * UNIT_BYTES)
        assert exactly(file, UNIT_BYTES) == data[99 * UNIT_BYTES :]
        assert len(gated.requests) == 2


def test_an_object_of_another_size_is_refused_at_the_first_byte():
    data = noise(3 * UNIT_BYTES)
    address, info = put(data, "memory")
    for size in (UNIT_BYTES, 4 * UNIT_BYTES):
        for version in (info.version, None):
            with RemoteFile(address, replace(info, size=size, version=version), PLAIN) as file:
                for read in (file.readall, lambda file=file: file.read_at(5, 10)):
                    with pytest.raises(ObjectChanged, match=f"{size} bytes"):
                        read()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_comes_where_its_bytes_are_needed_and_not_before(gated):
    data = noise(6 * UNIT_BYTES)
    gated.failing[UNIT_BYTES + 777] = ServerBusy("try later", address="gated://x", offset=UNIT_BYTES + 777)
    with opened(data, "gated") as file:
        assert exactly(file, UNIT_BYTES + 777) == data[: UNIT_BYTES + 777]
        with pytest.raises(ServerBusy) as caught:
            file.read(10)
        assert caught.value.offset == UNIT_BYTES + 777
        assert file.tell() == UNIT_BYTES + 777
        with pytest.raises(ServerBusy):
            file.read(10)
        gated.failing.clear()
        assert exactly(file, len(data)) == data[UNIT_BYTES + 777 :], "a later read tries again"


def test_an_error_of_what_is_never_read_raises_nothing(gated):
    data = noise(8 * UNIT_BYTES)
    gated.failing[UNIT_BYTES + 5] = TransferInterrupted("broke off", address="gated://x", offset=UNIT_BYTES + 5)
    with opened(data, "gated") as file:
        assert exactly(file, UNIT_BYTES) == data[:UNIT_BYTES]
        wait_until(lambda: all(segment.done for segment in file._segments.values()))
        assert any(segment.error for segment in file._segments.values())
        file.seek(4 * UNIT_BYTES)
        assert exactly(file, UNIT_BYTES) == data[4 * UNIT_BYTES : 5 * UNIT_BYTES]


def test_another_version_is_never_read():
    address, info = put(noise(40 * UNIT_BYTES))
    with RemoteFile(address, info, PLAIN) as file:
        exactly(file, 10)
        put_again, path = open_shared_store(address, PLAIN)
        with put_again:
            put_again.write(path, noise(40 * UNIT_BYTES, 2))
        file.seek(20 * UNIT_BYTES)
        with pytest.raises(ObjectChanged):
            file.read(10)


def test_an_object_that_is_gone():
    address, info = put(b"abc")
    store, path = open_shared_store(address, PLAIN)
    with store:
        store.delete(path)
    with RemoteFile(address, info, PLAIN) as file, pytest.raises(NotFound):
        file.read(1)


def test_retries_are_those_of_the_store(gated):
    data = noise(3 * UNIT_BYTES)
    address, info = put(data, "gated")
    gated.failing[10] = TransferInterrupted("broke off", address=address, offset=10)

    class Once(dict):
        def items(self):
            found = list(super().items())
            self.clear()
            return found

    gated.failing = Once(gated.failing)
    with RemoteFile(address, info, {"retry": Retry(first_wait=0.0, jitter=0.0)}) as file:
        assert file.read() == data


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_cancels_what_is_under_way(gated):
    gated.gate.clear()
    file = opened(noise(20 * UNIT_BYTES), "gated", initial_spans=((0, 4 * UNIT_BYTES),))
    wait_until(lambda: len(gated.requests) == 1)
    file.close()
    file.close()
    wait_until(lambda: gated.cancelled == [0])
    assert not readahead._open_files


def test_a_file_that_is_dropped_is_closed(gated):
    gated.gate.clear()
    file = opened(noise(20 * UNIT_BYTES), "gated", initial_spans=((0, 4 * UNIT_BYTES),))
    wait_until(lambda: len(gated.requests) == 1)
    del file
    gc.collect()
    wait_until(lambda: gated.cancelled == [0])
    assert not readahead._open_files


def test_readers_get_an_error_when_the_stores_are_closed(gated):
    gated.gate.clear()
    errors = []

    def read():
        try:
            file.read(1)
        except ClosedError as error:
            errors.append(error)

    with opened(noise(20 * UNIT_BYTES), "gated") as file:
        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: file._progress.waiting)
        close_shared_stores()
        reader.join(60)
        assert len(errors) == 1
        with pytest.raises(ClosedError):
            file.read(1)


def test_a_waiting_reader_notices_that_the_thread_has_ended(gated, monkeypatch):
    """A waiting reader regularly checks that the I/O thread has not ended."""
    monkeypatch.setattr(readahead, "_THREAD_CHECK_INTERVAL_S", 0.01)
    with opened(noise(4 * UNIT_BYTES), "gated") as file:
        exactly(file, 1)
        wait_until(lambda: all(segment.done for segment in file._segments.values()))
        close_shared_stores()
        segment = readahead._Segment(3 * UNIT_BYTES, 4 * UNIT_BYTES)
        with pytest.raises(ClosedError):
            file._wait(segment, 3 * UNIT_BYTES)


def test_ctrl_c_while_waiting(gated):
    gated.gate.clear()
    data = noise(4 * UNIT_BYTES)
    with opened(data, "gated") as file:
        stopper = threading.Thread(
            target=lambda: (wait_until(lambda: file._progress.waiting), os.kill(os.getpid(), signal.SIGINT))
        )
        stopper.start()
        with pytest.raises(KeyboardInterrupt):
            file.read(10)
        stopper.join(60)
        gated.gate.set()
        assert file.read() == data


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_cannot_use_it_and_does_not_disturb_it():
    data = noise(30 * UNIT_BYTES)
    with opened(data) as file:
        exactly(file, 10)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(ClosedError):
                try:
                    file.read(1)
                except ClosedError:
                    file.close()
                    code = 7
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert file.read() == data[10:]


def test_a_server_that_sends_less_than_announced(gated):
    gated.short = True
    with opened(noise(UNIT_BYTES), "gated") as file, pytest.raises(TransferInterrupted) as caught:
        exactly(file, UNIT_BYTES)
    assert caught.value.offset == UNIT_BYTES - 1
