"""The deadline decides how long a store waits for a server of S3 that is away or busy, and not a number of attempts."""

from __future__ import annotations

import asyncio
import itertools
import random
import types

import pytest
import servers.obstore_threads  # noqa: F401
from aiohttp import web
from faults.s3_server import PlainS3, refuse
from tiers import only_fast

from streamloader.config import Retry
from streamloader.errors import ServerBusy, StoreError
from streamloader.stores.objects.upload import PART_BYTES
from streamloader.stores.registry import open_store
from streamloader.stores.wrappers import retry as retry_module
from streamloader.values import ByteRange

KEYS = {"access_key_id": "AKPATIENCE", "secret_access_key": "checked-by-nobody"}
OBJECTS = {
    **{f"a/{number}": b"%d" % number for number in range(9)},
    "b//c": b"unusual",
    "large": bytes(range(256)) * 40,
}
LARGE = random.Random(1).randbytes(PART_BYTES + 77)


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only while the program waits. Waits at the same time do not add up."""
    real_sleep = asyncio.sleep
    found = types.SimpleNamespace(now=1000.0, waits=[])

    async def sleep(seconds):
        end = found.now + seconds
        found.waits.append(seconds)
        await real_sleep(0)
        found.now = max(found.now, end)

    monkeypatch.setattr(retry_module, "asyncio", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(retry_module, "time", types.SimpleNamespace(monotonic=lambda: found.now))
    return found


async def read_ranges(store):
    info = await store.head("large")
    spans = [ByteRange(start, start + 1024) for start in range(0, 10_240, 1024)]
    return b"".join([await store.read("large", span, version=info.version) for span in spans])


async def list_all(store, **options):
    return [info.path async for info in store.list(**options)]


async def in_pieces():
    for start in range(0, len(LARGE), 1_000_000):
        yield LARGE[start : start + 1_000_000]
    yield LARGE  # so that it has more than one part


async def in_one_piece():
    yield b"small"


USES = {
    "head": lambda store: store.head("large"),
    "get": lambda store: store.read("large"),
    "unusual key": lambda store: store.read("b//c"),
    "ranges": read_ranges,
    "list": list_all,
    "list once": lambda store: list_all(store, recursive=False),
    "put": lambda store: store.write("new", b"x"),
    "put in parts": lambda store: store.write("new", LARGE),
    "put an iterator": lambda store: store.write("new", in_pieces()),
    "put a small iterator": lambda store: store.write("new", in_one_piece()),
    "delete": lambda store: store.delete("large"),
}
AFTER = {"at first": 0, "in the middle": 2}


def play(use, intercept, **options):
    async def main():
        async with PlainS3(dict(OBJECTS)) as server, asyncio.timeout(60):
            server.page_keys = 3
            server.intercept = intercept
            async with open_store("s3://bucket", endpoint_url=server.url, **KEYS, **options) as store:
                result = await use(store)
            assert server.unfinished == []
            return result, server.objects

    return asyncio.run(main())


def be_away(clock, seconds, first, respond):
    """Return a function that responds to all requests from the number `first` on, until so many seconds have passed."""
    count, ends = 0, None

    def intercept(request, _):
        nonlocal count, ends
        count += 1
        if count <= first:
            return None
        ends = clock.now + seconds if ends is None else ends
        return respond(request) if clock.now < ends else None

    return intercept


def hang_up(request):
    request.transport.abort()
    return web.Response()


RESPONSES = {
    "SlowDown": lambda _: refuse(503, "SlowDown"),
    "SlowDown, Retry-After": lambda _: refuse(503, "SlowDown", **{"Retry-After": "21"}),
    "429, Retry-After": lambda _: refuse(429, "TooManyRequests", **{"Retry-After": "60"}),
    "internal error": lambda _: refuse(500, "InternalError"),
    "hangs up": hang_up,
}


WAYS = list(itertools.product(USES, RESPONSES, AFTER, (8, 30, 60)))
FAST = [
    ("head", "SlowDown", "at first", 60),
    ("get", "hangs up", "at first", 30),
    ("ranges", "429, Retry-After", "in the middle", 60),
    ("list", "SlowDown, Retry-After", "in the middle", 60),
    ("put", "hangs up", "at first", 8),
    ("put a small iterator", "429, Retry-After", "at first", 60),
    ("put an iterator", "SlowDown", "in the middle", 60),
]


@pytest.mark.parametrize(("use", "response", "first", "seconds"), only_fast(WAYS, FAST))
def test_a_server_may_be_away_until_the_deadline(clock, use, response, first, seconds):
    expected = play(USES[use], None)
    start = clock.now
    assert play(USES[use], be_away(clock, seconds, AFTER[first], RESPONSES[response])) == expected
    assert clock.now - start <= 121


@pytest.mark.parametrize("use", only_fast(["get", "list", "put in parts", "unusual key"], ["get", "put in parts"]))
@pytest.mark.parametrize("seconds", only_fast([21, 45, 60], [45]))
def test_the_server_is_left_alone_for_as_long_as_it_demands(clock, use, seconds):
    times = []

    def intercept(*_):
        times.append(clock.now)
        return refuse(503, "SlowDown", **{"Retry-After": str(seconds)}) if len(times) <= 2 else None

    play(USES[use], intercept)
    # obstore does not show the header, so the second attempt of a get comes early. Only that of a get.
    waited = times[2] - times[1]
    assert waited >= seconds - 1e-6
    assert use == "get" or times[1] - times[0] >= seconds - 1e-6


@pytest.mark.parametrize("use", only_fast(USES, ["get", "list once"]))
def test_a_server_that_stays_busy_is_given_up_at_the_deadline(clock, use):
    with pytest.raises(ServerBusy) as caught:
        play(USES[use], lambda *_: refuse(503, "SlowDown"))
    assert caught.value.details["seconds"] == 120.0
    assert caught.value.details["attempts"] > 6


@pytest.mark.parametrize("use", only_fast(["list", "unusual key", "put in parts"], ["list"]))
def test_a_server_that_demands_more_than_the_deadline_is_given_up_at_once(clock, use):
    with pytest.raises(ServerBusy):
        play(USES[use], lambda *_: refuse(503, "SlowDown", **{"Retry-After": "121"}))
    assert clock.waits == []


@pytest.mark.parametrize("use", ["put", "put in parts"])
def test_attempts_are_not_multiplied(clock, use):
    seen = []

    def intercept(request, _):
        seen.append(request.method)
        return refuse(500, "InternalError")

    with pytest.raises(StoreError) as caught:
        play(USES[use], intercept, retry=Retry(attempts=3))
    assert len(seen) == 3
    assert caught.value.details["attempts"] == 3
