"""Servers whose answers contradict each other or the request: the right bytes, or a typed error, whatever they say."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re

import pytest

from streamloader.errors import ObjectChanged, StoreError
from streamloader.stores.http.store import HttpStore
from streamloader.values import ByteRange

DATA = random.Random(5).randbytes(1000)
SIZE = len(DATA)
SPANS = [ByteRange(0, 10), ByteRange(990, 1000), ByteRange(-5), ByteRange(500), ByteRange(3, 997), None]
VERSIONS = {
    "etag": 'ETag: "v"\r\n', "weak": 'ETag: W/"v"\r\n', "none": "",
    "date": "Last-Modified: Sat, 21 Nov 2026 10:00:00 GMT\r\n",
}  # fmt: skip
CLOSE, CHUNKED, GZIP = "Connection: close\r\n", "Transfer-Encoding: chunked\r\n", "Content-Encoding: gzip\r\n"


def answer(status, headers, body=b""):
    return f"HTTP/1.1 {status} -\r\n{headers}\r\n".encode() + body


def length(count):
    return f"Content-Length: {count}\r\n"


def chunk(body):
    pieces = [body[start : start + 300] for start in range(0, len(body), 300)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def part(start, end, version, *, total=SIZE, unit="bytes", first=None, last=None, body=None, headers=None):
    body = DATA[start:end] if body is None else body
    stated = f"{start if first is None else first}-{end - 1 if last is None else last}/{total}"
    return answer(
        206, f"Content-Range: {unit} {stated}\r\n{length(len(body)) if headers is None else headers}{version}", body
    )


HEADS = {
    "right": lambda version: answer(200, length(SIZE) + version),
    "smaller": lambda version: answer(200, length(500) + version),
    "larger": lambda version: answer(200, length(2000) + version),
    "no length": lambda version: answer(200, CLOSE + version),
    "zero": lambda version: answer(200, length(0) + version),
    "chunked": lambda version: answer(200, CHUNKED + version),
    "compressed": lambda version: answer(200, length(300) + GZIP + version),
    "reset": lambda version: b"",
    **{str(status): lambda _, status=status: answer(status, length(0)) for status in (401, 404, 406, 410, 500, 502)},
}
HONEST = {
    "206": part,
    "206 Bytes": lambda start, end, version: part(start, end, version, unit="Bytes"),
    "206 chunked": lambda start, end, version: part(start, end, version, body=chunk(DATA[start:end]), headers=CHUNKED),
    "206 closed": lambda start, end, version: part(start, end, version, headers=CLOSE),
    "200": lambda start, end, version: answer(200, length(SIZE) + version, DATA),
}
LYING = {
    "206 without total": lambda start, end, version: part(start, end, version, total="*"),
    "smaller total": lambda start, end, version: part(start, end, version, total=max(end, 500)),
    "larger total": lambda start, end, version: part(start, end, version, total=58890),
    "end + 1": lambda start, end, version: part(start, end, version, last=end),
    "end - 1": lambda start, end, version: part(start, end, version, last=max(start, end - 2)),
    "other range": lambda start, end, version: part(0, SIZE, version) if start else part(5, 9, version),
    "short body": lambda start, end, version: part(
        start, end, version, body=DATA[start : end - 1], headers=length(end - start)
    ),
    "long body": lambda start, end, version: part(start, end, version, body=DATA[start:end] + b"x"),
    "short closed": lambda start, end, version: part(start, end, version, body=DATA[start : end - 1], headers=CLOSE),
    "several ranges": lambda start, end, version: answer(
        206, f"Content-Type: multipart/byteranges; boundary=B\r\n{length(10)}{version}", b"--B\r\n12345"
    ),
    "compressed": lambda start, end, version: part(start, end, version, headers=length(end - start) + GZIP),
    "no range": lambda start, end, version: answer(206, length(end - start) + version, DATA[start:end]),
    "two ranges": lambda start, end, version: part(
        start, end, version, headers=f"{length(end - start)}Content-Range: bytes 0-1/{SIZE}\r\n"
    ),
    "200 chunked": lambda start, end, version: answer(200, CHUNKED + version, chunk(DATA)),
    "200 closed": lambda start, end, version: answer(200, CLOSE + version, DATA),
    "200 short": lambda start, end, version: answer(200, length(SIZE) + version, DATA[:700]),
    "200 compressed": lambda start, end, version: answer(200, length(SIZE) + GZIP + version, DATA),
    "416": lambda start, end, version: answer(416, f"Content-Range: bytes */{SIZE}\r\n{length(0)}"),
    "416 without size": lambda start, end, version: answer(416, length(0)),
}
ENDS = ("206 closed", "short body", "short closed", "200 closed", "200 short")


@contextlib.asynccontextmanager
async def serve(head, get, version):
    async def respond(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while request := await reader.readuntil(b"\r\n\r\n"):
                if request.startswith(b"HEAD "):
                    data = HEADS[head](VERSIONS[version])
                    is_last = head in ("reset", "no length")
                else:
                    data, is_last = respond_to_get(request, get, VERSIONS[version]), get in ENDS
                writer.write(data)
                await writer.drain()
                if is_last:
                    break
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def respond_to_get(request, get, version):
    match = re.search(rb"(?i)\r\nrange: bytes=(\d*)-(\d*)", request)
    if match is None:
        return HONEST["200"](0, SIZE, version)
    first, last = match.groups()
    start, end = (int(first), min(SIZE, int(last) + 1) if last else SIZE) if first else (SIZE - int(last), SIZE)
    return (HONEST | LYING)[get](start, end, version)


async def read_everything(head, get, version):
    """Return the names of the reads that failed. No read returns wrong bytes."""
    failed = []
    async with serve(head, get, version) as url, HttpStore(url) as store:
        pins = {}
        try:
            info = await store.head("a")
            pins = {"version": info.version, "size": info.size}
        except StoreError:
            failed.append("head")
        for span in SPANS:
            start, end = (span or ByteRange()).within(SIZE)
            for options in ({}, pins):
                try:
                    found = await store.read("a", span, **options)
                except StoreError:
                    failed.append(str(span))
                    continue
                # The server may be the only one to know: what it says everywhere is the object.
                is_consistent = head == "smaller" and get == "416 without size" and not found
                assert found == DATA[start:end] or is_consistent, (span, options)
    return failed


def check(heads, gets, versions):
    async def run():
        for head in heads:
            for get in gets:
                for version in versions:
                    failed = await read_everything(head, get, version)
                    if get in HONEST and head not in ("smaller", "larger"):
                        assert failed == [], (head, get, version)

    asyncio.run(run())


@pytest.mark.parametrize("get", [*HONEST, *LYING])
def test_right_bytes_or_an_error(get):
    check(["right", "smaller", "404"], [get], ["etag"])


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_with_every_get(head):
    check([head], [*HONEST, *LYING], ["none", "date"] if head == "right" else ["weak"])


def test_the_size_in_a_refusal_has_to_agree():
    async def run():
        async with serve("smaller", "416", "etag") as url, HttpStore(url) as store:
            with pytest.raises(ObjectChanged, match=r"its size was 1000 bytes|was 500 bytes|contradicts itself"):
                await store.read("a", ByteRange(500))

    asyncio.run(run())


def test_the_end_of_a_part_without_total_is_that_of_head():
    async def run():
        async with serve("right", "206 without total", "etag") as url, HttpStore(url) as store:
            assert await store.read("a", ByteRange(-5)) == DATA[-5:]
            assert await store.read("a", ByteRange(500)) == DATA[500:]

    asyncio.run(run())
