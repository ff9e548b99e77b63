"""The misbehaving web server works correctly without a fault, and its faults affect the right requests and bytes."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request

import pytest
from faults import http_cases

from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.http import KINDS, HttpFault, HttpServer

DATA = bytes(range(256)) * 100


def ask(server, path="a.bin", **headers):
    """Ask with another client than the store's; return status, headers and body."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    method = fields.pop("method", "GET")
    request = urllib.request.Request(f"{server.url}/{path}", headers=fields, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def with_server(function, **options):
    """Call a function with a server, in a thread: it blocks."""

    async def serve():
        async with HttpServer({"a.bin": DATA, "ü b": b"x", "empty": b""}, **options) as server:
            return await asyncio.to_thread(function, server)

    return asyncio.run(serve())


def test_it_is_honest():
    def look(server):
        status, headers, body = ask(server)
        assert (status, headers["Content-Length"], body) == (200, str(len(DATA)), DATA)
        etag, date = headers["ETag"], headers["Last-Modified"]
        status, headers, body = ask(server, method="HEAD")
        assert (status, headers["Content-Length"], headers["ETag"], body) == (200, str(len(DATA)), etag, b"")
        for requested, start, end in (
            ("5-9", 5, 10),
            ("25599-", 25_599, 25_600),
            ("-3", 25_597, 25_600),
            ("9-99999", 9, 25_600),
        ):
            status, headers, body = ask(server, Range=f"bytes={requested}")
            assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{end - 1}/{len(DATA)}")
            assert body == DATA[start:end]
        for path, requested in (("a.bin", "25600-"), ("empty", "0-")):
            status, headers, _ = ask(server, path, Range=f"bytes={requested}")
            assert (status, headers["Content-Range"]) == (416, f"bytes */{25_600 if path == 'a.bin' else 0}")
        assert ask(server, "%C3%BC%20b?x=1")[2] == b"x"
        assert ask(server, "none")[0] == 404
        assert (ask(server, If_Match=etag)[0], ask(server, If_Match='"x"')[0]) == (200, 412)
        server.put("a.bin", DATA[::-1])
        status, headers, body = ask(server)
        assert body == DATA[::-1]
        assert headers["ETag"] != etag
        assert headers["Last-Modified"] != date
        assert server.fault_count == 0

    with_server(look)


def test_it_tells_no_versions_if_it_should_not():
    def look(server):
        headers = ask(server)[1]
        assert (headers["ETag"], headers["Last-Modified"]) == (None, None)

    with_server(look, etags=False, dates=False)


def test_it_strikes_where_it_is_told_to():
    def look(server):
        server.fault = HttpFault("status", at=1_000, status=418, times=2)
        assert ask(server, Range="bytes=0-999")[0] == 206
        assert ask(server, Range="bytes=1001-")[0] == 206
        assert ask(server, method="HEAD")[0] == 200
        assert [ask(server, Range="bytes=1000-1000")[0] for _ in range(3)] == [418, 418, 206]
        assert server.fault_count == 2
        server.fault = HttpFault("status", status=418, everywhere=True, methods=("HEAD",), times=1)
        assert [ask(server, method="HEAD")[0] for _ in range(2)] == [418, 200]
        assert [request.method for request in server.requests] == ["GET"] * 2 + ["HEAD"] + ["GET"] * 3 + ["HEAD"] * 2

    with_server(look)


def test_every_fault_is_documented_and_tested():
    assert all(function.__doc__ for function in KINDS.values())
    played = {way.kind for way in http_cases.WAYS} | {"cookie"}  # which is no fault
    assert set(KINDS) <= played
    with pytest.raises(ValueError, match="unknown fault 'nonsense'"):
        HttpFault("nonsense")


def test_host_names():
    real = socket.getaddrinfo
    with override_host_names({"a.test": ["127.0.0.1", "127.0.0.2"], "b.test": []}):
        found = [socket.getaddrinfo("a.test", 80, type=socket.SOCK_STREAM)[0][4][0] for _ in range(3)]
        assert found == ["127.0.0.1", "127.0.0.2", "127.0.0.2"]
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("b.test", 80)
        assert socket.getaddrinfo("127.0.0.9", 80)[0][4][0] == "127.0.0.9"
        with override_host_names({"c.test": ["127.0.0.3"]}):
            assert socket.getaddrinfo("c.test", 80)[0][4][0] == "127.0.0.3"
        with pytest.raises(ValueError, match=r"a\.test"), override_host_names({"a.test": []}):
            pass
        assert socket.getaddrinfo is not real
    assert socket.getaddrinfo is real
