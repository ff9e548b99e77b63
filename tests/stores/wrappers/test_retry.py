"""Transient errors are retried, to the byte; other errors are not."""

from __future__ import annotations

import asyncio
import logging
import types

import pytest
from store_leaves import Scripted, interrupted

import streamloader as sl
from streamloader.config import Retry, Timeouts
from streamloader.stores.wrappers import retry as retry_module
from streamloader.stores.wrappers.retry import RetryStore
from streamloader.values import ByteRange

AT_ONCE = Retry(attempts=4, first_wait=0, longest_wait=0, jitter=0)
DATA = bytes(range(256)) * 4000  # four pieces


def busy(retry_after=None):
    details = {} if retry_after is None else {"retry_after": retry_after}
    return sl.ServerBusy("503", address="plain://scripted/a", status=503, **details)


def store(*script, policy=AT_ONCE, **objects):
    inner = Scripted(script=list(script))
    inner.objects.update({"a": (DATA, "v1")} | objects)
    return RetryStore(inner, policy)


def play(wrapped, use):
    async def run():
        async with asyncio.timeout(60), wrapped:
            return await use(wrapped)

    return asyncio.run(run())


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only while the program waits; it records the waits."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        found.now += seconds

    found = types.SimpleNamespace(now=1000.0, waits=waits)
    monkeypatch.setattr(retry_module, "asyncio", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(retry_module, "time", types.SimpleNamespace(monotonic=lambda: found.now))
    return found


# --- which errors -----------------------------------------------------------------------------------------------------

TRANSIENT = [sl.Unreachable, sl.TransferInterrupted, sl.ServerBusy, sl.StoreTimeout]
FINAL = [
    sl.NotFound, sl.AccessDenied, sl.UntrustedAddress, sl.UntrustedHost, sl.RangeNotSatisfiable, sl.ObjectChanged,
    sl.CorruptContainer,
    sl.IntegrityError, sl.LimitExceeded, sl.NotEnoughMemory, sl.NotSupported, sl.ProtocolError,
    sl.StorageFull, sl.StoreError,
]  # fmt: skip
USES = {
    "head": lambda store: store.head("a"),
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("b", b"x"),
    "delete": lambda store: store.delete("a"),
    "list": lambda store: anext(store.list()),
}


def test_every_kind_of_error_is_on_one_side():
    kinds = {kind for kind in vars(sl.errors).values() if isinstance(kind, type) and issubclass(kind, sl.StoreError)}
    assert {kind for kind in kinds if kind.transient} == set(TRANSIENT)
    assert {kind for kind in kinds if not kind.transient} == set(FINAL)


@pytest.mark.parametrize("kind", TRANSIENT)
@pytest.mark.parametrize("use", ["head", "read", "delete", "list"])
def test_tries_again_what_may_pass(kind, use):
    wrapped = store(kind("1"), kind("2"), kind("3"))
    play(wrapped, USES[use])
    assert len(wrapped.inner.requests) == 4


@pytest.mark.parametrize("kind", FINAL)
@pytest.mark.parametrize("use", ["head", "read", "delete", "list"])
def test_never_tries_again_what_will_not(kind, use):
    error = kind("no", address="plain://scripted/a")
    wrapped = store(error)
    with pytest.raises(kind) as caught:
        play(wrapped, USES[use])
    assert caught.value is error
    assert str(error).startswith("no")
    assert "tried" not in str(error)
    assert len(wrapped.inner.requests) == 1


def test_errors_that_are_not_of_stores_pass():
    for error in (KeyError("a bug"), asyncio.CancelledError(), sl.ClosedError("closed")):
        wrapped = store(error)
        with pytest.raises(type(error)):
            play(wrapped, USES["head"])
        assert len(wrapped.inner.requests) == 1


# --- how long ---------------------------------------------------------------------------------------------------------


def test_gives_up_after_the_last_attempt(clock):
    wrapped = store(*(busy() for _ in range(9)), policy=Retry(attempts=5, first_wait=1, longest_wait=5, jitter=0))
    with pytest.raises(sl.ServerBusy) as caught:
        play(wrapped, USES["head"])
    assert len(wrapped.inner.requests) == 5
    assert clock.waits == [1, 2, 4, 5]
    assert caught.value.details == {"status": 503, "attempts": 5, "seconds": 12.0}
    assert "tried 5 times in 12.0 s" in str(caught.value)
    assert caught.value.address == "plain://scripted/a"


def test_waits_get_longer_by_chance_within_bounds(clock):
    policy = Retry(attempts=60, deadline=1e9, first_wait=0.5, longest_wait=30, jitter=2)
    with pytest.raises(sl.ServerBusy):
        play(store(*(busy() for _ in range(60)), policy=policy), USES["head"])
    doubled = [0.5 * 2**number for number in range(59)]
    assert all(min(30, least) <= wait <= min(30, least + 2) for wait, least in zip(clock.waits, doubled, strict=True))
    assert len(set(clock.waits[:5])) == 5


def test_starts_no_attempt_after_the_deadline(clock):
    policy = Retry(attempts=100, deadline=10, first_wait=4, longest_wait=4, jitter=0)
    wrapped = store(*(busy() for _ in range(9)), policy=policy)
    with pytest.raises(sl.ServerBusy) as caught:
        play(wrapped, USES["head"])
    assert clock.waits == [4, 4, 2]  # the last one begins at the deadline
    assert caught.value.details["attempts"] == 4
    assert caught.value.details["seconds"] == 10.0


def test_waits_as_long_as_the_server_asks_for(clock):
    policy = Retry(attempts=5, first_wait=1, longest_wait=20, jitter=0)
    play(store(busy(7), busy(0.5), busy(20), busy(-3), policy=policy), USES["read"])
    assert clock.waits == [7, 2, 20, 8]


@pytest.mark.parametrize("delay", [21, 60, 119.9, 120])
@pytest.mark.parametrize("use", ["head", "read", "list"])
def test_a_server_may_ask_for_any_wait_up_to_the_deadline(clock, delay, use):
    wrapped = store(busy(delay), policy=Retry())
    play(wrapped, USES[use])
    assert clock.waits == [delay]


def test_gives_up_at_once_if_the_server_asks_for_more_than_the_deadline(clock):
    wrapped = store(busy(120.5), policy=Retry())
    with pytest.raises(sl.ServerBusy, match=r"tried once.*longer wait than the 120 s .* raise Retry\(deadline"):
        play(wrapped, USES["head"])
    assert clock.waits == []


def test_gives_up_if_the_server_asks_for_more_than_what_is_left(clock):
    wrapped = store(busy(100), busy(30), policy=Retry())
    with pytest.raises(sl.ServerBusy, match=r"tried 2 times in 100\.0 s"):
        play(wrapped, USES["head"])
    assert clock.waits == [100]


@pytest.mark.parametrize("away_s", [4.8, 8, 30, 119])
@pytest.mark.parametrize("use", ["head", "read", "delete", "list"])
def test_a_server_may_be_away_until_the_deadline(clock, away_s, use):
    wrapped = store(policy=Retry())
    step, begin = wrapped.inner.step, clock.now

    def step_when_back(*request):
        if clock.now < begin + away_s:
            raise sl.Unreachable("away", address="plain://scripted/a")
        return step(*request)

    wrapped.inner.step = step_when_back
    play(wrapped, USES[use])
    assert away_s <= clock.now - begin <= 120


def test_a_server_that_stays_away_is_given_up_at_the_deadline(clock):
    wrapped = store(*(sl.Unreachable("away") for _ in range(99)), policy=Retry())
    with pytest.raises(sl.Unreachable) as caught:
        play(wrapped, USES["head"])
    assert caught.value.details["seconds"] == 120.0
    assert len(wrapped.inner.requests) < 20


@pytest.mark.parametrize("delay", ["soon", None, float("nan")])
def test_an_invalid_delay_is_ignored(clock, delay):
    error = busy()
    error.details["retry_after"] = delay
    play(store(error, policy=Retry(first_wait=1, jitter=0)), USES["head"])
    assert clock.waits == [1]


def test_a_cancelled_wait_ends():
    async def cancel(wrapped):
        task = asyncio.create_task(wrapped.head("a"))
        while not wrapped.inner.requests:  # noqa: ASYNC110 - until it waits
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(wrapped.inner.requests)

    assert play(store(busy(), policy=Retry(first_wait=60, longest_wait=60)), cancel) == 1


def test_one_attempt_is_none_again():
    wrapped = store(busy(), policy=Retry(attempts=1))
    with pytest.raises(sl.ServerBusy):
        play(wrapped, USES["read"])
    assert len(wrapped.inner.requests) == 1


# --- transfers that break off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 262_143, 262_144, 500_000, len(DATA) - 1])
@pytest.mark.parametrize("span", [None, ByteRange(1), ByteRange(7, 600_001), ByteRange(-900_000)])
def test_goes_on_where_it_broke_off(cut, span):
    start, end = (span or ByteRange()).within(len(DATA))
    cut = min(cut, end - start - 1)
    wrapped = store((cut, interrupted()), (0, interrupted()), (1, interrupted()))
    assert play(wrapped, lambda store: store.read("a", span)) == DATA[start:end]
    spans = [request[2] for request in wrapped.inner.requests]
    rest = "" if span is None or span.end is None else span.end
    first = str(span or ByteRange())
    again = f"[{start + cut}:{rest}]" if cut else first
    assert spans[:3] == [first, again, again]


def test_pins_the_version_it_began_with():
    wrapped = store((300_000, interrupted()), (0, busy()))
    assert play(wrapped, USES["read"]) == DATA
    assert [request[3] for request in wrapped.inner.requests] == [None, "v1", "v1"]


def test_another_version_is_never_mixed_in():
    class Replaced(Scripted):
        def step(self, *request):
            step = super().step(*request)
            if len(self.requests) == 2:
                self.objects["a"] = b"new" * 400_000, "v2"
            return step

    inner = Replaced(script=[(300_000, interrupted())])
    inner.objects["a"] = DATA, "v1"
    with pytest.raises(sl.ObjectChanged) as caught:
        play(RetryStore(inner, AT_ONCE), USES["read"])
    assert caught.value.offset == 300_000
    assert caught.value.address == "plain://scripted/a"


def test_without_a_version_the_time_has_to_be_the_same():
    wrapped = store((300_000, interrupted()), a=(DATA, None))  # which tells times
    assert play(wrapped, USES["read"]) == DATA
    assert wrapped.inner.requests[1][2:] == ("[300000:]", None)


class Modified(Scripted):
    """A store without versions, with a modification time for each request."""

    times = (5.0, 6.0)

    def info(self, path):
        return sl.ObjectInfo(path, len(self.find(path)[0]), None, self.times[min(len(self.requests), 2) - 1])


def test_without_a_version_another_time_is_another_object():
    inner = Modified(script=[(300_000, interrupted())])
    inner.objects["a"] = DATA, None
    with pytest.raises(sl.ObjectChanged) as caught:
        play(RetryStore(inner, AT_ONCE), USES["read"])
    assert caught.value.offset == 300_000


@pytest.mark.parametrize("cut", [0, 300_000])
def test_without_version_and_time_it_starts_again_only_before_the_first_byte(cut):
    class Unknown(Modified):
        times = (None, None)

    inner = Unknown(script=[(cut, interrupted())])
    inner.objects["a"] = DATA, None
    if cut:
        with pytest.raises(sl.TransferInterrupted):
            play(RetryStore(inner, AT_ONCE), USES["read"])
        assert len(inner.requests) == 1
    else:
        assert play(RetryStore(inner, AT_ONCE), USES["read"]) == DATA
        assert len(inner.requests) == 2


def test_breaking_off_behind_the_last_byte_is_the_end():
    for span in (None, ByteRange(5, 900_000), ByteRange(-7)):
        start, end = (span or ByteRange()).within(len(DATA))
        wrapped = store((end - start, interrupted()))
        assert play(wrapped, lambda store, span=span: store.read("a", span)) == DATA[start:end]
        assert len(wrapped.inner.requests) == 1


def test_a_transfer_that_gets_on_may_break_off_again_and_again():
    wrapped = store(*((40_000, interrupted()) for _ in range(20)))
    assert wrapped.timeouts.min_rate * wrapped.timeouts.window <= 40_000
    assert play(wrapped, USES["read"]) == DATA
    assert len(wrapped.inner.requests) == 21


def test_a_transfer_that_drips_does_not():
    wrapped = store(*((100, interrupted()) for _ in range(20)))
    with pytest.raises(sl.TransferInterrupted, match="tried 4 times"):
        play(wrapped, USES["read"])


def test_reports_the_start_once():
    starts = []

    async def read(store):
        pieces = store.stream(
            "a", ByteRange(-900_000), on_start=lambda info, start: starts.append((info.version, start))
        )
        return b"".join([chunk async for chunk in pieces])

    assert play(store((0, interrupted()), (400_000, interrupted())), read) == DATA[-900_000:]
    assert starts == [("v1", len(DATA) - 900_000)]


def test_a_stream_that_is_left_asks_for_nothing_more():
    async def leave(store):
        chunks = store.stream("a")
        first = await anext(chunks)
        await chunks.aclose()
        return first

    wrapped = store((300_000, interrupted()))
    assert DATA.startswith(play(wrapped, leave))
    assert len(wrapped.inner.requests) == 1


# --- listings and writing ---------------------------------------------------------------------------------------------


def test_a_listing_starts_again_and_yields_everything_once():
    names = {f"{number:03d}": (b"x", "v") for number in range(20)}
    wrapped = store((0, busy()), (7, interrupted()), (20, interrupted()), **names)

    async def names_of(store):
        return [info.path async for info in store.list()]

    assert play(wrapped, names_of) == ["a", *names]


def test_a_listing_that_is_too_long_to_remember_is_not_restarted(monkeypatch):
    monkeypatch.setattr(retry_module, "_MAX_REMEMBERED_ENTRIES", 3)
    wrapped = store((3, interrupted()), **{str(number): (b"x", "v") for number in range(9)})

    async def names_of(store):
        return [info.path async for info in store.list()]

    with pytest.raises(sl.TransferInterrupted):
        play(wrapped, names_of)


def test_writes_bytes_again():
    wrapped = store((0, busy()), (0, busy()))

    async def write(store):
        await store.write("b", b"all of it")
        return await store.read("b")

    assert play(wrapped, write) == b"all of it"


def test_writes_what_can_be_iterated_again():
    class Pieces:
        async def __aiter__(self):
            yield b"one"
            yield b"two"

    wrapped = store((0, busy()))
    play(wrapped, lambda store: store.write("b", Pieces()))
    assert wrapped.inner.objects["b"][0] == b"onetwo"
    assert len(wrapped.inner.requests) == 2


def test_never_writes_the_rest_of_an_iterator():
    async def pieces():
        yield b"one"

    wrapped = store((0, busy()))
    with pytest.raises(sl.ServerBusy):
        play(wrapped, lambda store: store.write("b", pieces()))
    assert len(wrapped.inner.requests) == 1


# --- logging ----------------------------------------------------------------------------------------------------------


def test_each_retry_is_a_line_without_secrets(caplog):
    error = sl.Unreachable("no way to https://me:sesame@host/a?token=sesame", address="https://me:sesame@host/a")
    with caplog.at_level(logging.INFO, "streamloader"):
        play(store(error, busy()), USES["head"])
    assert len(caplog.records) == 2
    assert "attempt 2 in 0.0 s" in caplog.text
    assert "attempt 3 in 0.0 s" in caplog.text
    assert all(type(value) in (int, float, str) for record in caplog.records for value in record.args)
    assert "host/a" in caplog.text
    assert "sesame" not in caplog.text


def test_is_part_of_every_opened_store():
    for policy, kind in ((Retry(), "RetryStore"), (Retry(attempts=1), "MemoryStore"), (None, "MemoryStore")):
        assert type(sl.open_store("memory://x", retry=policy)).__name__ == kind
    assert sl.open_store("memory://x").retry == Retry()
    assert sl.open_store("memory://x", timeouts=Timeouts(window=1)).timeouts.window == 1
