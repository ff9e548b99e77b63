"""What servers state in headers, versions and messages: right bytes or one typed error, and nothing raw in it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import traceback

import aiohttp
import pytest
import servers.obstore_threads  # noqa: F401
from yarl import URL

import streamloader as sl
from streamloader.stores.http.client import ErrorTranslator
from streamloader.stores.http.responses import ErrorContext
from streamloader.stores.registry import open_store
from streamloader.stores.ssh.sftp import ChannelLost, SftpError
from streamloader.testing import describe_streams
from streamloader.values import ByteRange

BODY = b"01234"
CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
ESCAPES = "\x1b[31mred\x07\u202egpj\r\nFAKE: all is well"
DATES = (
    b"Sat, 21 Nov 2026 10:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 GMT", b"Mon, 01 Jan 0001 00:00:00 GMT",
    b"Mon, 01 Jan 0001 00:00:00 +2359", b"Fri, 31 Dec 9999 23:59:59 -2359", b"Mon, 01 Jan 0001 00:00:00 -0000",
    b"Sat, 30 Feb 2026 10:00:00 GMT", b"Sat, 21 Nov 99999999999 10:00:00 GMT", b"9" * 5000, b"\xff\xfe", b"1", b"nan",
    b"Sat, 21 Nov 2026 10:00:00 +99999999999", b"Sat, 21 Nov \xd9\xa2\xd9\xa0\xd9\xa2\xd9\xa6 10:00:00 GMT",
    b"Thu, 1 Jan 1970 99:99:99 GMT", b", , :", b"Sat, 21 Nov 2026 1e9:00:00 GMT",
)  # fmt: skip
HEADERS = {
    b"Content-Length": (
        b"5", b"5", b"5", b"0", b"+5", b"-5", b"5_0", b"0x5", b"9" * 18, b"9" * 19, b"9" * 5000,
        b"18446744073709551621",
        b"", b"5, 5", b"\xd9\xa5", b"5.0", b"1e3",
    ),
    b"Content-Range": (
        b"bytes 0-0/5", b"bytes 0-4/5", b"bytes 2-3/5", b"bytes 2-3/*", b"bytes */5", b"bytes */" + b"9" * 5000,
        b"bytes 0-0/99999999999999999999", b"bytes -1-0/5", b"bytes 3-2/5", b"\xff", b"bytes 2-3/5\x1b[31m", b"",
    ),
    b"Last-Modified": DATES,
    b"Date": DATES,
    b"Retry-After": (*DATES, b"0", b"-5", b"1.5", b"9" * 400, b"inf", "²".encode(), b"1_0"),
    b"ETag": (
        b'"a"', b'W/"a"', b'""', b"a", b'"a"b"', b'"\xff\xfe"', b'"' + b"x" * 60_000 + b'"', b'"\xe2\x80\xae"',
        b'"\x7f"',        b" ",
    ),
    b"Content-Encoding": (b"identity", b"gzip", b"\xff", b"x" * 5000),
    b"Content-Type": (b"text/plain", b"\xff", b"multipart/byteranges", b";;;=", b"text/plain; charset=\xff"),
    b"Transfer-Encoding": (b"gzip", b"\xff"),
    b"Location": (b"/", b"http://[::1", b"\xff\xfe", b"//", b"http://127.0.0.1:99999999/", b"ssh://me:word@box/", b"?"),
    b"Accept-Ranges": (b"none", b"\xff"),
}  # fmt: skip
STATUSES = (200, 200, 206, 206, 206, 301, 304, 404, 416, 429, 500, 503)


@contextlib.asynccontextmanager
async def serve(make_response):
    """Answer each request with the bytes that a function returns for its first line. Yield the server's address."""

    async def answer(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(make_response(request))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def join_response(status, headers, body=BODY):
    lines = [f"HTTP/1.1 {status} X".encode(), *(name + b": " + value for name, value in headers)]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


def make_random_response(random_, request):
    status = random_.choice(STATUSES)
    names = random_.sample(sorted(HEADERS), random_.randrange(5))
    headers = [(name, random_.choice(HEADERS[name])) for name in names]
    if b"Content-Length" not in names and random_.random() < 0.7:
        headers.append((b"Content-Length", b"5"))
    return join_response(status, headers, b"" if request.startswith(b"HEAD") else BODY)


async def use_store(url, **options):
    """Use a store in all ways. Return the errors; raise those that are not of this package."""
    found = []
    timeouts = sl.Timeouts(connect=30.0, response=30.0)
    async with open_store(url, retry=None, timeouts=timeouts, **options) as store:
        uses = (
            lambda: store.head("a"),
            lambda: store.read("a", ByteRange(2, 4)),
            lambda: store.read("a"),
            lambda: store.read("a", ByteRange(2, 4), version='"a"'),
            lambda: store.read("a", ByteRange(-2)),
        )
        for use in uses:
            try:
                result = await use()
            except sl.StreamloaderError as error:
                found.append(error)
                assert_printable(error)
            else:
                if not isinstance(result, bytes):
                    assert result.size is None or 0 <= result.size < 2**63
                    assert result.modified is None or math.isfinite(result.modified)
                    assert result.version is None or len(result.version) <= 1024
    return found


def assert_printable(error):
    lines = "".join(traceback.format_exception(error)).split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert not any(line.startswith("FAKE") for line in lines)
    assert error.message.isprintable()
    assert len(error.message) < 3000
    delay = error.details.get("retry_after")
    assert delay is None or 0 <= delay <= 1e9


async def use_ipfs_store(url, **options):
    """Use a store of IPFS in all ways. Return the errors; raise those that are not of this package."""
    found = []
    async with open_store("ipfs://", retry=None, **options) as store:
        for use in (lambda: store.read(CID), lambda: store.head(CID)):
            try:
                await use()
            except sl.StreamloaderError as error:
                found.append(error)
                assert_printable(error)
    return found


USES = {
    "http": use_store,
    "s3": lambda url: use_store("s3://bucket", endpoint_url=url, anonymous=True),
    "gateway": lambda url: use_ipfs_store(url, gateways=[url]),
    "car": lambda url: use_ipfs_store(url, gateways=[url], format="car"),
    "plain gateway": lambda url: use_ipfs_store(url, gateways=[url], verify="none"),
    "rpc": lambda url: use_ipfs_store(url, rpc=url),
}


def check_random_headers(kind, seed, count):
    random_ = random.Random(seed)

    async def check():
        refused = 0
        async with serve(lambda request: make_random_response(random_, request)) as url:
            for _ in range(count):
                refused += bool(await USES[kind](url))
        return refused

    assert asyncio.run(check()) > count / 2


@pytest.mark.parametrize("kind", USES)
def test_random_headers(kind):
    check_random_headers(kind, 1, 50 if kind == "http" else 20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_random_headers(kind, seed):
    check_random_headers(kind, seed, 400)


@pytest.mark.parametrize("date", [DATES[1], DATES[2], DATES[4]])
def test_texts_with_any_date_can_be_indexed(date):
    response = [(b"Content-Length", b"5"), (b"Last-Modified", date)]

    async def check():
        async with serve(lambda request: join_response(200, response, b"" if b"HEAD" in request[:4] else BODY)) as url:
            return await asyncio.to_thread(lambda: list(describe_streams(sl.TextStreams(f"{url}/a.txt"))))

    (info,) = asyncio.run(check())
    assert info.length == 5


@pytest.mark.parametrize(
    ("options", "status", "headers", "body"),
    [
        ({}, 503, [(b"Retry-After", b"9" * 400)], b""),
        ({}, 200, [(b"Content-Encoding", ESCAPES.encode("utf-8").replace(b"\r\n", b""))], BODY),
        ({}, 206, [(b"Content-Range", b"bytes \x1b[31m")], BODY),
        ({}, 200, [(b"ETag", b'"' + "\u202e".encode() + b"x" * 9999 + b'"')], BODY),
        ({"gateways": True}, 500, [], ESCAPES.encode()),
        ({"gateways": True}, 403, [], ESCAPES.encode()),
        ({"gateways": True}, 503, [(b"Retry-After", "²".encode())], b"x"),
        ({"gateways": True}, 503, [(b"Retry-After", DATES[3])], b"x"),
        ({"rpc": True}, 500, [], b'{"Message": "\\u001b[31mred \\u202e\\r\\nFAKE: all is well", "Code": 0}'),
        (
            {"endpoint_url": True, "anonymous": True}, 403, [],
            f"<Error><Code>AccessDenied</Code><Message>{ESCAPES}</Message></Error>".encode(),
        ),
        (
            {"endpoint_url": True, "anonymous": True}, 400, [],
            f"<Error><Code>Nonsense</Code><Message>{ESCAPES * 9}</Message></Error>".encode(),
        ),
    ],
)  # fmt: skip
def test_texts_of_servers_are_printable_and_short(options, status, headers, body):
    async def check():
        length = [(b"Content-Length", str(len(body)).encode())]
        async with serve(lambda _: join_response(status, [*headers, *length], body)) as url:
            named = {name: url if value is True and name != "anonymous" else value for name, value in options.items()}
            kind = "ipfs://" if options.keys() & {"gateways", "rpc"} else "s3://bucket" if options else url
            if kind != "ipfs://":
                return await use_store(kind, **named)
            if "gateways" in named:
                named["gateways"] = [url]
            async with open_store(kind, retry=None, **named) as store:
                with pytest.raises(sl.StoreError) as caught:
                    await store.read(CID)
            assert_printable(caught.value)
            return [caught.value]

    assert asyncio.run(check())


def test_causes_do_not_show_the_addresses_that_they_contain():
    context = ErrorContext("https://host/a?x=***")
    with pytest.raises(sl.StoreTimeout) as caught, ErrorTranslator(context, URL("https://host/a"), sl.Timeouts()):
        raise aiohttp.ConnectionTimeoutError("Connection timeout to host https://host/a?x=Zebra")
    assert "Zebra" not in "".join(traceback.format_exception(caught.value))


def test_messages_of_ssh_servers_are_printable():
    for error in (SftpError(4, ESCAPES), ChannelLost(ESCAPES)):
        assert str(error).isprintable()
