"""Every way in which a web server may misbehave, at the start, in the middle and at the end of what is read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from faults.cases import JUMP_S, POSITIONS, Case, deadlines_due

from streamloader.config import Retry, Timeouts
from streamloader.errors import (
    AccessDenied,
    LimitExceeded,
    NotFound,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.base import Store
from streamloader.stores.registry import open_store
from streamloader.stores.wrappers.cache import CachingStore
from streamloader.testing.faults.certificates import make_certificate
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.values import ByteRange

SIZE = 300_007
DATA = random.Random(1).randbytes(SIZE)
OTHER = random.Random(2).randbytes(SIZE)  # of the same size: that it is another one shows in nothing else
BIG = DATA * 10
AT = dict(zip(POSITIONS, (0, SIZE // 2, SIZE - 1), strict=True))
PARTS = 5  # in which it is read
TIMEOUTS = Timeouts(connect=30, response=30, window=30, min_rate=600, close=0.5)
STALLS = ("stalls", "drips", "silent", "slow-head")  # kinds that only a deadline ends
HEAD_JUMP_S = 25  # more than a third of connect + response, and less than both
RETRY = Retry(attempts=4, deadline=50, first_wait=0.01, longest_wait=1.5, jitter=0.01)

Reader = Callable[[Store], Awaitable[bytes]]


async def in_parts(store: Store) -> bytes:
    """Look, then read range by range, of the version that was seen."""
    info = await store.head("a.bin")
    assert info.size is not None
    borders = [info.size * number // PARTS for number in range(PARTS + 1)]
    spans = [ByteRange(*pair) for pair in itertools.pairwise(borders)]
    return b"".join([await store.read("a.bin", span, version=info.version, size=info.size) for span in spans])


async def in_one(store: Store) -> bytes:
    """Read it as a whole."""
    return await store.read("a.bin")


async def pinned(store: Store) -> bytes:
    """Look, then read it as a whole, of the size that was seen."""
    info = await store.head("a.bin")
    return await store.read("a.bin", version=info.version, size=info.size)


async def cached(store: Store) -> bytes:
    """Read it as a whole through a cache."""
    with TemporaryDirectory() as folder:
        return await CachingStore(store, Path(folder, "cache")).read("a.bin")


async def either(store: Store) -> bytes:
    """Read it as a whole; if it was replaced before a byte of the old one had come, the new one is as right."""
    came = await in_one(store)
    return DATA if came == OTHER else came


async def slowly(store: Store) -> bytes:
    """Read it as a whole, with a rest after each piece."""
    parts = []
    async with contextlib.aclosing(store.stream("a.bin")) as chunks:
        async for chunk in chunks:
            parts.append(chunk)
            await asyncio.sleep(0.01)
    return b"".join(parts)


@dataclass(frozen=True)
class Way:
    """One way to misbehave; `errors` of the first try, empty if it has to be managed."""

    what: str
    kind: str = ""
    errors: tuple[type[StoreError], ...] = ()
    read: Reader = in_parts
    retry: Retry | None = None
    data: bytes = DATA
    server: dict[str, Any] = field(default_factory=dict)
    fault: dict[str, Any] = field(default_factory=dict)

    @property
    def stalls(self) -> bool:
        return self.kind in STALLS

    @property
    def jump_s(self) -> float:
        # The wait for HEAD is a part of the wait that it is a part of, which goes on.
        return HEAD_JUMP_S if self.fault.get("methods") == ("HEAD",) else JUMP_S

    async def attempt(self, position: str) -> bytes:
        async with HttpServer({"a.bin": self.data}, **self.server) as server:
            if self.kind:
                server.fault = HttpFault(self.kind, at=AT[position] * len(self.data) // SIZE, **self.fault)
            async with (
                deadlines_due(lambda: server.fault_count, self.jump_s) if self.stalls else contextlib.nullcontext()
            ):
                came = await _read(server.url, self.read, self.retry)
            assert bool(server.fault_count) == bool(self.kind), "the fault has to strike, or this shows nothing"
            return came


async def _read(url: str, read: Reader, retry: Retry | None = None, **options: Any) -> bytes:
    async with open_store(url, retry=retry, timeouts=TIMEOUTS, **options) as store:
        return await read(store)


async def _read_there(url: str, position: str, **options: Any) -> bytes:
    """Read just the byte at the position, from a server that cannot be reached in the first place."""
    at = AT[position]

    async def read(store: Store) -> bytes:
        return await store.read("a.bin", ByteRange(at, at + 1))

    return await _read(url, read, **options)


BROKEN = (TransferInterrupted, Unreachable)  # a reset may overtake the head of the answer
WAYS = [
    Way("no fault"),
    Way("truncated (Content-Length too long), ranges", "truncated", (TransferInterrupted,)),
    Way("truncated (Content-Length too long), whole", "truncated", (TransferInterrupted,), in_one),
    Way("close-delimited short body, ranges", "short", (TransferInterrupted,)),
    Way("close-delimited short body, whole", "short", (TransferInterrupted,), in_one),
    Way("close-delimited complete body, ranges", "unmeasured"),
    Way("close-delimited complete body, whole", "unmeasured", read=in_one),
    Way("half-closed, slow reader", "half-closed", read=slowly, data=BIG),
    Way("connection reset in the body", "reset", BROKEN),
    Way("stall in the body", "stalls", (StoreTimeout,)),
    Way("drip of 1 B/s", "drips", (StoreTimeout,), in_one),
    Way("malformed chunk", "chunks-broken", (TransferInterrupted, ProtocolError)),
    Way("chunks end early", "chunks-end", (TransferInterrupted,)),
    Way("more bytes than the range", "too-much", (ProtocolError,)),
    Way("range ignored (200)", "range-ignored"),
    Way("another range", "range-moved", (ProtocolError,)),
    Way("shorter range", "range-short", (ProtocolError,)),
    Way("range of wrong length", "range-length", (ProtocolError,)),
    Way("206 without Content-Range", "range-nameless", (ProtocolError,)),
    Way("multipart/byteranges", "range-several", (ProtocolError,)),
    Way("416 for an existing range", "range-refused", (ProtocolError,)),
    Way("stall before the header", "silent", (StoreTimeout,)),
    Way("header at 1 B/s", "slow-head", (StoreTimeout,)),
    Way("endless header", "endless-head", (ProtocolError,)),
    Way("hangs up before the answer", "hangs-up", (Unreachable,)),
    Way("reset before the answer", "reset-at-once", (Unreachable,)),
    Way("no HTTP", "no-http", (ProtocolError,)),
    Way("429, Retry-After", "status", (ServerBusy,), fault={"status": 429, "retry_after": "7"}),
    Way("503, Retry-After", "status", (ServerBusy,), fault={"status": 503, "retry_after": "7"}),
    Way("404 in between", "status", (NotFound,), fault={"status": 404}),
    Way("403 in between", "status", (AccessDenied,), fault={"status": 403}),
    Way("login page instead of data", "login-page", (ObjectChanged,)),
    Way("gzip bomb", "zipped", (ProtocolError,)),
    Way("compressed transfer", "zipped-transfer", (ProtocolError,)),
    Way("redirect loop", "redirect", (ProtocolError,), fault={"location": "/a.bin"}),
    Way("endless redirects", "redirect", (LimitExceeded,), fault={"location": "/a.bin?{n}"}),
    Way("redirect to link-local", "redirect", (UntrustedHost,), fault={"location": "http://169.254.169.254/latest"}),
    Way("redirect to 0.0.0.0", "redirect", (UntrustedHost,), fault={"location": "http://0.0.0.0/"}),
    Way("redirect to ftp", "redirect", (ProtocolError,), fault={"location": "ftp://127.0.0.1/a.bin"}),
    Way("redirect to nonsense", "redirect", (ProtocolError,), fault={"location": "http://[::1"}),
    Way("changed between ranges", "changed", (ObjectChanged,), fault={"other": OTHER}),
    Way("changed between ranges, If-Match ignored", "changed-blindly", (ObjectChanged,), fault={"other": OTHER}),
    Way(
        "changed between ranges, dates instead of ETags",
        "changed-blindly",
        (ObjectChanged,),
        fault={"other": OTHER},
        server={"etags": False},
    ),
    Way("changed in a range", "changed-within", (TransferInterrupted,), fault={"other": OTHER}),
    Way("changed in a range, retried", "changed-within", (ObjectChanged,), retry=RETRY, fault={"other": OTHER}),
    Way("changed in one read, retried", "changed-within", (ObjectChanged,), either, RETRY, fault={"other": OTHER}),
    *(
        Way(f"HEAD answered with {status}", "status", fault={"status": status, "methods": ("HEAD",)})
        for status in (400, 401, 403, 404, 405, 406, 410, 500, 501, 502, 503)
    ),
    Way("HEAD: hangs up", "hangs-up", fault={"methods": ("HEAD",)}),
    Way("HEAD: reset", "reset-at-once", fault={"methods": ("HEAD",)}),
    Way("HEAD: no HTTP", "no-http", fault={"methods": ("HEAD",)}),
    Way("HEAD: no answer", "silent", fault={"methods": ("HEAD",)}),
    Way("HEAD: endless redirects", "redirect", fault={"methods": ("HEAD",), "location": "/a.bin?{n}"}),
    *(
        Way(f"HEAD states {words}, {how}", "size-misstated", (ObjectChanged,), read, server=server, fault=fault)
        for words, size in (("a smaller size", 1_000), ("a larger size", SIZE + 1_000))
        for how, read, server in (
            ("ranges", in_parts, {}),
            ("ranges, no versions", in_parts, {"etags": False, "dates": False}),
            ("whole", pinned, {}),
            ("whole, no versions", pinned, {"etags": False, "dates": False}),
            ("cache", cached, {}),
        )
        for fault in ({"methods": ("HEAD",), "size": size},)
    ),
    Way("a range of another total", "size-misstated", (ObjectChanged,), fault={"size": SIZE + 7}),
    Way("Content-Range: Bytes", "range-capitalized"),
    *(
        Way(f"{what}, twice, retried", kind, read=read, retry=RETRY, fault={"times": 2, **more})
        for what, kind, read, more in (
            ("truncated", "truncated", in_parts, {}),
            ("truncated whole", "truncated", in_one, {}),
            ("close-delimited short body", "short", in_one, {}),
            ("connection reset in the body", "reset", in_parts, {}),
            ("stall in the body", "stalls", in_parts, {}),
            ("drip of 1 B/s", "drips", in_one, {}),
            ("stall before the header", "silent", in_parts, {}),
            ("hangs up before the answer", "hangs-up", in_parts, {}),
            ("reset before the answer", "reset-at-once", in_one, {}),
            ("429", "status", in_parts, {"status": 429, "retry_after": "0"}),
            ("503, Retry-After: 1", "status", in_parts, {"status": 503, "retry_after": "1"}),
        )
    ),
    Way("503 for good, retried", "status", (ServerBusy,), retry=RETRY, fault={"status": 503}),
    Way("503, Retry-After: 1 h, retried", "status", (ServerBusy,), retry=RETRY, fault={"retry_after": "3600"}),
    Way("truncated for good, retried", "truncated", (TransferInterrupted,), retry=RETRY),
]


async def _no_name(position: str) -> bytes:
    name = f"nowhere-{position}.test"
    with override_host_names({name: []}):
        return await _read_there(f"http://{name}", position)


async def _refused(position: str) -> bytes:
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        return await _read_there(f"http://127.0.0.1:{unused.getsockname()[1]}", position)


@contextlib.contextmanager
def _certified(**certificate: Any) -> Iterator[tuple[ssl.SSLContext, str]]:
    """Make a certificate; give what a server needs, and the file for those who trust it."""
    made = make_certificate(**certificate)
    with TemporaryDirectory() as folder:
        ca_file = Path(folder, "ca.pem")
        ca_file.write_bytes(made.pem)
        yield made.server_context(), str(ca_file)


async def _tls(position: str, *, trusted: bool, **certificate: Any) -> bytes:
    with _certified(**certificate) as (context, ca_file):
        async with HttpServer({"a.bin": DATA}, tls=context) as server:
            return await _read_there(server.url, position, **({"ca_file": ca_file} if trusted else {}))


async def _plain(position: str) -> bytes:
    async with HttpServer({"a.bin": DATA}) as server:
        return await _read_there(server.url.replace("http:", "https:"), position)


async def _downgraded(position: str) -> bytes:
    with _certified() as (context, ca_file):
        async with HttpServer({"a.bin": DATA}) as plain, HttpServer({"a.bin": DATA}, tls=context) as server:
            server.fault = HttpFault("redirect", at=AT[position], location=f"{plain.url}/a.bin")
            try:
                return await _read(server.url, in_parts, ca_file=ca_file)
            finally:
                assert not plain.connections, "the other server must not receive a request"


def cases() -> list[Case]:
    """Return all cases."""
    found = [
        Case(
            "http",
            way.what,
            position,
            lambda way=way, at=position: way.attempt(at),
            way.data,
            way.errors,
            stalls=way.stalls,
        )
        for way in WAYS
        for position in POSITIONS
    ]
    for what, attempt, error in (
        ("DNS failure", _no_name, Unreachable),
        ("connection refused", _refused, Unreachable),
        ("TLS: nobody we trust signed it", lambda at: _tls(at, trusted=False), UntrustedHost),
        ("TLS: of another host", lambda at: _tls(at, trusted=True, names=["else.test"]), UntrustedHost),
        ("TLS: expired", lambda at: _tls(at, trusted=True, expired=True), UntrustedHost),
        ("TLS: plain HTTP on its port", _plain, UntrustedHost),
    ):
        for position in POSITIONS:
            byte = DATA[AT[position] : AT[position] + 1]
            found.append(Case("http", what, position, lambda do=attempt, at=position: do(at), byte, (error,)))
    for position in POSITIONS:
        byte = DATA[AT[position] : AT[position] + 1]
        found.append(Case("http", "TLS: fine", position, lambda at=position: _tls(at, trusted=True), byte, ()))
        found.append(
            Case(
                "http",
                "redirect from https to http",
                position,
                lambda at=position: _downgraded(at),
                DATA,
                (ProtocolError,),
            )
        )
    return found
