"""HTTP stores and the differences between honest servers."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from aiohttp import web
from clocks import JumpingLoop, run_in, use_loop_time
from servers.web import serve_responses, serving

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    RangeNotSatisfiable,
    ServerBusy,
    StoreTimeout,
    TransferInterrupted,
)
from streamloader.stores import deadlines
from streamloader.stores.http.store import HttpStore
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.values import ByteRange

DATA = random.Random(3).randbytes(400_009)
SIZE = len(DATA)
DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
SPANS = [ByteRange(0, 1), ByteRange(5, 70_000), ByteRange(SIZE - 3, SIZE), ByteRange(17), ByteRange(-9), ByteRange()]


async def read_all(store, path="a.bin", **options):
    """Read all SPANS and compare."""
    for span in SPANS:
        start, end = span.within(SIZE)
        assert await store.read(path, span, **options) == DATA[start:end], span


def test_read_only():
    async def use():
        async with HttpStore("http://127.0.0.1:1") as store:
            with pytest.raises(NotSupported, match="read-only"):
                await store.write("a", b"")

    asyncio.run(use())


# --- connections -----------------------------------------------------------------------------------------------------


def test_hundreds_of_reads_share_a_few_connections():
    async def read():
        async with (
            HttpServer({"a.bin": DATA}) as server,
            HttpStore(server.url, limits=Limits(connections=8)) as store,
        ):
            spans = [ByteRange(at, at + 1_000) for at in range(0, 400_000, 1_000)]
            parts = await asyncio.gather(*(store.read("a.bin", span) for span in spans))
            assert b"".join(parts) == DATA[:400_000]
            assert 1 < server.connections <= 8
            assert len(server.requests) == 400

    asyncio.run(read())


def test_a_connection_is_used_again():
    async def read():
        async with HttpServer({"a.bin": DATA, "b.bin": b"x"}) as server, HttpStore(server.url) as store:
            await store.head("a.bin")
            await read_all(store)
            with pytest.raises(NotFound):
                await store.head("none")
            with pytest.raises(NotFound):
                await store.read("none")
            with pytest.raises(RangeNotSatisfiable):
                await store.read("a.bin", ByteRange(SIZE, SIZE + 1))
            server.fault = HttpFault("status", times=1)
            with pytest.raises(ServerBusy):
                await store.read("a.bin")
            server.fault = HttpFault("redirect", location="/b.bin", times=1)
            assert await store.read("a.bin") == b"x"
            assert server.connections == 1

    asyncio.run(read())


def test_a_connection_closed_by_the_server_is_replaced():
    # It hangs up without an answer, as a server does whose patience ended just when the request was sent.
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            assert await store.read("a.bin", ByteRange(0, 5)) == DATA[:5]
            server.fault = HttpFault("hangs-up", at=7, times=1)
            assert await store.read("a.bin", ByteRange(5, 9)) == DATA[5:9]
            assert server.connections == 2

    asyncio.run(read())


def test_waiting_for_a_turn_is_not_waiting_for_the_server():
    # 12 reads of 20 s over one connection, with an answer due within 60 s.
    async def slow(request):
        asyncio.get_running_loop().jump(20)
        return web.Response(body=b"x")

    async def read():
        async with serving(slow) as url:
            timeouts = Timeouts(connect=30, response=30)
            async with HttpStore(url, timeouts=timeouts, limits=Limits(connections=1)) as store:
                assert await asyncio.gather(*(store.read("a") for _ in range(12))) == [b"x"] * 12

    run_in(JumpingLoop, read)


def test_it_is_closed_with_the_event_loop():
    # The event loop that ends takes the connections along; the leak check looks for them.
    async def read():
        async with HttpServer({"a.bin": DATA}) as server:
            store = HttpStore(server.url)
            assert await store.read("a.bin") == DATA

    asyncio.run(read())


# --- what servers differ in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "undated/", "rangeless/", "moved/"])
def test_nginx(nginx_server, place):
    nginx_server.put({"http/a.bin": DATA, "http/empty": b""})

    async def read():
        async with HttpStore(nginx_server.url) as store:
            info = await store.head(f"{place}http/a.bin")
            assert info.size == SIZE
            assert info.version is not None
            assert info.modified is not None
            await read_all(store, f"{place}http/a.bin")
            await read_all(store, f"{place}http/a.bin", version=info.version)
            for span in (None, ByteRange(0), ByteRange(-5)):
                assert await store.read(f"{place}http/empty", span) == b""
            with pytest.raises(RangeNotSatisfiable):
                await store.read(f"{place}http/a.bin", ByteRange(SIZE - 1, SIZE + 1), version=info.version)
            nginx_server.put({"http/a.bin": DATA[::-1]})
            for span in SPANS:
                with pytest.raises(ObjectChanged):
                    await store.read(f"{place}http/a.bin", span, version=info.version)

    asyncio.run(read())


def test_nginx_says_no(nginx_server):
    async def read():
        async with HttpStore(nginx_server.url) as store:
            with pytest.raises(AccessDenied, match="403"):
                await store.read("forbidden/a.bin")
            with pytest.raises(AccessDenied, match="401"):
                await store.read("private/a.bin")
            with pytest.raises(NotFound, match="404"):
                await store.read("none.bin")
            with pytest.raises(ServerBusy, match="503") as caught:
                await store.read("busy/a.bin", ByteRange(9, 10))
            assert (caught.value.details, caught.value.offset) == ({"status": 503, "retry_after": 7.0}, 9)

    asyncio.run(read())


def test_a_server_without_ranges_is_named_once(caplog):
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = HttpFault("range-ignored", everywhere=True)
            with caplog.at_level(logging.WARNING, "streamloader"):
                for span in (None, ByteRange(), ByteRange(0, SIZE)):
                    assert await store.read("a.bin", span) == DATA
                assert caplog.messages == [], "a part was not wanted"
                await read_all(store)
                await read_all(store)
            assert len(caplog.messages) == 1
            assert f"{server.url} does not support ranges" in caplog.messages[0]
            with pytest.raises(RangeNotSatisfiable):
                await store.read("a.bin", ByteRange(5, SIZE + 1))

    asyncio.run(read())


def test_what_is_skipped_counts_as_progress(monkeypatch):
    # The wanted bytes come after 400 s; in each window of 100 s enough others do.
    use_loop_time(monkeypatch, deadlines)
    count = 0

    async def slow(request):
        nonlocal count
        count = 0
        answer = web.StreamResponse(headers={"Content-Length": str(20 * 10_000)})
        await answer.prepare(request)
        for number in range(20):
            await answer.write(bytes([number]) * 10_000)
            while count < 10_000 * (number + 1):  # noqa: ASYNC110 - the client runs in this loop
                await asyncio.sleep(0)
            asyncio.get_running_loop().jump(20)
        return answer

    def note(pace, size):
        nonlocal count
        count += size
        got_bytes(pace, size)

    got_bytes = deadlines.TransferDeadline.count_received
    monkeypatch.setattr(deadlines.TransferDeadline, "count_received", note)

    async def read():
        async with serving(slow) as url:
            async with HttpStore(url, timeouts=Timeouts(window=100, min_rate=200)) as store:
                assert await store.read("a", ByteRange(-10)) == bytes([19]) * 10
            async with HttpStore(url, timeouts=Timeouts(window=100, min_rate=20_000)) as store:
                with pytest.raises(StoreTimeout, match="B/s"):
                    await store.read("a", ByteRange(-10))

    run_in(JumpingLoop, read)


def _chunked(head_size=None, **headers):
    """Serve DATA without its length, for every request."""

    async def answer(request):
        if request.method == "HEAD" and head_size is not None:
            return web.Response(headers={"Content-Length": str(head_size), **headers})
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(DATA)
        return response

    return answer


def test_an_object_of_unknown_size():
    async def read():
        async with serving(_chunked()) as url, HttpStore(url) as store:
            info = await store.head("a.bin")
            assert (info.size, info.version) == (None, None)
            for span in [span for span in SPANS if span.start >= 0]:
                start, end = span.within(SIZE)
                assert await store.read("a.bin", span) == DATA[start:end]
            with pytest.raises(ProtocolError, match="reports no size"):
                await store.read("a.bin", ByteRange(-9))
            for span in (ByteRange(5, SIZE + 1), ByteRange(SIZE + 1), ByteRange(SIZE + 1, SIZE + 2)):
                with pytest.raises(RangeNotSatisfiable) as caught:
                    await store.read("a.bin", span)
                assert caught.value.details["size"] == SIZE
            assert await store.read("a.bin", ByteRange(SIZE)) == b""

    asyncio.run(read())


def test_an_object_whose_size_only_head_tells():
    async def read():
        async with serving(_chunked(SIZE, ETag='"1"')) as url, HttpStore(url) as store:
            assert (await store.head("a.bin")).size == SIZE
            await read_all(store)
            await read_all(store, version='"1"')

    asyncio.run(read())


def test_a_date_is_a_version_together_with_the_size():
    async def read():
        async with serving(_chunked(SIZE, **{"Last-Modified": DATE})) as url, HttpStore(url) as store:
            info = await store.head("a.bin")
            assert info.version == f"{DATE}; {SIZE} bytes"
            await read_all(store, version=info.version)
            for size in (SIZE - 1, SIZE + 1):  # was announced, of the same second
                with pytest.raises((TransferInterrupted, ProtocolError, ObjectChanged)):
                    await store.read("a.bin", version=f"{DATE}; {size} bytes")

    asyncio.run(read())


@pytest.mark.parametrize("etag", ['"strong"', 'W/"weak"', "unquoted"])
def test_only_strong_etags_are_sent_to_the_server(etag):
    sent_etags = []

    async def answer(request):
        sent_etags.append(request.headers.get("If-Match"))
        return web.Response(body=DATA, headers={"ETag": etag})

    async def read():
        async with serving(answer) as url, HttpStore(url) as store:
            assert (await store.head("a.bin")).version == etag
            assert await store.read("a.bin", version=etag) == DATA
            with pytest.raises(ObjectChanged):
                await store.read("a.bin", version='W/"other"')

    asyncio.run(read())
    assert sent_etags == [None, '"strong"' if etag == '"strong"' else None, None]


@pytest.mark.parametrize("reported", ["nothing", "0", "compressed"])
def test_a_head_that_tells_no_size(reported):
    fields = {
        "nothing": {},
        "0": {"Content-Length": "0"},
        "compressed": {"Content-Length": "7", "Content-Encoding": "gzip"},
    }

    async def answer(request):
        if request.method == "HEAD":
            return web.Response(headers=fields[reported])
        first = request.http_range.start or 0
        last = min(SIZE, request.http_range.stop or SIZE)
        where = {"Content-Range": f"bytes {first}-{last - 1}/{SIZE}", "ETag": '"1"'}
        return web.Response(status=206, body=DATA[first:last], headers=where)

    async def read():
        async with serving(answer) as url, HttpStore(url) as store:
            info = await store.head("a.bin")
            assert (info.size, info.version) == (SIZE, '"1"')

    asyncio.run(read())


# --- what could break off unnoticed ----------------------------------------------------------------------------------

UNMEASURED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n%s\r\n"


def test_an_end_that_cannot_be_told_from_a_break_is_refused():
    async def read():
        async with serve_responses(UNMEASURED % b"" + b"some of it") as url, HttpStore(url) as store:
            with pytest.raises(ProtocolError, match="unnoticed"):
                await store.read("a.bin")
            with pytest.raises(ProtocolError, match="unnoticed"):
                await store.read("a.bin", ByteRange(3))
            assert await store.read("a.bin", ByteRange(0, 9)) == b"some of i"
            with pytest.raises(TransferInterrupted) as caught:
                await store.read("a.bin", ByteRange(0, 11))
            assert caught.value.offset == 10

    asyncio.run(read())


def test_a_date_with_a_size_tells_an_end_from_a_break():
    head = UNMEASURED % f"Last-Modified: {DATE}\r\n".encode()

    async def read():
        async with serve_responses(head + b"some of it") as url, HttpStore(url) as store:
            assert await store.read("a.bin", version=f"{DATE}; 10 bytes") == b"some of it"
            with pytest.raises(TransferInterrupted):
                await store.read("a.bin", version=f"{DATE}; 11 bytes")
            with pytest.raises(ProtocolError):
                await store.read("a.bin", version=f"{DATE}; 9 bytes")

    asyncio.run(read())


@pytest.mark.parametrize("span", [ByteRange(3), ByteRange(-7)])
def test_a_range_without_a_known_end_is_refused(span):
    answer = b"HTTP/1.1 206 Some\r\nContent-Range: bytes 3-9/*\r\nContent-Length: 7\r\n\r\n3456789"

    async def read():
        async with serve_responses(answer) as url, HttpStore(url) as store:
            assert await store.read("a.bin", ByteRange(3, 10)) == b"3456789"
            with pytest.raises(ProtocolError, match="unnoticed"):
                await store.read("a.bin", span)

    asyncio.run(read())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: br\r\n\r\nhello",
        b"HTTP/1.1 206 Some\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 206 Some\r\nContent-Range: bytes 0-4/5\r\nContent-Range: bytes 5-9/10\r\n\r\nhello",
        b"HTTP/1.1 204 Nothing\r\n\r\n",
        b"HTTP/1.1 304 Same\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 299 Fine\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 412 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 501 Never\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"<html>hello</html>\r\n\r\n",
    ],
)
def test_invalid_responses(answer):
    async def read():
        async with serve_responses(answer) as url, HttpStore(url) as store:
            with pytest.raises(ProtocolError) as caught:
                await store.read("a.bin", ByteRange(0, 5))
            assert caught.value.address == f"{url}/a.bin"
            assert caught.value.offset == 0
            assert not caught.value.transient

    asyncio.run(read())


def test_a_part_in_place_of_the_whole_object_is_refused():
    answer = b"HTTP/1.1 206 Some\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\nhello"

    async def read():
        async with serve_responses(answer) as url, HttpStore(url) as store:
            with pytest.raises(ProtocolError, match="206"):
                await store.read("a.bin")

    asyncio.run(read())


def test_a_bomb_is_never_unpacked():
    async def read():
        async with HttpServer({"a.bin": DATA}) as server, HttpStore(server.url) as store:
            server.fault = HttpFault("zipped")
            with pytest.raises(ProtocolError, match="gzip"):
                await store.read("a.bin")
            assert [request.headers["accept-encoding"] for request in server.requests] == ["identity"]

    asyncio.run(read())


# --- versions by date ------------------------------------------------------------------------------------------------


def test_backends_with_different_etags_are_pinned_by_date():
    async def answer(request):
        answers.append(request.headers.get("If-Match"))
        headers = {"ETag": f'"{len(answers)}"', "Last-Modified": DATE, "Accept-Ranges": "bytes"}
        span = request.http_range
        if request.headers.get("Range"):
            start, end = span.start or 0, min(span.stop or SIZE, SIZE)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{SIZE}"
            return web.Response(status=206, body=DATA[start:end], headers=headers)
        return web.Response(body=DATA, headers=headers)

    async def read(**options):
        async with serving(answer) as url, HttpStore(url, **options) as store:
            info = await store.head("a.bin")
            parts = [ByteRange(at, min(at + 100_000, SIZE)) for at in range(0, SIZE, 100_000)]
            found = [await store.read("a.bin", part, version=info.version, size=info.size) for part in parts]
            return info, b"".join(found)

    answers = []
    with pytest.raises(ObjectChanged):
        asyncio.run(read())
    answers.clear()
    info, found = asyncio.run(read(pin="date"))
    assert found == DATA
    assert info.version == f"{DATE}; {SIZE} bytes"
    assert answers == [None] * len(answers)


def test_an_unknown_pin_is_refused():
    with pytest.raises(ConfigError, match="pin="):
        HttpStore("http://127.0.0.1:1", pin="size")
