"""TextStreams of texts in stores: all that holds for local files, and what is new with them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import secrets
import sys
import threading

import anyio
import anyio.lowlevel
import cloudpickle
import numpy as np
import pytest
from canaries import canary
from polling import wait_until
from range_server import served
from store_leaves import Plain
from store_leaves import spaces as plain_spaces
from tiers import only_fast

import streamloader as sl
from streamloader.errors import (
    CorruptStream,
    NotFound,
    NotSupported,
    ObjectChanged,
    StreamNotFound,
    TransferInterrupted,
)
from streamloader.stores import registry
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.memory import MemoryStore
from streamloader.stores.readahead import UNIT_BYTES
from streamloader.streams import text_files
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import LaneThread, current_lane_thread
from streamloader.testing import StreamSuite, describe_streams, read_stream
from streamloader.values import ObjectInfo

PLAIN = {"retry": None}
TEXTS = ["", "a", "Ein Wort: größer.", "0123456789" * 15]
NAMES = ["a.txt", "b c.txt", "größe.txt", "sub/d.txt"]


def code_points(text):
    return [1000 + ord(character) for character in text]


def as_bytes(texts):
    return [{"data": np.frombuffer(text.encode(), np.uint8)} for text in texts]


def as_tokens(texts):
    return [{"data": np.array(code_points(text), np.int64)} for text in texts]


def write(address, data):
    """Write an object and return its address."""
    store, path = open_shared_store(address, PLAIN)
    with store:
        store.write(path, data)
    return address


def a_space():
    return f"memory://texts-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "sub").mkdir()
    for name, text in zip(NAMES, TEXTS, strict=True):
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with served(folder) as url:
        yield url


# --- the suite -------------------------------------------------------------------------------------------------------


class TestTextsBehindHttp(StreamSuite):
    resumes_like = "TestTextFiles of test_suite_bindings.py"  # here a loader does, below

    @pytest.fixture(autouse=True)
    def _url(self, url):
        self.addresses = [f"{url}/a.txt", f"{url}/b%20c.txt", f"{url}/größe.txt", f"{url}/sub/d.txt?signature=abc"]

    def make_dataset(self):
        return sl.TextStreams(self.addresses)

    def expected(self):
        return as_bytes(TEXTS)


class TestTokensBehindHttp(TestTextsBehindHttp):
    def make_dataset(self):
        return sl.TextStreams(self.addresses, code_points)

    def expected(self):
        return as_tokens(TEXTS)


class TestMixedTexts(StreamSuite):
    """A directory and a pattern of a store in memory, and local files; longer than what is read ahead."""

    resumes_like = "TestTextFiles of test_suite_bindings.py"
    texts = (bytes(range(100)), b"", b"y" * 21, b"zz")

    @pytest.fixture(autouse=True)
    def _stored(self, tmp_path, monkeypatch):
        monkeypatch.setattr(text_files, "_READ_AHEAD_BYTES", 5)
        space = a_space()
        for name, text in zip(("deep/1.txt", "deep/2.TXT", "3.bin"), self.texts, strict=False):
            write(f"{space}/{name}", text)
        (tmp_path / "4.bin").write_bytes(self.texts[3])
        self.addresses = [f"{space}/deep", f"{space}/[34].bin", tmp_path / "*.bin"]

    def make_dataset(self):
        return sl.TextStreams(self.addresses, storage_options=PLAIN)

    def expected(self):
        return [{"data": np.frombuffer(text, np.uint8)} for text in self.texts]

    def test_resumes_in_worker_processes(self):
        pytest.skip("objects are in the memory of one process: see test_a_mix_of_stores_plays_what_local_files_do")


# --- what is reported about them --------------------------------------------------------------------------------------


def test_infos_are_plain_and_have_no_secrets(folder, url):
    password, signature, token = (canary(f"http-{name}") for name in ("password", "signature", "bearer"))
    signed = f"{url}/a.txt?X-Amz-Signature={signature}"
    with_login = url.replace("://", f"://someone:{password}@") + "/b%20c.txt"
    dataset = sl.TextStreams(
        [signed, signed, with_login, folder / "a.txt"], storage_options={"headers": {"X-Key": token}}
    )
    infos = list(describe_streams(dataset))
    shown = f"{url}/a.txt?X-Amz-Signature=***"
    assert [info.key for info in infos] == [
        shown, f"{shown}#2", url.replace("://", "://***@") + "/b%20c.txt", str(folder / "a.txt"),
    ]  # fmt: skip
    assert [info.length for info in infos] == [0, 0, 1, 0]
    assert infos[0].extra["path"] == shown
    assert (infos[2].extra["size"], bool(infos[2].extra["version"])) == (1, True)
    for text_form in (repr(infos), repr(dataset), json.dumps(dict(dataset.settings)), repr(infos[2].extra)):
        assert not any(secret in text_form for secret in (password, signature, token))
    there = pickle.loads(pickle.dumps(dataset))
    assert [bytes(read_stream(there, info)["data"]) for info in infos] == [b"", b"", b"a", b""]


def test_a_state_outlives_its_signatures(url):
    """An address that is signed again later is the same dataset."""

    def loader(signature):
        addresses = [f"{url}/{name}?sig={signature}" for name in ("a.txt", "b%20c.txt", "sub/d.txt")]
        return sl.MultiStreamer(sl.TextStreams(addresses), batch_size=1, window=7, seed=1)

    with loader("today") as first:
        whole = [batch.numpy()["data"].copy() for batch in first]
    with loader("today") as first:
        next(iter(first))
        state = json.dumps(first.state_dict())
    assert "today" not in state
    with loader("tomorrow") as second:
        second.load_state_dict(json.loads(state))
        rest = [batch.numpy()["data"].copy() for batch in second]
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[1:]]


def test_patterns_and_braces_say_what_there_is(url):
    space = a_space()
    for number in range(12):
        write(f"{space}/c/part-{number:03}.txt", b"x" * number)
    write(f"{space}/c/.hidden.txt", b"h")
    write(f"{space}/c/notes.md", b"m")
    every = [f"{space}/c/part-{number:03}.txt" for number in range(12)]
    for address in (f"{space}/c", f"{space}/c/*.txt", f"{space}/**/*.txt", f"{space}/c/part-{{000..011}}.txt"):
        infos = describe_streams(sl.TextStreams(address, storage_options=PLAIN))
        assert [(info.key, info.length) for info in infos] == [(name, n) for n, name in enumerate(every)]
    (info,) = describe_streams(sl.TextStreams(f"{space}/c", pattern="*.md", storage_options=PLAIN))
    assert info.key == f"{space}/c/notes.md"
    infos = describe_streams(sl.TextStreams(f"{url}/{{sub/d,a,b%20c}}.txt"))
    assert [info.length for info in infos] == [150, 0, 1]


def test_what_is_not_there_is_told_when_it_is_indexed(url):
    for address in (f"{url}/no.txt", f"{a_space()}/*.txt"):
        dataset = sl.TextStreams(address, storage_options=PLAIN)
        with pytest.raises(StreamNotFound, match="from_texts") as caught:
            describe_streams(dataset)
        assert caught.value.address == address
    with pytest.raises(NotSupported, match="with braces"):
        describe_streams(sl.TextStreams(f"{url}/*.txt"))


def test_a_text_without_a_size_is_refused(monkeypatch):
    address = write(f"{a_space()}/a.txt", b"abc")

    async def vague(self, path):
        return ObjectInfo(path)

    monkeypatch.setattr(MemoryStore, "_head", vague)
    with pytest.raises(NotSupported, match="does not report its size") as caught:
        describe_streams(sl.TextStreams(address, storage_options=PLAIN))
    assert (caught.value.stream, caught.value.address) == (address, address)


# --- what is read of them --------------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch):
    """The paths and spans requested from stores in memory."""
    requests = []
    get = MemoryStore._get

    def counted(self, path, span, version):
        requests.append((path, None if span is None else (span.start, span.end)))
        return get(self, path, span, version)

    monkeypatch.setattr(MemoryStore, "_get", counted)
    return requests


def test_seeking_fetches_nothing_before_the_position(requests):
    size = 40 * UNIT_BYTES
    address = write(f"{a_space()}/huge.txt", bytes(size - 3) + b"end")
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    assert requests == []
    assert bytes(read_stream(dataset, info, seek=size - 5)["data"]) == b"\0\0end"
    assert min(start for _, (start, _) in requests) == size - UNIT_BYTES
    requests.clear()
    assert len(read_stream(dataset, info, seek=20 * UNIT_BYTES + 7, steps=10)["data"]) == 10
    assert min(start for _, (start, _) in requests) == 20 * UNIT_BYTES


def test_small_windows_are_served_from_memory(requests):
    text = bytes(range(256)) * 1024  # 256 KiB
    address = write(f"{a_space()}/a.txt", text)
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    assert bytes(read_stream(dataset, info, block=16)["data"]) == text
    assert sorted(requests) == requests
    assert len(requests) <= 4
    assert sum(end - start for _, (start, end) in requests) == len(text), "each byte is fetched once"


def test_a_text_that_has_arrived_is_read_without_the_thread(monkeypatch):
    calls = []

    async def call(function, *args):
        calls.append(function.__name__)
        return await anyio.to_thread.run_sync(function, *args)

    text = bytes(range(256)) * 300
    address = write(f"{a_space()}/a.txt", text)
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    monkeypatch.setattr(text_files, "in_lane_thread", call)

    async def run():
        prepared = await dataset.prepare(info)
        await anyio.to_thread.run_sync(wait_until, lambda: prepared.ready)
        assert prepared.max_bytes == len(text)
        stream = await prepared.open(stream_rng(0, 0, 0))
        out = np.zeros(100_000, np.uint8)
        read = 0
        while count := await stream.read_into({"data": out[read : read + 1000]}):
            read += count
        await stream.aclose()
        assert bytes(out[:read]) == text

    anyio.run(run)
    assert calls == []


def test_a_read_that_was_cancelled_ends_before_its_file_is_closed(monkeypatch):
    address = write(f"{a_space()}/a.txt", b"0123456789")
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    entered, leave, order = threading.Event(), threading.Event(), []
    fill, close = text_files._TextByteStream._fill_buffer, text_files._TextByteStream._close

    def slow_fill(self, wanted):
        entered.set()
        leave.wait(60)
        fill(self, wanted)
        order.append("read")

    def noted_close(self):
        order.append("close")
        close(self)

    monkeypatch.setattr(text_files._TextByteStream, "_fill_buffer", slow_fill)
    monkeypatch.setattr(text_files._TextByteStream, "_close", noted_close)
    monkeypatch.setattr(text_files.RemoteFile, "has_arrived", lambda self, start, count: False)

    async def run():
        thread = LaneThread("lane")
        current_lane_thread.set(thread)
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        async with anyio.create_task_group() as group:
            group.start_soon(stream.read_into, {"data": np.zeros(4, np.uint8)})
            await anyio.to_thread.run_sync(entered.wait, 60)
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(stream.aclose)
            await anyio.lowlevel.checkpoint()
            leave.set()
        assert thread.stop(60)

    anyio.run(run)
    assert order == ["read", "close"]


def test_documents_are_tokenized_from_one_read_each(requests):
    space = a_space()
    texts = ["größer " * count for count in (1, 0, 300)]
    for number, text in enumerate(texts):
        write(f"{space}/{number}.txt", text.encode("utf-16"))
    dataset = sl.TextStreams(space, code_points, encoding="utf-16", storage_options=PLAIN)
    infos = describe_streams(dataset)
    assert [info.length for info in infos] == [len(text) for text in texts]
    assert requests == [(f"{number}.txt", None) for number in range(3)]
    requests.clear()
    assert [read_stream(dataset, info)["data"].tolist() for info in infos] == [code_points(text) for text in texts]
    assert requests == [(f"{number}.txt", None) for number in range(3)]


def test_many_documents_are_counted_in_their_order(tmp_path):
    space = a_space()
    mixed = []
    for number in range(60):
        text = b"w" * (number * 7 % 31)
        (tmp_path / f"{number}.txt").write_bytes(text)
        mixed.append(tmp_path / f"{number}.txt" if number % 5 == 0 else write(f"{space}/{number}", text))
    infos = describe_streams(sl.TextStreams(mixed, list_of_ones, storage_options=PLAIN))
    assert [info.length for info in infos] == [number * 7 % 31 for number in range(60)]


def list_of_ones(text):
    return [1] * len(text)


def test_a_tokenizer_that_fails_leaves_nothing_running():
    space = a_space()
    for number in range(40):
        write(f"{space}/{number:02}.txt", b"x" * (number + 1))

    def failing(text):
        if len(text) == 5:
            raise LookupError("no such word")
        return [0]

    with pytest.raises(sl.StreamFailed, match="no such word") as caught:
        describe_streams(sl.TextStreams(space, failing, storage_options=PLAIN))
    assert caught.value.stream == f"{space}/04.txt"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("texts")]


def test_a_text_in_another_encoding_names_the_byte():
    address = write(f"{a_space()}/latin.txt", "größer".encode("latin-1"))
    with pytest.raises(sl.UnreadableStream, match=r"not utf-8: .* at byte 2; pass its encoding=") as caught:
        describe_streams(sl.TextStreams(address, list_of_ones, storage_options=PLAIN))
    assert (caught.value.stream, caught.value.address, caught.value.offset) == (address, address, 2)


# --- what changes and what fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [None, list_of_ones], ids=["bytes", "tokens"])
@pytest.mark.parametrize("new", [b"0123", b"0123456789+", b"9876543210"], ids=["shorter", "longer", "rewritten"])
def test_a_text_that_changed_after_the_index_is_refused(tokenizer, new):
    address = write(f"{a_space()}/a.txt", b"0123456789")
    dataset = sl.TextStreams(address, tokenizer, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    write(address, new)
    with pytest.raises((ObjectChanged, CorruptStream)) as caught:
        read_stream(dataset, info)
    assert (caught.value.stream, caught.value.address, caught.value.offset) == (info.key, address, 0)


@pytest.mark.parametrize("tokenizer", [None, list_of_ones], ids=["bytes", "tokens"])
def test_a_text_behind_http_that_changed_is_refused(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("0123456789")
    with served(tmp_path) as url:
        dataset = sl.TextStreams(f"{url}/a.txt", tokenizer)
        (info,) = describe_streams(dataset)
        path.write_text("9876543210")
        os.utime(path, (1, 1))
        with pytest.raises(ObjectChanged) as caught:
            read_stream(dataset, info)
        assert (caught.value.stream, caught.value.address, caught.value.offset) == (info.key, info.key, 0)
        path.unlink()
        with pytest.raises(NotFound) as missing:
            read_stream(dataset, info)
        assert missing.value.stream == info.key


def test_a_text_that_is_replaced_while_it_plays_is_noticed():
    old, new = b"o" * (8 * UNIT_BYTES), b"n" * (8 * UNIT_BYTES)
    address = write(f"{a_space()}/a.txt", old)
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)

    async def run():
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        out = np.zeros(UNIT_BYTES // 2, np.uint8)
        read = []
        try:
            assert await stream.read_into({"data": out}) == len(out)
            write(address, new)
            while count := await stream.read_into({"data": out}):
                read.append(bytes(out[:count]))
        finally:
            await stream.aclose()
            assert b"n" not in b"".join(read)

    with pytest.raises(ObjectChanged) as caught:
        anyio.run(run)
    assert caught.value.stream == info.key
    assert caught.value.address == address
    assert 0 < caught.value.offset < len(old)


class Versionless(Plain):
    """Knows no versions, only sizes and times."""

    schemes = ("versionless",)

    def info(self, path):
        data, version = self.find(path)
        return ObjectInfo(path, len(data), None, float(version.removeprefix("v")))


@pytest.mark.parametrize("tokenizer", [None, list_of_ones], ids=["bytes", "tokens"])
def test_a_text_of_a_store_without_versions_is_checked_again(monkeypatch, tokenizer):
    monkeypatch.setattr(
        registry, "_STORE_CLASSES", {**registry._STORE_CLASSES, "versionless": f"{__name__}:Versionless"}
    )
    space = f"versionless://texts-{secrets.token_hex(4)}"
    address = write(f"{space}/a.txt", b"0123456789")
    write(f"{space}/b.txt", b"abc")
    dataset = sl.TextStreams(space, tokenizer, storage_options=PLAIN)
    infos = describe_streams(dataset)
    assert [len(read_stream(dataset, info)["data"]) for info in infos] == [10, 3]
    with sl.MultiStreamer(dataset, batch_size=1, window=4) as loader:
        assert sum(int(batch.numpy()["valid"].sum()) for batch in loader) == 13
    write(address, b"9876543210")
    with pytest.raises(CorruptStream, match="changed since it was indexed") as caught:
        read_stream(dataset, infos[0])
    assert (caught.value.stream, caught.value.address, caught.value.offset) == (address, address, 0)
    del plain_spaces[space]["a.txt"]
    with pytest.raises(NotFound) as missing:
        read_stream(dataset, infos[0])
    assert missing.value.stream == address


def test_an_error_of_the_store_names_stream_and_byte_and_may_pass(monkeypatch):
    text = os.urandom(12 * UNIT_BYTES)
    address = write(f"{a_space()}/a.txt", text)
    dataset = sl.TextStreams(address, storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    stream_of = MemoryStore.stream

    async def failing(self, name, span=None, **options):
        if span is not None and span.end > 6 * UNIT_BYTES:
            raise TransferInterrupted("the line went dead", address=address, offset=span.start)
        async for chunk in stream_of(self, name, span, **options):
            yield chunk

    async def run():
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        out, read = np.zeros(10_000, np.uint8), bytearray()
        monkeypatch.setattr(MemoryStore, "stream", failing)
        try:
            error = None
            while error is None:
                try:
                    count = await stream.read_into({"data": out})
                except TransferInterrupted as caught:
                    error = caught
                else:
                    assert count, "nothing failed"
                    read += bytes(out[:count])
            assert (error.stream, error.address) == (info.key, address)
            assert error.offset >= len(read) > 0
            monkeypatch.setattr(MemoryStore, "stream", stream_of)
            ended = False
            while not ended:  # reading continues exactly where it stopped
                with contextlib.suppress(TransferInterrupted):  # of requests that were already in flight
                    count = await stream.read_into({"data": out})
                    read += bytes(out[:count])
                    ended = not count
        finally:
            await stream.aclose()
        return bytes(read)

    assert anyio.run(run) == text


def test_a_closed_stream_says_so():
    dataset = sl.TextStreams(write(f"{a_space()}/a.txt", b"abc"), storage_options=PLAIN)

    async def read_closed():
        (info,) = await dataset.index()
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        await stream.aclose()
        await stream.read_into({"data": np.zeros(2, np.uint8)})

    with pytest.raises(sl.ClosedError):
        anyio.run(read_closed)


# --- in a loader -----------------------------------------------------------------------------------------------------


def batches(dataset, state=None, count=None, **arguments):
    found = []
    with sl.MultiStreamer(dataset, batch_size=3, window=8, seed=3, **arguments) as loader:
        if state is not None:
            loader.load_state_dict(state)
        for batch in loader:
            found.append({name: array.copy() for name, array in batch.numpy().items()})
            if len(found) == count:
                return found, loader.state_dict()
    return found, None


def assert_same_batches(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("tokenizer", "workers"),
    only_fast(itertools.product((None, code_points), (0, 2)), fast=[(None, 0), (code_points, 2)]),
)
def test_a_mix_of_stores_plays_what_local_files_do(tmp_path, workers, tokenizer):
    """One list, three kinds of store: the same bits as from files, at once or resumed elsewhere."""
    texts = {f"{number:02}.txt": f"{number}:".encode() + b"text " * (number * 3 % 17) for number in range(15)}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    with served(tmp_path) as url:
        space = a_space()
        mixed = []
        for number, (name, text) in enumerate(texts.items()):
            if number % 3 == 0:
                mixed.append(tmp_path / name)
            elif number % 3 == 1:
                mixed.append(f"{url}/{name}")
            else:
                mixed.append(write(f"{space}/{name}", text))
        dataset = TakingAlong(sl.TextStreams(mixed, tokenizer), space)
        local, _ = batches(sl.TextStreams([tmp_path / name for name in texts], tokenizer))
        assert len(local) > 12
        assert_same_batches(batches(dataset, num_workers=workers)[0], local)
        first, state = batches(dataset, count=5, num_workers=workers)
        rest, _ = batches(dataset, state, num_workers=2 - workers)
        assert_same_batches(first + rest, local)


class TakingAlong(sl.StreamDataset):
    """Another dataset, and the objects of a space in memory, which workers have none of."""

    def __init__(self, dataset, space):
        self._dataset = dataset
        self._store = MemoryStore(space)

    fields = property(lambda self: self._dataset.fields)
    settings = property(lambda self: self._dataset.settings)

    async def index(self):
        return await self._dataset.index()

    async def open(self, info, rng):
        return await self._dataset.open(info, rng)

    async def prepare(self, info):
        return await self._dataset.prepare(info)


cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_each_text_is_fetched_once_an_epoch(requests):
    space = a_space()
    for number in range(3):
        write(f"{space}/{number}.txt", bytes([number]) * 1000)
    dataset = sl.TextStreams(space, storage_options=PLAIN)
    with sl.MultiStreamer(dataset, batch_size=1, window=300, shuffle=False) as loader:
        steps = np.concatenate([batch.numpy()["data"][batch.numpy()["valid"]] for batch in loader])
    assert bytes(steps) == b"".join(bytes([number]) * 1000 for number in range(3))
    assert len(set(requests[:3])) == 3, "the lane then continues with the next epoch"
    assert set(requests) == {(f"{number}.txt", (0, 1000)) for number in range(3)}


def test_memory_for_the_read_ahead_of_small_windows(monkeypatch):
    monkeypatch.setattr(text_files, "_READ_AHEAD_BYTES", 5)
    text = bytes(range(100))
    dataset = sl.TextStreams(write(f"{a_space()}/a.txt", text), storage_options=PLAIN)
    (info,) = describe_streams(dataset)
    for block in (1, 4, 5, 7, 200):
        assert bytes(read_stream(dataset, info, block)["data"]) == text
