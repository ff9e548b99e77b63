"""Behavior that all stores share: paths, counts, versions and deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle

import pytest
from clocks import VirtualLoop, run_in, use_loop_time
from store_leaves import Plain

import streamloader as sl
from streamloader.config import Limits, Timeouts
from streamloader.stores import deadlines
from streamloader.stores.base import Body, Store
from streamloader.values import ByteRange, ObjectInfo

SHORT = Timeouts(connect=0.05, response=0.05, window=0.2, min_rate=1000, close=0.1)
DATA = bytes(range(100)) * 100


class ResponseStore(Store):
    """Announces a configured response, and sends configured pieces."""

    def __init__(self, pieces=(DATA,), start=0, end=10_000, size=10_000, version="v", **options):
        super().__init__("response://me:sesame@here", **options)
        self.answer = pieces, start, end, size, version
        self.gone = 0  # contexts that were left

    async def _head(self, path):
        return ObjectInfo(path, self.answer[3], self.answer[4])

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        pieces, start, end, *_ = self.answer
        try:
            yield Body(await self._head(path), start, end, self.send(pieces))
        finally:
            self.gone += 1

    async def send(self, pieces):
        for piece in pieces:
            if isinstance(piece, (int, float)):
                await asyncio.sleep(piece)
            elif piece is None:
                await asyncio.Event().wait()
            else:
                yield piece


def play(use, deadline=60):
    async def run():
        async with asyncio.timeout(deadline):
            return await use()

    return asyncio.run(run())


@pytest.fixture
def play_fast(monkeypatch):
    """Run a coroutine function in virtual time: time passes only while the program waits."""
    use_loop_time(monkeypatch, deadlines)
    return functools.partial(run_in, VirtualLoop)


# --- counts and spans -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [1, 5000, len(DATA)])
def test_less_than_announced_is_an_interruption_at_the_byte(short):
    store = ResponseStore([DATA[:-short]])
    with pytest.raises(sl.TransferInterrupted) as caught:
        play(lambda: store.read("a"))
    assert caught.value.offset == len(DATA) - short
    assert caught.value.address == "response://***@here/a"
    assert f"before the end of the request at byte {len(DATA)}" in str(caught.value)
    assert store.gone == 1


def test_more_than_announced_is_an_error_and_never_yielded():
    store = ResponseStore([DATA, b"x"])

    async def collect():
        got = bytearray()

        async def take():
            async for chunk in store.stream("a"):
                got.extend(chunk)

        with pytest.raises(sl.ProtocolError) as caught:
            await take()
        assert caught.value.offset == len(DATA)
        return got

    assert play(collect) == DATA
    with pytest.raises(sl.ProtocolError):
        play(lambda: ResponseStore([DATA + b"x"]).read("a"))


def test_empty_pieces_are_ignored():
    assert play(lambda: ResponseStore([b"", DATA, b""]).read("a")) == DATA

    async def collect():
        return [chunk async for chunk in ResponseStore([b"", DATA[:5], b"", DATA[5:], b""]).stream("a")]

    assert play(collect) == [DATA[:5], DATA[5:]]


@pytest.mark.parametrize(
    ("span", "start", "end"),
    [(None, 1, 10_000), (None, 0, 9_999), (ByteRange(5, 9), 0, 10_000), (ByteRange(5, 9), 5, 8),
     (ByteRange(5, 9), 4, 8), (ByteRange(5), 5, 9_999), (ByteRange(-5), 0, 5), (ByteRange(-5), 9_995, 9_999)],
)  # fmt: skip
def test_another_span_than_requested_is_an_error(span, start, end):
    store = ResponseStore([DATA[start:end]], start, end)
    with pytest.raises(sl.ProtocolError, match="requested bytes") as caught:
        play(lambda: store.read("a", span))
    requested = (span or ByteRange()).within(len(DATA))
    assert caught.value.offset == requested[0]
    assert store.gone == 1


def test_sizes_that_the_server_does_not_report_are_not_compared():
    assert play(lambda: ResponseStore([DATA], 0, None, None).read("a")) == DATA
    assert play(lambda: ResponseStore([DATA[5:9]], 5, None, None).read("a", ByteRange(5, 9))) == DATA[5:9]
    assert play(lambda: ResponseStore([DATA[-4:]], 9_996, 10_000, None).read("a", ByteRange(-4))) == DATA[-4:]
    with pytest.raises(sl.ProtocolError):
        play(lambda: ResponseStore([DATA[4:9]], 4, None, None).read("a", ByteRange(5, 9)))


def test_past_the_end_by_the_size_of_the_response():
    with pytest.raises(sl.RangeNotSatisfiable):
        play(lambda: ResponseStore([DATA], 0, 10_000).read("a", ByteRange(0, 10_001)))


def test_another_version_is_refused_before_its_bytes():
    store = ResponseStore([None])  # never sends any
    with pytest.raises(sl.ObjectChanged, match="version was w and is now v"):
        play(lambda: store.read("a", version="w"))
    with pytest.raises(sl.ObjectChanged):
        play(lambda: ResponseStore(version=None).read("a", version="w"))
    assert store.gone == 1


def test_on_start_is_called_once_before_the_bytes():
    starts = []

    async def read(span):
        chunks = ResponseStore([DATA[5:9]], 5, 9).stream("a", span, on_start=lambda *what: starts.append(what))
        return [chunk async for chunk in chunks]

    assert play(lambda: read(ByteRange(5, 9))) == [DATA[5:9]]
    assert play(lambda: read(ByteRange(3, 3))) == []
    info = ObjectInfo("a", len(DATA), "v")
    assert starts == [(info, 5), (info, 3)]


def test_what_is_too_large_for_memory_is_refused():
    limits = Limits(object_bytes=9_999)
    with pytest.raises(sl.LimitExceeded, match="object_bytes"):
        play(lambda: ResponseStore(limits=limits).read("a"))
    assert play(lambda: ResponseStore([DATA[1:]], 1, limits=limits).read("a", ByteRange(1))) == DATA[1:]


# --- deadlines --------------------------------------------------------------------------------------------------------


class Stuck(ResponseStore):
    """Never responds."""

    async def _head(self, path):
        await asyncio.Event().wait()

    async def _list(self, prefix, *, recursive):
        await asyncio.Event().wait()
        yield

    async def _delete(self, path):
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("use", "stage"),
    [
        (lambda store: store.head("a"), "head"),
        (lambda store: store.read("a"), "waiting for the first bytes"),
        (lambda store: store.read("a", ByteRange(5, 5)), "head"),
        (lambda store: anext(store.list("a")), "listing"),
        (lambda store: store.delete("a"), "delete"),
    ],
)
def test_a_missing_response_has_a_deadline(use, stage, play_fast):
    with pytest.raises(sl.StoreTimeout) as caught:
        play_fast(lambda: use(Stuck(timeouts=SHORT)))
    assert caught.value.details == {"waited": 0.1, "stage": stage}
    assert caught.value.address == "response://***@here/a"
    assert stage in str(caught.value)


@pytest.mark.parametrize("sent", [0, 150])
def test_bytes_that_stop_coming_have_a_deadline(sent, play_fast):
    store = ResponseStore([DATA[:sent], None], timeouts=SHORT)
    with pytest.raises(sl.StoreTimeout) as caught:
        play_fast(lambda: store.read("a"))
    assert caught.value.offset == sent
    assert caught.value.details == {"waited": 0.2, "stage": "fetching"}
    assert store.gone == 1


def test_bytes_that_drip_have_a_deadline_too(play_fast):
    # Each piece comes in time, but too little comes in a window: 10 bytes where 200 are wanted.
    drip = [part for at in range(100) for part in (0.02, DATA[at : at + 1])]
    with pytest.raises(sl.StoreTimeout, match="B/s") as caught:
        play_fast(lambda: ResponseStore(drip, timeouts=SHORT).read("a"))
    assert 0 < caught.value.offset < 50


def test_bytes_that_come_fast_enough_have_none(play_fast):
    enough = [part for at in range(0, len(DATA), 500) for part in (0.03, DATA[at : at + 500])]
    assert play_fast(lambda: ResponseStore(enough, timeouts=SHORT).read("a")) == DATA


def test_time_between_reads_does_not_count(play_fast):
    async def read():
        got = b""
        store = ResponseStore([DATA[at : at + 1] for at in range(5)], 0, 5, 5, timeouts=SHORT)
        async with contextlib.aclosing(store.stream("a")) as chunks:
            async for chunk in chunks:
                got += chunk
                await asyncio.sleep(0.1)
        return got

    assert play_fast(read) == DATA[:5]


def test_a_deadline_of_the_caller_stays_its_own(play_fast):
    async def read():
        async with asyncio.timeout(0.01):
            await ResponseStore([None]).read("a")

    with pytest.raises(TimeoutError) as caught:
        play_fast(read)
    assert not isinstance(caught.value, sl.StoreTimeout)


def test_closing_has_a_deadline(play_fast):
    class Clinging(ResponseStore):
        async def _disconnect(self):
            await asyncio.Event().wait()

    async def close():
        store = Clinging(timeouts=SHORT)
        await store.read("a")
        await store.aclose()
        with pytest.raises(sl.ClosedError):
            await store.read("a")

    play_fast(close)


# --- turns, loops and twins -------------------------------------------------------------------------------------------


def test_concurrent_requests_are_limited():
    class Counting(ResponseStore):
        under_way = most = 0

        async def send(self, pieces):
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            for piece in pieces:
                await asyncio.sleep(0)
                yield piece
            self.under_way -= 1

    store = Counting(limits=Limits(requests=3))

    async def read():
        assert await asyncio.gather(*(store.read("a") for _ in range(20))) == [DATA] * 20

    play(read)
    play(read)  # in another loop
    assert store.most == 3


def test_connections_are_dropped_in_another_loop_and_closed_in_their_own():
    class Noting(ResponseStore):
        def _drop_connections(self):
            self.__dict__.setdefault("notes", []).append("forgotten")

        async def _disconnect(self):
            self.__dict__.setdefault("notes", []).append("closed")

    store = Noting()
    play(lambda: store.read("a"))
    play(lambda: store.read("a"))

    async def last():
        await store.read("a")
        await store.aclose()
        await store.aclose()

    play(last)
    assert store.notes == ["forgotten", "forgotten", "closed"]
    unused = Noting()
    play(unused.aclose)
    assert "notes" not in vars(unused)


def test_a_twin_leaves_connections_behind():
    store = Plain("plain://twins", password="sesame", timeouts=SHORT)
    play(lambda: store.write("a", b"x"))
    twin = pickle.loads(pickle.dumps(store))
    assert (twin.url, twin.timeouts, twin.password, twin._loop_id) == (store.url, SHORT, "sesame", None)
    assert store._loop_id is not None
    assert play(lambda: twin.read("a")) == b"x"


@pytest.mark.parametrize("path", [b"a", None, 7])
def test_a_path_must_be_a_string(path):
    with pytest.raises(sl.ConfigError, match="must be a str"):
        play(lambda: ResponseStore().read(path))


def test_without_writes_and_listings_the_error_names_a_remedy():
    class Poor(ResponseStore):
        supports_writes = supports_listing = False

    with pytest.raises(sl.NotSupported, match="read-only"):
        play(lambda: Poor().write("a", b""))
    with pytest.raises(sl.NotSupported, match="read-only"):
        play(lambda: Poor().delete("a"))
    with pytest.raises(sl.NotSupported, match="one by one"):
        play(lambda: anext(Poor().list()))


def test_shows_no_credentials():
    store = ResponseStore()
    assert repr(store) == "<ResponseStore response://***@here>"
    assert "sesame" not in f"{store.url} {store.address('a')}"
